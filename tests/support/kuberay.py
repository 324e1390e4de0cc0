"""The schemas of KubeRay's custom resources RayCluster and RayJob, from its own repository.

tests/docker/kuberay_crds/ holds them for the oldest and the newest version that the manifests are made for, one
file for each. Source: ray-project/kuberay (Apache-2.0), helm-chart/kuberay-operator/crds/ at the version's tag.
To make the files again: `python -m tests.support.kuberay CHECKOUT`, with the path of a clone of that repository.
"""

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[1] / "docker" / "kuberay_crds"
VERSIONS = ("v1.6.2", "v1.7.0")
FILES = {"RayCluster": "ray.io_rayclusters.yaml", "RayJob": "ray.io_rayjobs.yaml"}
API_VERSION = "v1"
RULES = "x-kubernetes-validations"  # rules in Google's CEL, which JSON schemas do not have


def open_api_schema(definition: str) -> dict[str, Any]:
    """Return the schema of `API_VERSION` in a custom resource definition (YAML)."""
    spec = yaml.load(definition, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]
    (schema,) = [one["schema"]["openAPIV3Schema"] for one in spec["versions"] if one["name"] == API_VERSION]
    return dict(schema)


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a structural schema of Kubernetes as a JSON schema in which unknown fields are errors.

    So does `kubectl apply` (its option --validate is strict). Whole numbers and texts with `int-or-string` are
    already an `anyOf`.
    """
    changed = {key: value for key, value in schema.items() if key not in ("properties", "items")}
    if "properties" in schema:
        changed["properties"] = {name: strict(field) for name, field in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            changed.setdefault("additionalProperties", False)
    if isinstance(schema.get("additionalProperties"), dict):
        changed["additionalProperties"] = strict(schema["additionalProperties"])
    if "items" in schema:
        changed["items"] = strict(schema["items"])
    return changed


@cache
def schema(version: str, kind: str) -> dict[str, Any]:
    """Return the JSON schema of a kind of resource in a version of KubeRay."""
    with gzip.open(FOLDER / f"{version}.json.gz", "rt", encoding="utf-8") as file:
        found = strict(json.load(file)[kind])
    names = {"anyOf": [{"required": ["name"]}, {"required": ["generateName"]}]}  # the API server's own rule
    fields = {"apiVersion": {"const": f"ray.io/{API_VERSION}"}, "kind": {"const": kind}}
    return {
        **found,
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": found["properties"] | fields | {"metadata": {"type": "object", **names}},
    }


def fields_with_rules(resource: Any, schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Yield the paths of a resource's fields that have rules beyond the schema, which are not checked here."""
    if RULES in schema:
        yield path
    for name, value in resource.items() if isinstance(resource, dict) else ():
        if name in schema.get("properties", {}):
            yield from fields_with_rules(value, schema["properties"][name], f"{path}.{name}")
    for value in resource if isinstance(resource, list) else ():
        yield from fields_with_rules(value, schema.get("items", {}), f"{path}[]")


def main(argv: Sequence[str]) -> None:
    """Write the files of all versions from a clone of KubeRay's repository."""
    (checkout,) = argv
    FOLDER.mkdir(exist_ok=True)
    for version in VERSIONS:
        schemas = {}
        for kind, name in FILES.items():
            show = ["git", "-C", checkout, "show", f"{version}:helm-chart/kuberay-operator/crds/{name}"]
            definition = subprocess.run(show, capture_output=True, text=True, check=True).stdout
            schemas[kind] = open_api_schema(definition)
        text = json.dumps(schemas, sort_keys=True, separators=(",", ":"))
        (FOLDER / f"{version}.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main(sys.argv[1:])
