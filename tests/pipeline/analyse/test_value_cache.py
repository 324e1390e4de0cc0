"""Test the cache of measured values: hits equal misses, outdated and damaged files, no write access."""

import errno
import json
import os
import subprocess
import sys
import time

import pytest
from rich.console import Console

from pipeline.analyse import measure, value_cache
from pipeline.analyse.measure import measure_claim
from pipeline.analyse.value_cache import cache_value, cached_value, measuring_code, value_file
from pipeline.common.errors import UserError
from pipeline.declare.load import load_experiment
from pipeline.judge.collect import judge_experiments
from pipeline.report.describe import ShownPart, print_experiment

NETWORK = ("a network", '{"depth": 20}', 10, (3, 32, 32))


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(value_cache, "edited_since_start", lambda _: False)


@pytest.fixture
def no_measuring(monkeypatch):
    """Function after whose call measuring a network fails the test."""
    return lambda: monkeypatch.setattr(measure, "analysis_of", lambda _: pytest.fail("measured again"))


@pytest.mark.parametrize(
    ("experiment", "variant", "metric", "kind"),
    [
        ("resnet/cifar10_depth", "resnet-20", "parameters", int),
        ("resnet/cifar10_depth", "resnet-20", "input", list),
        ("resnet/cifar10_depth", "resnet-20", "layer/conv1/output", list),
        ("resnet/cifar10_depth", "resnet-20", "layer/conv1/kernel_size", list),
        ("resnet/cifar10_depth", "resnet-20", "layer/conv1+fc/weights", int),
        ("resnet/cifar10_depth", "resnet-20", "init_gain", float),
        ("resnet/cifar10_depth", "resnet-20", "layer/fc/init_std", float),
        ("resnet/cifar10_depth", "plain-20", "layer/bn1/affine", bool),
        ("resnet/cifar10_depth", "plain-20", "layer/conv1/padding_mode", str),
        ("alexnet/architecture", "alexnet", "layer/lrn1/k", float),
        ("alexnet/architecture", "alexnet", "multiply_adds", int),
    ],
)
def test_a_cached_value_equals_the_measured_one(no_measuring, experiment, variant, metric, kind):
    declared = load_experiment(experiment)
    measured = measure_claim(f"model/{metric}", declared, variant)
    no_measuring()
    cached = measure_claim(f"model/{metric}", declared, variant)
    assert type(measured) is type(cached) is kind
    assert repr(cached) == repr(measured)


@pytest.mark.parametrize(
    "value", [0, -1, 2**70, True, 0.1, 1 / 3, -0.0, 5e-324, float("inf"), "", "3x3 €", [], [1, 2.0, [True, "x"]]]
)
def test_a_value_comes_back_with_its_types(value):
    cache_value(NETWORK, "value", value)
    assert repr(cached_value(NETWORK, "value")) == repr(value)


@pytest.mark.parametrize("value", [(1, 2), [(1, 2)], {"a": 1}, None, {1}])
def test_a_value_that_json_would_change_is_not_cached(value):
    cache_value(NETWORK, "value", value)
    assert not value_file(NETWORK).exists()


def test_values_of_one_network_are_in_one_file():
    cache_value(NETWORK, "depth", 20)
    cache_value(NETWORK, "parameters", 269_722)
    [file] = value_file(NETWORK).parent.iterdir()
    assert json.loads(file.read_text())["values"] == {"depth": 20, "parameters": 269_722}


@pytest.mark.parametrize(
    "other",
    [
        ("another", *NETWORK[1:]),
        (*NETWORK[:1], '{"depth": 32}', *NETWORK[2:]),
        (*NETWORK[:2], 100, NETWORK[3]),
        (*NETWORK[:3], (1, 32, 32)),
        (*NETWORK[:3], "imagenet"),
    ],
)
def test_name_arguments_classes_and_image_distinguish_networks(other):
    cache_value(NETWORK, "depth", 20)
    with pytest.raises(KeyError):
        cached_value(other, "depth")


@pytest.mark.parametrize(
    "metric", ["parameter", "layer/conv9/output", "layer/conv1/colour", "own/conv1", "layer/pool/init_std"]
)
def test_an_error_is_the_same_with_a_cache_and_is_not_cached(metric):
    declared = load_experiment("resnet/cifar10_depth")
    with pytest.raises(UserError) as without:
        measure_claim(f"model/{metric}", declared, "resnet-20")
    assert not value_cache.runs_folder().exists()
    measure_claim("model/parameters", declared, "resnet-20")
    with pytest.raises(UserError) as with_cache:
        measure_claim(f"model/{metric}", declared, "resnet-20")
    assert str(with_cache.value) == str(without.value)


