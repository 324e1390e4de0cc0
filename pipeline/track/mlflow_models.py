"""Networks of runs as MLflow models: saved in the run's folder, sent as logged models of the run.

`save_model` needs torch and MLflow and no server; it is called where a run has just finished. `log_model` sends
the folder.
"""

import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.tracking import MlflowClient
    from torch import Tensor, nn

MODEL_NAME = "model"  # of a run's logged model

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
        partial = Path(folder) / MODEL_NAME
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
    for name in ("mlflow", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def log_model(
    client: "MlflowClient", experiment_id: str, run_id: str, path: Path, step: int, tags: Mapping[str, str]
) -> str:
    """Send the model in the folder `path` as the logged model of a run; return the model's id.

    Sending twice changes nothing. A server before MLflow 3 has no logged models: there the model is an artifact of
    the run, `runs:/RUN/model`, and "" is returned.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    try:
        found = models_of_run(client, experiment_id, run_id)
        model = found[0] if found else client.create_logged_model(experiment_id, MODEL_NAME, run_id, dict(tags))
    except MlflowException as error:
        if not has_no_logged_models(error):
            raise
        client.log_artifacts(run_id, str(path), MODEL_NAME)
        return ""
    model_id: str = model.model_id
    if str(model.status) != "READY":
        with tempfile.TemporaryDirectory() as folder:
            named = Path(folder) / MODEL_NAME
            shutil.copytree(path, named)
            name_run(named, run_id, model_id)
            client.log_model_artifacts(model_id, str(named))
        client.finalize_logged_model(model_id, "READY")
    outputs = client.get_run(run_id).outputs
    if model_id not in [output.model_id for output in (outputs.model_outputs if outputs else [])]:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])
    return model_id


def models_of_run(client: "MlflowClient", experiment_id: str, run_id: str) -> "list[LoggedModel]":
    """Return the logged models of a run that have our name, the one that is complete first."""
    found = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}' AND name = '{MODEL_NAME}'")
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
