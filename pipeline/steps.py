"""Steps: work on runs that have ended. Networks go in as their folders hold them, a record comes out.

    ensemble      several networks' soft-max answers averaged
    protocol      photographs judged by other test protocols
    transfer      a linear classifier on a network's features (steps_transfer.py)
    compression   Deep Compression (steps_compression.py)

A step has a folder like a run's, and its record is one more line wherever records are read.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_modules.networks import build
from pipeline.data.ahead import Stopped
from pipeline.data.batches import in_order
from pipeline.data.images import ImageSet
from pipeline.data.manifest import Manifest, manifest_of
from pipeline.data.shards import ShardSet
from pipeline.evaluate import BATCH, Errors, Member, evaluate, evaluate_pictures
from pipeline.experiment import CompressionStep, EnsembleStep, ProtocolStep, TransferStep
from pipeline.mistakes import UserError
from pipeline.plan import Run, Step
from pipeline.protocol import read_protocol
from pipeline.record import FINISHED, Record, commit, hardware, libraries, lock_hash
from pipeline.runs import Judged, RunFolder, full_disk_named, write_atomically
from pipeline.steps_compression import compress, decompress, layers_of, pruned, sizes
from pipeline.steps_transfer import classify, features_of_pictures, features_of_small
from pipeline.supply import Photographs, Small, Ways, require_counted, supply
from pipeline.train import has_bf16, prepare_process

Images = ImageSet | ShardSet
Metrics = dict[str, float]
COMPRESSED = "compressed.bin"  # in a compression's folder


def run_step(
    step: Step,
    *,
    identity: str,
    folder: RunFolder,
    members: Sequence[RunFolder],
    images: Images,
    manifest: Manifest,
    code: str,
    other: Images | None = None,
    threads: int = 1,
    readers: int = 1,
    cache: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    warn: Callable[[str], None] = lambda _: None,
) -> Record | None:
    """Do `step` with the networks in the folders `members` and write its record; None where `stop()` came true.

    `images` are those its runs learnt from; `other` those that a transfer learns from. `manifest` is of what the
    step is judged on. UserError for a run that has not ended well, or whose network is not here.
    """
    require_counted(images if other is None else other, manifest)
    prepare_process(threads)
    folder.path.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    bench = Bench(step, images, other, folder.judged(identity), Ways(readers, cache, warn, stop))
    try:
        bench.load(members)
        done = DO[step.step.kind](bench)
    except Stopped:
        return None
    except ValueError as error:  # networks, images and protocols that do not fit
        if isinstance(error, UserError):
            raise
        raise UserError(f"{step.title}: {error}") from error
    record = Record(
        identity=identity,
        experiment=step.experiment,
        scale=step.scale,
        variant=step.variant,
        seed=step.seed,
        status=done.status,
        ended=done.ended,
        changes=step.changes,
        declaration=step.declaration,
        manifest=manifest.sha256[:16],
        code=code,
        lock=lock_hash(),
        commit=commit(),
        data=manifest.name,
        metrics=done.metrics,
        precision="bf16" if bench.bf16 else "fp32",
        compiled=False,
        threads=threads,
        hardware=hardware(),
        libraries=libraries(),
        seconds=bench.before + time.monotonic() - began,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        members=tuple(bench.identities),
    )
    if done.content is not None:
        with full_disk_named(folder.path):
            write_atomically(folder.path / COMPRESSED, done.content)
    folder.finish(record, None)
    return record


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


# --- the kinds ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """What came of a step."""

    metrics: Metrics
    ended: str  # what was done, in words
    content: bytes | None = None  # of a file to keep
    status: Literal["finished", "not converged"] = "finished"


def judge_together(bench: Bench) -> Done:
    """An ensemble, or one network by other protocols: errors of the averaged answers."""
    step = bench.step.step
    assert isinstance(step, EnsembleStep | ProtocolStep)
    metrics = bench.errors(bench.networks, protocols=step.test)
    count = len(bench.networks)
    ended = f"{count} networks averaged" if count > 1 else f"judged by {len(step.test)} more protocols"
    return Done(metrics, ended)


def compress_one(bench: Bench) -> Done:
    """Errors of the network as it was, pruned, and as decoded from the file; and the file's bytes."""
    step, network = bench.step.step, bench.networks[0]
    assert isinstance(step, CompressionStep)
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    metrics = bench.errors([network], "original")
    kinds = layers_of(network)
    network.load_state_dict(pruned(weights, kinds, step.density))
    metrics |= bench.errors([network], "pruned")
    content = compress(weights, kinds, density=step.density, conv_bits=step.conv_bits, fc_bits=step.fc_bits)
    network.load_state_dict(decompress(content))
    metrics |= bench.errors([network]) | {f"compressed/{name}": value for name, value in sizes(content).items()}
    ratio = metrics["compressed/original_bytes"] / metrics["compressed/bytes"]
    return Done(metrics | {"compressed/ratio": ratio}, f"compressed {ratio:.1f} times", content)


def transfer_one(bench: Bench) -> Done:
    """Errors of a linear classifier, on the other set's test part."""
    step, first, other = bench.step.step, bench.supplies[0], bench.other
    assert isinstance(step, TransferStep)
    seen: dict[str, tuple[Tensor, Tensor]] = {}  # part -> features and labels
    for part in ("train", "test"):
        bench.ways.tell(f"taking features of {step.data}'s {part} part")
        if isinstance(first, Small) and isinstance(other, ImageSet):
            images = getattr(other, part)
            require_same_kind(step, first, other)
            features = features_of_small(bench.networks[0], first.maker(images), stop=bench.ways.stop)
            seen[part] = features, images.labels
        elif isinstance(first, Photographs) and isinstance(other, ShardSet):
            samples, view = getattr(other, part), read_protocol(step.view or "")
            member = Member(bench.networks[0], first.normaliser)
            features = features_of_pictures(
                member, samples, view, threads=bench.ways.readers, device=bench.device, stop=bench.ways.stop
            )
            seen[part] = features, samples.labels
        else:
            raise UserError(f"{step.data} is not of the kind that {bench.step.members[0].variant} learnt from")
    metrics, ended, converged = classify(seen["train"], seen["test"], c=step.c, stop=bench.ways.stop)
    return Done(metrics, ended, status="finished" if converged else "not converged")


def require_same_kind(step: TransferStep, first: Small, other: ImageSet) -> None:
    """UserError unless the other set's images have the size that the network learnt from."""
    ours, theirs = first.test.pixels.shape[1:], other.test.pixels.shape[1:]
    if ours != theirs:
        sizes = [" x ".join(map(str, shape)) for shape in (ours, theirs)]
        raise UserError(f"the network learnt from images of {sizes[0]}, and those of {step.data} have {sizes[1]}")


DO: dict[str, Callable[[Bench], Done]] = {
    "ensemble": judge_together,
    "protocol": judge_together,
    "transfer": transfer_one,
    "compression": compress_one,
}


# --- what is consumed --------------------------------------------------------------------------------------


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
