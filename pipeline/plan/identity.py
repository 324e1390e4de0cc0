"""Identities of runs: a hash of declaration, data manifest and training code."""

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.common.hashing import bare_source, digest
from pipeline.common.paths import ROOT
from pipeline.plan.expand import Run, Step

TRAINING = (
    "pipeline/group.py",
    "pipeline/train.py",
    "pipeline/supply.py",
    "pipeline/evaluate.py",
    "pipeline/protocol.py",
    *(
        f"pipeline/data/{name}.py"
        for name in (
            "ahead",
            "batches",
            "colour",
            "folders",
            "images",
            "jpeg",
            "manifest",
            "normalise",
            "order",
            "photographs",
            "samples",
            "shards",
            "sources",
            "statistics",
            "store",
            "views",
        )
    ),
)

STEPS = {  # kind of step -> the files that can change its numbers, but for those of its runs
    "ensemble": ("pipeline/steps.py",),
    "protocol": ("pipeline/steps.py",),
    "transfer": ("pipeline/steps.py", "pipeline/steps_transfer.py"),
    "compression": ("pipeline/steps.py", "pipeline/steps_compression.py"),
}


def identity(run: Run | Step, *, manifest: str, code: str, members: Sequence[str] = ()) -> str:
    """What a run is: its resolved declaration, its data and the code that can change its numbers (hash).

    A step is that and the identities of its members. A run changed by --set never counts for a claim, so it must
    not stand for a declared run of the same recipe.
    """
    departs: dict[str, Any] = {"departs": True} if run.changes else {}
    consumed = {"members": list(members)} if members else {}
    return digest({"declaration": run.declaration, "manifest": manifest, "code": code} | departs | consumed)


def step_code(step: Step, codes: Sequence[str], root: Path = ROOT) -> str:
    """Hash of the code that can change the numbers of a step: that of its runs, and its own."""
    own = {file: bare_source(root / file) for file in STEPS[step.step.kind]}
    return digest({"runs": list(codes), "step": own})


def code_hash(network_file: Path, root: Path = ROOT) -> str:
    """Hash of the code that can change the numbers of a run whose network is defined in `network_file`.

    That is the training path, the shared modules and the network's file with what it imports of
    `lightning_modules`; not the other papers' files. A module which imports the network's file and holds no
    paper's networks (LeNet-5's own way to learn) belongs to it. Comments, docstrings and layout do not count.
    """
    root, network_file = root.resolve(), network_file.resolve()
    modules = root / "lightning_modules"
    papers = imported_modules(modules / "networks.py")
    own = [
        path
        for path in modules.glob("*.py")
        if path.stem not in ("networks", *papers) and network_file.stem in imported_modules(path)
    ]
    files = {path for pattern in TRAINING for path in root.glob(pattern)}
    waiting = [network_file, modules / "classifier.py", *own]
    while waiting:
        path = waiting.pop()
        if path not in files:
            files.add(path)
            waiting += [modules / f"{name}.py" for name in imported_modules(path)]
    parts = {str(path.relative_to(root)): bare_source(path) for path in sorted(files)}
    return digest(parts)


def imported_modules(path: Path) -> set[str]:
    """Names of the `lightning_modules` that `path` imports, but for those that change no number."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("lightning_modules.")} - {"networks", "names"}
