"""Recipes: model, data and training settings of one run, as frozen, validated types."""

import math
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from pipeline.declare.data_settings import Data
from pipeline.declare.fields import FrozenModel
from pipeline.declare.training import Train

PAPER_SCALE = "paper"

TRIAL_SCALES = ("smoke", "stand-in")  # scales that only show that everything runs

REDUCED_PRECISION_SCALE = "laptop"  # where REDUCED_PRECISION is the default

REDUCED_PRECISION = {"precision": "bf16", "channels_last": True}


class Model(BaseModel):
    """A network: the name of its builder, and the builder's arguments as further keys."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @property
    def args(self) -> dict[str, Any]:
        """Return the builder's arguments, such as depth."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _fits(self) -> "Model":
        for key, value in self.args.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{key!r} should be a finite number, not {value}")
        return self


class Recipe(FrozenModel):
    """Resolved settings of a run: everything that determines its numbers, except the seed and the code."""

    model: Model
    data: Data
    train: Train

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        if self.data.boxes != (self.train.loss.name == "euclidean"):
            raise ValueError("data.boxes: true and train.loss 'euclidean' must be used together (VGG, appendix A)")
        if self.data.boxes and self.train.warmup:
            raise ValueError("train.warmup waits for a class error, which data.boxes: true does not have")
        watches = self.train.plateau is not None and self.train.plateau.watch == "val"
        if (watches or self.train.select == "val") and not self.data.holds_out:
            key = "train.plateau.watch" if watches else "train.select"
            raise ValueError(f"{key} 'val' needs held-out training images; declare their number as data.val")
        return self
