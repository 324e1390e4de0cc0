"""Hashes of plain data and of source code. A code hash does not depend on which file a definition is in."""

import ast
import hashlib
import json
import sys
from collections.abc import Iterable
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

OWN_PACKAGES = ("pipeline", "lightning_modules")

CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """Return 16 hex digits of the sha256 of plain data; the order of keys does not count."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def canonical_json(value: Any) -> str:
    """Return plain data as JSON without spaces, keys sorted."""
    return CANONICAL.encode(value)


def source_digest(root: Path, patterns: Iterable[str], libraries: Iterable[str]) -> str:
    """Return the sha256 of the bytes of source files, and of the versions of Python and `libraries`.

    `patterns` are globs below `root`.
    """
    hashed = hashlib.sha256(" ".join([sys.version, *map(metadata.version, libraries)]).encode())
    for pattern in patterns:
        for path in sorted(root.glob(pattern)):
            content = path.read_bytes()
            hashed.update(f"\n{path.relative_to(root)} {len(content)}\n".encode())
            hashed.update(content)
    return hashed.hexdigest()


def code_digest(files: Iterable[Path]) -> str:
    """Return the hash of all definitions in `files`.

    It is the hash of a set: moving a definition to another of the files, splitting a file, and reordering imports
    or definitions do not change it. See `definitions` for what counts. Two definitions of one name in different
    files would be interchangeable; a test of the architecture keeps top-level names unique.
    """
    return digest(sorted(set().union(*(definitions(file) for file in files))))


def definitions(file: Path) -> frozenset[str]:
    """Return what a source file defines, as normalised source: one text per top-level statement or import.

    Left out, since they cannot change a number: comments, docstrings, layout, the arguments of `raise`, blocks
    under `if TYPE_CHECKING`, and imports of our own modules (the definitions they import count where they are).
    """
    about = file.stat()
    return _definitions(file.resolve(), about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=1024)
def _definitions(file: Path, _mtime: int, _size: int) -> frozenset[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    own = {name for node in ast.walk(tree) for name in _module_names(node, _import_root(file))}
    normalised = _Normaliser(own).visit(tree)
    found: set[str] = set()
    for statement in normalised.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            found |= {ast.unparse(single) for single in _single_imports(statement)}
        elif not isinstance(statement, ast.Pass):
            found.add(ast.unparse(statement))
    return frozenset(found)


def _is_own(module: str | None) -> bool:
    return (module or "").partition(".")[0] in OWN_PACKAGES


def _import_root(file: Path) -> Path:
    """Return the folder that holds the file's outermost package."""
    folder = file.parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder


def _module_names(node: ast.AST, root: Path) -> set[str]:
    """Return the local names that an import binds to our own modules."""
    if not (isinstance(node, ast.ImportFrom) and node.module and _is_own(node.module)):
        return set()
    folder = root / node.module.replace(".", "/")
    return {alias.asname or alias.name for alias in node.names if (folder / f"{alias.name}.py").is_file()}


def _single_imports(node: ast.Import | ast.ImportFrom) -> list[ast.stmt]:
    """Split an import into imports of one name each."""
    if isinstance(node, ast.Import):
        return [ast.Import(names=[alias]) for alias in node.names]
    return [ast.ImportFrom(module=node.module, names=[alias], level=node.level) for alias in node.names]


class _Normaliser(ast.NodeTransformer):
    """Remove from a syntax tree what cannot change a number, or depends on which file a definition is in."""

    def __init__(self, modules: set[str]) -> None:
        self.modules = modules  # local names of our own modules

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt:
        """Drop imports of our own definitions, but keep `import a as b`, which decides what b is."""
        if not _is_own(node.module):
            return node
        renamed = [a for a in node.names if a.asname not in (None, a.name) and a.asname not in self.modules]
        return ast.ImportFrom(module="_", names=renamed, level=0) if renamed else ast.Pass()

    def visit_If(self, node: ast.If) -> ast.AST:
        """Drop imports that only type checkers see."""
        return ast.Pass() if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """Keep which error is raised, not its message."""
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """Replace `module.name` by `name` where `module` is one of our own."""
        self.generic_visit(node)
        if isinstance(node.value, ast.Name) and node.value.id in self.modules:
            return ast.copy_location(ast.Name(id=node.attr, ctx=node.ctx), node)
        return node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Drop docstrings."""
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            first = body[0].value
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                node.body = body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
        return super().generic_visit(node)
