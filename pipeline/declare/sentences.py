"""Sentences of claims that give none: what is claimed, in plain English, from the keys of the claim."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.declare.references import short_name
from pipeline.declare.transfer import MEAN_AP, MEAN_CLASS_RECALL

LAYER_SENTENCES = {  # measure of a layer -> its sentence; {it} is the layer, {n} the claimed value
    "kernel_size": "{it} has a window of {n}",
    "stride": "{it} has stride {n}",
    "padding": "{it} has padding {n}",
    "out_channels": "{it} has {n} filters",
    "in_channels": "{it} takes {n} feature maps",
    "out_features": "{it} has {n} units",
    "in_features": "{it} takes {n} values",
    "convolutions": "{it} has {n} convolutions",
    "weights": "{it} has {n} weights",
    "parameters": "{it} has {n} parameters",
    "multiply_adds": "{it} needs {n} multiply-adds",
    "activations": "{it} outputs {n} values",
    "connections": "{it} has {n} connections",
    "groups": "{it} has {n} groups",
    "p": "{it} has a dropout rate of {n}",
    "survival": "{it} survives with probability {n}",
    "receptive_field": "{it} has a receptive field of {n} x {n}",
    "init_std": "The initial weights of {it} have a standard deviation of {n}",
    "init_mean": "The initial weights of {it} have a mean of {n}",
    "init_bias": "The initial biases of {it} are {n}",
    "order": "{it} has the order: {n}",
}

NETWORK_SENTENCES = {  # measure of a network -> its sentence; {it} is the variant
    "parameters": "{it} has {n} parameters",
    "weights": "{it} has {n} weights",
    "multiply_adds": "{it} needs {n} multiply-adds",
    "activations": "{it} computes {n} activations",
    "connections": "{it} has {n} connections",
    "depth": "{it} has {n} layers with weights",
    "longest_path": "{it} has {n} layers with weights on its longest path",
    "additions": "{it} has {n} shortcut additions",
    "input": "{it} takes images of {n}",
    "batchnorms_per_convolution": "{it} has {n} batch normalisations for each convolution",
    "init_gain": "{it} is initialised with variance {n} / fan-in",
}

COUNTED = {  # class -> the word for several of it
    "Conv2d": "convolutions",
    "Linear": "fully connected layers",
    "MaxPool2d": "max poolings",
    "AvgPool2d": "average poolings",
    "BatchNorm2d": "batch normalisations",
    "LocalResponseNorm": "local response normalisations",
    "Dropout": "dropout layers",
    "ReLU": "ReLU layers",
    "Projection": "projection shortcuts",
    "Block": "blocks",
    "Bottleneck": "bottlenecks",
    "Inception": "Inception modules",
    "DenseBlock": "dense blocks",
    "Fire": "fire modules",
}

RATIO_NOUNS = {
    "multiply_adds": "multiply-adds",
    "depth": "layers with weights",
    "longest_path": "layers on the longest path",
    "additions": "shortcut additions",
    "batchnorms_per_convolution": "batch normalisations for each convolution",
}

SETTING_SENTENCES = {  # setting -> its sentence
    "epochs": "Training runs for {n} epochs",
    "drop_epochs": "The learning rate drops at epochs {n}",
    "distinct_crops": "One image gives {n} distinct crops",
    "train.steps": "Training runs for {n} iterations",
    "train.batch_size": "The batch size is {n}",
    "train.lr": "The learning rate starts at {n}",
    "train.lr_drops.at": "The learning rate drops at iterations {n}",
    "train.lr_drops.every": "The learning rate drops every {n} iterations",
    "train.lr_drops.factor": "Each drop multiplies the learning rate by {n}",
    "train.plateau.max_drops": "The learning rate drops {n} times",
    "train.filter_rms_limit": "Filters whose root mean square exceeds {n} are scaled back to it",
    "train.warmup.lr": "The warm-up has a learning rate of {n}",
    "train.optimizer.name": "The optimizer is {n}",
    "train.optimizer.momentum": "The momentum is {n}",
    "train.optimizer.alpha": "The decay of the mean square is {n}",
    "train.optimizer.eps": "Epsilon is {n}",
    "train.optimizer.weight_decay": "The weight decay is {n}",
    "train.clip_norm": "The gradient is scaled to a norm of at most {n}",
    "train.loss.smoothing": "The label smoothing is {n}",
    "data.name": "The data set is {n}",
    "data.train": "Training uses {n} images",
    "data.val": "{n} images are held out for validation",
    "data.val_per_class": "{n} images of each class are held out for validation",
    "data.val_per_class.train": "{n} training images of each class are held out for validation",
    "data.val_per_class.extra": "{n} extra images of each class are held out for validation",
    "data.jitter.brightness": "The brightness of images changes by up to {n} of itself",
    "data.jitter.contrast": "The contrast of images changes by up to {n} of itself",
    "data.jitter.saturation": "The saturation of images changes by up to {n} of itself",
    "data.jitter.lighting": "Lighting noise has a standard deviation of {n}",
    "data.test": "Images are tested by {n}",
    "data.augment": "Images are augmented by: {n}",
    "data.normalise": "Images are normalised by the method {n}",
    "data.crop.centre": "Crops are taken from the central {n} x {n} pixels",
    "data.crop.side": "Crops are {n} pixels wide and high",
    "data.crop.short": "The shorter side of an image is scaled to {n} pixels",
    "data.crop.at": "Crops are taken at {n} positions",
}

COST_WORDS = {"seconds": "training time", "images_per_second": "training speed", "peak_memory_mib": "peak memory"}

STEP_WORDS = {
    "first_pass_smallest_step": "smallest step size of the first pass",
    "first_pass_largest_step": "largest step size of the first pass",
}

COMPARISONS = {"<": "less than ", ">": "more than ", "<=": "at most ", ">=": "at least "}


def sentence(claim: Mapping[str, Any], value: str) -> str:
    """Return the sentence of a claim, or "" if its keys do not allow one.

    `value` is the claimed value as text, in the unit that the source prints.
    """
    match claim.get("kind"):
        case "exact":
            return exact_sentence(claim, value)
        case "metric":
            text = f"{variant_words(claim, 'of')} has a {metric_words(claim)} of {value}{metric_unit(claim)}"
            statistic = claim.get("statistic", "mean")
            return text if statistic == "mean" else f"{text} in the {statistic} runs"
        case "bound":
            side = "below" if claim.get("op") == "<" else "above"
            return (
                f"The {metric_words(claim)} of {variant_words(claim, 'of')} is {side} {value}{metric_unit(claim)}"
            )
        case "ordering":
            return ordering_sentence(claim)
        case "gain":
            lhs, rhs = sides(claim)
            points = " points" if metric_unit(claim) else ""
            return f"The {metric_words(claim)} of {lhs} is {value}{points} lower than that of {rhs}"
        case "ratio":
            lhs, rhs = sides(claim)
            times = COMPARISONS.get(str(claim.get("op")), "") + value
            return f"The {metric_words(claim)} of {lhs} is {times} times that of {rhs}"
    return ""


def exact_sentence(claim: Mapping[str, Any], value: str) -> str:
    """Return the sentence of an exact claim, or ""."""
    kind, _, measure = str(claim.get("metric", "")).partition("/")
    if "over" in claim or "over_metric" in claim:
        return ratio_sentence(claim, measure, value)
    claimed, name = claim.get("claimed"), variant_words(claim, "of")
    if kind == "recipe":
        return setting_sentence(measure, claimed, value)
    is_one, is_none = claimed == 1 and claim.get("op", "=") == "=", claimed == 0 and claim.get("op", "=") == "="
    value = "no" if is_none else COMPARISONS.get(str(claim.get("op")), "") + (str(claimed) if is_one else value)
    if kind != "model":
        return ""
    part, _, rest = measure.partition("/")
    if part == "count":
        words = COUNTED.get(rest, f"{rest} modules")
        return f"{name} has {value} {words.removesuffix('s') if is_one else words}"
    if part != "layer":
        return singular(NETWORK_SENTENCES.get(measure, "").format(it=name, n=value), is_one)
    layer, _, what = rest.rpartition("/")
    it = f"{layer.replace('+', ' + ')} of {name}"
    if what == "output" and isinstance(claimed, list):
        return f"{it} outputs {output_words(claimed)}"
    if what in ("stride", "padding") and isinstance(claimed, list) and len(set(claimed)) == 1:
        value = str(claimed[0])
    if what.startswith("init") or what in ("p", "survival"):  # "0", not "no"
        value = COMPARISONS.get(str(claim.get("op")), "") + str(claimed)
    return singular(LAYER_SENTENCES.get(what, "").format(it=it, n=value), is_one)


def singular(text: str, is_one: bool) -> str:
    """Return a sentence about one thing with its noun in the singular."""
    if not is_one:
        return text
    return re.sub(
        r"\b1 (\w+ )?(convolution|addition|weight|layer|parameter|filter|group|value)s\b", r"1 \1\2", text
    )


def setting_sentence(setting: str, claimed: Any, value: str) -> str:
    """Return the sentence of a setting of the recipe."""
    if isinstance(claimed, bool):
        if setting.endswith("rate_in_velocity"):
            return f"The learning rate multiplies {'the gradient in the' if claimed else 'the'} velocity"
        what = "Nesterov momentum" if setting.endswith("nesterov") else setting
        return f"{what} is {'used' if claimed else 'not used'}"
    if setting == "drop_epochs" and not isinstance(claimed, list):
        return f"The learning rate drops every {value} epochs"
    if setting == "data.augment" and not claimed:
        return "Images are not augmented"
    if (
        setting in ("train.lr_drops.factor", "train.plateau.factor")
        and isinstance(claimed, float)
        and (1 / claimed).is_integer()
    ):
        return f"Each drop divides the learning rate by {1 / claimed:g}"
    if isinstance(claimed, list):
        value = ", ".join(
            f"{item:,}" if isinstance(item, int) else f"{item:g}" if isinstance(item, float) else str(item)
            for item in claimed
        )
    elif isinstance(claimed, float) and claimed.is_integer():
        value = f"{claimed:,.0f}"
    start, _, protocol = setting.partition("/")
    if start in ("test_views", "test_scales"):
        return f"The protocol {protocol} has {value} {'views' if start == 'test_views' else 'scales'} of an image"
    if setting == "data.crop.short" and isinstance(claimed, list):
        return f"The shorter side of an image is scaled to {claimed[0]} to {claimed[-1]} pixels"
    return SETTING_SENTENCES.get(setting, f"{setting} is {{n}}").format(n=value)


def ratio_sentence(claim: Mapping[str, Any], measure: str, value: str) -> str:
    """Return the sentence of an exact ratio of two variants, or "" for other ratios."""
    if "over_metric" in claim or measure not in NETWORK_SENTENCES:
        return ""
    noun = RATIO_NOUNS.get(measure, measure.replace("_", " "))
    more = {"<": "fewer", ">": "more"}.get(str(claim.get("op")))
    if claim.get("claimed") == 1 and claim.get("op", "=") == "=":
        about = "about " if claim.get("margin") else ""
        return f"{variant_words(claim, 'of')} has {about}as many {noun} as {variant_words(claim, 'over')}"
    if more and claim.get("claimed") == 1:
        return f"{variant_words(claim, 'of')} has {more} {noun} than {variant_words(claim, 'over')}"
    side = COMPARISONS.get(str(claim.get("op")), "")
    return f"{variant_words(claim, 'of')} has {side}{value} times the {noun} of {variant_words(claim, 'over')}"


def ordering_sentence(claim: Mapping[str, Any]) -> str:
    """Return the sentence of a comparison."""
    lhs, rhs = sides(claim)
    words = metric_words(claim)
    within = f" (within {claim.get('margin')}{metric_unit(claim) and ' points'})"
    match claim.get("op"):
        case "<":
            return f"{lhs} has a lower {words} than {rhs}"
        case ">":
            return f"{lhs} has a higher {words} than {rhs}"
        case "<=":
            return f"{lhs} has no higher {words} than {rhs}{within}"
    return f"{lhs} and {rhs} have the same {words}{within}"


def sides(claim: Mapping[str, Any]) -> tuple[str, str]:
    """Return the words for both sides of a comparison; with the protocol where it differs."""
    lhs, rhs = variant_words(claim, "lhs"), variant_words(claim, "rhs")
    other = claim.get("rhs_metric")
    if not other:
        return lhs, rhs
    return f"{lhs} ({protocol_of(str(claim.get('metric')))})", f"{rhs} ({protocol_of(str(other))})"


def variant_words(claim: Mapping[str, Any], key: str) -> str:
    """Return a variant that a claim names, with its experiment only if the claim names two of this short name."""
    name = str(claim.get(key))
    others = {str(claim[other]) for other in ("of", "over", "lhs", "rhs") if claim.get(other)} - {name}
    return name if short_name(name) in map(short_name, others) else short_name(name)


def metric_words(claim: Mapping[str, Any]) -> str:
    """Return the words for a trained metric: "top-1 test error"."""
    parts = str(claim.get("metric")).split("/")
    split = {"train": "training ", "val": "validation ", "trainset": "training-set ", "test": "test "}
    name = {
        "loss": ("", "loss"),
        "localisation_error_pct": ("", "localisation error"),
        MEAN_AP: ("", "mean average precision"),
        MEAN_CLASS_RECALL: ("", "mean class recall"),
    }
    for k in ("1", "5"):
        name |= {f"top{k}_error_pct": (f"top-{k} ", "error")}
        name |= {f"top{k}_localisation_error_pct": (f"top-{k} ", "localisation error")}
    if parts[-1] == "response_std":
        return "standard deviation of layer responses"
    if parts[:2] == ["train", "gradient_norm"]:
        return f"mean gradient magnitude in {'/'.join(parts[2:])}"
    if steps := re.fullmatch(r"steps_to_(.+)_pct_error", parts[-1]):
        return f"number of steps to a training error below {steps[1]} %"
    if words := COST_WORDS.get(parts[-1]) or STEP_WORDS.get(parts[-1]):
        return words
    before, noun = name.get(parts[-1], ("", parts[-1].replace("_", " ")))
    where = f" ({place_words(parts)})" if len(parts) > 2 and not claim.get("rhs_metric") else ""
    return f"{before}{split.get(parts[0], f'{parts[0]} ')}{noun}{where}"


def protocol_of(metric: str) -> str:
    """Return the test protocol of a metric, and the size of its ensembles, or "the first protocol"."""
    parts = metric.split("/")
    return place_words(parts) if len(parts) > 2 else "the first protocol"


def place_words(parts: Sequence[str]) -> str:
    """Return the words between the part and the name of a metric: "dense-of-256, ensembles of 3"."""
    words = [re.sub(r"^of-(?=\d+$)", "ensembles of ", part) for part in parts[1:-1]]
    words = [re.sub(r"^(\d+)-per-class$", r"\1 training images per class", word) for word in words]
    return ", ".join("greedy ensemble" if word == "greedy" else word for word in words)


def metric_unit(claim: Mapping[str, Any]) -> str:
    """Return the unit of a trained metric, or ""."""
    return " %" if str(claim.get("metric")).endswith("_pct") else ""


def output_words(shape: list[Any]) -> str:
    """Return the words for an output: 64 feature maps of 56 x 56."""
    if len(shape) == 3:
        return f"{shape[0]:,} feature maps of {shape[1]} x {shape[2]}"
    return f"{shape[0]:,} values" if len(shape) == 1 else f"values of shape {shape}"
