"""The house, from its source: which way imports run, which library has which owner, how fast the door opens."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "lightning_modules")

# From the ground up: a module may import those named before it and none after it, inside functions too.
ORDER = (
    "lightning_modules.names",
    "lightning_modules.errors",
    "lightning_modules.recipe",
    "lightning_modules.layers",
    # one file per paper
    "lightning_modules.alexnet",
    "lightning_modules.densenet",
    "lightning_modules.fractalnet",
    "lightning_modules.googlenet",
    "lightning_modules.inception_v4",
    "lightning_modules.inception_resnet_v2",
    "lightning_modules.lenet5",
    "lightning_modules.nin",
    "lightning_modules.preact_resnet",
    "lightning_modules.preact_resnet_imagenet",
    "lightning_modules.resnet",
    "lightning_modules.resnet_imagenet",
    "lightning_modules.resnext",
    "lightning_modules.squeezenet",
    "lightning_modules.stochastic_depth",
    "lightning_modules.vgg",
    "lightning_modules.wide_resnet",
    "lightning_modules.wide_resnet_imagenet",
    "lightning_modules.zfnet",
    # all of them
    "lightning_modules.networks",
    "lightning_modules.published.weights",
    "lightning_modules.published.inception_v4",
    "lightning_modules.published.densenet",
    "lightning_modules.published.resnet",
    "lightning_modules.published.resnet_cifar",
    "lightning_modules.published.resnext",
    "lightning_modules.published.squeezenet",
    "lightning_modules.published.vgg",
    "lightning_modules.published.wide_resnet",
    "lightning_modules.published.catalogue",
    "lightning_modules.classifier",
    "lightning_modules.sdlm",
    # declarations and what is said of them
    "pipeline.words",
    "pipeline.mistakes",
    "pipeline.protocol",
    "pipeline.verdict",
    "pipeline.experiment",
    "pipeline.plan",
    "pipeline.home",
    "pipeline.record",
    "pipeline.runs",
    # one run
    "pipeline.data.order",
    "pipeline.data.images",
    "pipeline.data.samples",
    "pipeline.data.jpeg",
    "pipeline.data.ahead",
    "pipeline.data.store",
    "pipeline.data.shards",
    "pipeline.data.normalise",
    "pipeline.data.colour",
    "pipeline.data.statistics",
    "pipeline.data.folders",
    "pipeline.data.class_folders",
    "pipeline.data.sources",
    "pipeline.data.originals",
    "pipeline.data.archives",
    "pipeline.data.notes",
    "pipeline.data.prepare",
    "pipeline.data.standin",
    "pipeline.data.inspect",
    "pipeline.data.manifest",
    "pipeline.data.batches",
    "pipeline.data.photographs",
    "pipeline.data.views",
    "pipeline.group",
    "pipeline.evaluate",
    "pipeline.supply",
    "pipeline.train",
    "pipeline.steps_transfer",
    "pipeline.steps_compression",
    "pipeline.steps",
    # many runs
    "pipeline.schedule.task",
    "pipeline.schedule.local",
    "pipeline.schedule.queue",
    "pipeline.schedule.launches",
    "pipeline.schedule.sockets",
    "pipeline.schedule.node",
    "pipeline.tracked",
    "pipeline.tracking",
    "pipeline.syncing",
    "pipeline.schedule.cluster",
    "pipeline.schedule.jobs",
    # what they say
    "pipeline.analyse",
    "pipeline.catalogue",
    "pipeline.timing",
    "pipeline.published_results",
    "pipeline.published",
    "pipeline.ledger",
    "pipeline.report.leaderboard",
    "pipeline.report.text",
    "pipeline.report.complexity",
    "pipeline.report.figures",
    "pipeline.report.page",
    "pipeline.report.describe",
    "pipeline.report.progress",
    # the whole
    "pipeline.reproduce",
    "pipeline.launch",
    "pipeline.report.status",
    "pipeline.report.results",
    "pipeline.terminal",
    "pipeline.cli_data",
    "pipeline.cli_cluster",
    "pipeline.cli",
)
OWNERS = {  # library -> the modules that may import it
    "mlflow": {"pipeline.tracking"},
    "ray": {"pipeline.schedule.cluster", "pipeline.schedule.jobs"},
    "matplotlib": {"pipeline.report.figures"},
    "typer": {"pipeline.cli", "pipeline.cli_data", "pipeline.cli_cluster", "pipeline.terminal"},
    "statsmodels": set(),
}


def name_of(path: Path, root: Path = ROOT) -> str:
    """pipeline/report/page.py -> pipeline.report.page"""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """All that a file imports, in dotted names: of `from a.b import c` both a.b and a.b.c."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}, line {node.lineno}: a relative import hides from text search"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def sources(root: Path = ROOT) -> dict[str, set[str]]:
    """What each of our modules imports."""
    files = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    return {name_of(path, root): imports(path) for path in sorted(files)}


