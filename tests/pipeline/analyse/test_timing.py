"""Test forward times."""

import torch

from pipeline.analyse.catalogue import find_network
from pipeline.analyse.timing import forward_times
from pipeline.declare.load import load_all


def test_times_are_positive_and_leave_the_random_state_unchanged():
    named = find_network("lenet5", load_all())
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    times = forward_times(named, repeats=4)
    assert len(times) == 4
    assert min(times) > 0
    assert torch.equal(torch.rand(2), expected)
