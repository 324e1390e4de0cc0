"""Hashes of plain data and of source code."""

import ast
import hashlib
import json
from pathlib import Path
from typing import Any


def bare_source(path: Path) -> str:
    """A file's code without comments, docstrings and layout."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            first = body[0].value
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                node.body = body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def digest(value: Any) -> str:
    """16 hex digits of the sha256 of plain data, independent of the order of its keys."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def canonical(value: Any) -> str:
    """Plain data as JSON without spaces, its keys in order."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
