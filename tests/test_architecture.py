"""The architecture, from the source: import contracts, unique names, and which libraries a command loads."""

import ast
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "lightning_modules")
# The same idea in several modules: what every command group, every paper or every published network has.
SAME_IDEA = {
    "app": "pipeline.cli",  # typer's application: of all commands, and of `repro data`
    **{f"FIGURE_{number}": "pipeline.report.paper_figures" for number in (1, 3, 4, 7)},  # of each paper
}


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of pyproject.toml against the packages in `root`."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def sources(root: Path = ROOT) -> dict[str, Path]:
    """Every module of ours, by its dotted name."""
    files = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    names = [".".join(path.relative_to(root).with_suffix("").parts) for path in files]
    return {name.removesuffix(".__init__"): path for name, path in zip(names, files, strict=True)}


def test_imports_keep_the_contracts():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("pipeline/judge/ledger.py", "from pipeline.cli.main import app", "Each layer imports only layers"),
        ("pipeline/plan/expand.py", "def f():\n    import pipeline.judge.ledger", "Each layer imports only"),
        ("lightning_modules/resnet.py", "import pipeline.plan.expand", "Each layer imports only layers below it"),
        ("pipeline/data/order.py", "from pipeline.data import batches", "No circles among modules"),
        ("pipeline/judge/ledger.py", "from pipeline.train import ranks", "Judging and training"),
        ("pipeline/judge/verdict.py", "from pipeline.common import words", "Verdicts and statistics are pure"),
        ("pipeline/train/train.py", "import mlflow.entities", "Only track imports mlflow"),
        ("pipeline/train/train.py", "def f():\n    from ray import get", "Only cluster imports ray"),
    ],
)
def test_an_import_against_a_contract_is_caught(tmp_path, file, line, contract):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / file).open("a", encoding="utf-8") as changed:
        changed.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    broken = [row for row in done.stdout.splitlines() if row.endswith("BROKEN")]
    assert any(row.startswith(contract) for row in broken), done.stdout


def test_every_folder_of_the_pipeline_has_its_layer():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = config["tool"]["importlinter"]["contracts"][0]["layers"]
    folders = {f"pipeline.{path.parent.name}" for path in (ROOT / "pipeline").glob("*/__init__.py")}
    assert folders == set(layers) - {"lightning_modules"}


def test_reading_data_does_not_know_how_it_is_prepared():
    for name, path in sources().items():
        if name.startswith("pipeline.data.") and not name.startswith("pipeline.data.prepare"):
            assert "pipeline.data.prepare" not in path.read_text(encoding="utf-8"), name


def top_level_names(path: Path) -> set[str]:
    """The names that a module defines, without its imports."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)}
    return found


def test_no_top_level_name_is_in_two_modules():
    """A name means one thing; and a code hash, a set of definitions, relies on it. Papers keep their own words."""
    modules = defaultdict(list)
    for module, path in sources().items():
        if module.startswith("pipeline"):
            for name in top_level_names(path):
                modules[name].append(module)
    twice = {
        name: found
        for name, found in modules.items()
        if len(found) > 1 and not all(one.startswith(SAME_IDEA.get(name, "-")) for one in found)
    }
    assert twice == {}


def test_a_packages_own_file_is_empty():
    for path in ROOT.glob("pipeline/**/__init__.py"):
        assert path.read_text(encoding="utf-8") == "", path


# --- libraries loaded --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module", ["pipeline.cli.main", "pipeline.declare.load", "pipeline.plan.expand", "pipeline.judge.ledger"]
)
def test_listing_checking_and_judging_load_no_heavy_library(module):
    heavy = "torch mlflow pytorch_lightning matplotlib scipy sklearn ray"
    code = f"import {module}, sys; print(*(name for name in {heavy.split()} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_node_checks_its_arguments_before_ray_is_loaded():
    """Ray reads its environment when it is imported."""
    code = "import pipeline.cluster.node, sys; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_help_loads_no_heavy_library():
    heavy = "torch mlflow pytorch_lightning matplotlib scipy sklearn ray numpy PIL fsspec"
    code = (
        "import sys; sys.argv = ['repro', '--help']\n"
        "from pipeline.cli.main import main\n"
        "try: main()\n"
        f"finally: print(*(name for name in {heavy.split()} if name in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "verify" in done.stdout
    assert done.stderr.split() == []
