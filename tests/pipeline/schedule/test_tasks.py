"""Test making tasks: identities, needs and data of runs and derived runs."""

import pytest

from pipeline.common.errors import UserError
from pipeline.common.paths import runs_folder
from pipeline.data import sources
from pipeline.declare.derived import CompressionSpec, EnsembleSpec, TransferSpec
from pipeline.plan.expand import DerivedRun
from pipeline.schedule.tasks import make_tasks
from tests.support.smoke_runs import smoke_run


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    """Set REPRO_HOME to a folder of the test."""
    monkeypatch.setenv("REPRO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("REPRO_DATA", raising=False)


RUNS = [smoke_run(seed=seed) for seed in range(3)]


ENSEMBLE = EnsembleSpec(kind="ensemble", members={"resnet-20": 2})


def derived_run(spec=ENSEMBLE, runs=tuple(RUNS[:2])):
    """Return a derived run of these runs."""
    return DerivedRun("resnet/cifar10_depth", "smoke", "it", 0, spec, runs)


def test_needs_are_the_identities_of_the_members():
    first, second, derived = make_tasks([*RUNS[:2], derived_run()])
    assert derived.needs == (first.identity, second.identity)
    assert (first.needs, derived.manifest) == ((), first.manifest)
    assert derived.folder == runs_folder() / derived.identity
    assert derived.code not in (first.code, "")


def test_identity_does_not_depend_on_the_other_tasks():
    *_, derived = make_tasks([*RUNS[:2], derived_run()])
    assert make_tasks([derived_run()]) == [derived]


def test_other_members_or_settings_give_another_identity():
    derived_runs = [
        derived_run(),
        derived_run(runs=tuple(RUNS[1:3])),
        derived_run(
            CompressionSpec(kind="compression", of="resnet-20", density=0.5, conv_bits=8, fc_bits=8), (RUNS[0],)
        ),
        derived_run(
            CompressionSpec(kind="compression", of="resnet-20", density=0.4, conv_bits=8, fc_bits=8), (RUNS[0],)
        ),
    ]
    assert len({task.identity for task in make_tasks(derived_runs)}) == 4


def test_manifest_of_a_transfer_is_that_of_the_other_set():
    derived = derived_run(TransferSpec(kind="transfer", of="resnet-20", data="digits", c=1.0), (RUNS[0],))
    [task] = make_tasks([derived])
    assert task.manifest["name"] == "digits"


def test_missing_data_set_is_a_user_error():
    derived = derived_run(TransferSpec(kind="transfer", of="resnet-20", data="digts", c=1.0), (RUNS[0],))
    with pytest.raises(UserError, match=r"no data set 'digts'.*did you mean 'digits'"):
        make_tasks([derived])


def test_each_data_set_is_read_once(monkeypatch):
    names = []
    load = sources.load_images
    monkeypatch.setattr(
        sources, "load_images", lambda name, *args, **kwargs: names.append(name) or load(name, *args, **kwargs)
    )
    make_tasks([*RUNS, derived_run()])
    assert names == ["noise"]
