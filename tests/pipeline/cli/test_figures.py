"""Test `repro figures`: files, missing figures, and what a user may mistype."""

import json

import pytest

from pipeline.declare.load import load_experiment
from pipeline.judge.collect import FinishedRuns
from tests.support.figure_runs import made_up_records

RESNET = "resnet/cifar10_depth"


@pytest.fixture(autouse=True)
def _one_run(monkeypatch):
    """Let the only finished run be one of ResNet-20 on the digits, without curves."""
    records = made_up_records(load_experiment(RESNET), "laptop", ["resnet-20"], seeds=1)
    monkeypatch.setattr("pipeline.judge.collect.collect_runs", lambda: FinishedRuns(records, None))


def test_missing_figures_name_the_command(command, tmp_path):
    code, text, _ = command("figures", RESNET, "--to", tmp_path / "out")
    assert code == 0
    assert (
        f"resnet-figure-1: No scale has finished runs of 2 of its networks; start them with: repro run {RESNET}"
        in text
    )
    assert not (tmp_path / "out").exists()


def test_files_are_written_in_each_format(command, tmp_path):
    code, text, _ = command(
        "figures", "ilsvrc", "--to", tmp_path / "out", "--format", "png,svg", "--theme", "dark", "--json"
    )
    assert code == 0
    found = {one["name"]: one for one in json.loads(text)}
    files = [str(tmp_path / "out" / f"ilsvrc-winners.{end}") for end in ("png", "svg")]
    assert found["ilsvrc-winners"]["files"] == files
    assert (tmp_path / "out" / "ilsvrc-winners.png").read_bytes().startswith(b"\x89PNG")
    assert found["ours-against-papers"]["files"] == []
    assert "lenet5/mnist" in found["ours-against-papers"]["missing"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((RESNET, "--format", "jpg"), "--format jpg: must be one or several of png, svg, pdf, joined by commas"),
        ((RESNET, "--scale", "laptob"), "--scale laptob: unknown scale; did you mean 'laptop'?"),
        ((RESNET, "--suite", "cs231n"), "give experiments or --suite, not both"),
        (("--suite", "cs321n"), "unknown suite 'cs321n'"),
    ],
)
def test_mistakes_are_one_sentence(command, words, message):
    code, _, err = command("figures", *words)
    assert (code, message in err) == (2, True), err
