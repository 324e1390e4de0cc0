"""Test the consoles: what counts as a terminal, how wide it is, and what a file never contains."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from pipeline.cli import terminal
from pipeline.cli.terminal import MIN_WIDTH, PIPE_WIDTH, console, is_live


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def stdout(monkeypatch):
    """Function that replaces standard output by a terminal or a file, with these variables in the environment."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)

    def replace(stream, **variables):
        monkeypatch.setattr(sys, "stdout", stream)
        for name, value in ({"TERM": "xterm"} | variables).items():
            monkeypatch.setenv(name, value)
        return console()

    return replace


@pytest.mark.parametrize(
    ("variables", "is_coloured"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_a_file_is_never_a_terminal(stdout, variables, is_coloured):
    file = io.StringIO()
    made = stdout(file, **variables)
    assert (made.is_terminal, is_live(made), made.width) == (False, False, PIPE_WIDTH)
    made.print("[red]text[/]")
    assert ("\x1b[31m" in file.getvalue()) == is_coloured


def test_a_file_with_forced_colours_has_no_frames_of_a_spinner(stdout, monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(terminal, "err", stdout(file, FORCE_COLOR="1"))
    with terminal.spinner("Reading data and code …") as status:
        assert status is None
    assert file.getvalue() == ""


@pytest.mark.parametrize(("kind", "expected"), [("xterm", True), ("dumb", False), ("unknown", False)])
def test_a_dumb_terminal_is_not_live(stdout, kind, expected):
    made = stdout(Terminal(), TERM=kind)
    assert made.is_terminal
    assert is_live(made) == expected


def test_a_dumb_terminal_has_no_frames_of_a_spinner(stdout, monkeypatch):
    shown = Terminal()
    monkeypatch.setattr(terminal, "err", stdout(shown, TERM="dumb"))
    with terminal.spinner("Reading data and code …"):
        pass
    assert shown.getvalue() == ""


@pytest.mark.parametrize(
    ("columns", "width"),
    [
        ("0", PIPE_WIDTH),
        ("-5", PIPE_WIDTH),
        ("many", PIPE_WIDTH),
        ("", PIPE_WIDTH),
        ("100", 100),
        ("7", MIN_WIDTH),
    ],
)
def test_the_width_of_a_file_is_that_of_columns_if_it_is_a_number(stdout, columns, width):
    assert stdout(io.StringIO(), COLUMNS=columns).width == width


@pytest.mark.parametrize("columns", ["0", "1", "39"])
def test_sentences_are_printed_on_a_terminal_of_any_width(stdout, monkeypatch, columns):
    shown = Terminal()
    monkeypatch.setattr(terminal, "out", stdout(shown, COLUMNS=columns))
    terminal.say("A sentence of several words that is longer than a line of forty characters.", indent=8)
    assert " ".join(shown.getvalue().split()).startswith("A sentence of several words")
    assert len(shown.getvalue().splitlines()) > 1


def test_text_outside_the_encoding_is_replaced_and_json_is_intact():
    """`repro list` in an ASCII locale; the titles and the dash in front of a scale need more characters."""
    code = (
        "from pipeline.cli.main import main; from pipeline.cli import terminal, tables, main as module\n"
        "@module.app.command('say')\n"
        "def say():\n"
        "    terminal.say('± 0.5 …')\n"
        "    terminal.out.print('✔')\n"
        "    tables.print_rows([{'name': '±'}], tables.TableFormat.CSV)\n"
        "    tables.print_rows([{'name': '±'}], tables.TableFormat.JSON)\n"
        "main()"
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "HOME": "/proc/none"}
    done = subprocess.run(
        [sys.executable, "-c", code, "say"],
        capture_output=True,
        env=environment,
        cwd=Path(__file__).parents[3],
        check=True,
    )
    first, second, head, cell, *rest = done.stdout.decode("ascii").splitlines()
    assert (first, second, head, cell) == ("? 0.5 ?", "?", "name", "?")
    assert json.loads("".join(rest)) == [{"name": "±"}]
    assert done.stderr == b""


def test_colours_of_a_table_are_those_of_the_console(stdout):
    file = io.StringIO()
    made = stdout(file, FORCE_COLOR="1")
    table = Table("[bold]head[/]")
    table.add_row("1")
    made.print(table)
    assert "\x1b[1m" in file.getvalue()
