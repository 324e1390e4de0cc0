"""One experiment: its question, variants, seeds, scales, claims and departures, as a frozen type."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from lightning_modules.names import nearest
from pipeline.common.errors import UserError
from pipeline.declare.claims import Claim, Departure, Paper, Printed
from pipeline.declare.derived import (
    COMPRESSION_METRICS,
    ERROR_METRICS,
    TRANSFER_METRICS,
    CompressionSpec,
    DerivedSpec,
    TransferSpec,
)
from pipeline.declare.layers import describe_changes, merge_layers, set_dotted
from pipeline.declare.recipe import (
    PAPER_SCALE,
    REDUCED_PRECISION,
    REDUCED_PRECISION_SCALES,
    Data,
    FrozenModel,
    Model,
    Recipe,
    Seeds,
    Train,
    require_unique,
)
from pipeline.declare.validation import explain_validation_error, validation_message

TRAIN_METRICS = ("top1_error_pct", "top5_error_pct", "loss")


class DeclarationError(UserError):
    """An experiment file that does not say something possible: file, key, reason."""


class PublishedRecipe(FrozenModel):
    """A variant as published, before any scale."""

    model: Model
    data: Data
    train: Train | None


class Variant(FrozenModel):
    """One network and what is its own in the recipe; `data` and `train` override the experiment's."""

    model: Model
    data: dict[str, Any] = {}
    train: dict[str, Any] = {}
    seeds: Seeds | None = None  # None: the experiment's; more of them where steps need so many networks


class Scale(FrozenModel):
    """A size at which the experiment can run; `data` and `train` override the experiment's and the variant's."""

    why: str = ""  # what this scale is for
    data: dict[str, Any] = {}
    train: dict[str, Any] = {}
    derived: dict[str, dict[str, Any]] = {}  # by their names: what is otherwise in them
    variants: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(require_unique)] | None = (
        None  # None: all
    )
    seeds: Seeds | None = None  # None: the experiment's, or a variant's own


