"""What every derived run needs: the networks it consumes, their data, and errors measured so far."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_modules.networks import build
from pipeline.common.errors import UserError
from pipeline.data.batches import evaluation_batches
from pipeline.data.images import ImageSet
from pipeline.data.manifest import Manifest, manifest_of
from pipeline.data.prefetch import StopRequested
from pipeline.data.shards import ShardSet
from pipeline.declare.derived import TransferSpec
from pipeline.declare.protocol import parse_protocol
from pipeline.plan.expand import DerivedRun, Run
from pipeline.track.record import FINISHED, Record
from pipeline.track.run_folder import EvaluationCache, RunFolder
from pipeline.train.evaluate import EVAL_BATCH, EnsembleMember, ErrorCounts, evaluate_batches, evaluate_samples
from pipeline.train.inputs import InMemoryData, Metrics, ReadOptions, ShardedData, load_training_data
from pipeline.train.process import has_bf16

AnyImageSet = ImageSet | ShardSet


@dataclass
class DerivedContext:
    """What a step works with."""

    derived: DerivedRun
    images: AnyImageSet
    other_images: AnyImageSet | None
    kept: EvaluationCache
    options: ReadOptions
    device: torch.device = field(
        default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    networks: list[nn.Module] = field(default_factory=list)  # one a member
    datasets: list[InMemoryData | ShardedData] = field(default_factory=list)
    identities: list[str] = field(default_factory=list)  # the members'
    earlier_seconds: float = 0.0  # seconds that what is kept of an interrupted attempt took

    @property
    def bf16(self) -> bool:
        """Whether networks answer in bf16: as they were judged when they ended, where all of them were so."""
        if isinstance(self.derived.spec, TransferSpec):
            return False
        declared = {member.recipe.train.precision for member in self.derived.members}
        return declared == {"bf16"} and has_bf16(self.device.type)

    def load(self, members: Sequence[RunFolder]) -> None:
        """Networks and images of the members, in their order."""
        manifest = manifest_of(self.images)
        made: dict[str, InMemoryData | ShardedData] = {}
        for run, folder in zip(self.derived.members, members, strict=True):
            self.identities.append(require_finished(run, folder, manifest).identity)
            data = run.recipe.data
            key = data.model_dump_json()
            if key not in made:
                made[key] = load_training_data(
                    self.images, data, self.device, sha256=manifest.sha256, ways=self.options
                )
            self.datasets.append(made[key])
            self.networks.append(load_network(run, folder, manifest).to(self.device))

    def errors(self, networks: Sequence[nn.Module], stage: str = "test", protocols: Sequence[str] = ()) -> Metrics:
        """Errors of the averaged answers of `networks`, one of each member, on the test part.

        Of photographs <stage>/<protocol>/... by every protocol, and <stage>/... by the first; without `protocols`
        those of the first member's recipe. Kept, so that an interrupted step does not measure them again.
        """
        first = self.datasets[0]
        if isinstance(first, InMemoryData):
            return self.measured(f"{stage}/whole", partial(in_memory_errors, self, networks)).metrics(stage)
        found: Metrics = {}
        names = protocols or first.data.test
        for name in names:
            self.options.report(f"judging {len(first.test):,} test pictures by {name}")
            errors = self.measured(f"{stage}/{name}", partial(self.photograph_errors, networks, name))
            found |= errors.metrics(f"{stage}/{name}") | (errors.metrics(stage) if name == names[0] else {})
        return found

    def measured(self, name: str, measure: Callable[[], ErrorCounts]) -> ErrorCounts:
        """What is kept under `name` of an interrupted attempt, or measured now and kept."""
        if kept := self.kept.read().get(name):
            seconds = kept.pop("seconds")
            self.earlier_seconds += seconds
            return ErrorCounts(int(kept["images"]), int(kept["wrong1"]), int(kept["wrong5"]), kept["loss"])
        if self.options.stop():
            raise StopRequested
        began = time.monotonic()
        found = measure()
        seconds = time.monotonic() - began
        counts = {"images": found.images, "wrong1": found.wrong1, "wrong5": found.wrong5, "loss": found.loss}
        self.kept.add(name, counts | {"seconds": seconds})
        return found

    def photograph_errors(self, networks: Sequence[nn.Module], protocol: str) -> ErrorCounts:
        """Errors by one protocol on all pictures of the test part."""
        first = self.datasets[0]
        assert isinstance(first, ShardedData)
        return evaluate_samples(
            [
                EnsembleMember(network, one.normaliser)
                for network, one in zip(networks, self.datasets, strict=True)
            ],
            first.test,
            parse_protocol(protocol),
            expected=len(first.test),
            threads=self.options.readers,
            bf16=self.bf16,
            device=self.device,
            stop=self.options.stop,
        )


def in_memory_errors(bench: DerivedContext, networks: Sequence[nn.Module]) -> ErrorCounts:
    """Errors of the averaged answers on the small test images, whole."""
    first = bench.datasets[0]
    assert isinstance(first, InMemoryData)
    batches = evaluation_batches(first.maker(first.test), first.test.labels, batch_size=EVAL_BATCH)
    network, loss = (
        (networks[0], F.cross_entropy) if len(networks) == 1 else (AveragedNetworks(networks), F.nll_loss)
    )
    return evaluate_batches(network, batches, loss, expected=len(first.test), bf16=bench.bf16)


class AveragedNetworks(nn.Module):
    """The logarithm of several networks' averaged soft-max answers: (N, C, H, W) -> (N, classes), float64."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        logs = [network(x).double().log_softmax(1) for network in self.networks]
        return torch.stack(logs).logsumexp(0) - math.log(len(logs))


@dataclass(frozen=True)
class DerivedResult:
    """What came of a step."""

    metrics: Metrics
    ended: str  # what was done, in words
    content: bytes | None = None  # of a file to keep
    status: Literal["finished", "not converged"] = "finished"


def require_finished(run: Run, folder: RunFolder, manifest: Manifest) -> Record:
    """The run's record; UserError unless it has ended well, on these images."""
    record = folder.result()
    if record is None:
        raise UserError(f"it needs {run.title}, which has not ended on this machine; start the same command again")
    if record.status != FINISHED:
        raise UserError(f"it needs {run.title}, which did not converge: {record.ended}")
    if record.manifest != manifest.sha256[:16]:
        raise UserError(f"{manifest.name}: the images changed since {run.title} learnt from them; start it again")
    return record


def load_network(run: Run, folder: RunFolder, manifest: Manifest) -> nn.Module:
    """The run's last model; UserError where its file is not here or damaged."""
    model = run.recipe.model
    if not folder.network_file.is_file():
        raise UserError(
            f"the last model of {run.title} is not at {folder.network_file}: it was trained on another machine;"
            " copy its folder here and start again"
        )
    try:
        weights = load_file(folder.network_file)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{folder.network_file} cannot be read ({error}); move its folder away, and the run is trained again"
        ) from None
    network = build(model.name, model.args, num_classes=len(manifest.classes), in_channels=manifest.image[0])
    network.load_state_dict(weights)
    return network.to(memory_format=torch.channels_last) if run.recipe.train.channels_last else network
