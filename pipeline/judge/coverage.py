"""Coverage: which of the printed results, comparisons and statements of the lecture have a claim. Pure."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

from lightning_modules.names import nearest
from pipeline.common.errors import UserError
from pipeline.declare.claims import Claim, OpenClaim
from pipeline.declare.experiment import Experiment
from pipeline.declare.printed import PRINTED_FILE, Cell, PrintedFile, Statement

Kind = Literal["results", "relations", "lecture"]
KINDS: tuple[Kind, ...] = ("results", "relations", "lecture")

COVERAGE_COLUMNS = (
    "paper",
    "kind",
    "name",
    "says",
    "value",
    "state",
    "claims",
    "why",
)  # keys of a row as plain data

# Factors between a printed number and a claimed one: thousands, millions, billions; G operations in multiply-adds.
FACTORS = (1.0, 1e3, 1e6, 1e9, 5e8)

PLACE = re.compile(
    r"\b(table|figure|section|appendix)s?\s+((?:\d[\w.]*|[IVX]+(?:-\w)?|[A-Z]\b)"
    r"(?:\s*(?:,|;|and|or|to|/|&)\s*(?:and\s+)?(?:\d[\w.]*|[A-Z]\b))*)",
    re.IGNORECASE,
)
NUMBER = re.compile(r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?")
PERCENTAGE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
WORD = re.compile(r"[a-z]+\d*|\d+(?:\.\d+)?")


@dataclass(frozen=True)
class PrintedRow:
    """One printed result, comparison or statement, with its claims or the reason why it has none."""

    paper: str  # folder of the experiments
    kind: Kind
    name: str  # "Table 3: plain-34"; the id of a comparison or statement
    says: str  # what is measured, or the statement
    value: float | str | None  # None: a statement
    claims: tuple[str, ...] = ()  # EXPERIMENT/ID
    why: str = ""  # the reason under `not_claimed`

    @property
    def is_missing(self) -> bool:
        """Is it neither claimed nor listed with a reason?"""
        return not self.claims and not self.why

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON."""
        state = "claimed" if self.claims else "not claimed" if self.why else "missing"
        own = {"paper": self.paper, "kind": self.kind, "name": self.name, "says": self.says, "value": self.value}
        return own | {"state": state, "claims": list(self.claims), "why": self.why}


def printed_rows(experiments: Sequence[Experiment], printed: Mapping[str, PrintedFile]) -> list[PrintedRow]:
    """Return every row of the printed files, by folder of experiments, with its claims.

    Raises UserError for a reference to a claim or a row that does not exist.
    """
    by_name = {f"{e.name}/{claim.id}": claim for e in experiments for claim in e.claims}
    rows = []
    for folder, file in printed.items():
        folders = {folder, *file.also}
        in_folders = [experiment for experiment in experiments if experiment.folder in folders]
        reasons = not_claimed_reasons([e for e in in_folders if e.folder == folder])
        own = [*result_rows(folder, file, in_folders, by_name, reasons)]
        own += statement_rows(folder, "relations", file.relations, by_name, reasons)
        own += statement_rows(folder, "lecture", file.lecture, by_name, reasons)
        check_reasons(folder, reasons, own)
        rows += own
    return rows


def result_rows(
    folder: str,
    file: PrintedFile,
    experiments: Sequence[Experiment],
    by_name: Mapping[str, Claim],
    reasons: Mapping[str, str],
) -> Iterator[PrintedRow]:
    """Return the results of one file. A claim without reference is found by its value and its place."""
    cells = [
        (place, measured, name, cell)
        for place, groups in file.results.items()
        for measured, values in groups.items()
        for name, cell in values.items()
    ]
    found = match_results(cells, experiments)
    for place, measured, name, cell in cells:
        key = f"{place}: {name}"
        named = require_claims(cell.claims, by_name, f"{folder}/{PRINTED_FILE}: results.{place}.{measured}.{name}")
        claims = named or found.get((place, measured, name), ())
        why = "" if claims else reasons.get(key) or reasons.get(place, "")
        yield PrintedRow(folder, "results", key, measured, cell.value, claims, why)


def statement_rows(
    folder: str,
    kind: Kind,
    statements: Mapping[str, Statement],
    by_name: Mapping[str, Claim],
    reasons: Mapping[str, str],
) -> list[PrintedRow]:
    """Return comparisons, or statements of the lecture."""
    return [
        PrintedRow(
            folder,
            kind,
            name,
            statement.says,
            None,
            require_claims(statement.claims, by_name, f"{folder}/{PRINTED_FILE}: {kind}.{name}"),
            "" if statement.claims else reasons.get(name, ""),
        )
        for name, statement in statements.items()
    ]


def require_claims(claims: tuple[str, ...], by_name: Mapping[str, Claim], place: str) -> tuple[str, ...]:
    """Return `claims`. Raises UserError, starting with `place`, if one does not exist."""
    for claim in claims:
        if claim not in by_name:
            raise UserError(f"{place}: unknown claim {claim!r}{nearest(claim, by_name)}")
    return claims


def not_claimed_reasons(experiments: Iterable[Experiment]) -> dict[str, str]:
    """Return row, or place of a result -> the reason why it has no claim."""
    return {row: item.why for e in experiments for item in e.not_claimed for row in item.rows}


