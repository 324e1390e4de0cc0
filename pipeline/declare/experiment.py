"""The type of an experiment: question, variants, scales, derived runs, claims, choices, departures."""

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PrivateAttr, ValidationError

from lightning_modules.names import nearest
from pipeline.common.errors import UserError
from pipeline.declare.claims import Choice, Claim, Departure, Deviation, NotClaimed, Paper, Printed
from pipeline.declare.data_settings import Data
from pipeline.declare.derived import (
    BY_MEMBER,
    RANDOM_PIXELS,
    CompressionSpec,
    DerivedSpec,
    EnsembleSpec,
    TimingSpec,
)
from pipeline.declare.fields import FrozenModel, Seeds, require_unique
from pipeline.declare.localisation import LocalisationSpec
from pipeline.declare.overrides import describe_changes, merge_layers, set_dotted
from pipeline.declare.recipe import REDUCED_PRECISION, REDUCED_PRECISION_SCALE, Model, Recipe
from pipeline.declare.references import beside
from pipeline.declare.training import Train
from pipeline.declare.transfer import TransferSpec
from pipeline.declare.validation import explain_validation_error, validation_message


class DeclarationError(UserError):
    """An invalid experiment file. The message names the file, the key and the reason."""


class PublishedRecipe(FrozenModel):
    """A variant as published: the experiment's settings and its own, without those of a scale."""

    model: Model
    data: Data
    train: Train | None


class Variant(FrozenModel):
    """One network, with settings that override the experiment's `data` and `train`."""

    model: Model
    data: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    seeds: Seeds | None = None  # None: the experiment's. More seeds serve derived runs that need many networks.


class Scale(FrozenModel):
    """A size at which the experiment runs, with settings that override the experiment's and the variants'."""

    why: str = ""  # purpose of the scale
    data: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    derived: dict[str, dict[str, Any]] = Field(default_factory=dict)  # name of a derived run -> settings
    # None: all variants.
    variants: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(require_unique)] | None = None
    seeds: Seeds | None = None  # for all variants; None: the variant's own, or the experiment's


