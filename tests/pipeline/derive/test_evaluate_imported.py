"""Test the errors of imported weights on small images, class folders, shards, and as an ensemble."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline.analyse.catalogue import NamedNetwork, find_network
from pipeline.common.errors import UserError
from pipeline.data.class_names import imagenet_wnids
from pipeline.data.images import DataError, ImageSet, LabelledImages
from pipeline.data.shard_manifest import with_checksum
from pipeline.derive import evaluate_imported as under_test
from pipeline.derive.counterparts import build_for_import
from pipeline.derive.evaluate_imported import evaluate_imported, open_test_set
from pipeline.derive.import_weights import ImportedNetwork, import_file
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


def test_a_set_of_small_images_may_be_a_path(small_network, small_state, tmp_path):
    """Also outside the data folder, with the row named after the folder."""
    torch.save(small_state, tmp_path / "w.pth")
    imported = import_file(small_network, tmp_path / "w.pth")
    for number in range(10):
        for split in ("train", "test"):
            folder = tmp_path / "mine" / split / f"class-{number}"
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32), (25 * number, 9, 99)).save(folder / "x.png")
    result = evaluate_imported([(small_network, imported)], str(tmp_path / "mine"), threads=0)
    assert (result.images, result.data) == (10, "mine")
    with pytest.raises(DataError, match=r"mine/test is not an image set; it must hold the folders train/<class>/"):
        evaluate_imported([(small_network, imported)], str(tmp_path / "mine" / "test"), threads=0)


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


def test_name_of_a_set_in_shards_is_that_of_its_manifest(tmp_path):
    shards = prepare_random_set(tmp_path / "made", classes=3, train=0, test=2)
    test = open_test_set(str(shards.store), 3)
    assert (test.name, len(test.samples), test.labels.is_assumed) == ("photographs", 6, True)
    assert not open_test_set(str(shards.store), 3, own_data="photographs").labels.is_assumed
    shards.store.local.rename(tmp_path / "imagenet")
    assert open_test_set(str(tmp_path / "imagenet"), 3).name == "photographs"


def test_set_called_imagenet_must_have_the_counts_of_imagenet(tmp_path):
    folder = prepare_random_set(tmp_path, classes=3, train=1, test=2).store.local
    values = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(with_checksum(values | {"name": "imagenet"}), encoding="utf-8")
    with pytest.raises(DataError, match=r"is not ImageNet"):
        open_test_set(str(folder), 3)


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


# --- order of the classes, and what is assumed ---------------------------------------------------------------


class Answer(nn.Module):
    """A network of 1000 classes that gives every image the same class, the next one as its second choice."""

    def __init__(self, answer: int) -> None:
        super().__init__()
        self.register_buffer("scores", -(torch.arange(1000.0) - answer).abs())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores.expand(len(x), -1)


def imported_network(network: nn.Module, **values) -> ImportedNetwork:
    """Return a network as if imported from a file of an unknown publisher, unless `values` say otherwise."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    usual = {"weights": "w.pth", "sha256": "00", "differs": "", "protocol": "1-crop-8-of-8", "is_known": False}
    usual |= {"mean": mean, "std": std, "stated_top1_error_pct": None}
    return ImportedNetwork(network, **(usual | values))


@pytest.fixture
def folders(tmp_path):
    """Function that writes class folders with the given numbers of tiny images."""

    def write(counts: dict[str, int]) -> str:
        Image.new("RGB", (8, 8), (40, 90, 200)).save(tmp_path / "x.png")
        for name, count in counts.items():
            (tmp_path / "val" / name).mkdir(parents=True)
            for number in range(count):
                (tmp_path / "val" / name / f"{number}.png").hardlink_to(tmp_path / "x.png")
        return str(tmp_path / "val")

    return write


