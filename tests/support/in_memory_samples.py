"""Image files in memory, as samples for feeds and statistics."""

from collections.abc import Sequence

import torch


class InMemorySamples:
    """Implements samples.Samples for encoded images in memory, and counts the reads."""

    def __init__(self, files: list[bytes], labels: torch.Tensor | None = None) -> None:
        self.files, self.reads = files, 0
        self.labels = torch.zeros(len(files), dtype=torch.int64) if labels is None else labels

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Return the files."""
        self.reads += 1
        return [self.files[index] for index in indices]

    def where(self, index: int) -> str:
        """Location of an image for a message."""
        return f"image {index}"
