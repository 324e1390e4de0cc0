"""Test making derived runs: record, checks of the images, and interruption."""

from dataclasses import replace

import pytest

from lightning_modules.networks import build
from pipeline.common.errors import UserError
from pipeline.data import manifest
from pipeline.declare.derived import ProtocolSpec
from pipeline.declare.load import load_experiment
from pipeline.declare.metrics import metric_names
from pipeline.plan.expand import plan_runs
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder
from tests.support.derived_runs import ENSEMBLE, copy_record, derived_of, fake_run_folder, make_in
from tests.support.smoke_runs import CODE, RESNET, images_of


def test_recorded_metrics_are_those_that_claims_may_name(folders):
    measured = metric_names(load_experiment(RESNET), "resnet-20", named=True)
    assert set(folders[0].result().metrics) == set(measured)


def test_record_is_written_to_the_folder(runs, folders, tmp_path):
    derived = derived_of(ENSEMBLE, runs)
    record = make_in(tmp_path, derived, folders)
    assert RunFolder(tmp_path).result() == record
    assert Record.from_dict(record.to_dict()) == record
    assert (record.experiment, record.scale, record.variant, record.seed) == (
        "resnet/cifar10_depth",
        "smoke",
        "it",
        0,
    )
    assert (record.declaration, record.code, record.data) == (derived.declaration, CODE, "noise")
    assert (record.status, record.changes) == ("finished", {})
    assert record.manifest == manifest.manifest_of(images_of("noise")).sha256[:16]
    assert record.seconds > 0


def test_record_has_the_identities_of_its_members(runs, folders, tmp_path):
    members = [
        copy_record(folder, tmp_path / f"run{number}", identity=f"run-{number}")
        for number, folder in enumerate(folders)
    ]
    for folder, original in zip(members, folders, strict=True):
        folder.network_file.write_bytes(original.network_file.read_bytes())
    record = make_in(tmp_path / "derived", derived_of(ENSEMBLE, runs), members)
    assert record.members == ("run-0", "run-1", "run-2")
    assert RunFolder(tmp_path / "derived").result().members == record.members
    assert folders[0].result().members == ()


def test_number_of_images_must_be_that_of_the_manifest(runs, folders, tmp_path):
    for part, count in (("train", 99), ("test", 90)):
        wrong = replace(manifest.manifest_of(images_of("noise")), **{part: count})
        with pytest.raises(UserError, match=rf"has \d+ {part} images, but its manifest counts {count}; "):
            make_in(tmp_path, derived_of(ENSEMBLE, runs), folders, changed_manifest=wrong)
    assert RunFolder(tmp_path).result() is None


def test_protocol_that_the_network_cannot_read_is_a_user_error(sharded_members, sharded_changes, tmp_path):
    shards, _, _ = sharded_members
    changes = {key: value for key, value in sharded_changes.items() if key != "data.test"}
    changes["train.average.since"] = 0
    run, *_ = plan_runs(load_experiment("googlenet/imagenet"), scale="stand-in", seeds=1, changes=changes)
    network = build("googlenet", {}, num_classes=2, in_channels=3)
    images_manifest = manifest.manifest_of(shards)
    folder = fake_run_folder(tmp_path / "run", network, sharded_members[2][0].result(), images_manifest)
    derived = derived_of(ProtocolSpec(kind="protocol", of="googlenet-with-aux", test=("1-crop-64-of-72",)), [run])
    with pytest.raises(UserError, match=r"test protocol '1-crop-64-of-72' does not fit: .*googlenet reads"):
        make_in(tmp_path / "derived", derived, [folder], images=shards)


def test_stopped_derived_run_writes_no_record(runs, folders, tmp_path):
    assert make_in(tmp_path, derived_of(ENSEMBLE, runs), folders, stop=lambda: True) is None
    assert RunFolder(tmp_path).result() is None
