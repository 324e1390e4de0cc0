"""State dicts in checkpoints of many programs: where they are, their names, and values that are refused."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from pipeline.common.errors import UserError
from pipeline.derive.state_dicts import check_tensors, find_state_dicts, namings, select_state_dict

NAMES = ("conv1.weight", "layer1.0.conv1.weight", "fc.weight", "fc.bias")
STATE = {name: torch.full((2,), float(number)) for number, name in enumerate(NAMES)}
FILE = Path("w.pth")


def renamed(rename):
    return {rename(name): value for name, value in STATE.items()}


def reads(tensors):
    """Return True if one of the readings has the names and values of STATE."""
    return any(
        set(one.tensors) == set(STATE) and all(torch.equal(one.tensors[name], STATE[name]) for name in STATE)
        for one in namings(tensors)
    )


@pytest.mark.parametrize(
    "prefix",
    [
        "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "model.", "model.module.",
        "module.model.", "net.", "network.", "model.net.", "teacher.", "ema_model.", "state_dict.model.module.",
        "student.backbone.",
    ],
)  # fmt: skip
def test_prefixes_are_removed_in_any_order(prefix):
    assert reads(renamed(lambda name: prefix + name))


@pytest.mark.parametrize("wrapper", ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrappers_inside_names_are_removed(wrapper):
    assert reads(renamed(lambda name: name.replace("layer1.0.", f"layer1.{wrapper}.0.{wrapper}.")))


def test_names_of_openmmlab_are_those_of_torchvision():
    assert reads(renamed(lambda name: ("head." if name.startswith("fc") else "backbone.") + name))


def test_names_are_kept_where_two_would_become_equal():
    tensors = {"module.a": STATE["fc.bias"], "a": STATE["fc.weight"]}
    assert set(next(iter(namings(tensors))).tensors) == {"module.a", "a"}
    assert all(len(one.tensors) + len(one.left_out) == 2 for one in namings(tensors))


def test_tensors_of_others_are_listed_and_not_dropped():
    """Lightning's module has its network under `model`, and may hold a loss with weights."""
    tensors = renamed(lambda name: f"model.{name}") | {"criterion.weight": torch.ones(2)}
    (found,) = (one for one in namings(tensors) if set(one.tensors) == set(STATE))
    assert found.left_out == ("criterion.weight",)


def test_two_networks_in_one_state_dict_are_told_apart():
    tensors = renamed(lambda name: f"student.{name}") | {
        f"teacher.{name}": -value for name, value in STATE.items()
    }
    found = [one for one in namings(tensors) if set(one.tensors) == set(STATE)]
    assert [one.left_out[0] for one in found] == ["teacher.conv1.weight", "student.conv1.weight"]
    chosen = select_state_dict(find_state_dicts({"state_dict": tensors}), "teacher", FILE)
    assert torch.equal(chosen.tensors["fc.bias"], -STATE["fc.bias"])
    assert select_state_dict(find_state_dicts({"state_dict": tensors}), "state_dict.teacher", FILE) is not None


KEYS = (
    "net", "network", "model", "model_state", "model_state_dict", "state_dict", "state_dict_ema", "model_ema",
    "teacher", "params", "params_ema", "weights", "ema.model", "callbacks.EMA.state_dict",
)  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_state_dicts_are_found_under_any_key(key):
    content = OrderedDict(STATE)
    for part in reversed(key.split(".")):
        content = {part: content, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}
    (found,) = find_state_dicts(content)
    assert (found.key, set(found.tensors)) == (key, set(STATE))


def test_the_usual_key_comes_first_and_others_are_kept():
    content = {"loss": torch.tensor(0.5), "state_dict_ema": STATE, "state_dict": STATE, "model_ema": STATE}
    assert [one.key for one in find_state_dicts(content)] == ["", "state_dict", "state_dict_ema", "model_ema"]
    assert find_state_dicts(content)[0].where == "the top level (1 tensor)"


def test_an_unknown_key_names_those_that_hold_tensors():
    found = find_state_dicts({"state_dict": STATE, "ema": {"model": STATE}})
    with pytest.raises(UserError) as caught:
        select_state_dict(found, "model_ema", FILE)
    assert str(caught.value) == (
        "w.pth has no weights under the key 'model_ema'; it holds tensors in state_dict (4 tensors), ema.model (4"
        " tensors)"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_values_that_are_no_numbers_are_refused(value, dtype):
    check_tensors({"a": torch.zeros(3).to(dtype)}, FILE)
    with pytest.raises(UserError, match=r"w.pth has NaN or infinite values in 1 of 2 tensors: b; the training"):
        check_tensors({"a": torch.zeros(3), "b": torch.tensor([0.0, value]).to(dtype)}, FILE)


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.ones(2, 2).to_sparse(), "a sparse tensor"),
        (torch.ones(2, dtype=torch.int8), "a tensor of int8"),
        (torch.ones(2, dtype=torch.complex64), "a tensor of complex numbers"),
        (torch.ones(2, device="meta"), "a tensor without values"),
    ],
)
def test_tensors_that_a_network_cannot_take_are_refused(tensor, kind):
    with pytest.raises(UserError, match=f"w.pth: fc.weight is {kind}"):
        check_tensors({"fc.weight": tensor}, FILE)


def test_counters_of_batches_are_integers():
    check_tensors({"bn1.num_batches_tracked": torch.tensor(3)}, FILE)
