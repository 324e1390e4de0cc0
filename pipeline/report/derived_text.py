"""Text of derived runs, one sentence each."""

from pipeline.common.words import plural
from pipeline.declare.derived import (
    ColumnSpec,
    CompressionSpec,
    DerivedSpec,
    EnsembleSizesSpec,
    EnsembleSpec,
    ProtocolSpec,
    Retraining,
    TimingSpec,
)
from pipeline.declare.localisation import LocalisationSpec
from pipeline.declare.transfer import TransferSpec
from pipeline.report.recipe_text import protocols_text


def derived_text(spec: DerivedSpec) -> str:
    """Return a derived run as text: "average of 5 zfnet + zfnet-wide", "vgg-16 tested with dense-of-256"."""
    if isinstance(spec, EnsembleSpec | EnsembleSizesSpec):
        members = " + ".join(name if count == 1 else f"{count} {name}" for name, count in spec.members.items())
        protocols = f", {protocols_text(spec.test)}" if spec.test else ""
        if isinstance(spec, EnsembleSpec):
            own = [f"{name} {protocols_text([protocol])}" for name, protocol in spec.member_test.items()]
            return f"average of {members}{protocols}" + (f"; {', '.join(own)}" if own else "")
        greedy = ", and the greedy one" if spec.greedy else ""
        sizes = ", ".join(map(str, spec.measured_sizes))
        return f"ensembles of {sizes} networks of {members}{greedy}{protocols}"
    if isinstance(spec, ColumnSpec):
        column = "the deepest column" if spec.column == "deepest" else f"column {spec.column}"
        return f"{column} of {spec.of} alone" + (f", {protocols_text(spec.test)}" if spec.test else "")
    if isinstance(spec, ProtocolSpec):
        return f"{spec.of} {protocols_text(spec.test)}"
    if isinstance(spec, CompressionSpec):
        return compression_text(spec)
    if isinstance(spec, LocalisationSpec):
        boxes = " + ".join(f"{name} at {', '.join(map(str, sides))}" for name, sides in spec.boxes.items())
        classes = f"classes and ratings of {' + '.join(spec.classes)}, {protocols_text((spec.labels,))}"
        return f"merged boxes of {boxes}; {classes}"
    if isinstance(spec, TimingSpec):
        sizes = ", ".join(map(str, spec.batch_sizes))
        return f"forward passes of {', '.join(spec.networks)} with batches of {sizes}"
    return transfer_text(spec)


def transfer_text(spec: TransferSpec) -> str:
    """Return a transfer as text: "features of a on b by view c, softmax classifier with C 0.5"."""
    view = f" by view {spec.view}" if spec.view else ""
    layer = f" ({spec.layer})" if spec.layer else ""
    classifier = {"softmax": "softmax classifier", "svm": "linear SVMs"}[spec.classifier]
    values = ", ".join(f"{c:g}" for c in spec.candidates)
    how = {"standardise": "", "l2": "L2-normalised", "none": "not normalised"}[spec.normalise]
    parts = [
        f"features of {' and '.join(spec.of)}{layer} on {spec.data}{view}",
        "scales side by side" if spec.scales == "stack" else "",
        how,
        f"{classifier} with C {values if len(spec.candidates) == 1 else f'chosen from {values}'}",
    ]
    if isinstance(spec.validation, float):
        parts.append(f"on {100 * spec.validation:g} % of the training images")
    elif spec.validation:
        parts.append(f"on the part {spec.validation}")
    if spec.splits:
        sizes = " or ".join(str(number) for number in spec.sizes.values())
        tested = f", at most {spec.test_per_class} for testing" if spec.test_per_class else ""
        parts.append(f"{plural(spec.splits, 'random split')} with {sizes} training images per class{tested}")
    elif spec.train_parts != ("train",) or spec.test_part != "test":
        parts.append(f"trained on {' and '.join(spec.train_parts)}, tested on {spec.test_part}")
    return ", ".join(filter(None, parts))


def compression_text(spec: CompressionSpec) -> str:
    """Return a compression as text: "a compressed to 33 % of the weights, 8 bits in convolutional and 5 ..."."""
    if isinstance(spec.density, float):
        density = f"{100 * spec.density:g} % of the weights"
    else:
        layers = ", ".join(f"{layer} {100 * value:g} %" for layer, value in spec.density.items())
        density = f"a part of the weights ({layers})"
    bits = f"{spec.conv_bits} bits in convolutional and {spec.fc_bits} bits in fully connected layers"
    own_bits = ", ".join(f"{layer} {value} bits" for layer, value in spec.bits.items())
    index_bits = f"distances of {spec.conv_index_bits} and {spec.fc_index_bits} bits"
    when = f"after each of {spec.prunings} prunings" if spec.prunings > 1 else "after pruning"
    parts = [
        f"{spec.of} compressed to {density}",
        f"{bits} ({own_bits})" if own_bits else bits,
        "" if (spec.conv_index_bits, spec.fc_index_bits) == (8, 5) else index_bits,
        retraining_text(spec.retrain, when) if spec.retrain else "",
        retraining_text(spec.tune, "of shared values") if spec.tune else "",
    ]
    return ", ".join(filter(None, parts))


def retraining_text(training: Retraining, when: str) -> str:
    """Return a training within a compression as text: "1,000 steps after pruning at rate 0.001"."""
    decay = "" if training.lr_end is None else f" to {training.lr_end:g}"
    batch = f" with {plural(training.batch_size, 'image')} each" if training.batch_size else ""
    return f"{plural(training.steps, 'step')} {when} at rate {training.lr:g}{decay}{batch}"
