"""A JSON schema of the fields of KubeRay's API ray.io/v1 (1.6) that our manifests use, from its documentation.

Not the schema of the custom resource definitions themselves, which no Python package contains. Unknown fields are
errors: the API server drops or refuses them. Pods are validated by Kubernetes' own schemas.
"""

from typing import Any

COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
POD_TEMPLATE: dict[str, Any] = {"type": "object", "required": ["spec"]}
START_PARAMS: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "string"}}


def record(required: list[str], **fields: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object with these fields and no others."""
    return {"type": "object", "properties": fields, "required": required, "additionalProperties": False}


RAY_CLUSTER_SPEC = record(
    ["headGroupSpec"],
    rayVersion=TEXT,
    authOptions=record(["mode"], mode={"enum": ["disabled", "token"]}, secretName=TEXT),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=record(
        [],
        version={"enum": ["v1", "v2"]},
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        idleTimeoutSeconds=COUNT,
        resources={"type": "object"},
        securityContext={"type": "object"},
    ),
    headGroupSpec=record(["template"], rayStartParams=START_PARAMS, template=POD_TEMPLATE),
    workerGroupSpecs={
        "type": "array",
        "items": record(
            ["groupName", "minReplicas", "maxReplicas", "template"],
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=START_PARAMS,
            template=POD_TEMPLATE,
        ),
    },
)

RAY_JOB_SPEC = record(
    ["entrypoint", "rayClusterSpec"],
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    backoffLimit=COUNT,
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    shutdownAfterJobFinishes={"type": "boolean"},
    ttlSecondsAfterFinished=COUNT,
    submitterConfig=record([], backoffLimit=COUNT),
    rayClusterSpec=RAY_CLUSTER_SPEC,
)


def resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a resource of this kind."""
    return record(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata={"type": "object", "anyOf": [{"required": ["name"]}, {"required": ["generateName"]}]},
        spec=spec,
    )


SCHEMAS = {"RayCluster": resource("RayCluster", RAY_CLUSTER_SPEC), "RayJob": resource("RayJob", RAY_JOB_SPEC)}
