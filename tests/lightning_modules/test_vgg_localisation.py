"""VGG's networks for localisation: the last layer, and boxes at every position."""

import pytest
import torch

from lightning_modules.networks import build
from lightning_modules.vgg import vgg
from lightning_modules.vgg_localisation import vgg_boxes

PARAMETERS = {  # those of D (Table 2: 138,357,544) with another last layer, whose inputs are 4096
    "single-class": 138_357_544 - (4096 + 1) * 1000 + (4096 + 1) * 4,
    "per-class": 138_357_544 - (4096 + 1) * 1000 + (4096 + 1) * 4000,
}
BOXES = {"single-class": 1, "per-class": 1000}  # appendix A.1: 4 and 4000 outputs


def on_meta(regression, configuration="D"):
    with torch.device("meta"):
        return vgg_boxes(configuration=configuration, regression=regression).eval()


@pytest.mark.parametrize("regression", BOXES)
def test_the_last_layer_predicts_boxes(regression):
    network = on_meta(regression)
    assert sum(value.numel() for value in network.parameters()) == PARAMETERS[regression]
    assert network.fc8.out_features == 4 * BOXES[regression]
    assert network(torch.zeros(2, 3, 224, 224, device="meta")).shape == (2, BOXES[regression], 4)


@pytest.mark.parametrize(
    ("size", "positions"), [((256, 341), (2, 4)), ((384, 512), (6, 10)), ((224, 224), (1, 1))]
)
def test_boxes_of_a_whole_image_have_the_positions_of_class_scores(size, positions):
    image = torch.zeros(1, 3, *size, device="meta")
    assert on_meta("per-class").box_map(image).shape == (1, 1000, 4, *positions)
    with torch.device("meta"):
        classes = vgg(configuration="E").eval()
    assert classes.score_map(image).shape == (1, 1000, *positions)


def test_every_other_layer_is_that_of_the_classification_network():
    own, classes = on_meta("per-class").state_dict(), vgg_on_meta().state_dict()
    differ = {name for name in own if name not in classes or own[name].shape != classes[name].shape}
    assert differ == {"fc8.weight", "fc8.bias"}
    assert own.keys() == classes.keys()


def vgg_on_meta():
    with torch.device("meta"):
        return vgg(configuration="D")


def test_the_dense_mean_of_boxes_is_refused():
    with pytest.raises(ValueError, match="cannot be evaluated densely by itself"):
        on_meta("per-class").dense(torch.zeros(1, 3, 256, 256, device="meta"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"configuration": "F", "regression": "per-class"}, "'F' is not one of: A, A-LRN, B"),
        ({"configuration": "D", "regression": "both"}, "'both' is not one of: single-class, per-class"),
        (
            {"configuration": "D", "regression": "per-class", "init": "zero"},
            "'zero' is not one of: glorot, normal",
        ),
    ],
)
def test_an_unknown_argument_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        vgg_boxes(**arguments)


def test_a_recipe_can_name_the_network():
    with torch.device("meta"):
        network = build(
            "vgg_boxes", {"configuration": "A", "regression": "per-class"}, num_classes=10, in_channels=3
        )
    assert network.fc8.out_features == 40


@pytest.mark.slow
def test_the_box_of_a_window_is_that_of_the_crop():
    """The map of a crop of 224 x 224 has one position, with the box that `forward` predicts for it."""
    torch.manual_seed(0)
    network = vgg_boxes(configuration="A", regression="single-class").eval()
    image = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(network.box_map(image)[..., 0, 0], network(image), rtol=1e-4, atol=1e-4)
