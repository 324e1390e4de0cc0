"""Context of a derived run: the networks it is made from, their data, and the errors measured so far."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from lightning_modules.networks import build
from pipeline.common.errors import UserError
from pipeline.data.manifest import Manifest, manifest_of
from pipeline.data.prefetch import StopRequested
from pipeline.data.transfer_sets.images import TransferSet
from pipeline.declare.transfer import TransferSpec
from pipeline.plan.expand import DerivedRun, Run
from pipeline.track.record import FINISHED, Record
from pipeline.track.run_folder import EvaluationCache, RunFolder
from pipeline.train.evaluate import ErrorCounts
from pipeline.train.inputs import AnyImageSet, Metrics, ReadOptions, TrainingData, images_for
from pipeline.train.load import load_training_data
from pipeline.train.process import has_bf16

WHOLE = "whole"  # cache key of errors on images that are seen whole, by no protocol


@dataclass
class DerivedContext:
    """Members, data and cached errors of one derived run."""

    derived: DerivedRun
    images: AnyImageSet  # training and test set of its members
    other_images: AnyImageSet | TransferSet | None  # set of a transfer's classifier
    folder: RunFolder
    cache: EvaluationCache  # errors measured by an interrupted attempt
    options: ReadOptions
    device: torch.device = field(
        default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    networks: list[nn.Module] = field(default_factory=list)  # one per member
    datasets: list[TrainingData] = field(default_factory=list)  # one per member
    identities: list[str] = field(default_factory=list)  # of the members
    precisions: set[str] = field(default_factory=set)  # in which the members were trained
    earlier_seconds: float = 0.0  # time that an interrupted attempt spent on the cached errors

    @property
    def bf16(self) -> bool:
        """True if all members were trained in bf16, as in their own final evaluation, and the device has it."""
        if isinstance(self.derived.spec, TransferSpec):
            return False
        return self.precisions == {"bf16"} and has_bf16(self.device.type)

    def load(self, members: Sequence[RunFolder]) -> None:
        """Load networks and data of the members, in their order; UserError where a member has not finished."""
        loaded: dict[str, TrainingData] = {}
        for run, folder in zip(self.derived.members, members, strict=True):
            data = run.recipe.data
            images = images_for(self.images, data)
            manifest = manifest_of(images)
            record = require_finished(run, folder, manifest)
            self.identities.append(record.identity)
            self.precisions.add(record.precision)
            key = data.model_dump_json()
            if key not in loaded:
                loaded[key] = load_training_data(
                    images, data, self.device, sha256=manifest.sha256, options=self.options
                )
            self.datasets.append(loaded[key])
            averaged = getattr(self.derived.spec, "weights", "last") == "average"
            self.networks.append(load_network(run, folder, manifest, averaged=averaged).to(self.device))

    def errors(self, networks: Sequence[nn.Module], stage: str = "test", protocols: Sequence[str] = ()) -> Metrics:
        """Return the errors of the averaged predictions of `networks`, one per member, on the test set.

        The errors by each protocol are <stage>/<protocol>/..., those by the first are also <stage>/... Without
        `protocols`, those of the first member's recipe are used. The errors are cached, so that an interrupted run
        does not measure them again.
        """
        data = self.datasets[0]
        names = tuple(protocols) or data.protocols or (WHOLE,)
        found: Metrics = {}
        for name in names:
            protocol = None if name == WHOLE else name
            if protocol:
                self.options.report(f"evaluating {data.test_count:,} test images by {protocol}")
            measure = partial(data.ensemble_errors, networks, self.datasets, protocol, bf16=self.bf16)
            errors = self.cached(f"{stage}/{name}", measure)
            found |= errors.metrics(f"{stage}/{protocol}") if protocol else {}
            found |= errors.metrics(stage) if name == names[0] else {}
        return found

    def cached(self, name: str, measure: Callable[[], ErrorCounts]) -> ErrorCounts:
        """Return the errors cached under `name`, or measure and cache them."""

        def values() -> Metrics:
            found = measure()
            return {"images": found.images, "wrong1": found.wrong1, "wrong5": found.wrong5, "loss": found.loss}

        counts = self.cached_values(name, values)
        return ErrorCounts(int(counts["images"]), int(counts["wrong1"]), int(counts["wrong5"]), counts["loss"])

    def cached_values(self, name: str, measure: Callable[[], Metrics]) -> Metrics:
        """Return the values cached under `name`, or measure and cache them. StopRequested before measuring."""
        if cached := self.cache.read().get(name):
            self.earlier_seconds += cached.pop("seconds")
            return cached
        if self.options.stop():
            raise StopRequested
        began = time.monotonic()
        found = measure()
        self.cache.add(name, found | {"seconds": time.monotonic() - began})
        return found


@dataclass(frozen=True)
class DerivedResult:
    """Result of a derived run."""

    metrics: Metrics
    ended: str  # for the record: "3 networks averaged"
    content: bytes | None = None  # content of the compressed file
    status: Literal["finished", "not converged"] = "finished"


def require_finished(run: Run, folder: RunFolder, manifest: Manifest) -> Record:
    """Return the run's record; UserError unless it finished, on these images."""
    record = folder.result()
    if record is None:
        raise UserError(f"needs {run.title}, which has not ended on this machine; run the same command again")
    if record.status != FINISHED:
        raise UserError(f"needs {run.title}, which did not converge: {record.ended}")
    if record.manifest != manifest.sha256[:16]:
        raise UserError(
            f"{manifest.name}: the images changed since {run.title} was trained; run the same command again"
        )
    return record


def load_network(run: Run, folder: RunFolder, manifest: Manifest, *, averaged: bool = False) -> nn.Module:
    """Return the run's model, or the one with its averaged weights; UserError where its file cannot be read."""
    model, file = run.recipe.model, folder.average_file if averaged else folder.network_file
    if not file.is_file():
        raise UserError(
            f"the model of {run.title} is not at {file}: it was trained on another machine; copy its folder here"
            " and run the same command again"
        )
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read {file} ({error}); move its folder away to train the run again") from None
    network = build(model.name, model.args, num_classes=len(manifest.classes), in_channels=manifest.image[0])
    network.load_state_dict(weights)
    return network.to(memory_format=torch.channels_last) if run.recipe.train.channels_last else network
