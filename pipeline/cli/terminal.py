"""What the commands have in common: standard output and error, prose, warnings, JSON, an option, an exit code."""

import json
import os
import textwrap
from typing import Annotated, Any

import typer
from rich.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]

STOPPED = 130  # exit code of what Ctrl-C has stopped

PIPE_WIDTH = 160  # columns of a table that goes to a file or another program, unless COLUMNS says otherwise


def console(*, stderr: bool = False) -> Console:
    """A terminal's own width, or one that folds no table where there is no terminal."""
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = PIPE_WIDTH
    return made


out, err = console(), console(stderr=True)


def say(text: str, *, indent: int = 0) -> None:
    """Prose on standard output, folded for a terminal, one line for anything else; never read as markup."""
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
    """A warning on standard error."""
    err.print(text, style="yellow", markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Plain JSON on standard output."""
    print(json.dumps(value, indent=1, default=str))
