"""Test importing published weights: which files are read, which weights fit, and what torchvision publishes."""

import shutil
import urllib.error

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from lightning_modules.resnet import resnet_cifar
from pipeline.analyse.catalogue import find_network
from pipeline.common.errors import UserError
from pipeline.common.files import file_sha256
from pipeline.derive import import_weights, published_files
from pipeline.derive.counterparts import library_counterparts
from pipeline.derive.import_weights import import_file, import_torchvision, state_hash
from tests.support.smoke_runs import smoke_run, train_in


def output(network: nn.Module) -> torch.Tensor:
    """Return the scores of two random images."""
    with torch.no_grad():
        return network.eval()(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


# --- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}, lambda state: {"model": state}]
)
@pytest.mark.parametrize("prefix", ["", "module.", "network.", "_orig_mod."])
def test_state_dict_in_a_checkpoint_is_found(small_network, small_state, tmp_path, wrap, prefix):
    torch.save(wrap({prefix + name: value for name, value in small_state.items()}), tmp_path / "w.pth")
    imported = import_file(small_network, tmp_path / "w.pth")
    expected = resnet_cifar(depth=8)
    expected.load_state_dict(small_state)
    assert torch.equal(output(imported.network), output(expected))
    assert (imported.weights, imported.differs) == ("w.pth", "")


def test_safetensors_file_is_read(small_network, small_state, tmp_path):
    save_file(small_state, tmp_path / "w.safetensors")
    assert import_file(small_network, tmp_path / "w.safetensors").sha256 == state_hash(small_state)


def test_hash_depends_on_values_not_on_order(small_state):
    first = state_hash(small_state)
    assert state_hash(dict(reversed(small_state.items()))) == first
    small_state["fc.bias"][0] += 1e-6
    assert state_hash(small_state) != first


