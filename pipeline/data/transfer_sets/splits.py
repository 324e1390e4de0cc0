"""Which images of a set a transfer's classifier is trained on, tested on, and chosen on.

Random splits belong to the set, not to a run: every network sees the same ones. The training images of a split
with n images per class are also in that with more.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipeline.data.images import DataError
from pipeline.data.order import seeded_generator

SPLIT_SEED = 0


def own_split(
    name: str, parts: Mapping[str, Tensor], train_parts: Sequence[str], test_part: str
) -> tuple[Tensor, Tensor]:
    """Return the indices of training and test images of a set with parts, int64. DataError for an unknown part."""
    for part in (*train_parts, test_part):
        if part not in parts:
            known = f"its parts are {', '.join(parts)}" if parts else "it has no parts; use 'splits'"
            raise DataError(f"{name} has no part {part!r}; {known}")
    return torch.cat([parts[part] for part in train_parts]), parts[test_part]


def random_split(
    name: str, labels: Tensor, classes: Sequence[str], *, number: int, train: int, test: int | None
) -> tuple[Tensor, Tensor]:
    """Return the indices of the training and test images of random split `number`, int64, class by class.

    `labels`: int64 (N,). `train` images of each class are drawn for training, and of the others at most `test` for
    testing, or all if that is None. Raises DataError for a class with too few images.
    """
    drawn: tuple[list[Tensor], list[Tensor]] = [], []
    for label, class_name in enumerate(classes):
        own = (labels == label).nonzero().flatten()
        if len(own) <= train:
            raise DataError(
                f"{name}: class {class_name!r} has {len(own)} images; {train} for training leave none for testing"
            )
        order = own[torch.randperm(len(own), generator=seeded_generator(SPLIT_SEED, "transfer", number, label))]
        drawn[0].append(order[:train])
        drawn[1].append(order[train:] if test is None else order[train : train + test])
    return torch.cat(drawn[0]), torch.cat(drawn[1])


def held_out_share(labels: Tensor, share: float) -> Tensor:
    """Return True for the images on which C is chosen, bool (N,): a share of each class, drawn at random.

    `labels` are those of the training images: int64 (N,), or int8 (N, classes) marks, with which the share is
    drawn from all images together. At least one image of each class is held out, and one is not. Raises DataError
    where a class has a single image.
    """
    groups = [torch.arange(len(labels))]
    if labels.ndim == 1:
        groups = [(labels == label).nonzero().flatten() for label in labels.unique()]
    held = torch.zeros(len(labels), dtype=torch.bool)
    for group in groups:
        if len(group) < 2:
            raise DataError(
                "a class with a single training image leaves none to choose C on; give one value of 'c'"
            )
        count = min(max(round(share * len(group)), 1), len(group) - 1)
        order = torch.randperm(len(group), generator=seeded_generator(SPLIT_SEED, "choose"))
        held[group[order[:count]]] = True
    return held
