"""docker/compose.yaml as Compose reads it: merged, and with the variables of an .env file put in."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker" / "compose.yaml"
VARIABLE = re.compile(r"\$\{(\w+)(:\?([^}]*))?\}")


def interpolated(text: str, values: Mapping[str, str]) -> str:
    """`${NAME:?words}` replaced by NAME's value; ValueError with the words where it is unset or empty."""

    def value(found: re.Match[str]) -> str:
        name, _, words = found.groups()
        if not values.get(name):
            raise ValueError(f"{name}: {words or 'not set'}")
        return values[name]

    return VARIABLE.sub(value, text)


def services(values: Mapping[str, str], text: str | None = None) -> dict[str, Any]:
    """The services with their variables filled in."""
    text = COMPOSE.read_text(encoding="utf-8") if text is None else text
    return yaml.safe_load(interpolated(text, values))["services"]


def variables(text: str) -> dict[str, bool]:
    """The variables a compose file asks for, and whether it refuses to start without each."""
    found: dict[str, bool] = {}
    for name, refusal, words in VARIABLE.findall(text):
        found[name] = found.get(name, True) and bool(refusal and words)
    return found


def dotenv(text: str) -> dict[str, str]:
    """The variables of an .env file."""
    lines = (line.strip() for line in text.splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