def test_numbered_folders_are_labelled_by_value(experiments, folders):
    """11 images of class 2 and one of each other: a network that always answers 2 is wrong on 999 of 1010."""
    named = find_network("resnet-18", experiments)
    data = folders({str(number): 11 if number == 2 else 1 for number in range(1000)})
    result = evaluate_imported([(named, imported_network(Answer(2)))], data, threads=1)
    assert (result.images, result.top1) == (1010, pytest.approx(100 * 999 / 1010))
    assert (result.class_order, result.assumed) == (
        "numbers by value",
        "normalisation, test protocol, class order",
    )


def test_a_file_gives_the_order_of_the_networks_classes(experiments, folders, tmp_path):
    """The network's class 0 is the last WordNet id. Its answer 998 is the second id: 3 of 4 images are wrong."""
    named, wnids = find_network("resnet-18", experiments), imagenet_wnids()
    data = folders({wnids[0]: 1, wnids[1]: 1, wnids[2]: 2})
    (tmp_path / "order.txt").write_text("\n".join(reversed(wnids)))
    member = (named, imported_network(Answer(998), is_known=True))
    result = evaluate_imported([member], data, classes=tmp_path / "order.txt", threads=1)
    assert result.top1 == pytest.approx(75)
    assert result.class_order.startswith("order.txt (sha256 ")
    assert (result.given, result.assumed) == (f"--classes {result.class_order}", "")
    assert evaluate_imported([member], data, threads=1).top1 == pytest.approx(100)


@pytest.mark.parametrize(
    ("is_known", "options", "assumed"),
    [
        (True, {}, ""),
        (False, {}, "normalisation, test protocol"),
        (False, {"protocol": "1-crop-8-of-9"}, "normalisation"),
        (False, {"normalise": "0.5/0.5"}, "test protocol"),
        (False, {"normalise": "0.5/0.5", "protocol": "1-crop-8-of-9"}, ""),
    ],
)
def test_what_nobody_says_is_assumed(experiments, folders, is_known, options, assumed):
    named, data = find_network("resnet-18", experiments), folders({imagenet_wnids()[2]: 1})
    result = evaluate_imported(
        [(named, imported_network(Answer(2), is_known=is_known))], data, threads=0, **options
    )
    assert (result.assumed, result.top1) == (assumed, 0)


def test_networks_of_different_protocols_have_an_assumed_one(experiments, folders):
    named, data = find_network("resnet-18", experiments), folders({imagenet_wnids()[2]: 1})
    members = [
        (named, imported_network(Answer(2), is_known=True, protocol=f"1-crop-8-of-{size}")) for size in (8, 9)
    ]
    assert evaluate_imported(members, data, threads=0).assumed == "test protocol"


def test_a_publishers_error_stands_beside_its_own_normalisation_only(experiments, folders):
    named, data = find_network("resnet-18", experiments), folders({imagenet_wnids()[2]: 1})
    member = (named, imported_network(Answer(2), is_known=True, stated_top1_error_pct=30.0))
    assert evaluate_imported([member], data, threads=0).stated_top1 == 30.0
    assert evaluate_imported([member], data, normalise="0.5/0.5", threads=0).stated_top1 is None


class Brightness(nn.Module):
    """A network that answers 2 if its input is above zero, else 3."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = torch.zeros(len(x), 1000)
        scores[:, 2], scores[:, 3] = x.mean((1, 2, 3)), -x.mean((1, 2, 3))
        return scores


def test_the_given_normalisation_is_used(experiments, folders):
    """The mean of the image's (40, 90, 200) is 110 of 255 = 0.43."""
    named, data = find_network("resnet-18", experiments), folders({imagenet_wnids()[2]: 1})
    member = (named, imported_network(Brightness()))
    for mean, top1 in (("0.42", 0), ("0.44", 100)):
        result = evaluate_imported([member], data, normalise=f"{mean}/0.5", threads=0)
        assert result.top1 == top1
        assert result.given == f"--normalise {mean}/0.5"
        assert result.normalisation.startswith(f"mean {mean}, {mean}, {mean} and standard deviation 0.5")


