"""Test the formats of tables: the same options for all commands, columns as documented, no cell damaged."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
import typer
from rich.console import Console
from rich.table import Table
from typer.main import get_command

from pipeline.analyse.catalogue import NetworkCost
from pipeline.cli import tables
from pipeline.cli.data import SPLIT_COLUMNS
from pipeline.cli.experiments import CLAIM_COLUMNS, LISTED, VERDICT_COLUMNS
from pipeline.cli.figures import FIGURE_COLUMNS
from pipeline.cli.launch import PLAN_COLUMNS
from pipeline.cli.main import app
from pipeline.cli.tables import TableFormat, column_names, print_rows, print_table, with_table_formats
from pipeline.cluster.status import RunStatus
from pipeline.judge.coverage import COVERAGE_COLUMNS
from pipeline.report.complexity import LAYER_ROW_COLUMNS
from pipeline.report.leaderboard import LeaderboardRow
from pipeline.report.run_diff import Difference
from pipeline.report.run_plan import PlannedRun
from pipeline.report.winners import Winner
from pipeline.track.published_results import PublishedResult
from tests.support.fake_records import set_console

DOCUMENTED = Path(__file__).parents[3] / "docs" / "tables.md"

TABLES = {  # heading in the documentation -> columns that the code prints
    "repro list": LISTED,
    "repro show": CLAIM_COLUMNS,
    "repro verify": VERDICT_COLUMNS[len(CLAIM_COLUMNS) :],
    "repro verify --coverage": COVERAGE_COLUMNS,
    "repro leaderboard": ("kind", *column_names(LeaderboardRow)),
    "repro leaderboard ilsvrc": column_names(Winner),
    "repro evaluate": column_names(PublishedResult),
    "repro diff": column_names(Difference),
    "repro figures": FIGURE_COLUMNS,
    "repro analyse NETWORK": ("network", *LAYER_ROW_COLUMNS),
    "repro analyse": column_names(NetworkCost),
    "repro run --dry-run": column_names(PlannedRun),
    "repro launch --dry-run": PLAN_COLUMNS,
    "repro status": column_names(RunStatus),
    "repro data prepare, repro data inspect": SPLIT_COLUMNS,
    "repro data verify": ("problem",),
}

WITHOUT_TABLE = {"ui", "results", "report", "logs", "cancel", "resume", "node", "carry", "stand-in"}

ROWS = [
    {"name": "a|b", "number": 1234567.25, "flag": True, "list": [1, "é"], "none": None},
    {"name": 'two\nlines, "quoted"', "number": 0.1, "flag": False, "list": [], "none": None},
]


def documented():
    """Return heading -> columns, as docs/tables.md lists them."""
    found = {}
    for section in DOCUMENTED.read_text(encoding="utf-8").split("\n## ")[1:]:
        heading, _, text = section.partition("\n")
        first = re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE)
        found[heading] = [name for cell in first for name in re.findall(r"`(\w+)`", cell)]
    return found


def test_documented_columns_are_those_that_are_printed():
    for heading, columns in TABLES.items():
        assert sorted(documented()[heading]) == sorted(columns), heading
    assert set(documented()) == set(TABLES)


def test_columns_are_snake_case():
    names = {name for columns in TABLES.values() for name in columns}
    assert [name for name in names if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name)] == []


def commands(group=None, before=""):
    """Yield all commands with their names."""
    for name, command in (group or get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
        else:
            yield name, command


def test_every_command_with_a_table_has_all_formats():
    known = set()
    for name, command in commands():
        options = {option for parameter in command.params for option in parameter.opts}
        formats = {"--json", "--csv", "--markdown"} & options
        assert len(formats) == 3 or name in WITHOUT_TABLE, name
        known.add(name)
    assert known >= WITHOUT_TABLE


def test_csv_can_be_read_back(capsys):
    print_rows(ROWS, TableFormat.CSV)
    head, *values = csv.reader(io.StringIO(capsys.readouterr().out))
    assert head == ["name", "number", "flag", "list", "none"]
    assert values == [
        ["a|b", "1234567.25", "true", '[1, "\\u00e9"]', ""],
        ['two\nlines, "quoted"', "0.1", "false", "[]", ""],
    ]


def test_json_is_the_rows_or_more_than_them(capsys):
    print_rows(ROWS, TableFormat.JSON)
    assert json.loads(capsys.readouterr().out) == ROWS
    print_rows(ROWS, TableFormat.JSON, value={"rows": 2})
    assert json.loads(capsys.readouterr().out) == {"rows": 2}
    print_rows([], TableFormat.JSON)
    assert json.loads(capsys.readouterr().out) == []


def test_markdown_has_one_line_for_each_row(capsys):
    print_rows(ROWS, TableFormat.MARKDOWN, ("name", "number"))
    assert capsys.readouterr().out == (
        '| name | number |\n| --- | --- |\n| a\\|b | 1234567.25 |\n| two lines, "quoted" | 0.1 |\n'
    )


def test_a_table_without_rows_has_a_header(capsys):
    print_rows([], TableFormat.CSV, ("a", "b"))
    print_rows([], TableFormat.MARKDOWN, ("a", "b"))
    assert capsys.readouterr().out == "a,b\n| a | b |\n| --- | --- |\n"


def test_the_decorator_passes_the_format_and_keeps_other_options(capsys):
    found = []

    @with_table_formats
    def command(number: int = 1, *, shape: TableFormat) -> None:
        """Do it."""
        found.append((number, shape))

    small = typer.Typer()
    small.command()(command)
    assert get_command(small).help == "Do it."
    for words in ([], ["--csv", "--number", "2"], ["--markdown"]):
        small(words, standalone_mode=False)
    assert found == [(1, TableFormat.TEXT), (2, TableFormat.CSV), (1, TableFormat.MARKDOWN)]


@pytest.mark.parametrize("width", [20, 40, 80, 160])
def test_a_narrow_terminal_cuts_no_number(monkeypatch, width):
    seen = io.StringIO()
    set_console(monkeypatch, Console(file=seen, force_terminal=True, width=width, no_color=True, highlight=False))
    numbers = ["1,234,567,890", "12.34 ± 0.56", "+0.10 (-0.12, +0.34)"]
    rows = [{"network": "a network with a long name"} | {f"column {i}": text for i, text in enumerate(numbers)}]
    print_table(rows, left=("network",))
    shown = re.sub(r"\x1b\[[0-9;]*m", "", seen.getvalue())
    for word in " ".join(numbers).split():
        assert word in shown
    assert "".join(re.findall(r"[a-z]", shown)).endswith("anetworkwithalongname")  # folded, and complete


def printed(monkeypatch, rows, width, left=("network",)):
    """Return the lines of a table on a terminal of `width` columns."""
    seen = io.StringIO()
    set_console(monkeypatch, Console(file=seen, width=width))
    print_table(rows, left)
    return seen.getvalue().splitlines()


def test_cells_stand_below_their_heads(monkeypatch):
    rows = [{"network": "a", "error": "9.50"}, {"network": "plain-20", "error": "10"}]
    assert printed(monkeypatch, rows, 80) == [
        "network   error",
        "a          9.50",
        "plain-20     10",
    ]  # fmt: skip
    assert printed(monkeypatch, rows, 80, left=("network", "error"))[1] == "a         9.50"  # no space at the end
    assert (
        printed(monkeypatch, [{"network": "\u7db2\u8def", "error": "9"}], 80)[1] == "\u7db2\u8def         9"
    )  # wide characters


def test_a_folded_cell_continues_below_itself(monkeypatch):
    rows = [{"network": "abcdefghijklm", "difference": "+1.0 (-2.0 to +3.0)", "seeds": "5"}]
    assert printed(monkeypatch, rows, 24) == [  # 8 + 7 + 5 characters, and two gaps of 2
        "network   differe  seeds",
        "              nce",
        "abcdefgh     +1.0      5",
        "ijklm       (-2.0",
        "               to",
        "            +3.0)",
    ]


def test_a_table_that_fits_is_laid_out_as_rich_lays_it_out(monkeypatch):
    rows = [
        {"network": f"net-{i}" * (i % 3 + 1), "top-1 %": f"{i * 7.3:.2f}", "verdict": "" if i % 2 else "reached"}
        for i in range(20)
    ]
    seen = io.StringIO()
    expected = Table(box=None, pad_edge=False)
    for name in rows[0]:
        expected.add_column(name, justify="right" if name == "top-1 %" else "left")
    for row in rows:
        expected.add_row(*row.values())
    Console(file=seen, width=80).print(expected)
    lines = [line.rstrip() for line in seen.getvalue().splitlines()]
    assert printed(monkeypatch, rows, 80, left=("network", "verdict")) == lines


def test_brackets_in_cells_are_no_markup(monkeypatch):
    seen = io.StringIO()
    set_console(monkeypatch, Console(file=seen, width=80))
    print_table([{"network": "resnet-20 [train.lr=0.05]"}], left=("network",))
    assert "resnet-20 [train.lr=0.05]" in seen.getvalue()
    assert tables.plain_cell("[red]") == "[red]"
