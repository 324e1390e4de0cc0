"""Replacements in the declaration of tests/pipeline/conftest.py, for `declare`."""

from collections.abc import Callable

from pipeline.declare.experiment import Experiment

WITH_CROP = (  # images of varying size with a test protocol, and claims about metrics of this protocol
    "data: {name: cifar10, augment: [pad4-crop, flip]}",
    "data: {name: imagenet, crop: {side: 224, short: 256}, test: [dense-of-256]}",
    "data: {name: digits, augment: [pad1-crop]}",
    "data: {name: standin}",
    "    data: {name: noise}\n",
    "",
    "metric: test/top1_error_pct, claimed: 9.5",
    "metric: test/dense-of-256/top1_error_pct, claimed: 9.5",
    'metric: test/top1_error_pct, op: ">", claimed',
    'metric: test/dense-of-256/top1_error_pct, op: ">", claimed',
)

DERIVED = """derived:
  three: {kind: ensemble, members: {plain-20: 2, plain-32: 1}}
  small: {kind: compression, of: resnet-20, density: 0.5, conv_bits: 8, fc_bits: 5}
  else: {kind: transfer, of: plain-32, data: cifar100, c: 1.0}
scales:
"""


def with_derived(declare: Callable[..., Experiment], *pairs: str) -> Experiment:
    """Return the declaration with the derived runs of DERIVED, in whose text (old, new) pairs are replaced."""
    text = DERIVED
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return declare("scales:\n", text)
