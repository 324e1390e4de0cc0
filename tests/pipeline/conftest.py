"""Fixtures of all pipeline tests: a small declaration, fake records, and commands run in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.declare.experiment import Experiment
from pipeline.declare.load import EXPERIMENTS, load_experiment
from pipeline.track.record import Record
from tests.support.elsewhere import OTHER
from tests.support.fake_records import fake_record, set_console
from tests.support.shared_files import once_per_session

DECLARATION = """
paper: {title: "On <Depth>", authors: "A & B", year: 2015, arxiv: "0000.00000", section: "4.2"}
question: Do deep | wide networks train worse?
data: {name: cifar10, augment: [pad4-crop, flip]}
train:
  steps: 64000
  batch_size: 128
  lr: 0.1
  lr_drops: {at: [32000, 48000], factor: 0.1}
  optimizer: {name: sgd, momentum: 0.9, weight_decay: 1e-4}
variants:
  plain-20: {model: {name: plain_cifar, depth: 20}}
  plain-32: {model: {name: plain_cifar, depth: 32}}
  resnet-20:
    model: {name: resnet_cifar, depth: 20, shortcut: A}
    train: {warmup: {lr: 0.01, train_error_below_pct: 80.0}}
seeds: [0, 1, 2, 3, 4]
scales:
  paper: {why: As published.}
  laptop:
    why: Minutes.
    data: {name: digits, augment: [pad1-crop]}
    train: {steps: 400, lr_drops: {at: [200], factor: 0.5}}
  smoke:
    data: {name: noise}
    train: {steps: 12, lr_drops: {at: [6]}}
    variants: [plain-20, resnet-20]
    seeds: [0, 1, 2]
claims:
  - {id: size, kind: exact, says: "0.27 million", of: plain-20, metric: model/parameters, claimed: 270000, margin: 5000, source: "Table 6"}
  - {id: decay, kind: exact, by: lecture, says: "Decay of 1e-5", of: plain-20, metric: recipe/train.optimizer.weight_decay, claimed: 1e-5, corrected: 1e-4, source: "notes"}
  - {id: error, kind: metric, says: "Plain-20 reaches 9.5 %", of: plain-20, metric: test/top1_error_pct, claimed: 9.5, margin: 0.5, source: "Figure 6", confidence: figure}
  - {id: stuck, kind: bound, says: "Plain-32 stays above 9 %", of: plain-32, metric: test/top1_error_pct, op: ">", claimed: 9.0, source: "Figure 6"}
  - {id: deeper, kind: ordering, says: "Deeper is worse", lhs: plain-32, op: ">", rhs: plain-20, metric: test/top1_error_pct, source: "Figure 6"}
  - {id: ratio, kind: ratio, says: "By a tenth", lhs: plain-32, rhs: plain-20, metric: test/top1_error_pct, claimed: 1.1, margin: 0.1, source: "Figure 6"}
  - {id: prize, kind: open, says: "Won <b>first</b> | place", source: "ILSVRC", reason: no-labels, why: "the test labels are secret"}
departures:
  - {what: Pixels are scaled., why: No scale is named.}
"""  # noqa: E501 - as an author writes it


@pytest.fixture
def declare(tmp_path: Path) -> Callable[..., Experiment]:
    """Load the declaration after replacing pieces of its text: declare("steps: 64000", "steps: 9")."""

    def load_changed(*pairs: str) -> Experiment:
        text = DECLARATION
        for old, new in zip(pairs[::2], pairs[1::2], strict=True):
            assert text.count(old) >= 1, f"{old!r} is not in the declaration"
            text = text.replace(old, new, 1)
        path = tmp_path / "experiments" / "toy" / "depth.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return load_experiment("toy/depth", tmp_path / "experiments")

    return load_changed


@pytest.fixture
def declare_other(declare: Callable[..., Experiment], tmp_path: Path) -> Callable[..., Experiment]:
    """Load toy/wide, whose derived run consumes a variant of toy/depth, after replacing pieces of its text."""
    folder = tmp_path / "experiments"

    def load_changed(*pairs: str) -> Experiment:
        text = OTHER
        for old, new in zip(pairs[::2], pairs[1::2], strict=True):
            assert text.count(old) >= 1, f"{old!r} is not in the declaration"
            text = text.replace(old, new, 1)
        if not (folder / "toy" / "depth.yaml").exists():
            declare()
        (folder / "toy" / "wide.yaml").write_text(text, encoding="utf-8")
        return load_experiment("toy/wide", folder)

    return load_changed


@pytest.fixture
def other_experiments(tmp_path: Path) -> None:
    """Copies of experiments that the small declaration can name, in its folder."""
    for name in ("resnet/cifar10_depth", "resnet/architecture", "resnet/imagenet", "nin/cifar"):
        path = tmp_path / "experiments" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((EXPERIMENTS / f"{name}.yaml").read_bytes())


@pytest.fixture
def experiment(declare: Callable[..., Experiment]) -> Experiment:
    """The small declaration, loaded."""
    return declare()


@pytest.fixture
def record() -> Callable[..., Record]:
    """Function that returns the record of a run that was not trained."""
    return fake_record


@pytest.fixture
def seed_records() -> Callable[..., list[Record]]:
    """Function that returns one record for each error, with seeds 0, 1, 2 and so on."""

    def several(experiment: Experiment, variant: str, errors: list[float], **other: Any) -> list[Record]:
        return [fake_record(experiment, variant, seed, error, **other) for seed, error in enumerate(errors)]

    return several


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Function that returns the folder of a finished smoke run with this seed. Tests must not change it."""

    def find(seed: int) -> Path:
        from tests.support.smoke_runs import smoke_run, train_in

        return once_per_session(tmp_path_factory, f"run-{seed}", lambda path: train_in(path, smoke_run(seed=seed)))

    return find


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of an empty MLflow database, which takes seconds to create."""
    from tests.support.mlflow_servers import create_database

    return once_per_session(tmp_path_factory, "empty.db", create_database).read_bytes()


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Function that runs `repro` in this process; returns exit code, stdout and stderr. REPRO_HOME is tmp_path."""
    from pipeline.cli import main, terminal
    from pipeline.common.network import NO_STATISTICS

    monkeypatch.setenv("REPRO_HOME", str(tmp_path))
    for name in ("OMP_NUM_THREADS", "MLFLOW_TRACKING_URI", "REPRO_DATA", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("no_proxy", "NO_PROXY", *NO_STATISTICS):  # set by `main`; removed after the test
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    set_console(monkeypatch, terminal.console())  # as wide as in a pipe, also on a terminal

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["repro", *map(str, words)])
        code = 0
        try:
            main.main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
