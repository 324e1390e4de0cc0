"""MLflow, the only file that imports it: run folders go in, records come out.

Training never waits for a tracking server. A run writes its own journal; `sync` sends what is new, in batches;
what could not be sent is sent the next time. In MLflow, a paper is an experiment, an experiment at a scale its
parent run with the aggregates over seeds, and every training a child run below it.
"""

import json
import logging
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

from filelock import FileLock
from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.home import home, tracking_uri
from pipeline.mistakes import UserError
from pipeline.plan import digest
from pipeline.record import FINISHED, Record
from pipeline.runs import RunFolder, write_atomically

BATCH = 900  # metrics in one request; MLflow's limit is 1,000
PAGE = 1000
IMPORTED = "published weights"  # MLflow's experiment of what others trained
SECRET = re.compile(r"//\S*@")  # up to the last @, whatever the password holds


class TrackingError(UserError):
    """The tracking server cannot be used."""


def shown(uri: str) -> str:
    """A tracking address, or a text with one, without the password it may hold."""
    return SECRET.sub("//***@", uri)


class Tracker:
    """One tracking server. Raises TrackingError where it cannot be reached; nothing else of MLflow's gets out."""

    def __init__(self, uri: str | None = None) -> None:
        self.uri = uri or tracking_uri()
        self.experiments: dict[str, str] = {}  # paper -> MLflow's id
        with named(self.uri):
            self.client = MlflowClient(self.uri) if "sqlite:" not in self.uri else self.local_client()

    def local_client(self) -> MlflowClient:
        """A database file, made if it is not there, by one command at a time: MLflow makes it in many steps."""
        file = Path(self.uri.partition(":///")[2])
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_name(file.name + ".lock")):
            return MlflowClient(self.uri)

    def experiment_id(self, paper: str) -> str:
        """MLflow's experiment for a paper, made if it is not there."""
        if paper not in self.experiments:
            found = self.client.get_experiment_by_name(paper)
            if found and found.lifecycle_stage == "deleted":
                self.client.restore_experiment(found.experiment_id)
            local = self.uri.startswith("sqlite:")
            place = (home() / "mlartifacts" / paper).as_uri() if local else None
            self.experiments[paper] = found.experiment_id if found else self.client.create_experiment(paper, place)
        return self.experiments[paper]

    def find(self, paper: str, key: str) -> str | None:
        """The id of the run tagged `key` ("run:IDENTITY" or "parent:EXPERIMENT@SCALE")."""
        found = self.client.search_runs(
            [self.experiment_id(paper)], f"tags.`repro.key` = '{key}'", max_results=1, order_by=["start_time"]
        )
        return found[0].info.run_id if found else None

    def parent(self, experiment: str, scale: str) -> str:
        """The parent run of an experiment at a scale, made if it is not there."""
        paper, _, file = experiment.partition("/")
        key = f"parent:{experiment}@{scale}"
        found = self.find(paper, key)
        if found:
            return found
        tags = {"repro.key": key, "repro.experiment": experiment, "repro.scale": scale}
        made = self.client.create_run(self.experiment_id(paper), tags=tags, run_name=f"{file} @ {scale}")
        return made.info.run_id

    def sync(self, folder: RunFolder) -> None:
        """Send what is new in a run's folder; a run left resumable is KILLED until it goes on."""
        with FileLock(folder.path / "tracking.lock"):  # two commands may watch the same run
            self._sync(folder)

    def _sync(self, folder: RunFolder) -> None:
        state_file = folder.path / "tracked.json"
        state = read_json(state_file)
        if state.get("uri") != self.uri:
            state = {"uri": self.uri, "offset": 0}
        if state.get("done"):
            return
        with named(self.uri):
            what = folder.description()
            run_id = state.get("run_id") or self.child(what)
            state["run_id"] = run_id
            record = folder.result()
            points, offset = [], state["offset"]
            for entry, end in folder.journal(state["offset"]):
                stamp = int(entry["time"] * 1000)
                points += [Metric(k, v, stamp, entry["step"]) for k, v in entry["metrics"].items()]
                offset = end
            for start in range(0, len(points), BATCH):
                self.client.log_batch(run_id, metrics=points[start : start + BATCH])
            state["offset"] = offset
            if record:
                self.finish(run_id, record, folder, last_step=what["recipe"]["train"]["steps"])
                state["done"] = True
            else:
                status = "RUNNING" if folder.is_training() else "KILLED"
                if state.get("status") != status:
                    self.client.update_run(run_id, status=status)
                    state["status"] = status
        write_atomically(state_file, json.dumps(state))

    def child(self, what: Mapping[str, Any]) -> str:
        """The MLflow run of a training: the one it had before, or a new one below its experiment's parent."""
        paper = what["experiment"].partition("/")[0]
        key = f"run:{what['identity']}"
        tags = {
            "repro.key": key,
            "repro.identity": what["identity"],
            "repro.experiment": what["experiment"],
            "repro.scale": what["scale"],
            "repro.variant": what["variant"],
            "repro.seed": str(what["seed"]),
            "repro.declaration": what["declaration"],
            "repro.manifest": what["manifest"]["sha256"],
            "repro.departs": json.dumps(what["changes"]) if what["changes"] else "no",
            "mlflow.parentRunId": self.parent(what["experiment"], what["scale"]),
            "mlflow.source.git.commit": what["commit"],
            "mlflow.source.name": "repro",
        }
        name = f"{what['variant']} seed {what['seed']}" + (" (departs)" if what["changes"] else "")
        run_id = self.find(paper, key)
        if run_id is None:
            run_id = self.client.create_run(self.experiment_id(paper), tags=tags, run_name=name).info.run_id
        # All that follows may be sent twice: a server may vanish between any two of these requests.
        params = {"seed": what["seed"]} | flat(what["recipe"])
        self.client.log_batch(run_id, params=[Param(k, str(v)[:500]) for k, v in params.items()])
        data = what["manifest"]
        profile = json.dumps({"train": data["train"], "test": data["test"]})
        source = json.dumps({"source": data["source"]})
        dataset = Dataset(data["name"], data["sha256"][:36], "repro", source, profile=profile)
        self.client.log_inputs(run_id, [DatasetInput(dataset)])
        return run_id

    def finish(self, run_id: str, record: Record, folder: RunFolder, *, last_step: int) -> None:
        """Send a run's record: final metrics, what it ran on, the last model; then mark it as ended."""
        # Not now: sent twice, it is one point. The record counts whole seconds, and the journal ends before it.
        when = int(datetime.fromisoformat(record.finished).timestamp() + 1) * 1000
        metrics = [
            Metric(key, value, when, last_step)
            for key, value in record.metrics.items()
            if not key.startswith("train/")  # they are the journal's last line
        ]
        about = {"commit": record.commit, "code": record.code, "lock": record.lock, "hardware": record.hardware}
        about |= {"precision": record.precision, "threads": str(record.threads), "ended": record.ended}
        about |= {f"library.{name}": version for name, version in record.libraries.items()}
        tags = [RunTag(f"repro.{key}", value[:5000]) for key, value in about.items()]
        tags.append(RunTag("repro.record", json.dumps(record.to_dict())))
        self.client.log_batch(run_id, metrics=[*metrics, Metric("seconds", record.seconds, when, 0)], tags=tags)
        for file in (folder.network_file, folder.journal_file):
            if file.is_file():  # a run that diverged has no model, and where that was soon, no journal
                self.client.log_artifact(run_id, str(file))
        self.client.set_terminated(run_id, "FINISHED" if record.status == FINISHED else "FAILED")

    def imported(self, result: Mapping[str, Any]) -> str:
        """The MLflow run of published weights on a data set: apart from all papers' runs, and no record of one.

        The same weights on the same data are the same run again.
        """
        same = [result.get(name, "") for name in ("network", "sha256", "data", "protocol", "images", "manifest")]
        key = f"published:{digest(same)}"
        about = {name: value for name, value in result.items() if isinstance(value, str) and value}
        metrics = {"test/top1_error_pct": result["top1"], "test/top5_error_pct": result["top5"]}
        with named(self.uri):
            run_id = self.find(IMPORTED, key)
            if run_id is None:
                tags = {"repro.key": key, "repro.kind": IMPORTED}
                name = f"{result['network']}, {IMPORTED}"
                made = self.client.create_run(self.experiment_id(IMPORTED), tags=tags, run_name=name)
                run_id = made.info.run_id
            stamp = int(time.time() * 1000)
            points = [Metric(name, value, stamp, 0) for name, value in metrics.items()]
            points.append(Metric("test/images", result["images"], stamp, 0))
            self.client.log_batch(run_id, metrics=points, tags=[RunTag(f"repro.{k}", v) for k, v in about.items()])
            self.client.set_terminated(run_id)
        return run_id

    def records(self) -> list[Record]:
        """All ended runs of every paper."""
        with named(self.uri):
            ids = [found.experiment_id for found in self.client.search_experiments(ViewType.ACTIVE_ONLY)]
            wanted = "tags.`repro.record` LIKE '{%'"
            rows, token = [], None
            while True:
                page = self.client.search_runs(ids, wanted, max_results=PAGE, page_token=token)
                rows += [(row.info.run_id, row.data.tags["repro.record"]) for row in page]
                token = page.token
                if not token:
                    break
        return [Record.from_dict(json.loads(text) | {"run_id": run_id}) for run_id, text in rows]

    def curves(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """A tracked metric over the updates: (step, value), in order."""
        with named(self.uri):
            return sorted((point.step, point.value) for point in self.client.get_metric_history(run_id, metric))

    def publish(
        self,
        experiment: str,
        scale: str,
        records: Sequence[Record],
        *,
        tables: Mapping[str, Sequence[Mapping[str, Any]]],
        files: Iterable[Path],
        note: str,
    ) -> str:
        """Put aggregates over seeds, tables, figures and pages on the parent run; `note` where MLflow shows it."""
        with named(self.uri):
            parent = self.parent(experiment, scale)
            now = int(time.time() * 1000)
            points = [Metric(key, value, now, 0) for key, value in aggregates(records).items()]
            for start in range(0, len(points), BATCH):
                self.client.log_batch(parent, metrics=points[start : start + BATCH])
            for name, rows in tables.items():
                columns = list(rows[0]) if rows else []
                table = {"columns": columns, "data": [list(row.values()) for row in rows]}
                self.client.log_dict(parent, table, f"{name}.json")
            logged = [{"path": f"{name}.json", "type": "table"} for name in tables]
            self.client.set_tag(parent, "mlflow.loggedArtifacts", json.dumps(logged))
            for path in files:
                self.client.log_artifact(parent, str(path))
            self.client.set_tag(parent, "mlflow.note.content", note)
            self.client.set_experiment_tag(
                self.experiment_id(experiment.partition("/")[0]), "mlflow.note.content", note
            )
            self.client.set_terminated(parent, "FINISHED")
        return parent


@contextmanager
def named(uri: str) -> Iterator[None]:
    """Within: whatever MLflow raises becomes one sentence that names the server, without its password."""
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        raise TrackingError(f"the tracking server {shown(uri)} cannot be used: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Why a server cannot be used, in a line: the first of MLflow's own, but for what is just no answer."""
    from requests import ConnectionError, Timeout

    below: BaseException | None = error
    while below is not None:
        if isinstance(below, ConnectionError | Timeout):
            return "nothing answers there; start it, or unset MLFLOW_TRACKING_URI to track on this machine"
        below = below.__cause__ or below.__context__
    return shown((str(error).strip() or repr(error)).splitlines()[0])[:200]


def aggregates(records: Sequence[Record]) -> dict[str, float]:
    """Mean, spread and number of seeds of every final metric, by variant: "resnet-20/test/top1_error_pct/mean"."""
    values: dict[str, list[float]] = {}
    for record in records:
        for key, value in record.metrics.items():
            if math.isfinite(value):
                values.setdefault(f"{record.variant}/{key}", []).append(value)
    result = {}
    for key, row in values.items():
        result[f"{key}/mean"] = fmean(row)
        result[f"{key}/seeds"] = float(len(row))
        if len(row) > 1:
            result[f"{key}/std"] = stdev(row)
    return result


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested maps as dotted keys: {"train": {"lr": 0.1}} -> {"train.lr": 0.1}."""
    result: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's content, {} where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def silence() -> None:
    """MLflow and the libraries below it say nothing on the terminal but errors."""
    for name in ("mlflow", "alembic", "sqlalchemy", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
