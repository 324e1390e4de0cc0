"""The command with real runs: output, exit codes, resuming, the MLflow UI."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from pipeline.schedule import local
from pipeline.track.run_folder import RunFolder
from tests.support.clean_environment import IGNORED
from tests.support.smoke_runs import FORKSERVER, journal_metrics, smoke_run, train_in, weights

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow 3.17's own

RESNET = "resnet/cifar10_depth"
SMOKE = ("run", RESNET, "--scale", "smoke")


def repro(home, *words, wait=True, **environment):
    """Run the command in a process of its own."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "REPRO_", "OMP_"))}
    env |= {"REPRO_HOME": str(home), "COLUMNS": "100", **environment}
    command = [sys.executable, "-m", "pipeline.cli", *map(str, words)]
    if not wait:
        return subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=200)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Home with the smoke runs of the depth experiment, and the process that trained them.

    The environment is that of a Slurm and MPI job, with an `srun` on PATH. It must not change results or output.
    """
    path, srun = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("bin") / "srun"
    srun.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    srun.chmod(0o755)
    return path, repro(path, *SMOKE, **IGNORED, PATH=f"{srun.parent}:{os.environ['PATH']}")


@pytest.fixture
def trained_command(home, command, monkeypatch):
    """`command` in that home; worker processes are forked from one that has imported everything."""
    monkeypatch.setenv("REPRO_HOME", str(home[0]))
    monkeypatch.setattr(local.multiprocessing, "get_context", lambda _: FORKSERVER)
    return command


@pytest.fixture
def local_command(command, monkeypatch):
    """`command` in an empty home; worker processes as in `trained_command`."""
    monkeypatch.setattr(local.multiprocessing, "get_context", lambda _: FORKSERVER)
    return command


def test_run_prints_leaderboard_verdicts_figure_and_hints(home):
    path, done = home
    assert done.returncode == 0, done.stderr
    for words in ("resnet-20", "plain-20", "cannot judge", "repro ui", "repro verify"):
        assert words in done.stdout
    assert (path / "report" / "resnet-cifar10_depth-smoke.png").stat().st_size > 10_000
    assert (path / "report" / "resnet-cifar10_depth-smoke.html").is_file()
    assert "\x1b" not in done.stdout + done.stderr  # plain lines without a terminal


def test_progress_lines_are_start_and_end_of_runs(home):
    """No warnings of libraries, no traceback."""
    lines = home[1].stderr.splitlines()
    known = re.compile(
        r"(plain|resnet)-20 seed [012]: (training|test error \d+\.\d\d %, trained in \d+ s)|\d+ % of all steps"
    )
    assert [line for line in lines if not known.fullmatch(line)] == []
    assert len([line for line in lines if "trained in" in line]) == 6


def test_variables_of_batch_systems_and_launchers_change_no_bit(home, tmp_path):
    train_in(tmp_path, smoke_run())
    [folder] = [
        folder
        for folder in folders(home[0])
        if (folder.result().variant, folder.result().seed) == ("resnet-20", 0) and not folder.result().changes
    ]
    assert weights(folder.path) == weights(tmp_path)
    assert journal_metrics(folder.path) == journal_metrics(tmp_path)


def test_finished_runs_are_not_trained_again(home, trained_command):
    path, _ = home
    stamps = {file: file.stat().st_mtime_ns for file in path.glob("runs/*/network.safetensors")}
    assert len(stamps) == 6
    code, out, err = trained_command(*SMOKE)
    assert (code, err) == (0, "6 of 6 runs are already finished\n")
    assert "resnet-20" in out
    assert {file: file.stat().st_mtime_ns for file in path.glob("runs/*/network.safetensors")} == stamps


@pytest.mark.parametrize(
    "words",
    [("list",), ("show", RESNET), ("leaderboard",), ("verify", RESNET), SMOKE],
    ids=lambda words: words[0],
)
def test_json_output_is_only_json(trained_command, words):
    code, out, err = trained_command(*words, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)


def test_the_leaderboard_counts_images_and_seeds(trained_command):
    rows = json.loads(trained_command("leaderboard", "--json")[1])
    assert {row["variant"] for row in rows if not row["departs"]} == {"plain-20", "resnet-20"}
    assert {(row["images"], row["seeds"], row["scale"]) for row in rows if not row["departs"]} == {
        (100, 3, "smoke")
    }


def test_verify_judges_from_finished_runs(trained_command):
    code, out, _ = trained_command("verify", RESNET)
    assert code == 0
    assert "! erratum  lecture-weight-decay\n" in out
    assert re.search(r"Trained: (\d+) cannot judge \(\1 not-run\)", out)  # runs on generated images judge nothing


def test_dry_run_trains_nothing(local_command, tmp_path):
    code, out, _ = local_command(*SMOKE, "--seeds", "1", "--dry-run")
    assert code == 0
    assert "2 runs, 0 finished, 2 to train" in out
    assert not list(tmp_path.iterdir())


def test_a_changed_recipe_is_labelled_and_counts_for_no_claim(trained_command):
    changed = (*SMOKE, "--set", "train.lr=0.05", "--variant", "resnet-20", "--seeds", "1")
    assert trained_command(*changed)[0] == 0
    rows = json.loads(trained_command("leaderboard", "--json")[1])
    labels = {(row["variant"], row["departs"], row["seeds"]) for row in rows}
    assert ("resnet-20", "train.lr=0.05", 1) in labels
    assert ("resnet-20", "", 3) in labels  # the declared runs as before, without the changed one


def test_precision_and_data_are_short_for_set_and_labelled(trained_command):
    options = ("--data", "digits", "--precision", "bf16")
    code, out, _ = trained_command(*SMOKE, *options, "--variant", "resnet-20", "--seeds", "1")
    assert code == 0
    assert "resnet/cifar10_depth at smoke scale on digits" in out
    assert "resnet-20 [data.name=digits, train.precision=bf16]" in out
    assert "The paper's errors are on cifar10." in out
    changes = [f"--set={setting}" for setting in ("train.precision=bf16", "data.name=digits")]
    code, out, _ = trained_command(*SMOKE, *changes, "--variant", "resnet-20", "--seeds", "1", "--dry-run")
    assert "1 run, 1 finished" in out


def test_precision_says_that_it_does_not_change_timings(command):
    timing = ("run", "complexity/measurements", "--scale", "laptop", "--dry-run")
    code, _, err = command(*timing, "--precision", "bf16")
    assert (code, err) == (
        0,
        "The precision of timings is not changed (complexity/measurements): they always compute in fp32.\n",
    )
    assert command(*timing)[2] == ""


USER_ERRORS = [
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
    ((*SMOKE, "--data", "digts"), "did you mean 'digits'?"),
    (
        (*SMOKE, "--data", "digits", "--set", "data.name=noise"),
        "--data and --set data.name change the same setting",
    ),
    (("run", "lenet5/mnist", "--precision", "bf16"), "optimizer 'sdlm' does not support precision bf16"),
    ((*SMOKE, "--set", "model.depth=21"), "the nearest valid depths are 20 and 26"),
    ((*SMOKE, "--set", "model.name=resnet_cifr"), "did you mean 'resnet_cifar'?"),
]


@pytest.mark.parametrize(("words", "sentence"), USER_ERRORS, ids=[" ".join(w)[-28:] for w, _ in USER_ERRORS])
def test_a_user_error_is_one_sentence_and_exit_code_2(command, tmp_path, words, sentence):
    code, out, err = command(*words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert sentence in err
    assert not (tmp_path / "runs").exists()


def write_images(folder, *, without=None):
    """Write two classes of four images in each split, except the class of the split in `without`."""
    for split in ("train", "test"):
        for name in ("dark", "light"):
            if (split, name) != without:
                (folder / split / name).mkdir(parents=True)
                for i in range(4):
                    Image.new("RGB", (16, 16), (i, 0, 0)).save(folder / split / name / f"{i}.png")


def test_a_data_folder_without_a_class_is_an_error(command, tmp_path):
    write_images(tmp_path / "data" / "mine", without=("test", "light"))
    code, _, err = command(*SMOKE, "--set", "data.name=mine")
    assert code == 2
    assert err.endswith(
        "class 'light' has no images in the test split; add some or remove the class from both splits\n"
    )


def test_a_broken_image_is_an_error(command, tmp_path):
    write_images(tmp_path / "data" / "mine")
    broken = tmp_path / "data" / "mine" / "train" / "dark" / "2.png"
    broken.write_bytes(broken.read_bytes()[:40])
    code, _, err = command(*SMOKE, "--set", "data.name=mine")
    assert code == 2
    assert err.startswith(f"error: {broken} cannot be read as an image; restore or remove it")
    assert err.count("\n") == 1


def test_a_number_of_threads_that_is_not_a_number_is_an_error(command, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    code, _, err = command(*SMOKE)
    assert (code, err) == (2, "error: OMP_NUM_THREADS is 'many': must be an integer >= 1\n")


def test_runs_are_kept_and_sent_later_if_the_server_is_unreachable(local_command, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    code, out, err = local_command(*SMOKE, "--variant", "plain-20", "--seeds", "1")
    assert code == 0
    assert err.count("Not tracked yet") == err.count("nothing answers there") == 1
    assert "secret" not in out + err
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # the local database
    rows = json.loads(local_command("leaderboard", "--json")[1])
    assert [(row["variant"], row["seeds"]) for row in rows] == [("plain-20", 1)]
    (sent,) = tmp_path.glob("runs/*/tracked.json")
    assert json.loads(sent.read_text(encoding="utf-8"))["done"]


# Processes of their own


def wait_for(what, seconds=90):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("timed out")


def group_of(process):
    """Return the ids of the living processes of a command's process group."""
    ids = [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]
    found = []
    for number in ids:
        with contextlib.suppress(OSError):
            if (
                os.getpgid(int(number)) == process.pid
                and "(zombie)" not in Path(f"/proc/{number}/status").read_text()
            ):
                found.append(int(number))
    return found


