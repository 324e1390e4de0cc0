"""The parts of one run: its data, network, precision and intervals."""

import math

import torch
from torch import Tensor

from lightning_modules.classifier import Classifier
from pipeline.common.errors import UserError
from pipeline.data.batches import InMemoryFeed
from pipeline.data.images import ImageSet
from pipeline.data.manifest import Manifest
from pipeline.data.order import derive_seed
from pipeline.data.sharded_feed import ShardedFeed
from pipeline.data.shards import ShardSet
from pipeline.declare.recipe import Train
from pipeline.plan.expand import Run
from pipeline.track.run_folder import RunFolder
from pipeline.train.inputs import InMemoryData, ReadOptions, load_training_data
from pipeline.train.process import has_bf16, has_compiler

EVALUATIONS, REPORTS = 40, 200  # in a run, unless declared

LARGEST_BLOCK = 500  # patterns handed over at once where each makes an update of its own


class RunContext:
    """The parts of one run: its images, its network, and what is measured on them."""

    def __init__(
        self,
        run: Run,
        folder: RunFolder,
        images: ImageSet | ShardSet,
        manifest: Manifest,
        ways: ReadOptions | None = None,
    ) -> None:
        self.run, self.folder = run, folder
        self.recipe, self.seed = run.recipe.train, run.seed
        ways = ways or ReadOptions()
        self.group = ways.group
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        bf16, compiled = self.recipe.precision == "bf16", self.recipe.compile
        lacking = self.group.any_rank(
            bf16 and not has_bf16(self.device), compiled and not has_compiler()
        )  # some rank
        self.bf16, self.compiled = bf16 and not lacking[0], compiled and not lacking[1]
        self.log_every = self.recipe.log_every or max(1, self.recipe.steps // REPORTS)
        self.eval_every = self.recipe.eval_every or max(1, self.recipe.steps // EVALUATIONS)
        device = torch.device(self.device)
        self.training_data = load_training_data(images, run.recipe.data, device, sha256=manifest.sha256, ways=ways)
        self.module = build_module(run, manifest, compiled=self.compiled)
        self.module.parts = ways.accumulation_steps
        self.block = block_size(self.recipe, self.log_every, self.eval_every, self.training_data.count)

    def feed(self, start: int) -> InMemoryFeed | ShardedFeed:
        """The training batches from update `start` to the last."""
        return self.training_data.feed(self.recipe, self.seed, start, self.block)

    def held_out_errors(self) -> dict[str, float]:
        """Errors, of rank 0's network as it is now, on the test set and on the validation set if there is one."""
        self.group.broadcast_buffers(self.module.network)
        return self.training_data.held_out(self.module.network, self.module.loss, bf16=self.bf16)

    def final_metrics(self) -> dict[str, float]:
        """What is measured once, on the last model of rank 0."""
        self.module.to(self.device)  # a trainer leaves it on the CPU
        self.group.broadcast_buffers(self.module.network)
        newest = self.folder.checkpoint_files()[:1]
        kept = self.folder.evaluation_cache(newest[0].name if newest else "")
        return self.training_data.final(self.module.network, self.module.loss, bf16=self.bf16, kept=kept)

    def pass_patterns(self, number: int, count: int) -> tuple[Tensor, Tensor]:
        """`count` training images and labels drawn for pass `number`, for estimates made before it."""
        if not isinstance(self.training_data, InMemoryData):
            raise UserError("optimizer 'sdlm' learns from small images in memory, not from photographs in shards")
        return self.training_data.patterns(self.seed, number, count)

    def weights(self) -> dict[str, Tensor]:
        """The network's parameters and buffers, for safetensors."""
        return {
            name: value.detach().cpu().contiguous() for name, value in self.module.network.state_dict().items()
        }


def build_module(run: Run, manifest: Manifest, *, compiled: bool) -> Classifier:
    """The run's LightningModule, initialised from its seed."""
    recipe = run.recipe.train
    kind: type[Classifier] = Classifier
    if recipe.optimizer.name == "sdlm":
        from lightning_modules.sdlm import OnlineClassifier

        kind = OnlineClassifier
    torch.manual_seed(derive_seed(run.seed, "weights"))
    try:
        return kind(
            network=run.recipe.model.name,
            network_args=run.recipe.model.args,
            classes=len(manifest.classes),
            channels=manifest.image[0],
            loss=recipe.loss.model_dump(mode="json"),
            lr=recipe.lr,
            lr_drops=recipe.lr_drops.model_dump(mode="json") if recipe.lr_drops else None,
            warmup=recipe.warmup.model_dump(mode="json") if recipe.warmup else None,
            optimizer=recipe.optimizer.model_dump(mode="json"),
            channels_last=recipe.channels_last,
            compile=compiled,
            lr_end=None if recipe.lr_end is None else (recipe.lr_end, recipe.steps),
        )
    except ValueError as error:  # a network and a way to learn that do not fit
        raise UserError(str(error)) from error


def block_size(recipe: Train, log_every: int, eval_every: int, images: int) -> int:
    """How many updates one training step makes: 1, or for one-pattern-at-a-time learning as many as fit.

    A block ends wherever something is reported, evaluated or estimated, or the learning rate drops.
    """
    if recipe.optimizer.name != "sdlm":
        return 1
    drops = (recipe.lr_drops.at or ()) if recipe.lr_drops else ()
    common = math.gcd(recipe.steps, log_every, eval_every, images, *drops)
    return max(n for n in range(1, min(common, LARGEST_BLOCK) + 1) if common % n == 0)
