"""Conditions of the runs behind a verdict: deviations, hardware, precision, batches and budgets."""

from pipeline.common.words import plural
from pipeline.declare.data_settings import NOISE
from pipeline.declare.experiment import Experiment
from pipeline.declare.transfer import STAND_IN_SUFFIX
from pipeline.judge.counting import ByVariant
from pipeline.judge.wording import listed


def is_generated(data: str) -> bool:
    """Return True for the name of a data set whose images are generated: `noise`, and the stand-ins."""
    return data == NOISE or data.endswith(STAND_IN_SUFFIX)


def generated_data(records: ByVariant) -> str:
    """Return the names of the generated data sets of the runs, "" if they are all on real images."""
    names = dict.fromkeys(row.data for rows in records.values() for row in rows)
    return listed([name for name in names if is_generated(name)])


def different_setups(records: ByVariant) -> str:
    """Return a text naming the hardware and execution settings of the runs, or "" if all have the same."""
    setups: dict[tuple[str, int, str], list[str]] = {}
    for variant, rows in records.items():
        for row in rows:
            found = setups.setdefault((row.hardware, row.world, row.execution), [])
            found.extend([variant] if variant not in found else [])
    if len(setups) == 1:
        return ""
    texts = [
        f"{listed(variants)} ran on {plural(world, 'device')} ({hardware}) in {execution}"
        for (hardware, world, execution), variants in setups.items()
    ]
    return "; ".join(texts)


def precision_departures(experiment: Experiment, records: ByVariant) -> list[str]:
    """Return a departure for each variant trained in a precision that is neither fp32 nor that of its recipe."""
    found = []
    for name, rows in records.items():
        recipes = [experiment.published(variant).train for variant in experiment.consumed(name)]
        declared = {recipe.precision for recipe in recipes if recipe}
        if others := sorted({row.precision for row in rows} - {"fp32"} - declared):
            found.append(f"{name} was computed in {listed(others)}, not in fp32")
    return found


def mixed_device_batches(records: ByVariant) -> str:
    """Return a sentence that names variants whose runs have different batch sizes per device, or "".

    Batch normalisation averages over the images of one device, so their number is part of the recipe.
    """
    found = []
    for variant, rows in records.items():
        sizes = sorted({row.device_batch for row in rows if row.device_batch})
        if len(sizes) > 1:
            found.append(f"{variant} ({', '.join(map(str, sizes))} images)")
    if not found:
        return ""
    return f" Batch normalisation used different batch sizes per device in these runs: {'; '.join(found)}."


def different_budgets(experiment: Experiment, scale: str, records: ByVariant) -> str:
    """Return a sentence on runs of several experiments that saw different numbers of training images, or "".

    Each experiment has its own recipe; below paper scale, a comparison across experiments is also one of budgets.
    """
    seen: dict[str, tuple[str, int]] = {}  # variant -> experiment, images seen in training
    for name in records:
        declared, own = experiment.owner(name)
        variant = own if own in declared.variants else next(iter(declared.derived[own].consumes), None)
        if variant is None:  # a timing
            return ""
        train = declared.recipe(variant, scale).train
        seen[name] = declared.name, train.steps * train.batch_size
    if len({declared for declared, _ in seen.values()}) < 2 or len({images for _, images in seen.values()}) < 2:
        return ""
    texts = [f"{name} {images:,}" for name, (_, images) in seen.items()]
    return f" The runs saw different numbers of training images: {listed(texts)}."
