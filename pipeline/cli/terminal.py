"""Output of the commands: consoles, prose, warnings and JSON; the --json option."""

import csv
import json
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console

from pipeline.common.errors import UserError

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]

AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")]

STOPPED = 130  # exit code after Ctrl-C

PIPE_WIDTH = 160  # columns of a table without a terminal, unless COLUMNS is set


def console(*, stderr: bool = False) -> Console:
    """Return a console as wide as the terminal, or of PIPE_WIDTH columns if there is none."""
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = PIPE_WIDTH
    return made


out, err = console(), console(stderr=True)


def say(text: str, *, indent: int = 0) -> None:
    """Print a sentence on standard output, wrapped on a terminal, else on one line. Markup is not interpreted."""
    space = " " * indent
    lines = [text]
    if out.is_terminal:
        hang = " " * 4 if indent == 2 else ""
        lines = textwrap.wrap(
            text,
            out.width - indent,
            subsequent_indent=hang,
            replace_whitespace=False,
            break_long_words=False,
            break_on_hyphens=False,
        )
    for line in lines:
        out.print(space + line, markup=False, soft_wrap=True)


def print_warning_line(text: str) -> None:
    """Print a warning on standard error."""
    err.print(text, style="yellow", markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    print(json.dumps(value, indent=1, default=str))


class TableFormat(StrEnum):
    """Format in which a command prints its table."""

    TEXT = "text"
    JSON = "--json"
    CSV = "--csv"
    MARKDOWN = "--markdown"


def table_format(as_json: bool, as_csv: bool, as_markdown: bool) -> TableFormat:
    """Return the format that the options ask for. Raises UserError for several."""
    asked = {TableFormat.JSON: as_json, TableFormat.CSV: as_csv, TableFormat.MARKDOWN: as_markdown}
    chosen = [shape for shape, is_asked in asked.items() if is_asked]
    if len(chosen) > 1:
        raise UserError(f"give one of {' and '.join(chosen)}")
    return chosen[0] if chosen else TableFormat.TEXT


def print_rows(rows: Sequence[Mapping[str, Any]], shape: TableFormat) -> None:
    """Print rows of plain values as JSON, CSV or a Markdown table. Columns are the keys of all rows, in order.

    Without rows, CSV and Markdown are empty.
    """
    if shape is TableFormat.JSON:
        print_json(list(rows))
        return
    if not rows:
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [["" if row.get(key) is None else plain_cell(row[key]) for key in columns] for row in rows]
    if shape is TableFormat.CSV:
        csv.writer(sys.stdout, lineterminator="\n").writerows([columns, *cells])
        return
    for line in (columns, ["---"] * len(columns), *cells):
        print("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |")


def plain_cell(value: object) -> str:
    """Return a value as text; lists and maps as JSON."""
    return json.dumps(value) if isinstance(value, list | tuple | dict) else str(value)