def test_a_file_without_tensors_is_a_user_error(small_network, tmp_path):
    torch.save({"epoch": 3, "args": {"lr": 0.1}}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w.pth contains no tensors; its keys are epoch, args$"):
        import_file(small_network, tmp_path / "w.pth")


def save_changed(state, file, name, change):
    """Save the state dict with one tensor changed."""
    torch.save(dict(state) | {name: change(state[name].clone())}, file)


def test_weights_with_nan_are_refused(small_network, small_state, tmp_path):
    save_changed(small_state, tmp_path / "w.pth", "bn1.running_var", lambda tensor: tensor.fill_(float("nan")))
    with pytest.raises(
        UserError, match=r"w.pth has NaN or infinite values in 1 of \d+ tensors: bn1.running_var; "
    ):
        import_file(small_network, tmp_path / "w.pth")


def test_sparse_weights_are_a_user_error(small_network, small_state, tmp_path):
    save_changed(small_state, tmp_path / "w.pth", "fc.weight", torch.Tensor.to_sparse)
    with pytest.raises(UserError, match=r"w.pth: fc.weight is a sparse tensor; save the state_dict with plain"):
        import_file(small_network, tmp_path / "w.pth")


def test_a_second_set_of_weights_is_named_and_can_be_chosen(small_network, small_state, tmp_path):
    average = {name: value * 2 for name, value in small_state.items()}
    torch.save({"state_dict": small_state, "state_dict_ema": average, "epoch": 3}, tmp_path / "w.pth")
    usual = import_file(small_network, tmp_path / "w.pth")
    count = len(small_state)
    assert usual.weights == "w.pth (state_dict)"
    assert usual.note == (
        f"w.pth: evaluated state_dict ({count} tensors); it also holds state_dict_ema ({count} tensors), which"
        " --key selects"
    )
    chosen = import_file(small_network, tmp_path / "w.pth", "state_dict_ema")
    assert (chosen.weights, chosen.sha256) == ("w.pth (state_dict_ema)", state_hash(average))
    assert usual.sha256 == state_hash(small_state)
    with pytest.raises(
        UserError, match=r"no weights under the key 'ema'; it holds tensors in state_dict \(\d+ tens"
    ):
        import_file(small_network, tmp_path / "w.pth", "ema")


def test_a_set_that_does_not_fit_is_passed_over_and_named(small_network, small_state, tmp_path):
    torch.save(
        {"loss": torch.tensor(0.3), "model": resnet_cifar(depth=14).state_dict(), "net": small_state},
        tmp_path / "w.pth",
    )
    imported = import_file(small_network, tmp_path / "w.pth")
    assert imported.sha256 == state_hash(small_state)
    assert "it also holds the top level (1 tensor), model (" in imported.note


def test_tensors_that_are_not_the_networks_are_named(small_network, small_state, tmp_path):
    state = {f"model.{name}": value for name, value in small_state.items()} | {"criterion.weight": torch.ones(10)}
    torch.save({"state_dict": state}, tmp_path / "w.ckpt")
    imported = import_file(small_network, tmp_path / "w.ckpt")
    assert imported.sha256 == state_hash(small_state)
    assert imported.note == "w.ckpt: left out 1 tensor: criterion.weight"


def test_network_of_a_run_of_repro_is_refused(small_network, tmp_path):
    train_in(tmp_path / "run", smoke_run())
    with pytest.raises(
        UserError, match=r"network.safetensors belongs to a run of repro, and is not published; its errors"
    ):
        import_file(small_network, tmp_path / "run" / "network.safetensors")


@pytest.mark.usefixtures("own_home")
def test_a_copy_of_the_network_of_a_run_is_refused(small_network, small_state, tmp_path):
    """Evaluated with the usual normalisation, it would have another error than in its run."""
    original = tmp_path / "home" / "runs" / "abc" / "network.safetensors"
    original.parent.mkdir(parents=True)
    save_file(small_state, original)
    shutil.copy(original, tmp_path / "mine.safetensors")
    with pytest.raises(
        UserError, match=r"mine.safetensors is a copy of \S+/runs/abc/network.safetensors, which belo"
    ):
        import_file(small_network, tmp_path / "mine.safetensors")
    small_state["fc.bias"][0] += 1
    save_file(small_state, tmp_path / "mine.safetensors")  # of the same size
    assert not import_file(small_network, tmp_path / "mine.safetensors").is_known


@pytest.mark.usefixtures("own_home")
def test_a_file_is_hashed_once_beside_many_runs_of_its_size(small_network, small_state, tmp_path, monkeypatch):
    for number in range(3):
        original = tmp_path / "home" / "runs" / str(number) / "network.safetensors"
        original.parent.mkdir(parents=True)
        small_state["fc.bias"][0] += 1
        save_file(small_state, original)
    small_state["fc.bias"][0] += 1
    save_file(small_state, tmp_path / "mine.safetensors")
    hashed = []
    for module in (import_weights, published_files):
        monkeypatch.setattr(
            module, "file_sha256", lambda path: hashed.append(path.parent.name) or file_sha256(path)
        )
    import_file(small_network, tmp_path / "mine.safetensors")
    assert sorted(hashed) == sorted(["0", "1", "2", tmp_path.name])


@pytest.fixture
def own_home(tmp_path, monkeypatch):
    """REPRO_HOME in the test's folder."""
    monkeypatch.setenv("REPRO_HOME", str(tmp_path / "home"))


# --- fit -----------------------------------------------------------------------------------------------------


def test_mismatch_of_another_depth_is_named(small_network, tmp_path):
    torch.save(resnet_cifar(depth=14).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError) as caught:
        import_file(small_network, tmp_path / "w.pth")
    assert "do not fit resnet_cifar (depth 8) with our names" in str(caught.value)
    assert "unknown weights: 36, first 'map32.1.conv1.weight'" in str(caught.value)


def test_error_names_the_published_network_that_fits(small_network, torchvision_state, tmp_path):
    torch.save(torchvision_state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"they fit torchvision's resnet18, which is resnet-18 here"):
        import_file(small_network, tmp_path / "w.pth")


def test_error_names_the_keys_that_hold_tensors(small_network, small_state, tmp_path):
    other = {name: value for name, value in small_state.items() if name != "fc.bias"}
    torch.save({"weights": other, "swa": {"params": small_state | {"x": torch.ones(2)}}}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"holds tensors in weights \(\d+ tensors\), swa.params \(\d+ tensors\)$"):
        import_file(small_network, tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        ("googlenet", "googlenet", "has batch normalisation, 3x3 convolutions in place of the 5x5"),
        ("alexnet", "alexnet", "has 64, 192, 384, 256 and 256 filters, each reading all maps"),
        ("vgg-16", "vgg16_bn", "has batch normalisation, which the paper's networks do not have"),
    ],
)
def test_a_network_of_the_same_name_and_another_function_is_explained(experiments, tmp_path, ours, theirs, reason):
    options = {} if theirs == "alexnet" else {"init_weights": False}
    with torch.device("meta"):
        names = torchvision.models.get_model(theirs, weights=None, **options).state_dict()
    torch.save({f"module.{name}": torch.zeros(2) for name in names}, tmp_path / "w.pth")
    with pytest.raises(UserError) as caught:
        import_file(find_network(ours, experiments), tmp_path / "w.pth")
    assert f"do not fit {ours}: torchvision's {theirs} is another function, it {reason}" in str(caught.value)
    assert "missing" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["features.module.", "_orig_mod.module.features.", "backbone.features."])
