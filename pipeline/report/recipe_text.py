"""Text of recipes: settings, crops, test protocols, the schedule of the learning rate."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_modules.recipe import factors
from pipeline.common.words import plural
from pipeline.declare.data_settings import Crop
from pipeline.declare.training import LrDrops, Train


def settings_text(settings: Mapping[str, Any], *, start: str = "") -> str:
    """Return settings as text, after `start` if there are any.

    {"depth": 20, "warmup": {"lr": 0.01}} -> "depth 20, warmup.lr 0.01".
    """
    parts = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            parts += [f"{key}.{part}" for part in settings_text(value).split(", ")]
        elif isinstance(value, list | tuple):
            parts.append(f"{key} {'/'.join(map(str, value)) or 'none'}")
        else:
            parts.append(f"{key} {value}")
    return start + ", ".join(parts) if parts else ""


def override_text(data: Mapping[str, Any], train: Mapping[str, Any]) -> str:
    """Return the settings that a variant or scale changes.

    For example "data noise, tested with dense-of-256; 60 steps of 32 images, lr 0.1". The intervals of evaluation
    and logging are left out, as they do not change the training.
    """
    data = dict(data)
    train = {key: value for key, value in train.items() if key not in ("eval_every", "log_every")}
    of_data, of_train = [], []
    if "name" in data:
        of_data.append(f"data {data.pop('name')}")
    if "crop" in data:
        crop = data.pop("crop")
        of_data.append("whole images" if crop is None else crop_override_text(crop))
    test = data.pop("test", None)
    of_data += [settings_text(data), protocols_text(test) if test else ""]
    steps, size = train.pop("steps", None), train.pop("batch_size", None)
    if steps:
        of_train.append(plural(steps, "step") + (f" of {plural(size, 'image')}" if size else ""))
    elif size:
        of_train.append(f"batches of {plural(size, 'image')}")
    start = train.pop("start", None)
    of_train += [settings_text(train), start_text(start) if start else ""]
    return "; ".join(filter(None, (", ".join(filter(None, part)) for part in (of_data, of_train))))


def start_text(start: Mapping[str, Any]) -> str:
    """Return the run that a run starts from: "starts from vgg-11 (conv1_1, fc8)"."""
    layers = f" ({', '.join(start['layers'])})" if start.get("layers") else ""
    experiment = f" of {start['experiment']}" if start.get("experiment") else ""
    return f"starts from {start['variant']}{experiment}{layers}"


def crop_override_text(crop: Mapping[str, Any]) -> str:
    """Return the settings of a crop that a variant or scale changes: "crops of 64 x 64, short side 72 to 96"."""
    rest, parts = dict(crop), []
    if "side" in rest:
        parts.append("crops of {0} x {0}".format(rest.pop("side")))
    if rest.get("short"):
        parts.append(f"short side {range_text(rest.pop('short'))}")
    return ", ".join(filter(None, (*parts, settings_text({f"crop.{key}": value for key, value in rest.items()}))))


def crop_text(crop: Crop) -> str:
    """Return the training crop: "random 224 x 224 crop of the image, resized to a short side of 256 to 480"."""
    square = f"{crop.side} x {crop.side}"
    method = "" if crop.interpolation == "bilinear" else f", {crop.interpolation} interpolation"
    if crop.area and crop.aspect:
        share = range_text([f"{100 * end:g}" for end in crop.area])
        aspect = range_text([f"{end:.3g}" for end in crop.aspect])
        return f"random crop of {share} % of the image's area, aspect ratio {aspect}, resized to {square}{method}"
    where = "random" if crop.at == "random" else "centre or corner"
    centre = f"the central {crop.centre} x {crop.centre} of " if crop.centre else ""
    return (
        f"{where} {square} crop of {centre}the image, resized to a short side of {range_text(crop.short)}{method}"
    )


def protocols_text(protocols: Sequence[str], *, first: str = "") -> str:
    """Return "tested with 10-crop-224-of-256, dense-of-256", with the remark `first` after the first protocol."""
    return f"tested with {', '.join([protocols[0] + first, *protocols[1:]])}"


def range_text(value: Any) -> str:
    """Return a number, or a pair as "256 to 480"."""
    return " to ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def schedule_text(train: Train) -> str:
    """Return how the learning rate falls, after "learning rate 0.1": "; times 0.1 at step 32,000"."""
    if train.lr_drops:
        return f"; {lr_drops_text(train.lr_drops)}"
    if train.lr_end is not None:
        how = "linearly" if train.lr_power == 1 else f"as a polynomial of degree {train.lr_power:g}"
        return f", falling {how} to {train.lr_end:g}"
    if plateau := train.plateau:
        count = "report" if plateau.watch == "train" else "evaluation"
        waited = f"{plural(plateau.patience, count)} without a lower {plateau.watch} error"
        return f"; times {plateau.factor:g} after {waited}, at most {plural(plateau.max_drops, 'time')}"
    return ""


def lr_drops_text(drops: LrDrops) -> str:
    """Return the drops of the learning rate: "times 0.1 at step 32,000, times 0.1 at step 48,000"."""
    if drops.at is None:
        return f"times {drops.factor:g} every {drops.every:,} steps"
    return ", ".join(
        f"times {f:g} at step {at:,}" for at, f in zip(drops.at, factors(drops.model_dump()), strict=True)
    )


def weights_texts(train: Train) -> list[str]:
    """Return what happens to gradients and weights beside optimizer steps, and what is measured, one text each."""
    texts = []
    if train.clip_norm:
        texts.append(f"gradients are scaled to a norm of at most {train.clip_norm:g}")
    if train.filter_rms_limit:
        texts.append(f"filters are scaled to a root mean square of at most {train.filter_rms_limit:g}")
    if average := train.average:
        kind = "plain" if average.decay is None else f"exponential, decay {average.decay:g}"
        since = f" since step {average.since:,}" if average.since else ""
        statistics = ", with batch-norm statistics" if average.batch_norm else ""
        texts.append(f"average of the weights{since}: {kind}{statistics}; evaluated beside the last weights")
    if train.select == "val":
        texts.append("the network with the lowest validation error is judged")
    texts += [
        f"measured: optimizer steps until the training error is below {error:g} %"
        for error in train.steps_to_error_pct
    ]
    if train.gradient_norms:
        texts.append(f"measured: mean magnitude of the gradient in {', '.join(train.gradient_norms)}")
    if train.column_losses:
        texts.append(f"measured: training loss of the columns {', '.join(map(str, train.column_losses))}")
    return texts