def test_a_recipes_normalisation_gives_the_error_of_a_network_of_ours(small_network, small_state, tmp_path, cifar):
    """A network trained with per-pixel-mean has other errors with ImageNet's mean."""
    torch.save(small_state, tmp_path / "w.pth")
    imported = import_file(small_network, tmp_path / "w.pth")
    result = evaluate_imported([(small_network, imported)], "cifar10", normalise="per-pixel-mean", threads=0)
    x = (cifar.test.pixels.double() - cifar.train.pixels.double().mean(0)) / 255
    with torch.no_grad():
        answers = imported.network.eval()(x.float().permute(0, 3, 1, 2)).argmax(1)
    assert result.top1 == pytest.approx(100 * (answers != cifar.test.labels).float().mean().item())
    assert result.protocol.endswith("normalised by per-pixel-mean with statistics of the training images")
    assert (result.assumed, result.given) == ("", "--normalise per-pixel-mean")
    assumed = evaluate_imported([(small_network, imported)], "cifar10", threads=0)
    assert assumed.assumed == "normalisation"


def test_a_set_of_small_images_that_is_not_the_networks_has_an_assumed_order(
    small_network, small_state, tmp_path, cifar
):
    """The network always answers 0: class a, or class j by the reversed order. 20 images are a, 10 are j."""
    cifar.test.labels.copy_(torch.tensor([0] * 20 + [9] * 10))
    small_state["fc.weight"].zero_()
    small_state["fc.bias"][0] = 1
    torch.save(small_state, tmp_path / "w.pth")
    member = (small_network, import_file(small_network, tmp_path / "w.pth"))
    (tmp_path / "order.txt").write_text("\n".join(reversed(cifar.classes)))
    result = evaluate_imported([member], "mine", threads=0)
    assert (result.top1, result.assumed) == (pytest.approx(100 / 3), "normalisation, class order")
    assert evaluate_imported([member], "cifar10", threads=0).assumed == "normalisation"
    result = evaluate_imported([member], "mine", classes=tmp_path / "order.txt", threads=0)
    assert (result.top1, result.assumed) == (pytest.approx(200 / 3), "normalisation")


def test_a_network_that_gives_nan_has_no_result(experiments, folders):
    class Overflow(Answer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * float("nan")

    named, data = find_network("resnet-18", experiments), folders({imagenet_wnids()[2]: 1})
    with pytest.raises(UserError, match=r"^resnet-18 gives NaN for images of \S+/val: no result; the weights"):
        evaluate_imported([(named, imported_network(Overflow(2)))], data, threads=0)


def test_broken_images_are_named_before_anything_is_evaluated(experiments, folders, tmp_path, monkeypatch):
    data = folders({imagenet_wnids()[2]: 3})
    for number in (0, 2):
        broken = tmp_path / "val" / imagenet_wnids()[2] / f"{number}.png"
        broken.unlink()
        broken.write_bytes(b"x")
    monkeypatch.setattr(under_test, "evaluate_samples", lambda *_, **__: pytest.fail("evaluated"))
    member = (find_network("resnet-18", experiments), imported_network(Answer(2)))
    with pytest.raises(DataError, match=r"^2 images in \S+ cannot be decoded; .*/0.png, \S+/2.png \("):
        evaluate_imported([member], data, threads=0)


def test_files_that_are_left_out_are_counted_and_named(experiments, folders, tmp_path):
    data = folders({imagenet_wnids()[2]: 1})
    (tmp_path / "val" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "val" / imagenet_wnids()[2] / "Thumbs.db").write_bytes(b"x")
    member = (find_network("resnet-18", experiments), imported_network(Answer(2)))
    result = evaluate_imported([member], data, threads=0)
    assert (result.images, result.ignored, result.top1) == (1, 2, 0)
    assert result.skipped == f"{data}/.ipynb_checkpoints, {data}/{imagenet_wnids()[2]}/Thumbs.db"
