"""Context of one run: its data, network, precision and intervals."""

import math
from collections.abc import Iterable
from dataclasses import replace

import safetensors.torch
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_modules.classifier import Classifier
from lightning_modules.recipe import Batch
from lightning_modules.weights import start_from, train_only
from pipeline.common.errors import UserError
from pipeline.common.provenance import hardware_name
from pipeline.data.manifest import Manifest
from pipeline.data.order import derive_seed
from pipeline.declare.training import Train
from pipeline.plan.expand import Run
from pipeline.track.run_folder import RunFolder
from pipeline.train.execution import Execution, ExecutionChoice, StepTimer, declared_execution, fastest, usable
from pipeline.train.inputs import AnyImageSet, ReadOptions, input_shape
from pipeline.train.load import load_training_data
from pipeline.train.process import allow_tf32, has_bf16, has_compiler

EVALUATIONS, REPORTS = 40, 200  # per run, unless the recipe declares an interval

LARGEST_BLOCK = 500  # optimizer steps in one batch of the feed, for learning from one pattern at a time


class RunContext:
    """Data, network, precision and intervals of one run."""

    def __init__(
        self,
        run: Run,
        folder: RunFolder,
        images: AnyImageSet,
        manifest: Manifest,
        options: ReadOptions | None = None,
        *,
        threads: int = 1,
    ) -> None:
        self.run, self.folder, self.manifest = run, folder, manifest
        self.recipe, self.seed = run.recipe.train, run.seed
        options = options or ReadOptions()
        self.group = options.group
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        allow_tf32(self.recipe.precision == "tf32", self.group)
        self.log_every = self.recipe.log_every or max(1, self.recipe.steps // REPORTS)
        self.eval_every = self.recipe.eval_every or max(1, self.recipe.steps // EVALUATIONS)
        device = torch.device(self.device)
        self.training_data = load_training_data(
            images, run.recipe.data, device, sha256=manifest.sha256, options=options
        )
        micro_batch = self.recipe.batch_size // (self.group.world * options.accumulation_steps)
        shape = (micro_batch, *input_shape(images, run.recipe.data))
        self.choice = self.choose_execution(shape, threads, options)
        self.execution = self.choice.execution
        self.bf16 = self.execution.precision == "bf16"
        self.module = build_module(run, manifest, self.execution)
        self.module.accumulation_steps = options.accumulation_steps
        self.block = block_size(self.recipe, self.log_every, self.eval_every, self.training_data.train_count)

    def choose_execution(self, shape: tuple[int, ...], threads: int, options: ReadOptions) -> ExecutionChoice:
        """Return how optimizer steps are computed: as declared or, where the run allows it, the fastest way.

        `shape` is that of a micro-batch. A resumed run computes as it began. All ranks compute alike.
        """
        no_bf16, no_compiler = self.group.any_rank(not has_bf16(self.device), not has_compiler())
        has = {"bf16": not no_bf16, "compiler": not no_compiler}
        declared = declared_execution(self.recipe, threads, **has)
        if not self.run.tunable:
            return ExecutionChoice(declared, {})

        def choose(_: object) -> ExecutionChoice:
            if begun := ExecutionChoice.read(self.folder.execution_file):
                return replace(begun, execution=usable(begun.execution, threads, **has))
            module = build_module(self.run, self.manifest, replace(declared, compiled=False))
            device = torch.device(self.device)
            model = self.run.recipe.model.model_dump(mode="json") | {"classes": len(self.manifest.classes)}
            timer = StepTimer(
                module.network.to(device), shape, device, key=model, cache=options.cache, report=options.report
            )
            with timer.alone():
                choice = fastest(declared, self.recipe.steps, timer, **has)
            choice.write(self.folder.execution_file)
            return choice

        choice = self.group.on_rank_zero(choose)
        torch.set_num_threads(choice.execution.threads)
        return choice

    def start_from(self, folder: RunFolder) -> None:
        """Replace initial weights by those of the finished run in `folder`. Raises UserError if it has none."""
        origin, start = self.run.start, self.recipe.start
        assert origin
        assert start
        if not folder.network_file.is_file():
            raise UserError(
                f"starts from {origin.title}, whose weights are not at {folder.network_file}: it was trained on"
                " another machine; copy its folder here and run the same command again"
            )
        try:
            start_from(self.module.network, load_file(folder.network_file), start.layers)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"cannot start from {origin.title} in {folder.path}: {error}") from None

    @property
    def error_name(self) -> str:
        """Name of the error that a plateau and a selection watch."""
        return "localisation_error_pct" if self.run.recipe.data.boxes else "top1_error_pct"

    def feed(self, start: int) -> Iterable[Batch]:
        """Return the training batches from step `start` to the last."""
        return self.training_data.feed(self.recipe, self.seed, start, self.block)

    def held_out_errors(self) -> dict[str, float]:
        """Return the errors of rank 0's network on the test set and, if the recipe has one, the validation set."""
        self.group.broadcast_buffers(self.module.network)
        return self.training_data.held_out_errors(self.module.network, self.module.loss, bf16=self.bf16)

    @property
    def setup(self) -> str:
        """Hardware and execution settings, which the time of training depends on."""
        return f"{self.group.world} x {hardware_name()}, {self.execution.text}"

    @property
    def judged(self) -> nn.Module:
        """The network that is judged: the last, or that of the lowest validation error."""
        return self.module.network if self.module.best is None else self.module.best

    def final_metrics(self) -> dict[str, float]:
        """Return the metrics of rank 0's judged network, and as average/... those of the averaged weights."""
        self.module.to(self.device)  # the trainer leaves it on the CPU
        metrics = self.errors_of(self.judged)
        if self.module.average is not None:
            averaged = self.errors_of(self.module.average.module, "average-")
            metrics |= {f"average/{name}": value for name, value in averaged.items()}
        return metrics

    def errors_of(self, network: nn.Module, prefix: str = "") -> dict[str, float]:
        """Return the final metrics of a network; `prefix` distinguishes its errors in the folder's cache."""
        self.group.broadcast_buffers(network)
        newest = self.folder.checkpoint_files()[:1]
        cache = self.folder.evaluation_cache(newest[0].name if newest else "", prefix)
        return self.training_data.final_metrics(network, self.module.loss, bf16=self.bf16, cache=cache)

    def weights(self) -> dict[str, bytes]:
        """Return file name -> content of the judged network and, where there are averaged weights, of these."""
        networks = {self.folder.network_file.name: self.judged}
        if self.module.average is not None:
            networks[self.folder.average_file.name] = self.module.average.module
        return {name: safetensors.torch.save(plain_state(network)) for name, network in networks.items()}


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's parameters and buffers, for safetensors."""
    return {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}


def build_module(run: Run, manifest: Manifest, execution: Execution) -> Classifier:
    """Return the run's LightningModule, initialised from its seed.

    Raises UserError if network and optimizer do not fit.
    """
    recipe = run.recipe.train
    module_class: type[Classifier] = Classifier
    if recipe.optimizer.name == "sdlm":
        from lightning_modules.sdlm import OnlineClassifier

        module_class = OnlineClassifier
    if recipe.loss.name == "euclidean":
        from lightning_modules.box_regression import BoxRegressor

        module_class = BoxRegressor
    if recipe.column_losses:
        from lightning_modules.fractal_columns import ColumnClassifier

        module_class = ColumnClassifier
    torch.manual_seed(derive_seed(run.seed, "weights"))
    try:
        module = module_class(
            network=run.recipe.model.name,
            network_args=run.recipe.model.args,
            classes=len(manifest.classes),
            channels=manifest.image[0],
            loss=recipe.loss.model_dump(mode="json"),
            lr=recipe.lr,
            lr_drops=recipe.lr_drops.model_dump(mode="json") if recipe.lr_drops else None,
            warmup=recipe.warmup.model_dump(mode="json") if recipe.warmup else None,
            optimizer=recipe.optimizer.model_dump(mode="json"),
            channels_last=execution.channels_last,
            compile=execution.compiled,
            lr_end=None if recipe.lr_end is None else (recipe.lr_end, recipe.steps),
            lr_power=recipe.lr_power,
            plateau_factor=recipe.plateau.factor if recipe.plateau else 1.0,
            average=recipe.average.model_dump(mode="json") if recipe.average else None,
            filter_rms_limit=recipe.filter_rms_limit,
            keep_best=recipe.select == "val",
            gradient_norms=list(recipe.gradient_norms),
        )
        if recipe.trainable:
            train_only(module.network, recipe.trainable)
        if recipe.column_losses:
            module.measure_columns(recipe.column_losses)
        return module
    except ValueError as error:  # network and optimizer do not fit
        raise UserError(str(error)) from error


def block_size(recipe: Train, log_every: int, eval_every: int, images: int) -> int:
    """Return the number of optimizer steps in one batch of the feed: 1, or up to LARGEST_BLOCK with "sdlm".

    A block ends at each report, evaluation, curvature estimate and learning-rate drop.
    """
    if recipe.optimizer.name != "sdlm":
        return 1
    drops = (recipe.lr_drops.at or ()) if recipe.lr_drops else ()
    common = math.gcd(recipe.steps, log_every, eval_every, images, *drops)
    return max(n for n in range(1, min(common, LARGEST_BLOCK) + 1) if common % n == 0)