class Experiment(FrozenModel):
    """One question, its recipe, variants, scales and claims.

    Without scales nothing is trained: its claims are judged by arithmetic.
    """

    name: str  # from the file: "resnet/cifar10_depth"
    paper: Paper
    question: str
    data: Data
    train: Train | None = None  # only where nothing is trained
    variants: Annotated[dict[str, Variant], Field(min_length=1)]
    seeds: Seeds = (0, 1, 2, 3, 4)
    derived: dict[str, Annotated[DerivedSpec, Field(discriminator="kind")]] = {}  # named apart from the variants
    scales: dict[str, Scale]
    printed: dict[str, Printed] = {}
    claims: tuple[Annotated[Claim, Field(discriminator="kind")], ...] = ()
    departures: tuple[Departure, ...] = ()

    @property
    def file(self) -> str:
        """Where it is declared, for a message."""
        return f"{self.name}.yaml"

    @property
    def folder(self) -> str:
        """The paper's short name: the folder of the file."""
        return self.name.partition("/")[0]

    def seeds_at(self, scale: str) -> tuple[int, ...]:
        """The seeds fixed beforehand for `scale`."""
        declared = self.scales[scale].seeds
        return self.seeds if declared is None else declared

    def seeds_of(self, variant: str, scale: str) -> tuple[int, ...]:
        """The seeds fixed beforehand for a variant: the scale's, else its own, else the experiment's."""
        own = self.variants[variant].seeds
        return self.seeds_at(scale) if own is None or self.scales[scale].seeds else own

    def derived_at(self, scale: str, variants: Collection[str] = ()) -> list[str]:
        """The steps whose members are all among `variants`; of none, among those run at `scale`."""
        chosen = set(variants or self.variants_at(scale))
        return [name for name, step in self.derived.items() if chosen.issuperset(step.consumes)]

    def derived_spec(self, name: str, scale: str) -> DerivedSpec:
        """A step at a scale: as declared, with what the scale says is otherwise."""
        own, other = self.derived[name], self.scales[scale].derived.get(name, {})
        raw = merge_layers(own.model_dump(mode="json", exclude_unset=True), other)
        try:
            return type(own).model_validate(raw)
        except ValidationError as error:
            reason = validation_message(error, type(own), raw)
            raise DeclarationError(f"{self.file}: scales.{scale}.derived.{name}.{reason}") from None

    def protocols(self, name: str, scale: str, changes: Mapping[str, Any] | None = None) -> tuple[str, ...]:
        """The test protocols that a variant, or a step, is judged by at a scale; none: by whole images."""
        if name in self.variants:
            return self.recipe(name, scale, changes).data.test
        step = self.derived_spec(name, scale)
        if isinstance(step, TransferSpec):
            return (step.view,) if step.view else ()
        own = () if isinstance(step, CompressionSpec) else step.test
        return own or self.recipe(next(iter(step.consumes)), scale, changes).data.test

    def measured(self, name: str, *, named: bool) -> list[str]:
        """The metrics that a variant's runs, or a step, have at paper scale.

        Errors on photographs are there by each protocol and, unless `named`, by the first also without its name.
        """
        step = self.derived.get(name)
        data = self.recipe(name if step is None else next(iter(step.consumes)), PAPER_SCALE).data
        protocols = [f"/{protocol}" for protocol in self.protocols(name, PAPER_SCALE)] if data.crop else []
        protocols += [] if named and protocols else [""]
        more: tuple[str, ...] = ()
        if step is None:
            parts = ["test", "val"] if data.val else ["test"]
            more = tuple(f"train/{error}" for error in TRAIN_METRICS)
            if not data.crop:
                more += ("test/response_std", *(f"trainset/{error}" for error in ERROR_METRICS))
        elif isinstance(step, TransferSpec):
            parts, protocols, more = ["test"], [""], TRANSFER_METRICS
        elif isinstance(step, CompressionSpec):
            parts, more = ["test", "original", "pruned"], COMPRESSION_METRICS
        else:
            parts = ["test"]
        return [f"{part}{shown}/{error}" for part in parts for shown in protocols for error in ERROR_METRICS] + [
            *more
        ]

    def variants_at(self, scale: str) -> tuple[str, ...]:
        """The variants run at `scale` when none is asked for."""
        return self.scales[scale].variants or tuple(self.variants)

    def paper_data(self, variant: str) -> str:
        """The data set on which the paper judges a variant, or a step: what is declared before any scale."""
        if variant in self.derived:
            step = self.derived[variant]
            return step.data if isinstance(step, TransferSpec) else self.paper_data(next(iter(step.consumes)))
        return str(self.variants[variant].data.get("name", self.data.name))

    def published(self, variant: str) -> PublishedRecipe:
        """Network, data and recipe of a variant as published: the experiment's, then its own."""
        own = self.variants[variant]
        raw: dict[str, Any] = {
            "model": {"name": own.model.name, **own.model.args},
            "data": merge_layers(self.data.model_dump(mode="json", exclude_unset=True), own.data),
            "train": None,
        }
        if self.train:
            raw["train"] = merge_layers(self.train.model_dump(mode="json", exclude_unset=True), own.train)
        elif own.train:
            raw["train"] = dict(own.train)
        try:
            return PublishedRecipe.model_validate(raw)
        except ValidationError as error:
            key, reason = explain_validation_error(error, PublishedRecipe, raw)
            raise DeclarationError(f"{self.file}: variants.{variant}.{key}: {reason}") from None

    def recipe(self, variant: str, scale: str, changes: Mapping[str, Any] | None = None) -> Recipe:
        """The resolved recipe: experiment, then variant, then scale, then `changes` ({"train.lr": 0.05})."""
        if scale not in self.scales:
            raise UserError(f"{self.name}: unknown scale {scale!r}{nearest(scale, self.scales)}")
        if variant not in self.variants:
            raise UserError(f"{self.name}: unknown variant {variant!r}{nearest(variant, self.variants)}")
        own, size = self.variants[variant], self.scales[scale]
        assert self.train is not None  # `check` has seen to it
        raw = {
            "model": {"name": own.model.name, **own.model.args},
            "data": merge_layers(self.data.model_dump(mode="json", exclude_unset=True), own.data, size.data),
            "train": merge_layers(self.train.model_dump(mode="json", exclude_unset=True), own.train, size.train),
        }
        for key, value in (changes or {}).items():
            set_dotted(raw, key, value)
        if scale in REDUCED_PRECISION_SCALES and isinstance(raw["train"], dict):
            optimizer = raw["train"].get("optimizer")
            if not (isinstance(optimizer, dict) and optimizer.get("name") == "sdlm"):  # knows neither
                raw["train"] = REDUCED_PRECISION | raw["train"]
        try:
            return Recipe.model_validate(raw)
        except ValidationError as error:
            key, reason = explain_validation_error(error, Recipe, raw)
            if changes:
                self.recipe(variant, scale)  # what is wrong without them comes first
                raise DeclarationError(
                    f"{describe_changes(key, changes)} (for {variant} at {scale}): {reason}"
                ) from None
            raise DeclarationError(f"{self._origin(key, variant, scale)}: {reason}") from None

    def _origin(self, key: str, variant: str, scale: str) -> str:
        """Where the setting at `key` of a resolved recipe was made: by the scale or the variant."""
        layers: dict[str, Scale | Variant]
        layers = {f"scales.{scale}": self.scales[scale], f"variants.{variant}": self.variants[variant]}
        path = key.split(".")
        for end in range(len(path), 0, -1):
            for place, layer in layers.items():
                here: Any = {"data": layer.data, "train": layer.train}
                for part in path[:end]:
                    here = here.get(part) if isinstance(here, Mapping) else None
                if here not in (None, {}):
                    return f"{self.file}: {place}.{key}"
        return f"{self.file}: {variant} at {scale} scale: {key}"
