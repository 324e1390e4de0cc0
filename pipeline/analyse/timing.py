"""Forward times of networks on this machine."""

import time

import torch

from lightning_modules.networks import build
from pipeline.analyse.catalogue import NamedNetwork

REPEATS = 7


def forward_times(named: NamedNetwork, repeats: int = REPEATS) -> tuple[float, ...]:
    """Return the seconds of `repeats` forward passes of one image in fp32, after one warm-up pass."""
    model = named.variant.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build(model.name, model.args, num_classes=named.classes, in_channels=named.image[0]).eval()
        image = torch.randn(1, *named.image)
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            network(image)
            times.append(time.perf_counter() - start)
    return tuple(times[1:])