def check_reasons(folder: str, reasons: Mapping[str, str], rows: Sequence[PrintedRow]) -> None:
    """Raise UserError if `not_claimed` names a row that is not printed, or only rows that have claims."""
    known = {row.name for row in rows} | {row.name.partition(": ")[0] for row in rows if row.kind == "results"}
    for name in reasons:
        if name not in known:
            raise UserError(f"{folder}: not_claimed: no row {name!r} in {PRINTED_FILE}{nearest(name, known)}")
        if not any(row.why for row in rows if name in (row.name, row.name.partition(": ")[0])):
            raise UserError(f"{folder}: not_claimed: {name!r} has a claim; remove it")


def match_results(
    cells: Sequence[tuple[str, str, str, Cell]], experiments: Sequence[Experiment]
) -> dict[tuple[str, str, str], tuple[str, ...]]:
    """Return printed result without claims -> its claim.

    A claim counts for one result of each place that its source names; results that name it come first. As many
    results as possible have a claim; of claims that fit equally well, the one with most words of the result.
    """
    named = [(claim, source) for source, _, _, cell in cells for claim in cell.claims]
    cells = [cell for cell in cells if not cell[3].claims]
    offers = [
        (experiment, claim, place)
        for experiment in experiments
        for claim in experiment.claims
        if claim.by == "paper"
        for place in sorted(places(claim.source))
        if not any(name == f"{experiment.name}/{claim.id}" and is_at(place, source) for name, source in named)
    ]
    if not cells or not offers:
        return {}
    worth = np.zeros((len(cells), len(offers)))  # 0: does not fit; one more match outweighs any likeness
    for row, (source, measured, name, cell) in enumerate(cells):
        for column, (experiment, claim, place) in enumerate(offers):
            if is_at(place, source) and fits(measured, cell.value, claim, experiment):
                worth[row, column] = len(cells) + likeness(f"{measured} {name}", claim)
    chosen = zip(*linear_sum_assignment(worth, maximize=True), strict=True)
    return {
        cells[row][:3]: (f"{offers[column][0].name}/{offers[column][1].id}",)
        for row, column in chosen
        if worth[row, column]
    }


def likeness(text: str, claim: Claim) -> float:
    """Return how many words of a printed result and of a claim are the same, from 0 to 1 (Dice coefficient)."""
    keys = (getattr(claim, key, None) or "" for key in ("id", "of", "metric"))
    ours, theirs = set(WORD.findall(" ".join(keys).lower())), set(WORD.findall(text.lower()))
    return 2 * len(ours & theirs) / (len(ours) + len(theirs))


@cache
def places(source: str) -> frozenset[str]:
    """Return the tables, figures and sections that a text names: "Tables 4 and 5" -> {"table 4", "table 5"}.

    A text that names none is a place itself.
    """
    found = set()
    for word, numbers in PLACE.findall(source):
        marks = re.findall(r"\d[\w.]*|[IVX]+(?:-\w)?|[A-Z]\b", numbers)
        if re.search(r"\bto\b", numbers) and all(mark.isdigit() for mark in marks):
            marks = [str(number) for number in range(int(marks[0]), int(marks[-1]) + 1)]
        found |= {f"{word.lower()} {mark.rstrip('.')}" for mark in marks}
    return frozenset(found or {source.lower()})


@cache
def is_at(place: str, source: str) -> bool:
    """Is the place of a claim, from `places`, one of the printed source, or inside it?"""
    return any(place == own or place.startswith((f"{own}.", f"{own}(")) for own in places(source))


def fits(measured: str, value: float | str, claim: Claim, experiment: Experiment) -> bool:
    """Does a claim state the printed value? An accuracy may be claimed as an error.

    The number of an error or accuracy is a percentage, and no property of a network or recipe. A comparison of
    printed values states its result, and no error among these values.
    """
    metric = getattr(claim, "metric", "")
    if metric.startswith("test/") and ("top5" in metric) != ("top-5" in measured):
        return False
    is_percentage = "%" in measured
    if is_percentage and metric.startswith(("model/", "recipe/")):
        return False
    numbers = numbers_in(value, NUMBER) if isinstance(value, str) else [value]
    claimed = claimed_numbers(claim, experiment, is_percentage)
    accepted = [number * factor for number in numbers for factor in FACTORS]
    if "accuracy" in measured:
        accepted += [100 - number for number in numbers]
    return any(abs(a - c) <= 1e-6 * max(abs(a), abs(c)) for a in accepted for c in claimed)


def claimed_numbers(claim: Claim, experiment: Experiment, is_percentage: bool) -> list[float]:
    """Return the numbers of a claim: its own, those of printed values, or those that an open claim says.

    Of a percentage, printed values are left out, and so are numbers of an open claim that are none.
    """
    if isinstance(claim, OpenClaim):
        return numbers_in(claim.says, PERCENTAGE if is_percentage else NUMBER)
    found = [getattr(claim, "claimed", None)]
    for metric in () if is_percentage else (claim.metric, getattr(claim, "over_metric", None) or ""):
        kind, _, name = metric.partition("/")
        if kind == "printed" and name in experiment.printed:
            found.append(experiment.printed[name].value)
    return [float(n) for n in found if isinstance(n, int | float) and not isinstance(n, bool)]


def numbers_in(text: str, pattern: re.Pattern[str]) -> list[float]:
    """Return the numbers of a text that match a pattern: "60,965 MB" -> [60965.0]."""
    return [float(number.replace(",", "")) for number in pattern.findall(text)]
