"""Test ids: readable for plain names, distinct and harmless for all others."""

import re

import pytest

from pipeline.report.document.anchors import anchor
from tests.support.reports import HOSTILE


def test_plain_names_are_readable():
    assert anchor("claim", "resnet/cifar10_depth", "top1-56") == "claim.resnet.cifar10_depth.top1-56"


@pytest.mark.parametrize("text", [HOSTILE, "../../etc/passwd", "a b", "ResNet-50 (ours)", "é", "a" * 500 + "!"])
def test_any_name_gives_a_safe_id_and_file_name(text):
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,100}", anchor("x", text))
    assert ".." not in anchor("x", text)


def test_different_names_have_different_ids():
    names = ["a b", "a.b", "a/b", "a!b", "A/b"]
    assert len({anchor("x", name) for name in names}) == len(names)
