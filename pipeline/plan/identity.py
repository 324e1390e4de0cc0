"""Identities of runs: hashes of declaration, data manifest and code."""

import ast
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.common.hashing import code_digest, digest
from pipeline.common.paths import ROOT
from pipeline.plan.expand import DerivedRun, Run

# Code that can change the numbers of any run, as globs. `lightning_modules` is followed by its imports.
TRAINING_CODE = ("pipeline/train/*.py", "pipeline/data/*.py", "pipeline/declare/protocol.py")
# Hash of code -> hash of the earliest code that gives the same numbers: the hash counts a change that leaves them
# as they were. Runs of both count together. An entry names the commits of both, and how their runs were compared.
EQUIVALENT_CODE = {
    # Networks of resnet/cifar10_depth, 33d8b40 and 9520639, which changes messages about compiling. plain-20,
    # plain-56, resnet-20 and resnet-56, seed 0 at laptop scale in fp32, channels-last: equal bits.
    "ffff5ddeca1190d8": "2119b639d54ffb63",
}
DERIVED_CODE = {  # kind of derived run -> code that can change its numbers, beside that of its members
    "ensemble": (
        "pipeline/derive/run.py",
        "pipeline/derive/context.py",
        "pipeline/derive/ensemble.py",
        "pipeline/derive/predictions.py",
    ),
    "ensemble-sizes": (
        "pipeline/derive/run.py",
        "pipeline/derive/context.py",
        "pipeline/derive/ensemble_sizes.py",
        "pipeline/derive/predictions.py",
    ),
    "protocol": ("pipeline/derive/run.py", "pipeline/derive/context.py", "pipeline/derive/ensemble.py"),
    "column": ("pipeline/derive/run.py", "pipeline/derive/context.py", "pipeline/derive/column.py"),
    "timing": ("pipeline/derive/timing.py", "pipeline/analyse/fit.py"),
    "localisation": (
        "pipeline/derive/run.py",
        "pipeline/derive/context.py",
        "pipeline/derive/localisation.py",
        "pipeline/derive/merge_boxes.py",
    ),
    "transfer": (
        "pipeline/derive/run.py",
        "pipeline/derive/context.py",
        "pipeline/derive/transfer.py",
        "pipeline/derive/descriptors.py",
        "pipeline/derive/feature_network.py",
        "pipeline/derive/linear_classifier.py",
        "pipeline/derive/average_precision.py",
        "pipeline/declare/transfer.py",
        "pipeline/data/transfer_sets/images.py",
        "pipeline/data/transfer_sets/splits.py",
        "pipeline/data/transfer_sets/caltech.py",
        "pipeline/data/transfer_sets/voc.py",
    ),
    "compression": (
        "pipeline/derive/run.py",
        "pipeline/derive/context.py",
        "pipeline/derive/compression.py",
        "pipeline/derive/quantise.py",
        "pipeline/derive/retrain.py",
        "pipeline/derive/compressed_file.py",
        "pipeline/derive/huffman.py",
    ),
}


def identity(run: Run | DerivedRun, *, manifest: str, code: str, members: Sequence[str] = ()) -> str:
    """Return the identity of a run: the hash of its resolved declaration, its data and its code.

    The identity of a derived run includes those of its members. A run changed by --set never counts for a claim,
    so its identity differs from that of a declared run with the same recipe.
    """
    departs: dict[str, Any] = {"departs": True} if run.changes else {}
    consumed = {"members": list(members)} if members else {}
    return digest({"declaration": run.declaration, "manifest": manifest, "code": code} | departs | consumed)


def first_equivalent(code: str) -> str:
    """Return the hash of the earliest code whose runs have the same numbers as those of `code`."""
    return EQUIVALENT_CODE.get(code, code)


def derived_code_hash(run: DerivedRun, codes: Sequence[str], root: Path = ROOT) -> str:
    """Return the hash of the code that can change a derived run's numbers: `codes` of its members, and its own.

    Raises FileNotFoundError where an entry of DERIVED_CODE matches nothing.
    """
    return digest({"runs": list(codes), "derived": code_digest(matching_files(DERIVED_CODE[run.spec.kind], root))})


def code_hash(network_file: Path, root: Path = ROOT) -> str:
    """Return the hash of the code that can change the numbers of a run whose network is in `network_file`.

    That is the code of TRAINING_CODE, `lightning_modules/classifier.py`, the network's file, and what these import
    of `lightning_modules`; not the files of other papers. A module that imports the network's file and holds no
    paper's networks (LeNet-5's optimizer) belongs to it. See `common.hashing.definitions` for what counts: the
    definitions do, the files they are in do not.

    Raises FileNotFoundError where an entry of TRAINING_CODE matches nothing.
    """
    root, network_file = root.resolve(), network_file.resolve()
    modules = root / "lightning_modules"
    papers = imported_modules(modules / "networks.py")
    own = [
        path
        for path in modules.glob("*.py")
        if path.stem not in ("networks", *papers) and network_file.stem in imported_modules(path)
    ]
    files = set(matching_files(TRAINING_CODE, root))
    waiting = [network_file, modules / "classifier.py", *own]
    while waiting:
        path = waiting.pop()
        if path not in files:
            files.add(path)
            waiting += [modules / f"{name}.py" for name in imported_modules(path)]
    return code_digest(files)


def matching_files(patterns: Iterable[str], root: Path) -> list[Path]:
    """Return the files that match the globs below `root`. Raises FileNotFoundError for a glob without a match."""
    found = []
    for pattern in patterns:
        files = sorted(root.glob(pattern))
        if not files:
            raise FileNotFoundError(f"the list of training code has {pattern}, which matches no file in {root}")
        found += files
    return found


def imported_modules(path: Path) -> set[str]:
    """Return the names of the modules of `lightning_modules` that `path` imports and that can change a number."""
    about = path.stat()
    return set(_imported_modules(path, about.st_mtime_ns, about.st_size))


@lru_cache(maxsize=256)
def _imported_modules(path: Path, _mtime: int, _size: int) -> frozenset[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    found = {name.split(".")[1] for name in names if name.startswith("lightning_modules.")}
    return frozenset(found - {"networks", "names"})
