"""Weights of others in our networks: read safely, fitted, evaluated, kept apart from reproductions."""

import argparse
import json
import random
import re
import urllib.error

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from lightning_modules.resnet import resnet_cifar
from pipeline.analyse.catalogue import NamedNetwork, find_network
from pipeline.common.errors import UserError
from pipeline.data.images import ImageSet, LabelledImages
from pipeline.declare.load import load_all
from pipeline.derive import published_weights as published
from pipeline.derive.published_weights import (
    evaluate_imported,
    import_file,
    import_torchvision,
    library_counterparts,
    read_weights,
    state_hash,
)
from pipeline.track.published_results import load_results, save_result
from pipeline.train.evaluate import ErrorCounts
from tests.support.making import prepared
from tests.support.smoke_runs import smoke_run, train_in


@pytest.fixture(scope="module")
def experiments():
    return load_all()


@pytest.fixture(scope="module")
def small(experiments) -> NamedNetwork:
    return find_network("resnet_cifar", experiments, {"depth": 8})


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return resnet_cifar(depth=8).state_dict()


@pytest.fixture(scope="module")
def torchvisions() -> dict[str, torch.Tensor]:
    torch.manual_seed(6)
    network = torchvision.models.resnet18(weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network.state_dict()


SINGLE_VIEW = (
    "single view of the whole image, mean 0.485, 0.456, 0.406 and standard deviation 0.229, 0.224, 0.225 taken out"
)


def output(network: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


# --- reading a file ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "module.", "network.", "_orig_mod."])
def test_a_checkpoint_is_unwrapped(small, state, tmp_path, wrap, prefix):
    torch.save(wrap({prefix + name: value for name, value in state.items()}), tmp_path / "w.pth")
    imported = import_file(small, tmp_path / "w.pth")
    own = resnet_cifar(depth=8)
    own.load_state_dict(state)
    assert torch.equal(output(imported.network), output(own))
    assert (imported.weights, imported.differs) == ("w.pth", "")


def test_safetensors_are_read(small, state, tmp_path):
    save_file(state, tmp_path / "w.safetensors")
    assert import_file(small, tmp_path / "w.safetensors").sha256 == state_hash(state)


def test_the_hash_is_of_names_shapes_and_numbers(state):
    first = state_hash(state)
    assert state_hash(dict(reversed(state.items()))) == first
    state["fc.bias"][0] += 1e-6
    assert state_hash(state) != first


class Bomb:
    def __reduce__(self):
        return (print, ("boom",))


def test_a_file_that_would_run_code_is_never_loaded(small, state, tmp_path, capfd):
    torch.save({"state_dict": state, "bomb": Bomb()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w.pth holds more than weights, which is never loaded: print; save its"):
        import_file(small, tmp_path / "w.pth")
    assert "boom" not in capfd.readouterr().out


UNREADABLE = (
    r"^[^\n]*/w.pth is no readable weights file; give a .safetensors file or a checkpoint of torch, whole$"
)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("held", "named"),
    [
        (argparse.Namespace(lr=0.1), "argparse.Namespace"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
def test_what_a_file_holds_beside_weights_is_named_in_words_of_ours(tmp_path, zipped, held, named):
    torch.save({"held": held}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError) as caught:
        read_weights(tmp_path / "w.pth")
    assert str(caught.value) == (
        f"{tmp_path}/w.pth holds more than weights, which is never loaded: {named}; save its state_dict alone"
    )


@pytest.mark.parametrize(
    "content",
    [
        b"import torch\nprint(1)\n",
        b"cimport numpy\nas np\n",  # read as a pickle this asks for a global, "import numpy.as np"
        b"<!DOCTYPE html><html></html>",
        b"\xff\xd8\xff\xe0\x00\x10JFIF",
        b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s.",  # {"a": 1}, of a later protocol
        b"PK\x03\x04 and no more",
    ],
)
def test_a_file_of_another_kind_is_not_called_dangerous(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match=UNREADABLE):
        read_weights(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore:`torch.jit")  # that is what is tried
def test_a_torchscript_program_is_no_weights_and_torch_says_nothing(tmp_path, recwarn):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "w.pth")
    recwarn.clear()
    with pytest.raises(UserError, match=UNREADABLE):
        read_weights(tmp_path / "w.pth")
    assert not recwarn.list


@pytest.mark.parametrize("zipped", [True, False])
def test_whatever_is_damaged_is_one_sentence(tmp_path, zipped):
    file, chance = tmp_path / "w.pth", random.Random(0)
    torch.save({"a": torch.zeros(100)}, file, _use_new_zipfile_serialization=zipped)
    whole, said = file.read_bytes(), []
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 3, 20))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        file.write_bytes(damaged[: chance.choice((len(damaged), chance.randrange(len(damaged))))])
        try:
            read_weights(file)
        except UserError as error:
            said.append(str(error))
    assert len(said) > 100
    assert [one for one in said if not re.search(f"{UNREADABLE}|holds more than weights|holds a ", one)] == []


def test_weights_that_may_not_be_read_are_said_to_be_so(tmp_path, monkeypatch):
    def refuse(self, mode):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "w.pth").write_bytes(b"x")
    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(UserError, match=r"w.pth cannot be read: permission denied; mend that and start again$"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("w.pth", b"no weights", "w.pth is no readable weights file"),
        ("w.pth", b"", "w.pth is no readable weights file"),
        ("w.safetensors", b"no weights", "w.safetensors is no readable weights file"),
        ("w.safetensors", b'\x08\x00\x00\x00\x00\x00\x00\x00{"a":1}', "w.safetensors is no readable weights file"),
    ],
)
def test_a_damaged_file_is_named(small, tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        import_file(small, tmp_path / name)


def test_a_missing_file_and_one_of_something_else(small, tmp_path):
    with pytest.raises(UserError, match=r"there is no weights file .*w.pth; give a .safetensors or .pth file, or"):
        import_file(small, tmp_path / "w.pth")
    torch.save([torch.zeros(2)], tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w.pth holds a list, not a map from names to weights"):
        import_file(small, tmp_path / "w.pth")
    torch.save({0: torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w.pth holds a map with keys that are no text, not a map from names"):
        import_file(small, tmp_path / "w.pth")


def test_the_network_of_a_run_of_ours_is_no_published_weights(small, tmp_path):
    train_in(tmp_path / "run", smoke_run())
    with pytest.raises(UserError, match=r"network.safetensors is of a run of repro, not of others; its errors"):
        import_file(small, tmp_path / "run" / "network.safetensors")


# --- what fits ---------------------------------------------------------------------------------------------


def test_weights_of_another_depth_say_what_is_too_much(small, tmp_path):
    torch.save(resnet_cifar(depth=14).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError) as caught:
        import_file(small, tmp_path / "w.pth")
    assert "do not fit resnet_cifar (depth 8) under our names" in str(caught.value)
    assert "unknown weights: 36, first 'map32.1.conv1.weight'" in str(caught.value)


def test_weights_of_a_known_network_say_whose_they_are(small, torchvisions, tmp_path):
    torch.save(torchvisions, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"they are those of torchvision's resnet18"):
        import_file(small, tmp_path / "w.pth")


def test_a_checkpoint_of_torchvision_is_recognised_by_its_names(experiments, torchvisions, tmp_path):
    torch.save(torchvisions, tmp_path / "w.pth")
    imported = import_file(find_network("resnet-18", experiments), tmp_path / "w.pth")
    theirs = torchvision.models.resnet18(weights=None)
    theirs.load_state_dict(torchvisions)
    torch.testing.assert_close(output(imported.network), output(theirs), rtol=1e-5, atol=1e-5)


def test_a_known_difference_is_switched_and_said(experiments):
    (theirs, *_) = library_counterparts(find_network("resnet-50", experiments))
    assert (theirs.source, theirs.model) == ("torchvision", "resnet50")
    assert theirs.differs == "stride 2 in the 3x3 of a bottleneck, not in its first 1x1"
    assert [one.model for one in library_counterparts(find_network("resnet-18", experiments))] == [
        "resnet18",
        "resnet18",
    ]
    assert library_counterparts(find_network("plain-34", experiments)) == []
    assert library_counterparts(find_network("alexnet", experiments)) == []


# --- torchvision's weights ---------------------------------------------------------------------------------


@pytest.fixture
def download(monkeypatch, torchvisions):
    """torchvision's download, of made-up weights; or of none, given an error."""

    def give(error: Exception | None = None):
        def get_state_dict(self, **settings):
            assert settings["check_hash"] is settings["weights_only"] is True
            if error:
                raise error
            return torchvisions

        monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", get_state_dict)

    return give


def test_torchvisions_weights_come_with_their_protocol(experiments, download):
    download()
    imported = import_torchvision(find_network("resnet-18", experiments))
    assert imported.weights == "torchvision ResNet18_Weights.IMAGENET1K_V1"
    assert imported.stated_top1_error_pct == pytest.approx(100 - 69.758)
    assert imported.protocol == "1-crop-224-of-256"
    assert imported.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    "error",
    [urllib.error.URLError("no route"), RuntimeError('invalid hash value (expected "f37072fd", got "0000")')],
)
def test_a_download_that_fails_is_one_sentence_with_the_address(experiments, download, error):
    download(error)
    with pytest.raises(UserError, match=r"https://download.pytorch.org/.* could not be downloaded: "):
        import_torchvision(find_network("resnet-18", experiments))


def test_what_torchvision_does_not_publish(experiments):
    with pytest.raises(
        UserError, match=r"torchvision publishes no weights for alexnet; it does for its densenet121"
    ):
        import_torchvision(find_network("alexnet", experiments))


# --- evaluating, and keeping -------------------------------------------------------------------------------


@pytest.fixture
def cifar(monkeypatch) -> ImageSet:
    """Thirty made-up images of ten classes in place of CIFAR-10."""
    draw = np.random.default_rng(0)

    def images(n):
        pixels = torch.from_numpy(draw.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8))
        return LabelledImages(pixels, torch.arange(n) % 10)

    made = ImageSet("cifar10", "made up", tuple("abcdefghij"), images(20), images(30))
    monkeypatch.setattr(published.sources, "load", lambda name, root: made)
    return made


def test_errors_on_a_small_set_are_what_counting_says(small, state, tmp_path, cifar):
    torch.save(state, tmp_path / "w.pth")
    imported = import_file(small, tmp_path / "w.pth")
    result = evaluate_imported([(small, imported)], "cifar10", threads=0)
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    x = ((cifar.test.pixels / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        order = imported.network.eval()(x).argsort(1, descending=True)
    hit = order == cifar.test.labels[:, None]
    assert (result.images, result.data, result.protocol) == (30, "cifar10", SINGLE_VIEW)
    assert result.top1 == pytest.approx(100 * (1 - hit[:, 0].float().mean().item()))
    assert result.top5 == pytest.approx(100 * (1 - hit[:, :5].any(1).float().mean().item()))


def test_errors_on_a_folder_of_pictures(experiments, torchvisions, tmp_path):
    for number, name in enumerate(["n01440764", "n15075141"]):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (300, 260), (40 * number, 9, 99)).save(tmp_path / "val" / name / "x.png")
    torch.save(torchvisions, tmp_path / "w.pth")
    named = find_network("resnet-18", experiments)
    result = evaluate_imported([(named, import_file(named, tmp_path / "w.pth"))], str(tmp_path / "val"), threads=0)
    assert (result.images, result.data) == (2, "class folders val")
    assert result.protocol == "1-crop-224-of-256"
    assert 0 <= result.top5 <= result.top1 <= 100


def test_another_number_of_classes_is_refused(small, state, tmp_path, cifar, experiments):
    named = find_network("lenet5_modern", experiments)
    torch.save(named_state(named), tmp_path / "w.pth")
    with pytest.raises(
        UserError, match=r"lenet5_modern tells 10 classes apart in images of 1 channels, and cifar10"
    ):
        evaluate_imported([(named, import_file(named, tmp_path / "w.pth"))], "cifar10", threads=0)


def named_state(named: NamedNetwork) -> dict[str, torch.Tensor]:
    return published.build_imported(named, named.variant.model.args).state_dict()


@pytest.fixture
def kept(small, state, tmp_path, cifar, monkeypatch):
    monkeypatch.setenv("REPRO_HOME", str(tmp_path / "home"))
    torch.save(state, tmp_path / "w.pth")
    return evaluate_imported([(small, import_file(small, tmp_path / "w.pth"))], "cifar10", threads=0)


def test_a_result_is_kept_once_and_apart_from_the_runs(kept, tmp_path):
    save_result(kept)
    path = save_result(kept)
    assert path.parent == tmp_path / "home" / "published"
    assert load_results() == [kept]


def test_a_damaged_result_is_named(kept):
    path = save_result(kept)
    path.write_text(json.dumps({"network": "x"}), encoding="utf-8")
    with pytest.raises(UserError, match=r"\.json is no result of published weights .*; remove it"):
        load_results()


def test_photographs_in_shards_are_called_as_their_manifest_says(experiments, torchvisions, tmp_path):
    shards = prepared(tmp_path / "made", classes=3, train=0, test=2)
    torch.save(torchvisions, tmp_path / "w.pth")
    called, _, samples = published.labelled_samples(str(shards.store), 3)
    assert (called, len(samples)) == ("photographs", 6)
    shards.store.local.rename(tmp_path / "imagenet")
    assert published.labelled_samples(str(tmp_path / "imagenet"), 3)[0] == "photographs"


def test_an_ensemble_answers_with_both_and_is_one_row(experiments, torchvisions, tmp_path):
    for number, name in enumerate(["n01440764", "n15075141"]):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (300, 260), (40 * number, 9, 99)).save(tmp_path / "val" / name / "x.png")
    torch.save(torchvisions, tmp_path / "w.pth")
    named = find_network("resnet-18", experiments)
    members = [(named, import_file(named, tmp_path / "w.pth")), (named, import_file(named, tmp_path / "w.pth"))]
    result = evaluate_imported(members, str(tmp_path / "val"), protocol="10-crop-224-of-256", threads=1)
    assert (result.network, result.protocol, result.images) == ("2 x resnet-18", "10-crop-224-of-256", 2)
    assert result.stated_top1 is None
    assert result.sha256 != members[0][1].sha256


@pytest.mark.parametrize(
    ("asked", "shown"), [(None, "1-crop-224-of-256"), ("10-crop-224-of-256", "10-crop-224-of-256")]
)
def test_photographs_are_shown_as_asked_and_else_as_the_publisher_does(
    experiments, torchvisions, tmp_path, monkeypatch, asked, shown
):
    by = []

    def noted(members, samples, protocol, **_):
        by.append(protocol.name)
        return ErrorCounts(1, 1, 0, 0.5)

    monkeypatch.setattr(published, "evaluate_samples", noted)
    (tmp_path / "val" / "n01440764").mkdir(parents=True)
    Image.new("RGB", (300, 260)).save(tmp_path / "val" / "n01440764" / "x.png")
    torch.save(torchvisions, tmp_path / "w.pth")
    named = find_network("resnet-18", experiments)
    result = evaluate_imported(
        [(named, import_file(named, tmp_path / "w.pth"))], str(tmp_path / "val"), protocol=asked, threads=0
    )
    assert (result.protocol, by) == (shown, [shown])


def test_networks_of_different_questions_are_no_ensemble(small, experiments, state, tmp_path):
    torch.save(state, tmp_path / "w.pth")
    imported = import_file(small, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"do not answer the same question: an ensemble's networks tell the same"):
        evaluate_imported([(small, imported), (find_network("resnet-18", experiments), imported)], "x", threads=0)
    with pytest.raises(UserError, match=r"is shown whole images: --protocol is for photographs"):
        evaluate_imported([(small, imported)], "cifar10", protocol="10-crop-224-of-256", threads=0)
    with pytest.raises(UserError, match=r"ensembles are evaluated on photographs"):
        evaluate_imported([(small, imported), (small, imported)], "cifar10", threads=0)
