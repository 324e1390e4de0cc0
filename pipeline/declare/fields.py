"""Types of single values in declarations, and the base of the declared types."""

import math
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

StrictInt = Annotated[int, Field(strict=True)]

PositiveInt = Annotated[int, Field(strict=True, gt=0)]

StrictFloat = Annotated[float, Field(strict=True, allow_inf_nan=False)]

PositiveFloat = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]

NonNegativeFloat = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]

ErrorPct = Annotated[float, Field(strict=True, gt=0, lt=100)]

StrictBool = Annotated[bool, Field(strict=True)]

Strength = Annotated[float, Field(strict=True, ge=0, le=1)]  # 0.4: factors from 0.6 to 1.4

BitWidth = Annotated[int, Field(strict=True, ge=1, le=8)]


def require_finite(value: Any) -> Any:
    """Return `value`. Raises ValueError if it is NaN or infinite."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"should be a finite number, not {value}")
    return value


def require_unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return `values`. Raises ValueError if one of them occurs twice."""
    repeated = [value for value in dict.fromkeys(values) if values.count(value) > 1]
    if repeated:
        raise ValueError(f"{repeated[0]!r} is listed twice")
    return values


def check_statistic(text: str) -> str:
    """Return `text`. Raises ValueError if it is not the name of a statistic over seeds."""
    if not re.fullmatch(r"mean|(best|median) of [1-9]\d{0,2}", text):
        raise ValueError(f"unknown statistic {text!r}; use 'mean', 'median of N' or 'best of N'")
    return text


Value = Annotated[Any, AfterValidator(require_finite)]  # a number, a text, or a list of these

Statistic = Annotated[str, AfterValidator(check_statistic)]

Seeds = Annotated[
    tuple[Annotated[int, Field(strict=True, ge=0)], ...], Field(min_length=1), AfterValidator(require_unique)
]


class FrozenModel(BaseModel):
    """Base of the declared types: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
