"""The main job: from an experiment to its verdicts. What is finished is not trained again."""

import inspect
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.experiment import Experiment, load, names
from pipeline.home import data_folder, report_folder, runs_folder
from pipeline.ledger import Entry, counted, ledger
from pipeline.mistakes import UserError
from pipeline.plan import Run, code_hash, identity
from pipeline.record import Record
from pipeline.report.leaderboard import Row, leaderboard
from pipeline.runs import RunFolder, local_records
from pipeline.schedule.local import Ending, Event, run_all, worker_count
from pipeline.schedule.task import Task

SYNC_SECONDS = 5.0
LONGEST_NOTE = 5000  # characters of a tag on an MLflow experiment


def tasks_for(runs: Iterable[Run]) -> list[Task]:
    """The runs with their identities: reads the data (for the manifest) and the code (for its hash).

    UserError for data that cannot be read and networks that cannot be built, before any worker starts.
    """
    from lightning_modules.networks import NETWORKS
    from pipeline.data import manifest, sources

    sets: dict[tuple[str, bool], Any] = {}
    manifests: dict[tuple[str, bool], Any] = {}
    checked = set()
    codes: dict[str, str] = {}
    result = []
    for run in runs:
        data, network = (run.recipe.data.name, run.recipe.data.crop is not None), run.recipe.model.name
        if data not in manifests:
            sets[data] = sources.load(data[0], data_folder(), photographs=data[1])
            manifests[data] = manifest.manifest_of(sets[data])
        if run.variant not in checked:
            check(run, sets[data])
            checked.add(run.variant)
        if network not in codes:
            codes[network] = code_hash(Path(inspect.getsourcefile(NETWORKS[network].build) or ""))
        code, found = codes[network], manifests[data]
        name = identity(run, manifest=found.sha256, code=code)
        folder = runs_folder() / name
        result.append(Task(run, name, code, manifest.to_dict(found), folder, data_folder()))
    return result


def check(run: Run, images: Any) -> None:
    """UserError where the network cannot be built, the images not be split or padded, or the two do not fit.

    Without memory for weights, and on one image: what a worker would find out only after it has started.
    """
    import torch

    from lightning_modules.networks import build
    from pipeline.supply import image_shape

    model = run.recipe.model
    try:
        shape = image_shape(images, run.recipe.data)
        with torch.device("meta"), torch.no_grad():
            network = build(model.name, model.args, num_classes=len(images.classes), in_channels=shape[0])
            network.eval()(torch.zeros(1, *shape))
    except (ValueError, TypeError, RuntimeError) as error:
        args = ", ".join(f"{key} {value!r}" for key, value in model.args.items())
        named = f"{model.name} ({args})" if args else model.name
        what = "" if isinstance(error, ValueError) else f"{named} on {images.name} does not work: "
        raise UserError(f"{run.experiment}, {run.variant}: {what}{error}") from None


@dataclass(frozen=True)
class Outcome:
    """What came of a job."""

    ending: Ending
    records: list[Record]  # of the runs asked for
    untracked: str = ""  # why the tracking server could not be used, if it could not


def carry_out(
    tasks: Sequence[Task],
    *,
    threads: int,
    happened: Callable[[Event], None],
    tick: Callable[[], None] = lambda: None,
) -> Outcome:
    """Train what is not finished, track everything, and return all records."""
    syncing = Syncing()
    found, missing = finished(tasks, syncing)
    for task in tasks:
        syncing.watch(task.folder)
    records = dict(found)

    def note(event: Event) -> None:
        if event.record:
            records[event.task.identity] = event.record
        happened(event)

    ending: Ending = "ended"
    if missing:
        with syncing:
            workers = worker_count(len(missing), threads)
            ending = run_all(missing, workers=workers, threads=threads, happened=note, tick=tick)
    syncing.sync()
    ordered = [records[task.identity] for task in tasks if task.identity in records]
    return Outcome(ending, ordered, syncing.trouble)


def finished(tasks: Sequence[Task], syncing: "Syncing") -> tuple[dict[str, Record], list[Task]]:
    """Records of the tasks already ended, here or on the tracking server, and the tasks that are left."""
    found = {}
    for task in tasks:
        record = RunFolder(task.folder).result()
        if record:
            found[task.identity] = record
    if len(found) < len(tasks):
        wanted = {task.identity for task in tasks}
        for record in syncing.records():
            if record.identity in wanted:
                found.setdefault(record.identity, record)
    return found, [task for task in tasks if task.identity not in found]


