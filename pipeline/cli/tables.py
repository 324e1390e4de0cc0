"""Tables: as text for a person, and as JSON, CSV or Markdown for programs and documents.

A command whose output is a table is wrapped in `with_table_formats`, which gives it the options --json, --csv and
--markdown, and prints through `print_rows` in these formats. Column names are listed in docs/tables.md.
"""

import csv
import functools
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pipeline.cli import terminal
from pipeline.cli.options import AsJson
from pipeline.cli.terminal import print_json
from pipeline.common.errors import UserError

AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]

AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")]


class TableFormat(StrEnum):
    """Format in which a command prints its table."""

    TEXT = "text"
    JSON = "--json"
    CSV = "--csv"
    MARKDOWN = "--markdown"

    @property
    def is_text(self) -> bool:
        """True for the output that a person reads on the terminal."""
        return self is TableFormat.TEXT


def with_table_formats(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options --json, --csv and --markdown; its parameter `shape` is the chosen TableFormat.

    The command raises UserError where several of them are given.
    """

    @functools.wraps(command)
    def wrapped(*, as_json: bool, as_csv: bool, as_markdown: bool, **arguments: Any) -> None:
        asked = {TableFormat.JSON: as_json, TableFormat.CSV: as_csv, TableFormat.MARKDOWN: as_markdown}
        chosen = [shape for shape, is_asked in asked.items() if is_asked]
        if len(chosen) > 1:
            raise UserError(f"give one of {' and '.join(chosen)}")
        command(**arguments, shape=chosen[0] if chosen else TableFormat.TEXT)

    signature = inspect.signature(command)
    kept = [one for name, one in signature.parameters.items() if name != "shape"]
    formats = {"as_json": AsJson, "as_csv": AsCsv, "as_markdown": AsMarkdown}
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in formats.items()
    ]
    wrapped.__signature__ = signature.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {one.name: one.annotation for one in kept} | formats  # read by typer
    return wrapped


def print_rows(
    rows: Sequence[Mapping[str, Any]], shape: TableFormat, columns: Sequence[str] = (), *, value: Any = None
) -> None:
    """Print rows of plain values as JSON, CSV or a Markdown table.

    `columns`: those of CSV and Markdown, in order; by default the keys of all rows. `value`: what JSON has in
    place of the rows, such as a map with more than the table.
    """
    if shape is TableFormat.JSON:
        print_json(list(rows) if value is None else value)
        return
    names = list(columns) or list(dict.fromkeys(key for row in rows for key in row))
    if not names:
        return
    cells = [[plain_cell(row.get(name)) for name in names] for row in rows]
    if shape is TableFormat.CSV:
        csv.writer(sys.stdout, lineterminator="\n").writerows([names, *cells])
        return
    for line in (names, ["---"] * len(names), *cells):
        print("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |")


def plain_cell(value: object) -> str:
    """Return a value as text: "" for None, JSON for lists, maps, true and false."""
    if value is None:
        return ""
    return json.dumps(value, default=str) if isinstance(value, list | tuple | dict | bool) else str(value)


def column_names(kind: type) -> list[str]:
    """Return the names of the fields of a dataclass, the columns of a table of them."""
    return [field.name for field in fields(kind)]


def print_table(rows: Sequence[Mapping[str, str]], left: Sequence[str], *, markup: bool = False) -> None:
    """Print rows of cells as a table. The columns named in `left` are aligned left, all others right.

    Where the terminal is too narrow, cells are folded, those of numbers between words only. `markup`: cells have
    rich's markup.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in rows[0]:
        words = [] if head in left else [len(word) for row in rows for word in row[head].split()]
        table.add_column(
            escape(head),
            justify="left" if head in left else "right",
            overflow="fold",
            min_width=max(words, default=None),
        )
    for row in rows:
        table.add_row(*(row.values() if markup else map(Text, row.values())))  # a Text needs no parsing
    terminal.out.print(table, crop=False)