LONG = (*SMOKE, "--variant", "resnet-20", "--seeds", "1", "--set", "train.steps=40")


@pytest.mark.slow  # test_local.py and test_messages.py stop commands with workers forked from this process
def test_a_run_stopped_by_ctrl_c_resumes_to_the_same_bits(tmp_path, local_command):
    """A terminal sends Ctrl-C to the whole process group. Afterwards one checkpoint is damaged."""
    process = repro(tmp_path, *LONG, wait=False, REPRO_CHECKPOINT_SECONDS="0.1")
    wait_for(lambda: any(len(folder.checkpoint_files()) == 2 for folder in folders(tmp_path)))
    os.killpg(process.pid, signal.SIGINT)
    out, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert out == ""
    assert said.splitlines()[-1] == "Stopped. Finished runs are kept. Run the same command again to resume."
    assert "Traceback" not in said
    wait_for(lambda: not group_of(process), seconds=5)
    (folder,) = folders(tmp_path)
    assert folder.result() is None
    newest, _before = folder.checkpoint_files()
    newest.write_bytes(newest.read_bytes()[:5000])

    code, _, err = local_command(*LONG)
    assert code == 0
    assert f"resnet-20 seed 0: checkpoint {newest.name} is damaged; using the one before\n" in err
    train_in(tmp_path / "whole", smoke_run(changes={"train.steps": 40}))
    assert folder.network_file.read_bytes() == weights(tmp_path / "whole")


