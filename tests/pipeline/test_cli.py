"""The command as a user meets it: what it prints, how it ends, what it says of a mistake."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline.runs import RunFolder

RESNET = "resnet/cifar10_depth"
SMOKE = ("run", RESNET, "--scale", "smoke")


def repro(home, *words, wait=True, **environment):
    """Run the command in a process of its own, as a user does."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "REPRO_", "OMP_"))}
    env |= {"REPRO_HOME": str(home), "COLUMNS": "100", **environment}
    command = [sys.executable, "-m", "pipeline.cli", *map(str, words)]
    if not wait:
        return subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=200)


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A home in which the smoke runs of the depth experiment were made, and what the command said."""
    path = tmp_path_factory.mktemp("home")
    return path, repro(path, *SMOKE)


def test_a_run_ends_with_leaderboard_verdicts_figure_and_what_to_do_next(home):
    path, done = home
    assert done.returncode == 0, done.stderr
    for words in ("resnet-20", "plain-20", "trend", "repro ui", "repro verify"):
        assert words in done.stdout
    assert (path / "report" / "resnet-cifar10_depth-smoke.png").stat().st_size > 10_000
    assert (path / "report" / "resnet-cifar10_depth-smoke.html").is_file()
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    assert "\x1b" not in done.stdout + done.stderr  # plain lines where there is no terminal


def test_what_is_finished_is_not_trained_again(home):
    path, _ = home
    stamps = {file: file.stat().st_mtime_ns for file in path.glob("runs/*/network.safetensors")}
    assert len(stamps) == 6
    again = repro(path, *SMOKE)
    assert again.returncode == 0
    assert {file: file.stat().st_mtime_ns for file in path.glob("runs/*/network.safetensors")} == stamps
    assert "6 of 6 runs are finished already" in again.stderr


def test_json_is_json(home):
    path, _ = home
    for words in (("list",), ("show", RESNET), ("leaderboard",), ("verify", RESNET), SMOKE):
        done = repro(path, *words, "--json")
        assert json.loads(done.stdout), words
    rows = json.loads(repro(path, "leaderboard", "--json").stdout)
    assert {row["variant"] for row in rows} == {"plain-20", "resnet-20"}
    assert {(row["images"], row["seeds"], row["scale"]) for row in rows} == {(100, 3, "smoke")}


def test_verify_judges_from_the_evidence_alone(home):
    path, _ = home
    done = repro(path, "verify", RESNET)
    assert done.returncode == 0  # nothing is "not reproduced": smoke runs speak about trends at most
    assert "erratum" in done.stdout
    assert "lecture-weight-decay" in done.stdout


def test_dry_run_trains_nothing(home, tmp_path):
    done = repro(tmp_path, *SMOKE, "--seeds", "1", "--dry-run")
    assert done.returncode == 0
    assert "2 runs, 0 finished, 2 to train" in done.stdout
    assert not list(tmp_path.glob("runs/*/run.json"))


def test_a_changed_recipe_is_labelled_and_does_not_count(home):
    path, _ = home
    changed = (*SMOKE, "--set", "train.lr=0.05", "--variant", "resnet-20", "--seeds", "1")
    assert repro(path, *changed).returncode == 0
    rows = json.loads(repro(path, "leaderboard", "--json").stdout)
    labels = {(row["variant"], row["departs"], row["seeds"]) for row in rows}
    assert ("resnet-20", "train.lr=0.05", 1) in labels
    assert ("resnet-20", "", 3) in labels  # the declared runs as before, without the changed one


MISTAKES = [
    (("run", "resnet/cifar10_dept"), "no experiment 'resnet/cifar10_dept'; did you mean 'resnet/cifar10_depth'?"),
    (("run", RESNET, "--scale", "laptp"), "no scale 'laptp'; did you mean 'laptop'?"),
    ((*SMOKE, "--variant", "resnet-21"), "no variant 'resnet-21'; did you mean"),
    ((*SMOKE, "--seeds", "0"), "--seeds 0"),
    ((*SMOKE, "--seeds", "100000"), "--seeds 100000"),
    ((*SMOKE, "--set", "train.lr"), "--set train.lr"),
    ((*SMOKE, "--set", "foo.bar=1"), "--set foo.bar"),
    ((*SMOKE, "--set", "train.lr=abc"), "train.lr"),
    ((*SMOKE, "--set", "train.stepz=9"), "did you mean 'steps'?"),
    ((*SMOKE, "--set", "data.name=digts"), "did you mean 'digits'?"),
    ((*SMOKE, "--set", "model.depth=21"), "the nearest that are: 20, 26"),
    ((*SMOKE, "--set", "model.name=resnet_cifr"), "did you mean 'resnet_cifar'?"),
]


@pytest.mark.parametrize(("words", "sentence"), MISTAKES, ids=[" ".join(w)[-28:] for w, _ in MISTAKES])
def test_a_mistake_is_one_sentence_and_exit_code_2(monkeypatch, capsys, tmp_path, words, sentence):
    """In this process, since it ends before anything heavy: the same `main`."""
    from pipeline import cli

    monkeypatch.setenv("REPRO_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["repro", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert sentence in " ".join(said.split())
    assert "Traceback" not in said


def test_threads_that_are_no_number_are_refused(tmp_path):
    done = repro(tmp_path, *SMOKE, OMP_NUM_THREADS="many")
    assert done.returncode == 2
    assert "OMP_NUM_THREADS is 'many'" in done.stderr


def test_a_tracking_server_that_is_away_costs_nothing(tmp_path):
    words = (*SMOKE, "--variant", "plain-20", "--seeds", "1")
    away = repro(tmp_path, *words, MLFLOW_TRACKING_URI="http://user:secret@127.0.0.1:9")
    assert away.returncode == 0, away.stderr
    assert "Not tracked yet" in away.stderr
    assert "secret" not in away.stdout + away.stderr
    rows = json.loads(repro(tmp_path, "leaderboard", "--json").stdout)  # the default server is there
    assert [(row["variant"], row["seeds"]) for row in rows] == [("plain-20", 1)]
    (sent,) = tmp_path.glob("runs/*/tracked.json")
    assert json.loads(sent.read_text(encoding="utf-8"))["done"]


def test_ctrl_c_leaves_a_run_that_the_same_command_resumes_to_the_same_bits(tmp_path):
    words = (*SMOKE, "--variant", "resnet-20", "--seeds", "1", "--set", "train.steps=200")
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    process = repro(stopped, *words, wait=False)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not any(f.progress() for f in folders(stopped)):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "the same command goes on" in said
    (folder,) = folders(stopped)
    assert folder.result() is None
    assert folder.checkpoint_files()
    assert repro(stopped, *words).returncode == 0
    assert repro(whole, *words).returncode == 0
    (ours,), (theirs,) = folders(stopped), folders(whole)
    assert ours.network_file.read_bytes() == theirs.network_file.read_bytes()


def folders(home):
    return [RunFolder(path.parent) for path in home.glob("runs/*/run.json")]
