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
from itertools import zip_longest
from typing import Annotated, Any

import typer
from rich.cells import cell_len
from rich.text import Text

from pipeline.cli import terminal
from pipeline.cli.options import AsJson
from pipeline.cli.terminal import print_json
from pipeline.common.errors import UserError

AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]

AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")]

COLUMN_GAP = "  "  # between two columns

MIN_NAME = 8  # characters that a column of names keeps on a narrow terminal


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


def print_table(rows: Sequence[Mapping[str, str]], left: Sequence[str]) -> None:
    """Print rows of cells as a table. The columns named in `left` are aligned left, all others right.

    Where the terminal is too narrow, cells are folded, those of numbers between words only. rich.table, which
    measures and renders each cell several times, takes 1 s for a leaderboard of 550 rows; this takes a tenth.
    """
    heads = list(rows[0])
    columns = [[head, *(row[head] for row in rows)] for head in heads]
    widths = column_widths(columns, [head in left for head in heads], terminal.out.width)
    folded = [[fold(text, width) for text in column] for column, width in zip(columns, widths, strict=True)]
    header, *body = (
        row_lines(cells, widths, [head in left for head in heads]) for cells in zip(*folded, strict=True)
    )
    terminal.out.out("\n".join(header), style="bold", highlight=False)
    if body:
        terminal.out.out("\n".join(line for lines in body for line in lines), highlight=False)


def column_widths(columns: Sequence[Sequence[str]], left: Sequence[bool], limit: int) -> list[int]:
    """Return the width of each column in characters; the widest ones are narrowed until a row fits into `limit`.

    `left`: whether a column is aligned left. Such a column keeps MIN_NAME characters, any other its longest word
    below the head: a row may be wider than `limit`.
    """
    widths = [max(map(cell_len, column)) for column in columns]
    least = [
        MIN_NAME if is_left else max((cell_len(word) for text in column[1:] for word in text.split()), default=1)
        for column, is_left in zip(columns, left, strict=True)
    ]
    while sum(widths) + len(COLUMN_GAP) * (len(widths) - 1) > limit:
        wide = [index for index, width in enumerate(widths) if width > least[index]]
        if not wide:
            break
        widths[max(wide, key=widths.__getitem__)] -= 1
    return widths


def fold(text: str, width: int) -> list[str]:
    """Return a cell as lines of at most `width` characters, folded between words where possible."""
    if cell_len(text) <= width and "\n" not in text:
        return [text]
    return [line.plain.rstrip() for line in Text(text).wrap(terminal.out, width, overflow="fold")]


def row_lines(cells: Sequence[Sequence[str]], widths: Sequence[int], left: Sequence[bool]) -> list[str]:
    """Return the lines of one row, whose cells are folded."""
    lines = []
    for parts in zip_longest(*cells, fillvalue=""):
        padded = []
        for part, width, is_left in zip(parts, widths, left, strict=True):
            space = " " * (width - cell_len(part))
            padded.append(part + space if is_left else space + part)
        lines.append(COLUMN_GAP.join(padded).rstrip())
    return lines
