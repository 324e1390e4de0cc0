"""Read docker/compose.yaml as Compose does: YAML merged, variables of an .env file inserted."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker" / "compose.yaml"
VARIABLE = re.compile(r"\$\{(\w+)(:\?([^}]*))?\}")


def interpolate(text: str, values: Mapping[str, str]) -> str:
    """Replace `${NAME:?message}` by NAME's value; ValueError with the message where it is unset or empty."""

    def value(match: re.Match[str]) -> str:
        name, _, message = match.groups()
        if not values.get(name):
            raise ValueError(f"{name}: {message or 'not set'}")
        return values[name]

    return VARIABLE.sub(value, text)


def services(values: Mapping[str, str], text: str | None = None) -> dict[str, Any]:
    """Return the services, with variables inserted."""
    text = COMPOSE.read_text(encoding="utf-8") if text is None else text
    loaded: dict[str, Any] = yaml.safe_load(interpolate(text, values))
    return dict(loaded["services"])


def variables(text: str) -> dict[str, bool]:
    """Return the variables of a compose file, and whether each is required."""
    found: dict[str, bool] = {}
    for name, check, message in VARIABLE.findall(text):
        found[name] = found.get(name, True) and bool(check and message)
    return found


def dotenv(text: str) -> dict[str, str]:
    """Return the variables of an .env file."""
    lines = (line.strip() for line in text.splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