class Experiment(FrozenModel):
    """An experiment: one question with its recipe, variants, scales and claims.

    An experiment without scales has no runs: its claims are judged by arithmetic.
    """

    name: str  # from the file's path: "resnet/cifar10_depth"
    paper: Paper
    question: str
    data: Data
    train: Train | None = None  # None only without scales, or if all derived runs are timings
    variants: dict[str, Variant] = Field(default_factory=dict)  # none: all derived runs consume other experiments
    seeds: Seeds = (0, 1, 2, 3, 4)
    # Names differ from those of the variants.
    derived: dict[str, Annotated[DerivedSpec, Field(discriminator="kind")]] = Field(default_factory=dict)
    scales: dict[str, Scale]
    printed: dict[str, Printed] = Field(default_factory=dict)
    claims: tuple[Annotated[Claim, Field(discriminator="kind")], ...] = ()
    choices: tuple[Choice, ...] = ()
    departures: tuple[Departure, ...] = ()
    not_claimed: tuple[NotClaimed, ...] = ()
    # The other experiments whose runs those of this one need (`behind`), by name; set when the file is loaded.
    _others: dict[str, "Experiment"] = PrivateAttr(default_factory=dict)

    @property
    def others(self) -> Mapping[str, "Experiment"]:
        """The other experiments whose variants derived runs consume or runs start from, by name."""
        return self._others

    def with_others(self, others: Mapping[str, "Experiment"]) -> "Experiment":
        """Return the experiment with the other ones whose variants its own runs need."""
        _ = self._recipes  # the same ones for both
        changed = self.model_copy()
        changed._others = dict(others)
        changed.__dict__.pop("memo", None)
        return changed

    @cached_property
    def _recipes(self) -> dict[tuple[str, str], Recipe]:
        """Recipes resolved so far, by variant and scale."""
        return {}

    @cached_property
    def memo(self) -> dict[Hashable, Any]:
        """Results of functions of the variants, scales and derived runs, which these functions keep here."""
        return {}

    @cached_property
    def _own_settings(self) -> dict[str, Any]:
        """The settings of data and training that all variants share, as plain data."""
        parts = {"data": self.data, "train": self.train}
        return {name: part.model_dump(mode="json", exclude_unset=True) for name, part in parts.items() if part}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with other values, not checked. Recipes are resolved again if they may differ."""
        copied = super().model_copy(update=update, deep=deep)
        if not {*(update or {})} <= {"claims"}:
            copied.__dict__.pop("_recipes", None)
            copied.__dict__.pop("_own_settings", None)
            copied.__dict__.pop("memo", None)
        return copied

    def owner(self, variant: str) -> tuple["Experiment", str]:
        """Return the experiment that declares a variant, and its name there.

        PAPER/FILE/VARIANT is a variant of another experiment. An unknown name is returned with this experiment.
        """
        name, _, own = variant.rpartition("/")
        if variant not in self.variants and name in self.others:
            return self.others[name], own
        return self, variant

    @property
    def file(self) -> str:
        """Name of the experiment's file in messages."""
        return f"{self.name}.yaml"

    @property
    def trains(self) -> bool:
        """True if the experiment has runs: networks that are trained."""
        return self.train is not None and bool(self.scales)

    @property
    def measures(self) -> bool:
        """True if all derived runs are timings: nothing is trained, here or elsewhere."""
        return bool(self.derived) and all(isinstance(spec, TimingSpec) for spec in self.derived.values())

    @property
    def folder(self) -> str:
        """Short name of the paper: the folder of the file."""
        return self.name.partition("/")[0]

    def consumed(self, name: str) -> tuple[str, ...]:
        """Return the variants that a derived run consumes as published; of a variant, itself.

        Variants of another experiment are named PAPER/FILE/VARIANT, as seen from this one.
        """
        owner, own = self.owner(name)
        if own not in owner.derived:
            return (name,)
        return tuple(beside(name, variant) for variant in owner.derived[own].consumes)

    def started_from(self, variant: str) -> tuple[str, ...]:
        """Return the variants from whose runs those of a variant start as published, nearest first.

        Those from which these start follow. Variants of another experiment are named PAPER/FILE/VARIANT, as seen
        from this one. Raises DeclarationError for a variant that starts from itself, directly or not.
        """
        found: list[str] = []
        owner, own = self.owner(variant)
        while own in owner.variants and (train := owner.published(own).train) and (start := train.start):
            place = start.experiment or owner.name
            name = start.variant if place == self.name else f"{place}/{start.variant}"
            if name in (variant, *found):
                chain = " starts from ".join([variant, *found, name])
                raise DeclarationError(f"{self.file}: variants.{variant}.train.start.variant: {chain}")
            found.append(name)
            owner, own = self.owner(name)
        return tuple(found)

    def behind(self, names: Iterable[str]) -> set[str]:
        """Return all variants whose runs variants and derived runs rest on: themselves, consumed, started from."""
        trained = {variant for name in names for variant in self.consumed(name)}
        return trained.union(*map(self.started_from, trained))

    def material(self, key: Literal["choices", "departures"], names: Collection[str]) -> list[Deviation]:
        """Return the material choices or departures that concern variants or derived runs, or those `behind` them.

        Those of a variant or derived run of another experiment are declared there. One that names no variants
        concerns all of its experiment, derived runs included; one that names a derived run does not concern the
        variants from which that is made.
        """
        items: dict[str, set[str]] = {self.name: set()}
        for owner, name in map(self.owner, sorted({*names, *self.behind(names)})):
            items.setdefault(owner.name, set()).add(name)
        found: list[Deviation] = []
        for experiment, own in items.items():
            declared: Sequence[Deviation] = getattr(self.others.get(experiment, self), key)
            found += [item for item in declared if item.material and (not item.of or own & set(item.of))]
        return found

    def seeds_at(self, scale: str) -> tuple[int, ...]:
        """Return the declared seeds of a scale: its own, or the experiment's."""
        declared = self.scales[scale].seeds
        return self.seeds if declared is None else declared

    def seeds_of(self, variant: str, scale: str) -> tuple[int, ...]:
        """Return the declared seeds of a variant at a scale: those of the scale, the variant or the experiment."""
        owner, variant = self.owner(variant)
        own = owner.variants[variant].seeds
        return owner.seeds_at(scale) if own is None or owner.scales[scale].seeds else own

    def derived_at(self, scale: str, variants: Collection[str] = ()) -> list[str]:
        """Return the derived runs that consume only `variants`.

        `variants` defaults to those that run at the scale, here or in the experiments that declare them.
        """
        chosen = set(variants)
        return [
            name
            for name in self.derived
            if all(
                variant in chosen if chosen else self.runs_at(variant, scale)
                for variant in self.derived_spec(name, scale).consumes
            )
        ]

    def runs_at(self, variant: str, scale: str) -> bool:
        """Return True if a variant runs at a scale of its experiment by default."""
        owner, own = self.owner(variant)
        return scale in owner.scales and own in owner.variants_at(scale)

    def consumed_elsewhere(self, scale: str) -> tuple[str, ...]:
        """Return the variants of other experiments, PAPER/FILE/VARIANT, that derived runs consume at a scale."""
        found = {
            variant: None
            for name in self.derived
            for variant in self.derived_spec(name, scale).consumes
            if self.owner(variant)[0] is not self and self.runs_at(variant, scale)
        }
        return tuple(found)

    def derived_spec(self, name: str, scale: str) -> DerivedSpec:
        """Return a derived run's settings at a scale: the declared ones, overridden by the scale's."""
        own, overrides = self.derived[name], self.scales[scale].derived.get(name, {})
        raw = merge_layers(own.model_dump(mode="json", exclude_unset=True), overrides)
        try:
            return type(own).model_validate(raw)
        except ValidationError as error:
            reason = validation_message(error, type(own), raw)
            raise DeclarationError(f"{self.file}: scales.{scale}.derived.{name}.{reason}") from None

    def protocols(self, name: str, scale: str, changes: Mapping[str, Any] | None = None) -> tuple[str, ...]:
        """Return the test protocols of a variant or derived run at a scale; empty: whole images, without crops."""
        if name in self.variants:
            return self.recipe(name, scale, changes).data.test
        spec = self.derived_spec(name, scale)
        if isinstance(spec, TimingSpec):
            return ()
        if isinstance(spec, TransferSpec):
            return (spec.view,) if spec.view else ()
        if isinstance(spec, EnsembleSpec) and spec.member_test:
            return (BY_MEMBER,)
        if isinstance(spec, LocalisationSpec):
            return ()
        own = () if isinstance(spec, CompressionSpec) else spec.test
        return own or self.recipe(next(iter(spec.consumes)), scale, changes).data.test

    def predicts_boxes(self, name: str) -> bool:
        """Return True for a variant or derived run with localisation errors in place of class errors."""
        if name in self.derived:
            return isinstance(self.derived[name], LocalisationSpec)
        return bool(self.variants[name].data.get("boxes", self.data.boxes))

    def classifies(self, name: str) -> bool:
        """Return True for a variant or derived run that has class errors, and so a row in the leaderboard."""
        return not self.predicts_boxes(name) and not isinstance(self.derived.get(name), TimingSpec)

    def variants_at(self, scale: str) -> tuple[str, ...]:
        """Return the variants that run at a scale by default."""
        if not self.trains:
            return ()
        return self.scales[scale].variants or tuple(self.variants)

    def data_at(self, scale: str) -> list[str]:
        """Return the names of the data sets on which the runs of a scale are trained."""
        names = [*self.variants_at(scale), *self.consumed_elsewhere(scale)]
        return list(dict.fromkeys(self.recipe(name, scale).data.name for name in names))

    def paper_data(self, variant: str) -> str:
        """Return the name of the data set on which the paper evaluates a variant or derived run."""
        if variant in self.derived:
            spec = self.derived[variant]
            if isinstance(spec, TimingSpec):
                return RANDOM_PIXELS
            return spec.data if isinstance(spec, TransferSpec) else self.paper_data(next(iter(spec.consumes)))
        owner, own = self.owner(variant)
        return str(owner.variants[own].data.get("name", owner.data.name))

    def published(self, variant: str) -> PublishedRecipe:
        """Return a variant as published. Raises DeclarationError if its settings are invalid."""
        owner, variant = self.owner(variant)
        if owner is not self:
            return owner.published(variant)
        key = "published", variant
        if key not in self.memo:
            self.memo[key] = self._published(variant)
        found: PublishedRecipe = self.memo[key]
        return found

    def _published(self, variant: str) -> PublishedRecipe:
        own = self.variants[variant]
        raw: dict[str, Any] = {
            "model": {"name": own.model.name, **own.model.args},
            "data": merge_layers(self._own_settings["data"], own.data),
            "train": None,
        }
        if self.train:
            raw["train"] = merge_layers(self._own_settings["train"], own.train)
        elif own.train:
            raw["train"] = dict(own.train)
        try:
            return PublishedRecipe.model_validate(raw)
        except ValidationError as error:
            key, reason = explain_validation_error(error, PublishedRecipe, raw)
            raise DeclarationError(f"{self.file}: variants.{variant}.{key}: {reason}") from None

    def recipe(self, variant: str, scale: str, changes: Mapping[str, Any] | None = None) -> Recipe:
        """Return the resolved recipe of a variant at a scale.

        Later settings override earlier ones: experiment, variant, scale, `changes` of --set ({"train.lr": 0.05}).
        Raises UserError for an unknown name, and DeclarationError for invalid settings.
        """
        owner, variant = self.owner(variant)
        if owner is not self:
            return owner.recipe(variant, scale, changes)
        if not changes and (variant, scale) in self._recipes:
            return self._recipes[variant, scale]
        if scale not in self.scales:
            raise UserError(f"{self.name}: unknown scale {scale!r}{nearest(scale, self.scales)}")
        if variant not in self.variants:
            raise UserError(f"{self.name}: unknown variant {variant!r}{nearest(variant, self.variants)}")
        own, size = self.variants[variant], self.scales[scale]
        assert self.train is not None  # `check_experiment` requires it
        raw = {
            "model": {"name": own.model.name, **own.model.args},
            "data": merge_layers(self._own_settings["data"], own.data, size.data),
            "train": merge_layers(self._own_settings["train"], own.train, size.train),
        }
        for key, value in (changes or {}).items():
            set_dotted(raw, key, value)
        if scale == REDUCED_PRECISION_SCALE and isinstance(raw["train"], dict):
            optimizer = raw["train"].get("optimizer")
            if not (isinstance(optimizer, dict) and optimizer.get("name") == "sdlm"):  # supports neither
                raw["train"] = REDUCED_PRECISION | raw["train"]
        try:
            recipe = Recipe.model_validate(raw)
        except ValidationError as error:
            key, reason = explain_validation_error(error, Recipe, raw)
            if changes:
                self.recipe(variant, scale)  # raises if the declaration itself is invalid
                raise DeclarationError(
                    f"{describe_changes(key, changes)} (for {variant} at {scale}): {reason}"
                ) from None
            raise DeclarationError(f"{self._origin(key, variant, scale)}: {reason}") from None
        if not changes:
            self._recipes[variant, scale] = recipe
        return recipe

    def _origin(self, key: str, variant: str, scale: str) -> str:
        """Return file and dotted key of the declaration that sets `key` of a resolved recipe, for messages."""
        layers: dict[str, Scale | Variant]
        layers = {f"scales.{scale}": self.scales[scale], f"variants.{variant}": self.variants[variant]}
        path = key.split(".")
        for end in range(len(path), 0, -1):
            for place, layer in layers.items():
                setting: Any = {"data": layer.data, "train": layer.train}
                for part in path[:end]:
                    setting = setting.get(part) if isinstance(setting, Mapping) else None
                if setting not in (None, {}):
                    return f"{self.file}: {place}.{key}"
        return f"{self.file}: {variant} at {scale} scale{f': {key}' if key else ''}"
