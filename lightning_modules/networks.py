"""Map from network names to builders. Lists every network of the project."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from torch import nn

from lightning_modules.alexnet import alexnet, alexnet_cifar
from lightning_modules.complexity import bn_alexnet, bn_nin
from lightning_modules.deep_compression import lenet5_caffe, lenet_300_100
from lightning_modules.densenet import densenet_cifar, densenet_imagenet
from lightning_modules.fractalnet import fractalnet, fractalnet_plain
from lightning_modules.googlenet import googlenet, inception_bottleneck, inception_naive
from lightning_modules.inception_resnet_v1 import inception_resnet_v1
from lightning_modules.inception_resnet_v2 import inception_resnet_v2
from lightning_modules.inception_v3 import inception_v3
from lightning_modules.inception_v4 import inception_v4
from lightning_modules.lecture import chain_cifar, head_cnn, inception_cnn, lrn_cnn, stack_cnn
from lightning_modules.lenet5 import lenet5, lenet5_modern
from lightning_modules.names import nearest
from lightning_modules.nin import nin, nin_imagenet
from lightning_modules.preact_resnet import preact_resnet_cifar
from lightning_modules.preact_resnet_imagenet import preact_resnet_imagenet
from lightning_modules.resnet import plain_cifar, resnet_cifar
from lightning_modules.resnet_imagenet import plain_imagenet, resnet_imagenet
from lightning_modules.resnext import resnext_cifar, resnext_imagenet
from lightning_modules.squeezenet import squeezenet, squeezenet_1_1
from lightning_modules.stochastic_depth import stochastic_depth_cifar, stochastic_depth_imagenet
from lightning_modules.vgg import conv_stack, vgg
from lightning_modules.vgg_localisation import vgg_boxes
from lightning_modules.wide_resnet import wide_resnet_cifar
from lightning_modules.wide_resnet_imagenet import wide_resnet_imagenet
from lightning_modules.zfnet import zfnet


@dataclass(frozen=True)
class Network:
    """A builder, with the image size and the number of classes that the paper uses."""

    build: Callable[..., nn.Module]  # takes the paper's arguments, `num_classes` and `in_channels`
    image: tuple[int, int, int]  # channels, height, width
    classes: int


NETWORKS: dict[str, Network] = {
    "alexnet": Network(alexnet, (3, 227, 227), 1000),
    "alexnet_cifar": Network(alexnet_cifar, (3, 32, 32), 10),
    "bn_alexnet": Network(bn_alexnet, (3, 224, 224), 1000),
    "zfnet": Network(zfnet, (3, 224, 224), 1000),
    "inception_v3": Network(inception_v3, (3, 299, 299), 1000),
    "inception_resnet_v1": Network(inception_resnet_v1, (3, 299, 299), 1000),
    "inception_resnet_v2": Network(inception_resnet_v2, (3, 299, 299), 1000),
    "inception_v4": Network(inception_v4, (3, 299, 299), 1000),
    "lenet5": Network(lenet5, (1, 32, 32), 10),
    "lenet5_modern": Network(lenet5_modern, (1, 32, 32), 10),
    "lenet_300_100": Network(lenet_300_100, (1, 28, 28), 10),
    "lenet5_caffe": Network(lenet5_caffe, (1, 28, 28), 10),
    "preact_resnet_cifar": Network(preact_resnet_cifar, (3, 32, 32), 10),
    "preact_resnet_imagenet": Network(preact_resnet_imagenet, (3, 224, 224), 1000),
    "plain_cifar": Network(plain_cifar, (3, 32, 32), 10),
    "resnet_cifar": Network(resnet_cifar, (3, 32, 32), 10),
    "plain_imagenet": Network(plain_imagenet, (3, 224, 224), 1000),
    "resnet_imagenet": Network(resnet_imagenet, (3, 224, 224), 1000),
    "resnext_cifar": Network(resnext_cifar, (3, 32, 32), 10),
    "resnext_imagenet": Network(resnext_imagenet, (3, 224, 224), 1000),
    "squeezenet": Network(squeezenet, (3, 227, 227), 1000),
    "squeezenet_1_1": Network(squeezenet_1_1, (3, 227, 227), 1000),
    "googlenet": Network(googlenet, (3, 224, 224), 1000),
    "inception_naive": Network(inception_naive, (256, 28, 28), 1000),
    "inception_bottleneck": Network(inception_bottleneck, (256, 28, 28), 1000),
    "wide_resnet_cifar": Network(wide_resnet_cifar, (3, 32, 32), 10),
    "wide_resnet_imagenet": Network(wide_resnet_imagenet, (3, 224, 224), 1000),
    "vgg": Network(vgg, (3, 224, 224), 1000),
    "vgg_boxes": Network(vgg_boxes, (3, 224, 224), 1000),
    "conv_stack": Network(conv_stack, (64, 32, 32), 1000),
    "nin": Network(nin, (3, 32, 32), 10),
    "nin_imagenet": Network(nin_imagenet, (3, 224, 224), 1000),
    "bn_nin": Network(bn_nin, (3, 224, 224), 1000),
    "fractalnet": Network(fractalnet, (3, 32, 32), 10),
    "fractalnet_plain": Network(fractalnet_plain, (3, 32, 32), 10),
    "stochastic_depth_cifar": Network(stochastic_depth_cifar, (3, 32, 32), 10),
    "stochastic_depth_imagenet": Network(stochastic_depth_imagenet, (3, 224, 224), 1000),
    "densenet_cifar": Network(densenet_cifar, (3, 32, 32), 10),
    "densenet_imagenet": Network(densenet_imagenet, (3, 224, 224), 1000),
    "stack_cnn": Network(stack_cnn, (3, 32, 32), 10),
    "lrn_cnn": Network(lrn_cnn, (3, 32, 32), 10),
    "head_cnn": Network(head_cnn, (3, 32, 32), 10),
    "inception_cnn": Network(inception_cnn, (3, 32, 32), 10),
    "chain_cifar": Network(chain_cifar, (3, 32, 32), 10),
}


def build(name: str, args: Mapping[str, Any], *, num_classes: int, in_channels: int) -> nn.Module:
    """Build the network `name` with the arguments `args` of its paper.

    Raises ValueError for arguments that `check_arguments` rejects, or that the builder rejects.
    """
    check_arguments(name, args)
    return NETWORKS[name].build(**args, num_classes=num_classes, in_channels=in_channels)


def check_arguments(name: str, args: Mapping[str, Any]) -> None:
    """Raise ValueError unless network `name` exists and its builder accepts `args`: names, types, none missing."""
    if name not in NETWORKS:
        raise ValueError(f"network {name!r} is unknown{nearest(name, NETWORKS)}")
    signature = inspect.signature(NETWORKS[name].build).parameters
    accepted = {key: p for key, p in signature.items() if key not in ("num_classes", "in_channels")}
    for argument in args:
        if argument not in accepted:
            raise ValueError(f"network {name!r} has no argument {argument!r}{nearest(argument, accepted)}")
    missing = [key for key, p in accepted.items() if p.default is p.empty and key not in args]
    if missing:
        raise ValueError(f"network {name!r} needs the argument {missing[0]!r}")
    for argument, value in args.items():
        try:
            argument_type(name, argument).validate_python(value, strict=True)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Input ")
            raise ValueError(f"{argument} of network {name!r} {reason}, not {value!r}") from None


@cache
def argument_type(name: str, argument: str) -> TypeAdapter[Any]:
    """Return the pydantic validator for one argument of a network's builder."""
    return TypeAdapter(get_type_hints(NETWORKS[name].build)[argument])