def test_squeezenet_behind_wrappers_gives_the_same_scores(experiments, tmp_path, prefix):
    """`features.module`: as DataParallel on the convolutions alone, in PyTorch's ImageNet example."""
    torch.manual_seed(3)
    theirs = torchvision.models.squeezenet1_1(weights=None).eval()
    outer = prefix.partition("features.")[0]
    state = {
        name.replace("features.", prefix) if name.startswith("features.") else f"{outer}{name}": value
        for name, value in theirs.state_dict().items()
    }
    torch.save({"model_ema": state}, tmp_path / "w.pth")
    imported = import_file(find_network("squeezenet_1_1", experiments), tmp_path / "w.pth")
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(imported.network(x), theirs(x), rtol=1e-4, atol=1e-5)
    assert (imported.protocol, imported.is_known) == ("1-crop-224-of-256", False)  # as torchvision's own


def test_weights_of_openmmlab_are_imported(experiments, torchvision_state, tmp_path):
    state = {
        ("head." if name.startswith("fc") else "backbone.") + name: t for name, t in torchvision_state.items()
    }
    torch.save({"meta": {"epoch": 100}, "state_dict": state}, tmp_path / "w.pth")
    imported = import_file(find_network("resnet-18", experiments), tmp_path / "w.pth")
    assert imported.sha256 == state_hash(torchvision_state)


def test_file_with_the_names_of_torchvision_is_imported(experiments, torchvision_state, tmp_path):
    torch.save(torchvision_state, tmp_path / "w.pth")
    imported = import_file(find_network("resnet-18", experiments), tmp_path / "w.pth")
    expected = torchvision.models.resnet18(weights=None)
    expected.load_state_dict(torchvision_state)
    torch.testing.assert_close(output(imported.network), output(expected), rtol=1e-5, atol=1e-5)


def test_counterparts_may_differ_in_departure_args(experiments):
    (entry, *_) = library_counterparts(find_network("resnet-50", experiments))
    assert (entry.source, entry.model) == ("torchvision", "resnet50")
    assert entry.differs == "stride 2 in the 3x3 of a bottleneck, not in its first 1x1"
    assert [entry.model for entry in library_counterparts(find_network("resnet-18", experiments))] == [
        "resnet18",
        "resnet18",
    ]
    assert library_counterparts(find_network("plain-34", experiments)) == []
    assert library_counterparts(find_network("alexnet", experiments)) == []


# --- torchvision ---------------------------------------------------------------------------------------------


@pytest.fixture
def download(monkeypatch, torchvision_state):
    """Replace torchvision's download: `download()` gives `torchvision_state`, `download(error)` raises it."""

    def replace_download(error: Exception | None = None):
        def get_state_dict(self, **options):
            assert options["check_hash"] is options["weights_only"] is True
            if error:
                raise error
            return torchvision_state

        monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", get_state_dict)

    return replace_download


def test_torchvision_weights_have_the_publishers_protocol_and_error(experiments, download):
    download()
    imported = import_torchvision(find_network("resnet-18", experiments))
    assert imported.weights == "torchvision ResNet18_Weights.IMAGENET1K_V1"
    assert imported.stated_top1_error_pct == pytest.approx(100 - 69.758)
    assert imported.protocol == "1-crop-224-of-256"
    assert imported.mean == (0.485, 0.456, 0.406)


def test_another_file_in_torchs_cache_is_not_shown_as_the_publishers(
    experiments, torchvision_state, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    torch.save(torchvision_state, file)
    with pytest.raises(
        UserError, match=r"resnet18-f37072fd.pth is not the file published at .*; delete it and run"
    ):
        import_torchvision(find_network("resnet-18", experiments))


@pytest.mark.parametrize(
    "error",
    [urllib.error.URLError("no route"), RuntimeError('invalid hash value (expected "f37072fd", got "0000")')],
)
def test_failed_download_is_a_user_error_with_the_address(experiments, download, error):
    download(error)
    with pytest.raises(UserError, match=r"cannot download the weights at https://download.pytorch.org/.*: "):
        import_torchvision(find_network("resnet-18", experiments))


def test_error_names_the_form_of_a_network_that_torchvision_publishes(experiments):
    with pytest.raises(UserError, match=r"no weights for inception-v3, but it does for inception-v3-training"):
        import_torchvision(find_network("inception-v3", experiments))


def test_network_that_torchvision_does_not_publish_is_a_user_error(experiments):
    with pytest.raises(UserError, match=r"torchvision publishes no weights for zfnet, only for its densenet121"):
        import_torchvision(find_network("zfnet", experiments))
    with pytest.raises(
        UserError, match=r"no weights for alexnet: torchvision's alexnet is another function, it has"
    ):
        import_torchvision(find_network("alexnet", experiments))
