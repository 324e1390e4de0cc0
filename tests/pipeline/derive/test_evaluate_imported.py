"""Test the errors of imported weights on small images, class folders, shards, and as an ensemble."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.analyse.catalogue import NamedNetwork, find_network
from pipeline.common.errors import UserError
from pipeline.data.images import DataError, ImageSet, LabelledImages
from pipeline.data.shard_manifest import with_checksum
from pipeline.derive import evaluate_imported as under_test
from pipeline.derive.evaluate_imported import evaluate_imported, labelled_samples
from pipeline.derive.import_weights import build_for_import, import_file
from pipeline.track.published_results import load_results, save_result
from pipeline.train.evaluate import ErrorCounts
from tests.support.image_sets import prepare_random_set

SINGLE_VIEW = (
    "single view of the whole image, mean 0.485, 0.456, 0.406 and standard deviation 0.229, 0.224, 0.225 taken out"
)


@pytest.fixture
def cifar(monkeypatch) -> ImageSet:
    """A random set of 10 classes and 30 test images, loaded as "cifar10"."""
    generator = np.random.default_rng(0)

    def images(n):
        pixels = torch.from_numpy(generator.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8))
        return LabelledImages(pixels, torch.arange(n) % 10)

    random_set = ImageSet("cifar10", "made up", tuple("abcdefghij"), images(20), images(30))
    monkeypatch.setattr(under_test.sources, "load_images", lambda name, root: random_set)
    return random_set


def test_errors_on_small_images_equal_a_direct_count(small_network, small_state, tmp_path, cifar):
    torch.save(small_state, tmp_path / "w.pth")
    imported = import_file(small_network, tmp_path / "w.pth")
    result = evaluate_imported([(small_network, imported)], "cifar10", threads=0)
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    x = ((cifar.test.pixels / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        order = imported.network.eval()(x).argsort(1, descending=True)
    hits = order == cifar.test.labels[:, None]
    assert (result.images, result.data, result.protocol) == (30, "cifar10", SINGLE_VIEW)
    assert result.top1 == pytest.approx(100 * (1 - hits[:, 0].float().mean().item()))
    assert result.top5 == pytest.approx(100 * (1 - hits[:, :5].any(1).float().mean().item()))


def test_class_folders_are_evaluated_by_the_publishers_protocol(experiments, torchvision_state, tmp_path):
    for number, name in enumerate(["n01440764", "n15075141"]):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (300, 260), (40 * number, 9, 99)).save(tmp_path / "val" / name / "x.png")
    torch.save(torchvision_state, tmp_path / "w.pth")
    named = find_network("resnet-18", experiments)
    result = evaluate_imported([(named, import_file(named, tmp_path / "w.pth"))], str(tmp_path / "val"), threads=0)
    assert (result.images, result.data) == (2, "class folders val")
    assert result.protocol == "1-crop-224-of-256"
    assert 0 <= result.top5 <= result.top1 <= 100


def test_images_of_another_number_of_channels_are_a_user_error(
    small_network, small_state, tmp_path, cifar, experiments
):
    named = find_network("lenet5_modern", experiments)
    torch.save(random_state(named), tmp_path / "w.pth")
    with pytest.raises(
        UserError, match=r"lenet5_modern has 10 classes and reads images of 1 channels, but cifar10"
    ):
        evaluate_imported([(named, import_file(named, tmp_path / "w.pth"))], "cifar10", threads=0)


def random_state(named: NamedNetwork) -> dict[str, torch.Tensor]:
    return build_for_import(named, named.variant.model.args).state_dict()


@pytest.fixture
def result(small_network, small_state, tmp_path, cifar, monkeypatch):
    """A result, with REPRO_HOME in the test's folder."""
    monkeypatch.setenv("REPRO_HOME", str(tmp_path / "home"))
    torch.save(small_state, tmp_path / "w.pth")
    return evaluate_imported(
        [(small_network, import_file(small_network, tmp_path / "w.pth"))], "cifar10", threads=0
    )