# --- outdated and damaged files ----------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with one file of each folder in MEASURING_CODE."""
    monkeypatch.setattr(value_cache, "ROOT", tmp_path)
    for name in ("lightning_modules/published/a.py", "lightning_modules/b.py", "pipeline/analyse/c.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    measuring_code.cache_clear()
    yield tmp_path
    measuring_code.cache_clear()


@pytest.mark.parametrize(
    "name", ["lightning_modules/published/a.py", "lightning_modules/b.py", "pipeline/analyse/c.py"]
)
def test_a_changed_byte_of_a_source_file_is_a_miss(checkout, name):
    cache_value(NETWORK, "depth", 20)
    measuring_code.cache_clear()
    assert cached_value(NETWORK, "depth") == 20
    (checkout / name).write_text("x = 2\n")
    measuring_code.cache_clear()
    with pytest.raises(KeyError):
        cached_value(NETWORK, "depth")
    cache_value(NETWORK, "weights", 7)
    assert value_cache.read_values(NETWORK) == {"weights": 7}


def test_another_version_of_torch_is_a_miss(checkout, monkeypatch):
    cache_value(NETWORK, "depth", 20)
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.0")
    measuring_code.cache_clear()
    with pytest.raises(KeyError):
        cached_value(NETWORK, "depth")


def test_a_source_file_edited_after_the_start_of_the_process_prevents_writing(checkout, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("REPRO_HOME", str(checkout / "home"))
    monkeypatch.setattr(value_cache, "ROOT", checkout)
    for path in checkout.rglob("*.py"):
        os.utime(path, (1, 1))
    cache_value(NETWORK, "depth", 20)
    edited = checkout / "lightning_modules" / "b.py"
    os.utime(edited, (time.time(), time.time()))
    cache_value(NETWORK, "parameters", 269_722)
    assert value_cache.read_values(NETWORK) == {"depth": 20}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[1]",
        b'{"values": {"depth": 1}}',
        b'{"sources": "x", "values": {"depth": 1}}',
        b'{"sources": "SOURCES"}',
        b'{"sources": "SOURCES", "values": 3}',
        b'{"sources": "SOURCES", "values": [["depth", 1]]}',
    ],
)
def test_a_damaged_file_is_written_anew(content):
    cache_value(NETWORK, "depth", 20)
    value_file(NETWORK).write_bytes(content.replace(b"SOURCES", measuring_code().encode()))
    with pytest.raises(KeyError):
        cached_value(NETWORK, "depth")
    cache_value(NETWORK, "depth", 20)
    assert cached_value(NETWORK, "depth") == 20


def test_a_home_without_write_access_does_not_matter(tmp_path, monkeypatch):
    def refuse(*_args, **_keywords):
        raise OSError(errno.EROFS, "Read-only file system")

    declared = load_experiment("resnet/cifar10_depth")
    with monkeypatch.context() as patch:
        patch.setattr(value_cache, "write_atomically", refuse)
        assert measure_claim("model/depth", declared, "resnet-20") == 20
    (tmp_path / "home" / "runs" / ".values").rmdir()
    (tmp_path / "home" / "runs").rmdir()
    (tmp_path / "home" / "runs").write_text("a file, where a folder should be")
    assert measure_claim("model/depth", declared, "resnet-20") == 20


# --- libraries loaded --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["show", "verify"])
def test_a_command_whose_values_are_cached_does_not_import_torch(tmp_path, declare, command):
    declared = declare()
    judge_experiments([declared], [])
    print_experiment(ShownPart(declared), [], Console(quiet=True), lambda *_, **__: None)
    code = (
        "import sys\n"
        "from pipeline.cli.main import main\n"
        f"sys.argv = ['repro', {command!r}, {str(tmp_path / 'experiments/toy/depth.yaml')!r}]\n"
        "try:\n    main()\n"
        "finally:\n"
        "    print('loaded:', *(name for name in ('torch', 'mlflow', 'matplotlib') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1].split() == ["loaded:"], done.stderr
    assert done.returncode in (0, 1)
    assert "0.27 million" in done.stdout or "plain-20" in done.stdout
