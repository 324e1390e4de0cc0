"""SqueezeNet of torchvision: the same functions at every image size."""

from lightning_modules.published.weights import PublishedNetwork, RenameKey, renamer


def squeezenet_renamer(fire: dict[int, int]) -> RenameKey:
    """Return the renaming for `fire`: index in torchvision's `features` -> number of the fire module."""
    modules = [
        rule
        for index, number in fire.items()
        for rule in (
            (rf"features\.{index}\.squeeze\.(\w+)", rf"fire{number}.squeeze1x1.\1"),
            (rf"features\.{index}\.(expand[13]x[13])\.(\w+)", rf"fire{number}.\1.\2"),
        )
    ]
    return renamer((r"features\.0\.(\w+)", r"conv1.\1"), *modules, (r"classifier\.1\.(\w+)", r"conv10.\1"))


PUBLISHED = (
    PublishedNetwork(
        source="torchvision",
        model="squeezenet1_0",
        network="squeezenet",
        args={},
        rename=squeezenet_renamer({3: 2, 4: 3, 5: 4, 7: 5, 8: 6, 9: 7, 10: 8, 12: 9}),
    ),
    PublishedNetwork(
        source="torchvision",
        model="squeezenet1_1",
        network="squeezenet_1_1",
        args={},
        rename=squeezenet_renamer({3: 2, 4: 3, 6: 4, 7: 5, 9: 6, 10: 7, 11: 8, 12: 9}),
    ),
)