@pytest.mark.slow
def test_two_commands_train_the_same_run_once(tmp_path):
    both = [repro(tmp_path, *LONG, "--json", wait=False), repro(tmp_path, *LONG, wait=False)]
    said = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    errors = said[0][1] + said[1][1]
    assert errors.count("another repro command trains it already; waiting for its result") <= 1
    board = json.loads(said[0][0])["leaderboard"]
    assert [(row["variant"], row["seeds"]) for row in board] == [("resnet-20", 1)]
    assert f"{board[0]['top1']:.2f}" in said[1][0]
    assert len(folders(tmp_path)) == 1
    steps = [entry["step"] for entry, _ in folders(tmp_path)[0].journal()]
    assert steps == sorted(set(steps))  # written by one process


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_the_same_command_finishes_later(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    small = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(place)]
    if subprocess.run(small, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
        (place / "filler").write_bytes(b"\0" * (free - 2_500_000))  # a database and a checkpoint do not both fit
        done = repro(place, *LONG, REPRO_CHECKPOINT_SECONDS="0.2")
        assert done.returncode in (1, 2)
        assert "no space left on device" in done.stderr
        assert "Traceback" not in done.stderr
        (place / "filler").unlink()
        again = repro(place, *LONG)
        assert again.returncode == 0, again.stderr
        (folder,) = folders(place)
        train_in(tmp_path / "whole", smoke_run(changes={"train.steps": 40}))
        assert folder.network_file.read_bytes() == weights(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(place)], check=True)


