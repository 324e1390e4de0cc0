"""A network small enough to count by hand."""

import torch
from torch import Tensor, nn

from lightning_modules.layers import PadShortcut


class Branches(nn.Module):
    """Stem 5x5/2, pool 3x3/2, then a residual 3x3 beside a 1x1 and a dilated 3x3, concatenated; mean; fc."""

    side, name, rates = 32, "branches", (1, 2)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 5, stride=2, padding=2)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.left = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.deep = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=2, dilation=2))
        self.every_second = PadShortcut(0, 2)
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 10)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))  # (4, 8, 8)
        x = torch.cat([self.left(x) + x, self.deep(x)], dim=1)
        scores: Tensor = self.fc(self.mean(self.last(self.every_second(x))).flatten(1))
        return scores