def upward(found: dict[str, set[str]]) -> list[str]:
    """'a imports b' for each import that runs against ORDER."""
    place = {name: index for index, name in enumerate(ORDER)}
    return [
        f"{module} imports {target}"
        for module, targets in found.items()
        for target in sorted(targets & place.keys())
        if place[target] >= place.get(module, -1)
    ]


def owned(found: dict[str, set[str]]) -> list[str]:
    """'a imports b' for each library imported by another module than its owner."""
    return [
        f"{module} imports {target}"
        for module, targets in found.items()
        for target in sorted(targets)
        if module not in OWNERS.get(target.partition(".")[0], {module})
    ]


FOUND = sources()


def test_every_module_has_its_place_in_the_order():
    packages = {name for name in FOUND if (ROOT / name.replace(".", "/")).is_dir()}
    missing = set(FOUND) - packages - set(ORDER)
    assert not missing, f"give {sorted(missing)} a place in ORDER: above all that they import"
    assert len(set(ORDER)) == len(ORDER)


def test_no_module_imports_one_above_it():
    assert upward(FOUND) == []


def test_networks_know_nothing_of_what_schedules_tracks_and_judges_them():
    for module, targets in FOUND.items():
        if module.startswith("lightning_modules"):
            assert not {t for t in targets if t.partition(".")[0] in ("pipeline", "ray", "mlflow")}, module


def test_every_library_has_its_owner():
    assert owned(FOUND) == []


def test_the_statistics_know_nothing_of_the_project():
    assert not {target for target in FOUND["pipeline.verdict"] if target.partition(".")[0] in PACKAGES}


def test_a_packages_own_file_imports_nothing():
    for package in {name for name in FOUND if (ROOT / name.replace(".", "/")).is_dir()}:
        assert FOUND[package] == set(), package


@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        ("pipeline/ledger.py", "from pipeline.cli import app", "pipeline.ledger imports pipeline.cli"),
        ("pipeline/plan.py", "def f():\n    from pipeline import ledger", "pipeline.plan imports pipeline.ledger"),
        ("pipeline/plan.py", "import pipeline.ledger as x", "pipeline.plan imports pipeline.ledger"),
        ("lightning_modules/resnet.py", "import pipeline.plan", "lightning_modules.resnet imports pipeline.plan"),
        ("pipeline/train.py", "import mlflow.entities", "pipeline.train imports mlflow.entities"),
        ("pipeline/train.py", "def f():\n    from ray import get", "pipeline.train imports ray"),
    ],
)
def test_an_import_against_the_order_is_caught(tmp_path, file, line, words):
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text(f"{line}\n", encoding="utf-8")
    found = sources(tmp_path)
    assert words in upward(found) + owned(found)


def test_a_relative_import_is_caught(tmp_path):
    (tmp_path / "x.py").write_text("from . import plan\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="relative import"):
        imports(tmp_path / "x.py")


# --- the door ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["pipeline.cli", "pipeline.experiment", "pipeline.plan", "pipeline.ledger"])
def test_what_lists_checks_and_judges_loads_no_heavy_library(module):
    heavy = "torch mlflow pytorch_lightning matplotlib scipy sklearn ray"
    code = f"import {module}, sys; print(*(name for name in {heavy.split()} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_help_is_there_in_half_a_second():
    seconds = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        after = os.times()  # of the processor, not of the wall: other work on the machine does not count
        used = after.children_user + after.children_system - before.children_user - before.children_system
        seconds.append(used)
    assert "verify" in done.stdout
    assert min(seconds) < 0.5
