"""Output of the commands: consoles, prose, warnings, JSON, and a spinner."""

import json
import os
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.status import Status

STOPPED = 130  # exit code after Ctrl-C

PIPE_WIDTH = 160  # columns of a table without a terminal, unless COLUMNS is set

MIN_WIDTH = 40  # columns; a narrower terminal wraps the lines itself


def console(*, stderr: bool = False) -> Console:
    """Return a console as wide as the terminal, or of PIPE_WIDTH columns if there is none.

    With FORCE_COLOR, output into a file is coloured, but bars and spinners are drawn on terminals only.
    """
    stream = sys.stderr if stderr else sys.stdout
    is_terminal = bool(stream) and stream.isatty()
    coloured = bool(os.environ.get("FORCE_COLOR")) and not os.environ.get("NO_COLOR")
    made = Console(
        stderr=stderr,
        highlight=False,
        force_terminal=is_terminal,
        color_system="standard" if coloured and not is_terminal else "auto",
        _environ=environment(),
    )
    if not is_terminal and "COLUMNS" not in environment():
        made.width = PIPE_WIDTH
    elif made.width < MIN_WIDTH:
        made.width = MIN_WIDTH
    return made


def environment() -> dict[str, str]:
    """Return the environment, without sizes of a terminal that are no numbers above 0, such as COLUMNS=0."""
    sizes = {name: os.environ.get(name, "") for name in ("COLUMNS", "LINES")}
    impossible = {name for name, text in sizes.items() if not (text.isdecimal() and int(text))}
    return {name: text for name, text in os.environ.items() if name not in impossible}


out, err = console(), console(stderr=True)


def is_live(shown: Console) -> bool:
    """Return True for a terminal on which text can be replaced: not for a file, and not with TERM=dumb."""
    return shown.is_terminal and not shown.is_dumb_terminal


@contextmanager
def spinner(text: str) -> Iterator[Status | None]:
    """Show a spinner with a text on standard error; nothing where that is not a live terminal."""
    if not is_live(err):
        yield None
        return
    with err.status(text) as status:
        yield status


def say(text: str, *, indent: int = 0) -> None:
    """Print a sentence on standard output, wrapped on a terminal, else on one line. Markup is not interpreted."""
    space = " " * indent
    lines = [text]
    if out.is_terminal:
        hang = " " * 4 if indent == 2 else ""
        lines = textwrap.wrap(
            text,
            max(out.width, MIN_WIDTH) - indent,
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


def discard_output() -> None:
    """Send standard output nowhere after its reader closed it; Python would report that again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