class Syncing:
    """Sends run folders to the tracking server from a thread of its own; trouble is kept, not raised."""

    def __init__(self) -> None:
        self.folders: list[RunFolder] = []
        self.trouble = ""
        self._tracker: Any = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, path: Path) -> None:
        """Send this folder too."""
        self.folders.append(RunFolder(path))

    def tracker(self) -> Any:
        """The tracking server; raises TrackingError where it cannot be used."""
        from pipeline import tracking

        if self._tracker is None:
            tracking.silence()
            self._tracker = tracking.Tracker()
        return self._tracker

    def records(self) -> list[Record]:
        """Tracked records, none where the server cannot be used."""
        try:
            return self.tracker().records()
        except UserError as error:
            self.trouble = str(error)
            return []

    def sync(self) -> None:
        """One round over all folders; at the first refusal the round ends, to be tried again."""
        try:
            tracker = self.tracker()
            for folder in self.folders:
                if (folder.path / "run.json").is_file():
                    tracker.sync(folder)
            self.trouble = ""
        except UserError as error:
            self.trouble = str(error)

    def __enter__(self) -> "Syncing":
        """Start the thread."""
        self._thread = threading.Thread(target=self._go_on, name="repro-tracking", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End it; a last `sync` is the caller's."""
        self._over.set()
        if self._thread:
            self._thread.join()

    def _go_on(self) -> None:
        while not self._over.wait(SYNC_SECONDS):
            self.sync()


def sync_all(tracker: Any) -> None:
    """Send every run folder that still holds something unsent: journals written while a server was away."""
    for path in sorted(runs_folder().glob("*/run.json")):
        tracker.sync(RunFolder(path.parent))


@dataclass(frozen=True)
class Known:
    """All ended runs that can be found."""

    records: list[Record]
    tracker: Any | None  # None where the server cannot be used,
    trouble: str = ""  # and why


def known() -> Known:
    """The runs ended here and those on the tracking server, after sending it what is unsent."""
    here = {record.identity: record for record in local_records()}
    syncing = Syncing()
    try:
        tracker = syncing.tracker()
        sync_all(tracker)
        tracked = {record.identity: record for record in tracker.records()}
    except UserError as error:
        return Known(list(here.values()), None, str(error))
    return Known(list((here | tracked).values()), tracker)


def judged(
    experiments: Sequence[Experiment], records: Sequence[Record], scales: Sequence[str] = ()
) -> list[Entry]:
    """The ledger of several experiments."""
    from pipeline.analyse import measure

    return [entry for one in experiments for entry in ledger(one, records, measure, scales)]


def all_experiments() -> list[Experiment]:
    """Every declared experiment."""
    return [load(name) for name in names()]


def curves_of(records: Sequence[Record], tracker: Any | None) -> dict[str, dict[str, list[Any]]]:
    """The curves of runs: variant -> metric -> one list of (update, value) per seed; from here or the server."""
    from pipeline.report.figures import CURVES

    result: dict[str, dict[str, list[Any]]] = {}
    for record in records:
        here = RunFolder(runs_folder() / record.identity)
        entries = [entry for entry, _ in here.journal()]
        for metric in CURVES:
            points = [(e["step"], e["metrics"][metric]) for e in entries if metric in e["metrics"]]
            if not points and tracker and record.run_id:
                points = tracker.curves(record.run_id, metric)
            elif points and metric in record.metrics and points[-1][0] < entries[-1]["step"]:
                points.append((entries[-1]["step"], record.metrics[metric]))  # of the last model
            if points:
                result.setdefault(record.variant, {}).setdefault(metric, []).append(points)
    return result


@dataclass(frozen=True)
class Report:
    """What is shown and kept of an experiment at a scale."""

    rows: list[Row]
    entries: list[Entry]
    figure: Path | None
    page: Path


def report(experiment: Experiment, scale: str, records: Sequence[Record], tracker: Any | None) -> Report:
    """Judge, rank and draw an experiment at one scale; write figure and page; publish them where possible."""
    from pipeline.report.figures import error_curves
    from pipeline.report.page import write_page
    from pipeline.report.text import leaderboard_cells, verdict_cells

    here = [record for rows in counted(experiment, scale, records).values() for record in rows]
    rows = [row for row in leaderboard([experiment], records) if row.scale == scale]
    entries = judged([experiment], here, [scale])
    stem = f"{experiment.name.replace('/', '-')}-{scale}"
    curves = curves_of(here, tracker)
    figure = error_curves(experiment, scale, curves, report_folder() / f"{stem}.png") if curves else None
    page = write_page(experiment, scale, rows, entries, figure, report_folder() / f"{stem}.html")
    if tracker and rows:
        tables = {
            "leaderboard": [leaderboard_cells(row) for row in rows],
            "verdicts": [verdict_cells(entry) for entry in entries],
        }
        note = note_of(experiment, scale, tables["leaderboard"], entries)
        files = [page, *([figure] if figure else [])]
        tracker.publish(experiment.name, scale, here, tables=tables, files=files, note=note)
    return Report(rows, entries, figure, page)


def note_of(experiment: Experiment, scale: str, board: Sequence[dict[str, str]], entries: Sequence[Entry]) -> str:
    """Leaderboard and the verdicts that rest on runs, as Markdown for MLflow, which holds so much and no more."""
    from pipeline.report.text import counts, markdown, verdict_cells

    said = [verdict_cells(entry) for entry in entries if entry.evidence]
    for shown in range(len(said), -1, -1):
        note = "\n\n".join(
            [
                f"# {experiment.question}",
                f"Scale: {scale}. {experiment.scales[scale].why}",
                markdown(board),
                markdown(said[:shown], ("verdict", "claim", "says")),
                f"All {len(entries)} claims: {counts(entries)}. With their evidence: verdicts.json.",
            ]
        )
        if len(note) <= LONGEST_NOTE:
            break
    return note[:LONGEST_NOTE]
