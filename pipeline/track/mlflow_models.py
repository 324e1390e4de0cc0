"""Networks of runs as MLflow models: saved in the run's folder, sent as logged models of the run.

`save_model` needs torch and MLflow and no server; it is called where a run has just finished. `log_model` sends
the folder.
"""

import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run
    from mlflow.tracking import MlflowClient
    from torch import Tensor, nn

MODEL_FOLDER = "model"  # folder of the model among a run's artifacts, where the server has no logged models

MODEL_TAG = (
    "repro.model"  # tag of such a run; its artifacts cannot be listed by a client that expects logged models
)

NO_LOGGED_MODELS = ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED", "FEATURE_DISABLED")  # answers of older servers


def save_model(
    path: Path, model: "nn.Module", example: "Tensor", scores: "Tensor", metadata: Mapping[str, Any]
) -> None:
    """Write a model to the folder `path` in MLflow's format, with signature and input example.

    `example` is uint8 (N, C, H, W) with N > 1, and `scores` the model's output for it, float32 (N, classes); any
    number of images is accepted later. The format is that of torch.export, which needs no class of ours and no
    pickle. Raises what torch.export raises for a network that it cannot trace.
    """
    import mlflow.pytorch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    pixels = example.numpy()
    inputs = Schema([TensorSpec(pixels.dtype, (-1, *pixels.shape[1:]), "pixels")])
    outputs = Schema([TensorSpec(scores.numpy().dtype, (-1, *scores.shape[1:]), "scores")])
    torch_version = version("torch").partition("+")[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".model-") as folder, quietly():
        partial = Path(folder) / MODEL_FOLDER
        mlflow.pytorch.save_model(
            model,
            partial,
            signature=ModelSignature(inputs, outputs),
            input_example=pixels,
            serialization_format="pt2",
            metadata=dict(metadata),
            pip_requirements=[f"torch=={torch_version}"],  # given, or MLflow starts a process to find them
        )
        partial.rename(path)


@contextmanager
def quietly() -> Iterator[None]:
    """Ignore warnings within the block, and messages of MLflow and torch that are no errors."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("mlflow", "torch"))}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def log_model(client: "MlflowClient", run: "Run", path: Path, step: int, tags: Mapping[str, str]) -> str:
    """Send the model in the folder `path` as the logged model of a run; return the model's id.

    Sending twice changes nothing. A server before MLflow 3 has no logged models: there the model is an artifact of
    the run, `runs:/RUN/model`, and "" is returned.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    run_id, name = run.info.run_id, model_name(run)
    try:
        found = models_of_run(client, run)
        model = found[0] if found else client.create_logged_model(run.info.experiment_id, name, run_id, dict(tags))
    except MlflowException as error:
        if not has_no_logged_models(error):
            raise
        client.log_artifacts(run_id, str(path), MODEL_FOLDER)
        client.set_tag(run_id, MODEL_TAG, MODEL_FOLDER)
        return ""
    model_id: str = model.model_id
    if str(model.status) != "READY":
        with tempfile.TemporaryDirectory() as folder:
            named = Path(folder) / MODEL_FOLDER
            shutil.copytree(path, named)
            name_run(named, run_id, model_id)
            client.log_model_artifacts(model_id, str(named))
        client.finalize_logged_model(model_id, "READY")
    if model_id not in output_models(run):
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])
    return model_id


def model_name(run: "Run") -> str:
    """Return the name of a run's logged model: that of the run, without characters that MLflow refuses.

    The names in an experiment differ, since MLflow's pages search by name for the models of one run.
    """
    return re.sub(r"[^\w+-]+", "-", run.info.run_name).strip("-")


def output_models(run: "Run") -> list[str]:
    """Return the ids of the logged models of a run; a server before MLflow 3 has none."""
    outputs = getattr(run, "outputs", None)
    return [output.model_id for output in outputs.model_outputs] if outputs else []


def models_of_run(client: "MlflowClient", run: "Run") -> "list[LoggedModel]":
    """Return the logged models of a run that have our name, the one that is complete first."""
    query = f"source_run_id = '{run.info.run_id}' AND name = '{model_name(run)}'"
    found = client.search_logged_models([run.info.experiment_id], query)
    return sorted(found, key=lambda model: (str(model.status) != "READY", model.creation_timestamp))


def name_run(path: Path, run_id: str, model_id: str) -> None:
    """Write the ids of run and logged model into a model's description."""
    from mlflow.models import Model

    about = Model.load(str(path))
    about.run_id, about.model_id = run_id, model_id
    about.save(str(path / "MLmodel"))


def has_no_logged_models(error: Exception) -> bool:
    """Return True if an error says that the server lacks logged models."""
    text = str(error)
    return getattr(error, "error_code", "") in NO_LOGGED_MODELS or "failed with error code 404" in text