# The MLflow UI


def listening():
    """Return address and port of all listening TCP sockets; (None, port) for IPv6."""
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            local_address, state = line.split()[1], line.split()[3]
            if state == "0A":
                address, port = local_address.split(":")
                plain = socket.inet_ntoa(bytes.fromhex(address)[::-1]) if name == "tcp" else None
                found.add((plain, int(port, 16)))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's list of sockets")
def test_ui_serves_the_parent_run_on_loopback_only_until_ctrl_c(home, command, monkeypatch):
    monkeypatch.setenv("REPRO_HOME", str(home[0]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = listening()
    process = repro(home[0], "ui", "--port", port, wait=False)

    def get(path):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.read()

    def up():
        with contextlib.suppress(OSError):
            return get("/health")

    try:
        wait_for(up)
        assert {address for address, _ in listening() - before} == {"127.0.0.1"}
        assert b"<html" in get("/").lower()
        [parent] = [
            run
            for run in MlflowClient(f"sqlite:///{home[0] / 'mlflow.db'}").search_runs(["1"])
            if run.data.tags["repro.key"] == f"parent:{RESNET}@smoke"
        ]
        for name in ("leaderboard.json", "verdicts.json"):
            assert json.loads(get(f"/get-artifact?path={name}&run_uuid={parent.info.run_id}"))["data"]
        stem = "resnet-cifar10_depth-smoke"
        assert get(f"/get-artifact?path={stem}.png&run_uuid={parent.info.run_id}").startswith(b"\x89PNG")
        assert b"</html>" in get(f"/get-artifact?path={stem}.html&run_uuid={parent.info.run_id}")

        code, _, err = command("ui", "--port", port)
        assert (code, err) == (
            2,
            f"error: port {port} is in use; choose another: repro ui --port {port + 1}\n",
        )
    finally:
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert f"http://127.0.0.1:{port}" in out
    assert "Traceback" not in err
    assert not [port_ for _, port_ in listening() if port_ == port]


def test_ui_of_a_tracking_server_prints_its_address_without_the_password(command, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example:8443")
    monkeypatch.setattr("pipeline.track.mlflow_reader.find_experiment", lambda uri, name: None)
    empty = SimpleNamespace(find_experiment=lambda name: None)
    monkeypatch.setattr("pipeline.track.mlflow_writer.Tracker", lambda uri: empty)
    code, out, _ = command("ui")
    assert code == 0
    assert out == "MLflow runs at https://mlflow.example:8443, the tracking server in MLFLOW_TRACKING_URI.\n"


def folders(home):
    return [RunFolder(path.parent) for path in home.glob("runs/*/run.json")]
