"""Error against the number of networks of an ensemble, and an ensemble chosen on validation images.

For each size: mean and standard deviation of the errors over the ensembles of so many members, all of them or
random ones. The networks' outputs are computed once per test protocol, kept in memory (8 bytes per network, image
and class), and averaged in all these ways. The ensembles of one size share members, so their standard deviation is
smaller than that of ensembles trained independently; for all members it is 0.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean, pstdev
from typing import Literal

import torch

from pipeline.data.order import seeded_generator
from pipeline.declare.derived import GREEDY, GREEDY_NETWORKS, SIZE_METRICS, SPREAD, EnsembleSizesSpec, size_name
from pipeline.derive.context import WHOLE, DerivedContext, DerivedResult
from pipeline.derive.predictions import Predictions, predict
from pipeline.train.inputs import Metrics


def run_ensemble_sizes(context: DerivedContext) -> DerivedResult:
    """Return the errors of the ensemble of all members, of those of each size and, if declared, of the greedy one.

    What is measured by one protocol is cached, so that an interrupted run does not measure it again.
    """
    spec, data = context.derived.spec, context.datasets[0]
    assert isinstance(spec, EnsembleSizesSpec)
    names = spec.test or data.protocols or (WHOLE,)

    def predictions(part: Literal["test", "val"], name: str) -> Predictions:
        """Return the members' predictions on the test or validation images."""
        protocol = None if name == WHOLE else name
        by = f" by {protocol}" if protocol else ""
        context.options.report(f"evaluating {len(context.networks)} networks on the {part} images{by}")
        return predict(context.networks, context.datasets, part, protocol, bf16=context.bf16)

    metrics: Metrics = {}
    chosen: list[int] = []
    if spec.greedy:
        found = context.cached_values(GREEDY, lambda: choose_greedily(predictions("val", names[0])))
        chosen = [int(member) for member in found if member.isdigit()]
        errors = {name: value for name, value in found.items() if not name.isdigit()}
        metrics = placed(errors, "val", names[0], short=True) | {GREEDY_NETWORKS: float(len(chosen))}
    for name in names:
        measure = partial(measure_sizes, partial(predictions, "test", name), spec, context.derived.seed, chosen)
        found = context.cached_values(f"sizes/{name}", measure)
        metrics |= placed(found, "test", name, short=name == names[0])
    sizes = ", ".join(map(str, spec.measured_sizes))
    ended = f"ensembles of {sizes} of {len(context.networks)} networks"
    if chosen:
        ended += f"; chosen on validation images: {', '.join(context.derived.members[i].title for i in chosen)}"
    return DerivedResult(metrics, ended)


def placed(errors: Metrics, part: str, name: str, *, short: bool) -> Metrics:
    """Return errors as metrics of `part` under the name of their protocol and, if `short`, also without it."""
    found = {} if name == WHOLE else {f"{part}/{name}/{key}": value for key, value in errors.items()}
    return found | ({f"{part}/{key}": value for key, value in errors.items()} if short else {})


def measure_sizes(
    predict_members: Callable[[], Predictions], spec: EnsembleSizesSpec, seed: int, chosen: Sequence[int]
) -> Metrics:
    """Return the errors of all members' ensemble, mean and spread of each size, and the errors of `chosen`."""
    predictions = predict_members()
    count = predictions.networks
    found = named_errors(predictions, range(count))
    for size in spec.measured_sizes:
        rows = [named_errors(predictions, one) for one in member_choices(count, size, spec.choices, seed)]
        for error in SIZE_METRICS:
            values = [row[error] for row in rows]
            found[f"{size_name(size)}/{error}"] = fmean(values)
            found[f"{size_name(size)}/{error}{SPREAD}"] = pstdev(values)
    if chosen:
        found |= named_errors(predictions, chosen, f"{GREEDY}/")
    return found


def named_errors(predictions: Predictions, members: Sequence[int], prefix: str = "") -> Metrics:
    """Return the errors of an ensemble by the names of the metrics, after `prefix`."""
    metrics = predictions.errors(members).metrics("")
    return {f"{prefix}{name.removeprefix('/')}": value for name, value in metrics.items()}


def member_choices(members: int, size: int, limit: int, seed: int) -> list[tuple[int, ...]]:
    """Return the ensembles of `size` of `members` networks: all, or `limit` different ones drawn from the seed."""
    if math.comb(members, size) <= limit:
        return list(itertools.combinations(range(members), size))
    generator = seeded_generator(seed, "ensemble", size)
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < limit:
        order: list[int] = torch.randperm(members, generator=generator).tolist()
        drawn[tuple(sorted(order[:size]))] = None
    return list(drawn)


def choose_greedily(predictions: Predictions) -> Metrics:
    """Return the errors of the greedy ensemble, GREEDY/..., and a key for the number of each of its members.

    In each step the network is added whose ensemble has the lowest top-1 error, and of equal ones the lowest loss.
    Of the ensembles of all steps, the smallest of those with the lowest top-1 error is chosen.
    """
    steps: list[tuple[int, tuple[int, ...]]] = []  # top-1 errors and members of each step's ensemble
    members: tuple[int, ...] = ()
    while len(members) < predictions.networks:
        ranked = []
        for number in set(range(predictions.networks)) - set(members):
            candidate = tuple(sorted((*members, number)))
            errors = predictions.errors(candidate)
            ranked.append((errors.wrong1, errors.loss, candidate))
        wrong, _, members = min(ranked)
        steps.append((wrong, members))
    _, chosen = min(steps, key=lambda step: step[0])
    return named_errors(predictions, chosen, f"{GREEDY}/") | {str(member): 1.0 for member in chosen}