def test_repeated_result_is_saved_once_apart_from_the_runs(result, tmp_path):
    save_result(result)
    path = save_result(result)
    assert path.parent == tmp_path / "home" / "published"
    assert load_results() == [result]


def test_damaged_result_is_a_user_error(result):
    path = save_result(result)
    path.write_text(json.dumps({"network": "x"}), encoding="utf-8")
    with pytest.raises(UserError, match=r"\.json is not a result of published weights .*; remove it"):
        load_results()


def test_name_of_a_set_in_shards_is_that_of_its_manifest(experiments, torchvision_state, tmp_path):
    shards = prepare_random_set(tmp_path / "made", classes=3, train=0, test=2)
    torch.save(torchvision_state, tmp_path / "w.pth")
    name, _, samples = labelled_samples(str(shards.store), 3)
    assert (name, len(samples)) == ("photographs", 6)
    shards.store.local.rename(tmp_path / "imagenet")
    assert labelled_samples(str(tmp_path / "imagenet"), 3)[0] == "photographs"


def test_set_called_imagenet_must_have_the_counts_of_imagenet(tmp_path):
    folder = prepare_random_set(tmp_path, classes=3, train=1, test=2).store.local
    values = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(with_checksum(values | {"name": "imagenet"}), encoding="utf-8")
    with pytest.raises(DataError, match=r"is not ImageNet"):
        labelled_samples(str(folder), 3)


def test_ensemble_is_one_result(experiments, torchvision_state, tmp_path):
    for number, name in enumerate(["n01440764", "n15075141"]):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (300, 260), (40 * number, 9, 99)).save(tmp_path / "val" / name / "x.png")
    torch.save(torchvision_state, tmp_path / "w.pth")
    named = find_network("resnet-18", experiments)
    members = [(named, import_file(named, tmp_path / "w.pth")), (named, import_file(named, tmp_path / "w.pth"))]
    result = evaluate_imported(members, str(tmp_path / "val"), protocol="10-crop-224-of-256", threads=1)
    assert (result.network, result.protocol, result.images) == ("2 x resnet-18", "10-crop-224-of-256", 2)
    assert result.stated_top1 is None
    assert result.sha256 != members[0][1].sha256


@pytest.mark.parametrize(
    ("protocol", "used"), [(None, "1-crop-224-of-256"), ("10-crop-224-of-256", "10-crop-224-of-256")]
)
def test_given_protocol_replaces_the_publishers(
    experiments, torchvision_state, tmp_path, monkeypatch, protocol, used
):
    protocols = []

    def record_protocol(members, samples, protocol, **_):
        protocols.append(protocol.name)
        return ErrorCounts(1, 1, 0, 0.5)

    monkeypatch.setattr(under_test, "evaluate_samples", record_protocol)
    (tmp_path / "val" / "n01440764").mkdir(parents=True)
    Image.new("RGB", (300, 260)).save(tmp_path / "val" / "n01440764" / "x.png")
    torch.save(torchvision_state, tmp_path / "w.pth")
    named = find_network("resnet-18", experiments)
    result = evaluate_imported(
        [(named, import_file(named, tmp_path / "w.pth"))], str(tmp_path / "val"), protocol=protocol, threads=0
    )
    assert (result.protocol, protocols) == (used, [used])


def test_ensembles_and_protocols_that_do_not_fit_are_user_errors(
    small_network, experiments, small_state, tmp_path
):
    torch.save(small_state, tmp_path / "w.pth")
    imported = import_file(small_network, tmp_path / "w.pth")
    with pytest.raises(
        UserError, match=r"cannot average .*: the networks of an ensemble must have the same classes"
    ):
        evaluate_imported(
            [(small_network, imported), (find_network("resnet-18", experiments), imported)], "x", threads=0
        )
    with pytest.raises(UserError, match=r"is evaluated on whole images; leave out --protocol"):
        evaluate_imported([(small_network, imported)], "cifar10", protocol="10-crop-224-of-256", threads=0)
    with pytest.raises(UserError, match=r"ensembles are evaluated on sets in shards or in class folders"):
        evaluate_imported([(small_network, imported), (small_network, imported)], "cifar10", threads=0)
