"""Names of variants and derived runs: VARIANT of the same experiment, or PAPER/FILE/VARIANT of another one."""


def split_reference(name: str) -> tuple[str | None, str]:
    """Return the experiment and the variant of a name; no experiment for a name of the same file.

    "resnet/imagenet/resnet-152" -> ("resnet/imagenet", "resnet-152"); "resnet-152" -> (None, "resnet-152").
    """
    parts = name.split("/")
    return ("/".join(parts[:2]), parts[2]) if len(parts) == 3 and all(parts) else (None, name)


def short_name(name: str) -> str:
    """Return the variant of a name, without its experiment."""
    return split_reference(name)[1]


def beside(name: str, variant: str) -> str:
    """Return the name of a variant that the experiment of `name` declares, as seen from where `name` is written.

    ("resnet/imagenet/ensemble", "resnet-152") -> "resnet/imagenet/resnet-152".
    """
    experiment, _ = split_reference(name)
    return f"{experiment}/{variant}" if experiment and split_reference(variant)[0] is None else variant
