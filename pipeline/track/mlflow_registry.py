"""MLflow's model registry: one registered model for each variant, with an alias for what the ledger judges.

A variant at a scale has one version: the model of its first seed. The alias `judged` is on the version of paper
scale, or else of the first other scale that has one; each scale has an alias of its name. Models of others are
never changed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.track.mlflow_errors import error_summary
from pipeline.track.mlflow_models import MODEL_FOLDER, MODEL_TAG, has_no_logged_models, output_models
from pipeline.track.mlflow_reader import redact, server_key
from pipeline.track.mlflow_writer import Tracker
from pipeline.track.record import Record

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

JUDGED_ALIAS = "judged"  # alias

OWN_TAGS = ("repro.experiment", "repro.variant")  # of a registered model


@dataclass(frozen=True)
class JudgedModel:
    """The model of one run, for the registry."""

    experiment: str
    variant: str
    scale: str
    record: Record  # of the run, with its MLflow id
    description: str  # of the version
    verdict: str = ""

    @property
    def name(self) -> str:
        """Name of the registered model."""
        return registered_name(self.experiment, self.variant)

    @property
    def tags(self) -> dict[str, str]:
        """Tags of the version."""
        record = self.record
        tags = {"scale": self.scale, "seed": str(record.seed), "commit": record.commit, "data": record.data}
        tags |= {"identity": record.identity, "verdict": self.verdict}
        return {f"repro.{key}": value for key, value in tags.items() if value}


def registered_name(experiment: str, variant: str) -> str:
    """Return the name of a variant's registered model: "resnet-cifar10_depth-resnet-56"."""
    return re.sub(r"[^\w.+-]+", "-", f"{experiment}-{variant}")


def scale_alias(scale: str) -> str:
    """Return the alias of a scale. MLflow reserves `latest` and `v1`, and allows letters, digits, - and _."""
    alias = re.sub(r"[^\w-]+", "-", scale)
    return f"scale-{alias}" if re.fullmatch(rf"latest|v\d+|{JUDGED_ALIAS}", alias, re.IGNORECASE) else alias


def register_models(tracker: Tracker, models: Sequence[JudgedModel], scales: Sequence[str]) -> str:
    """Register the models of an experiment at a scale; return in one sentence what could not be done, or "".

    `scales` are those of the experiment, paper scale first. Runs without a logged model are left out.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        foreign = [model.name for model in models if not register(tracker, model, scales)]
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = (
            "it has no model registry"
            if has_no_logged_models(error)
            else redact(error_summary(error, tracker.uri))
        )
        return f"no models are registered at {server_key(tracker.uri)}: {reason}; the runs have them"
    if foreign:
        return (
            f"the registered model {foreign[0]} belongs to someone else and is left as it is; rename it to have"
            " ours registered"
        )
    return ""


def register(tracker: Tracker, model: JudgedModel, scales: Sequence[str]) -> bool:
    """Register one model and set its aliases. Returns False if a model of its name is not ours."""
    source, model_id = model_source(tracker, model.record.run_id)
    if not source:
        return True
    registered = find_registered(tracker, model)
    if any(registered.tags.get(key) != own_tags(model)[key] for key in OWN_TAGS):
        return False
    version = find_version(tracker, model, source, model_id)
    aliases = {**registered.aliases, scale_alias(model.scale): version.version}
    aliased = [scale_alias(scale) for scale in scales if scale_alias(scale) in aliases]
    if aliased:
        aliases[JUDGED_ALIAS] = aliases[aliased[0]]
    for alias, number in aliases.items():
        if str(registered.aliases.get(alias, "")) != str(number):
            tracker.client.set_registered_model_alias(model.name, alias, str(number))
    return True


def own_tags(model: JudgedModel) -> Mapping[str, str]:
    """Return the tags by which we recognise a registered model of ours."""
    return dict(zip(OWN_TAGS, (model.experiment, model.variant), strict=True))


def model_source(tracker: Tracker, run_id: str) -> tuple[str, str]:
    """Return the address of a run's model, and the id of the logged model; "" for what it lacks."""
    run = tracker.client.get_run(run_id)
    if not (models := output_models(run)):
        return (f"{run.info.artifact_uri}/{MODEL_FOLDER}" if MODEL_TAG in run.data.tags else ""), ""
    if tracker.uri.startswith(("http://", "https://")):
        return f"models:/{models[-1]}", models[-1]
    # A database's store would resolve models:/ at the address that is set for the whole process.
    return tracker.client.get_logged_model(models[-1]).artifact_location, models[-1]


def find_registered(tracker: Tracker, model: JudgedModel) -> "RegisteredModel":
    """Return the registered model of a variant; create it if it does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        return tracker.client.get_registered_model(model.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    about = (
        f"{model.variant} of {model.experiment}. A version is the network of one run with the normalisation of its"
        f' input. mlflow.pytorch.load_model("models:/{model.name}@{JUDGED_ALIAS}") loads the one at paper scale,'
        " or at the first other scale that was run. Other aliases are names of scales."
    )
    try:
        return tracker.client.create_registered_model(model.name, dict(own_tags(model)), about)
    except MlflowException as error:  # another process has just created it
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return tracker.client.get_registered_model(model.name)


def find_version(tracker: Tracker, model: JudgedModel, source: str, model_id: str) -> "ModelVersion":
    """Return the version of a run's model, with its current description; create it if it does not exist."""
    client, run_id = tracker.client, model.record.run_id
    found = [
        version
        for version in client.search_model_versions(f"name = '{model.name}' AND run_id = '{run_id}'")
        if version.tags.get("repro.scale") == model.scale and version.source == source
    ]
    if not found:
        created: ModelVersion = client.create_model_version(
            model.name, source, run_id, model.tags, description=model.description, model_id=model_id or None
        )
        return created
    version: ModelVersion = max(found, key=lambda one: int(one.version))
    if version.description != model.description:
        client.update_model_version(model.name, version.version, model.description)
    for key, value in model.tags.items():
        if version.tags.get(key) != value:
            client.set_model_version_tag(model.name, version.version, key, value)
    if "repro.verdict" in version.tags and not model.verdict:
        client.delete_model_version_tag(model.name, version.version, "repro.verdict")
    return version
