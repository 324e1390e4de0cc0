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
from pipeline.data.batches import in_order
from pipeline.data.images import ImageSet
from pipeline.data.manifest import Manifest, manifest_of
from pipeline.data.prefetch import Stopped
from pipeline.data.shards import ShardSet
from pipeline.declare.derived import TransferStep
from pipeline.declare.protocol import read_protocol
from pipeline.plan.expand import Run, Step
from pipeline.track.record import FINISHED, Record
from pipeline.track.run_folder import Judged, RunFolder
from pipeline.train.evaluate import BATCH, Errors, Member, evaluate, evaluate_pictures
from pipeline.train.inputs import Photographs, Small, Ways, supply
from pipeline.train.process import has_bf16

Images = ImageSet | ShardSet

Metrics = dict[str, float]


@dataclass
class Bench:
    """What a step works with."""

    step: Step
    images: Images
    other: Images | None
    kept: Judged
    ways: Ways
    device: torch.device = field(
        default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    networks: list[nn.Module] = field(default_factory=list)  # one a member
    supplies: list[Small | Photographs] = field(default_factory=list)
    identities: list[str] = field(default_factory=list)  # the members'
    before: float = 0.0  # seconds that what is kept of an interrupted attempt took

    @property
    def bf16(self) -> bool:
        """Whether networks answer in bf16: as they were judged when they ended, where all of them were so."""
        if isinstance(self.step.step, TransferStep):
            return False
        declared = {member.recipe.train.precision for member in self.step.members}
        return declared == {"bf16"} and has_bf16(self.device.type)

    def load(self, members: Sequence[RunFolder]) -> None:
        """Networks and images of the members, in their order."""
        manifest = manifest_of(self.images)
        made: dict[str, Small | Photographs] = {}
        for run, folder in zip(self.step.members, members, strict=True):
            self.identities.append(require(run, folder, manifest).identity)
            data = run.recipe.data
            key = data.model_dump_json()
            if key not in made:
                made[key] = supply(self.images, data, self.device, sha256=manifest.sha256, ways=self.ways)
            self.supplies.append(made[key])
            self.networks.append(network_of(run, folder, manifest).to(self.device))

    def errors(self, networks: Sequence[nn.Module], stage: str = "test", protocols: Sequence[str] = ()) -> Metrics:
        """Errors of the averaged answers of `networks`, one of each member, on the test part.

        Of photographs <stage>/<protocol>/... by every protocol, and <stage>/... by the first; without `protocols`
        those of the first member's recipe. Kept, so that an interrupted step does not measure them again.
        """
        first = self.supplies[0]
        if isinstance(first, Small):
            return self.measured(f"{stage}/whole", partial(small_errors, self, networks)).metrics(stage)
        found: Metrics = {}
        names = protocols or first.data.test
        for name in names:
            self.ways.tell(f"judging {len(first.test):,} test pictures by {name}")
            errors = self.measured(f"{stage}/{name}", partial(self.photograph_errors, networks, name))
            found |= errors.metrics(f"{stage}/{name}") | (errors.metrics(stage) if name == names[0] else {})
        return found

    def measured(self, name: str, measure: Callable[[], Errors]) -> Errors:
        """What is kept under `name` of an interrupted attempt, or measured now and kept."""
        if kept := self.kept.read().get(name):
            seconds = kept.pop("seconds")
            self.before += seconds
            return Errors(int(kept["images"]), int(kept["wrong1"]), int(kept["wrong5"]), kept["loss"])
        if self.ways.stop():
            raise Stopped
        began = time.monotonic()
        found = measure()
        seconds = time.monotonic() - began
        counts = {"images": found.images, "wrong1": found.wrong1, "wrong5": found.wrong5, "loss": found.loss}
        self.kept.add(name, counts | {"seconds": seconds})
        return found

    def photograph_errors(self, networks: Sequence[nn.Module], protocol: str) -> Errors:
        """Errors by one protocol on all pictures of the test part."""
        first = self.supplies[0]
        assert isinstance(first, Photographs)
        return evaluate_pictures(
            [Member(network, one.normaliser) for network, one in zip(networks, self.supplies, strict=True)],
            first.test,
            read_protocol(protocol),
            expected=len(first.test),
            threads=self.ways.readers,
            bf16=self.bf16,
            device=self.device,
            stop=self.ways.stop,
        )


def small_errors(bench: Bench, networks: Sequence[nn.Module]) -> Errors:
    """Errors of the averaged answers on the small test images, whole."""
    first = bench.supplies[0]
    assert isinstance(first, Small)
    batches = in_order(first.maker(first.test), first.test.labels, batch_size=BATCH)
    network, loss = (networks[0], F.cross_entropy) if len(networks) == 1 else (Average(networks), F.nll_loss)
    return evaluate(network, batches, loss, expected=len(first.test), bf16=bench.bf16)


class Average(nn.Module):
    """The logarithm of several networks' averaged soft-max answers: (N, C, H, W) -> (N, classes), float64."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        logs = [network(x).double().log_softmax(1) for network in self.networks]
        return torch.stack(logs).logsumexp(0) - math.log(len(logs))


@dataclass(frozen=True)
class Done:
    """What came of a step."""

    metrics: Metrics
    ended: str  # what was done, in words
    content: bytes | None = None  # of a file to keep
    status: Literal["finished", "not converged"] = "finished"


def require(run: Run, folder: RunFolder, manifest: Manifest) -> Record:
    """The run's record; UserError unless it has ended well, on these images."""
    record = folder.result()
    if record is None:
        raise UserError(f"it needs {run.title}, which has not ended on this machine; start the same command again")
    if record.status != FINISHED:
        raise UserError(f"it needs {run.title}, which did not converge: {record.ended}")
    if record.manifest != manifest.sha256[:16]:
        raise UserError(f"{manifest.name}: the images changed since {run.title} learnt from them; start it again")
    return record


def network_of(run: Run, folder: RunFolder, manifest: Manifest) -> nn.Module:
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
