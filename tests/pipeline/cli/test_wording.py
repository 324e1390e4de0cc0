"""Plain English in everything that the program prints: error messages, help texts, tables."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PIPELINE = Path(__file__).parents[3] / "pipeline"

INSTEAD = {  # pattern of the former style -> what to write
    r"\bmend": "fix",
    r"nobody knows": "no estimate yet",
    r"start (it|the same command) again": "run the same command again",
    r"same command (goes on|continues)": "run the same command again to resume",
    r"there (is|are) no\b": "no X found, or X not found",
    r"\bis no\b": "is not a",
    r"there is nothing": "nothing to do",
    r"from \d+ on\b": "must be an integer >= N",
    r"\bis needed": "must be",
    r"\bpictures?\b|\bphotographs?\b": "image",
    r"\bborn\b|\bfarewell\b|\bburied\b|\btold\b|\bhears?\b": "no metaphor",
    r"\bwhoever\b|\bsomebody\b|\bnobody\b": "the process or user that is meant",
    r"\banew\b": "again",
}

STORED = {  # texts in files of the user, which must not change
    "pictures a shard",
    "generated pictures in the layout of ILSVRC-2012; not ImageNet",
}


def docstrings(tree: ast.AST) -> set[int]:
    """Return the ids of the nodes of docstrings."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, kinds)]
    return {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}


def printed_strings(file: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of a file's strings; of docstrings only those of the commands, which --help prints."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    left_out = set() if file.parent.name == "cli" else docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left_out:
            yield node.lineno, node.value


@pytest.mark.parametrize("file", sorted(PIPELINE.rglob("*.py")), ids=lambda file: str(file.relative_to(PIPELINE)))
def test_printed_strings_are_plain_english(file):
    found = [
        f"line {line}: {text!r}: write {better!r}"
        for line, text in printed_strings(file)
        if text not in STORED and not text.isidentifier()  # an identifier may be a key of a file
        for pattern, better in INSTEAD.items()
        if re.search(pattern, text, re.IGNORECASE)
    ]
    assert found == []


def test_a_phrase_of_the_former_style_is_found(tmp_path):
    file = tmp_path / "x.py"
    file.write_text('"""There is no x."""\nraise ValueError(f"there is no {1} here")\n')
    assert [line for line, text in printed_strings(file) if re.search("there is no", text, re.IGNORECASE)] == [2]
