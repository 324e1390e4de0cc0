"""The order in which test files start: longest first, so that no worker ends with a long file."""

from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
LONGEST_FIRST = (  # files of more than about ten seconds of CPU time, as measured
    "lightning_modules/test_every_network.py",
    "pipeline/schedule/test_local.py",
    "experiments/test_declarations.py",
    "pipeline/cli/test_main.py",
    "pipeline/cli/test_messages.py",
    "experiments/test_imagenet.py",
    "pipeline/train/test_sharded.py",
    "pipeline/cluster/test_node.py",
    "pipeline/train/test_train_on_ranks.py",
    "pipeline/track/test_mlflow_outage.py",
    "pipeline/track/test_mlflow_writer.py",
    "pipeline/train/test_train.py",
    "lightning_modules/test_densenet.py",
    "lightning_modules/test_fractalnet.py",
)


def sort_longest_first(items: list[pytest.Item]) -> None:
    """Sort tests in place by their file; files that are not listed follow in the order of collection."""
    position = {TESTS / name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: position.get(item.path, len(position)))
