"""Output of the commands: consoles, prose, warnings and JSON; the --json option."""

import json
import os
import textwrap
from typing import Annotated, Any

import typer
from rich.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

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
