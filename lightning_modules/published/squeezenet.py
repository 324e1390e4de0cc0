"""SqueezeNet in torchvision: the same functions, at every image size."""

from lightning_modules.published.weights import Published, Rename, renamer


def names(fire: dict[int, int]) -> Rename:
    """`fire`: place in torchvision's `features` -> number of the fire module."""
    modules = [
        rule
        for place, number in fire.items()
        for rule in (
            (rf"features\.{place}\.squeeze\.(\w+)", rf"fire{number}.squeeze1x1.\1"),
            (rf"features\.{place}\.(expand[13]x[13])\.(\w+)", rf"fire{number}.\1.\2"),
        )
    ]
    return renamer((r"features\.0\.(\w+)", r"conv1.\1"), *modules, (r"classifier\.1\.(\w+)", r"conv10.\1"))


PUBLISHED = (
    Published(
        source="torchvision",
        model="squeezenet1_0",
        network="squeezenet",
        args={},
        rename=names({3: 2, 4: 3, 5: 4, 7: 5, 8: 6, 9: 7, 10: 8, 12: 9}),
    ),
    Published(
        source="torchvision",
        model="squeezenet1_1",
        network="squeezenet_1_1",
        args={},
        rename=names({3: 2, 4: 3, 6: 4, 7: 5, 9: 6, 10: 7, 11: 8, 12: 9}),
    ),
)
