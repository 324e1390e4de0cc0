"""MLflow, the only file that imports it: run folders go in, records come out.

Training never waits for a tracking server. A run writes its own journal; `sync` sends what is new, in batches;
what could not be sent is sent the next time. In MLflow, a paper is an experiment, an experiment at a scale its
parent run with the aggregates over seeds, and every training a child run below it.

MLflow takes seconds to import: it is, where there is something to send.
"""

import json
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from pipeline.common.errors import UserError
from pipeline.common.files import write_atomically
from pipeline.common.hashing import digest
from pipeline.common.paths import home, tracking_uri
from pipeline.common.words import first_line
from pipeline.declare.protocol import PART_PATTERN
from pipeline.track.mlflow_reader import (
    ENDED,
    RECORD_TAG,
    SENT_TAG,
    TrackedRun,
    read_tracked_runs,
    redact,
    server_key,
)
from pipeline.track.record import FINISHED, Record
from pipeline.track.run_folder import RunFolder

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # with the password, and between our lines

os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

LOG_BATCH_SIZE = 900  # metrics in one request; MLflow's limit is 1,000

SEARCH_PAGE_SIZE = 250  # runs in an answer: 1,000 take a busy server more than the ten seconds that it is given

LOCK_SECONDS = 10.0  # another process that sends the same folder is waited for so long

IMPORTED = "published weights"  # MLflow's experiment of what others trained

DESCRIBED = ("identity", "experiment", "scale", "variant", "seed", "declaration", "manifest", "changes", "recipe")

# What a server says of one run or request; all else says that it cannot be used.
OF_ONE = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST")


class TrackingError(UserError):
    """The tracking server cannot be used."""


class RefusedError(UserError):
    """The tracking server can be used, but did not take something."""


class Tracker:
    """One tracking server. Raises TrackingError where it cannot be reached; nothing else of MLflow's gets out."""

    def __init__(self, uri: str | None = None) -> None:
        self.uri = uri or tracking_uri()
        self.experiments: dict[str, str] = {}  # paper -> MLflow's id

    @cached_property
    def client(self) -> "MlflowClient":
        """MLflow's own. A database file is made where there is none, by one command at a time: in many steps."""
        from mlflow.tracking import MlflowClient

        silence_mlflow()
        if "sqlite:" not in self.uri:
            return MlflowClient(self.uri)
        file = Path(self.uri.partition(":///")[2])
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_name(file.name + ".lock")):
            if not file.exists():  # MLflow could not mend what it was killed in the middle of
                beside = file.with_name(f".{file.name}-begun")
                for left in file.parent.glob(f"{beside.name}*"):  # with SQLite's own files beside it
                    left.unlink()
                MlflowClient(f"sqlite:///{beside}").search_experiments()
                beside.rename(file)
            return MlflowClient(self.uri)

    def experiment_id(self, paper: str) -> str:
        """MLflow's experiment for a paper, made if it is not there."""
        if paper not in self.experiments:
            from mlflow.exceptions import MlflowException

            local = self.uri.startswith("sqlite:")
            where = (home() / "mlartifacts" / paper).as_uri() if local else None
            found = self.client.get_experiment_by_name(paper)
            if found is None:
                try:
                    return self.experiments.setdefault(paper, self.client.create_experiment(paper, where))
                except MlflowException:  # another process made it in this moment, or an answer was lost
                    found = self.client.get_experiment_by_name(paper)
                    if found is None:
                        raise
            if found.lifecycle_stage == "deleted":
                self.client.restore_experiment(found.experiment_id)
            self.experiments[paper] = found.experiment_id
        return self.experiments[paper]

    def find_run(self, paper: str, key: str, name: str, tags: Mapping[str, str]) -> "Run":
        """The run tagged `key` ("run:IDENTITY" or "parent:EXPERIMENT@SCALE"), made if it is not there.

        MLflow knows no unique tag. Two processes may make a run at the same moment, or one twice where the answer
        was lost; so it is looked for again after it was made, and of several, all keep the same one.
        """
        found = self.runs_of_experiment(paper, key)
        if not found:
            self.client.create_run(self.experiment_id(paper), tags={**tags, "repro.key": key}, run_name=name)
            found = self.runs_of_experiment(paper, key)
        for other in found[1:]:
            for child in self.search(paper, f"tags.`mlflow.parentRunId` = '{other.info.run_id}'"):
                self.client.set_tag(child.info.run_id, "mlflow.parentRunId", found[0].info.run_id)
            self.client.delete_run(other.info.run_id)
        return found[0]

    def runs_of_experiment(self, paper: str, key: str) -> "list[Run]":
        """All runs tagged `key`: one that has ended before others, then the first."""

        def rank(run: "Run") -> tuple[bool, bool, int, str]:
            return (
                SENT_TAG not in run.data.tags,
                RECORD_TAG not in run.data.tags,
                run.info.start_time,
                run.info.run_id,
            )

        return sorted(self.search(paper, f"tags.`repro.key` = '{key}'"), key=rank)

    def search(self, paper: str, wanted: str) -> "list[Run]":
        """A paper's runs that a condition holds for."""
        found, token = [], None
        while True:
            page = self.client.search_runs(
                [self.experiment_id(paper)], wanted, max_results=SEARCH_PAGE_SIZE, page_token=token
            )
            found += page
            token = page.token
            if not token:
                return found

    def parent_run(self, experiment: str, scale: str) -> str:
        """The parent run of an experiment at a scale, made if it is not there."""
        paper, _, file = experiment.partition("/")
        tags = {"repro.experiment": experiment, "repro.scale": scale}
        return self.find_run(paper, f"parent:{experiment}@{scale}", f"{file} @ {scale}", tags).info.run_id

    def sync(self, folder: RunFolder) -> bool:
        """Send what is new in a run's folder; a run left resumable is KILLED until it goes on.

        Returns whether all of it is there for good. TrackingError where the server cannot be used, another
        UserError where something is wrong with this run alone.
        """
        if self.state(folder).get("done"):
            return True
        try:
            with FileLock(folder.path / "tracking.lock", timeout=LOCK_SECONDS):  # two commands may watch it
                return self._sync(folder)
        except Timeout:  # who sends it now
            return False

    def state(self, folder: RunFolder) -> dict[str, Any]:
        """What this server has of a folder: {"server", "run_id", "offset" in the journal, "status", "done"}."""
        new = {"server": server_key(self.uri), "offset": 0}
        try:
            state = json.loads((folder.path / "tracked.json").read_text(encoding="utf-8"))
            return state if (state["server"], type(state["offset"])) == (new["server"], int) else new
        except (OSError, ValueError, KeyError, TypeError):  # what was sent is sent again, which changes nothing
            return new

    def _sync(self, folder: RunFolder) -> bool:
        state = self.state(folder)
        if state.get("done"):
            return True
        content = FolderContent.of(folder, state["offset"])
        try:
            after = self.send(folder, content, state)
        except RefusedError:
            # The run was deleted, or the whole database: it is made anew. Or somebody told MLflow of the same data
            # set in the same moment, which it refuses to one of them.
            state = {"server": state["server"], "offset": 0}
            after = self.send(folder, FolderContent.of(folder, 0), state)
        if after != state:
            write_atomically(folder.path / "tracked.json", json.dumps(after))
        return bool(after.get("done"))

    def send(self, folder: RunFolder, content: "FolderContent", state: Mapping[str, Any]) -> dict[str, Any]:
        """Send what `state` says is not sent; returns the state after it. What is sent twice is there once."""
        from mlflow.entities import Metric

        with explain_mlflow_errors(self.uri):
            run_id = state.get("run_id")
            if not run_id:
                run = self.child_run(content.what)
                if SENT_TAG in run.data.tags:  # by another process, or before this folder's state was lost
                    return {**state, "run_id": run.info.run_id, "offset": content.end, "done": True}
                run_id = run.info.run_id
            points = [
                Metric(key, value, int(entry["time"] * 1000), entry["step"])
                for entry in content.entries
                for key, value in entry["metrics"].items()
            ]
            for start in range(0, len(points), LOG_BATCH_SIZE):
                self.client.log_batch(run_id, metrics=points[start : start + LOG_BATCH_SIZE])
            after = {**state, "run_id": run_id, "offset": content.end}
            if content.record:
                self.finish(run_id, content.record, folder, content.what)
                return {**after, "done": True}
            after["status"] = "RUNNING" if folder.is_training() else "KILLED"
            if state.get("status") != after["status"]:
                self.client.update_run(run_id, status=after["status"])
        return after

    def child_run(self, what: Mapping[str, Any]) -> "Run":
        """The MLflow run of a training: the one it had before, or a new one below its experiment's parent."""
        from mlflow.entities import Dataset, DatasetInput, Param

        tags = {
            "repro.identity": what["identity"],
            "repro.experiment": what["experiment"],
            "repro.scale": what["scale"],
            "repro.variant": what["variant"],
            "repro.seed": str(what["seed"]),
            "repro.declaration": what["declaration"],
            "repro.manifest": what["manifest"]["sha256"],
            "repro.departs": json.dumps(what["changes"]) if what["changes"] else "no",
            "mlflow.parentRunId": self.parent_run(what["experiment"], what["scale"]),
            "mlflow.source.git.commit": what.get("commit", "unknown"),
            "mlflow.source.name": "repro",
        }
        name = f"{what['variant']} seed {what['seed']}" + (" (departs)" if what["changes"] else "")
        run = self.find_run(what["experiment"].partition("/")[0], f"run:{what['identity']}", name, tags)
        if SENT_TAG in run.data.tags:
            return run
        # All that follows may be sent twice: a server may vanish between any two of these requests.
        params = {"seed": what["seed"]} | flatten(what["recipe"])
        self.client.log_batch(run.info.run_id, params=[Param(k, str(v)[:500]) for k, v in params.items()])
        data = what["manifest"]
        profile = json.dumps({"train": data["train"], "test": data["test"]})
        source = json.dumps({"source": data["source"]})
        dataset = Dataset(data["name"], data["sha256"][:36], "repro", source, profile=profile)
        self.client.log_inputs(run.info.run_id, [DatasetInput(dataset)])
        return run

    def finish(self, run_id: str, record: Record, folder: RunFolder, what: Mapping[str, Any]) -> None:
        """Send a run's record: final metrics and what it ran on; mark it as ended; then its last model."""
        from mlflow.entities import Metric, RunTag

        last_step = (what["recipe"].get("train") or {}).get("steps", 0)  # a step of the plan trains nothing
        # Not now: sent twice, it is one point. The record counts whole seconds, and the journal ends before it.
        when = int(datetime.fromisoformat(record.finished).timestamp() + 1) * 1000
        metrics = [
            Metric(key, value, when, last_step)
            for key, value in record.metrics.items()
            if not key.startswith("train/")  # they are the journal's last line
        ]
        about = {"commit": record.commit, "code": record.code, "lock": record.lock, "hardware": record.hardware}
        about |= {"precision": record.precision, "threads": str(record.threads), "ended": record.ended}
        about |= {"world": str(record.world), "device_batch": str(record.device_batch)}  # 0: not known
        about |= {f"library.{name}": version for name, version in record.libraries.items()}
        tags = [RunTag(f"repro.{key}", value[:5000]) for key, value in about.items()]
        tags.append(RunTag(RECORD_TAG, json.dumps(record.to_dict())))
        # Again: of two parents made at the same moment, all know by now which one is left.
        tags.append(RunTag("mlflow.parentRunId", self.parent_run(what["experiment"], what["scale"])))
        self.client.log_batch(run_id, metrics=[*metrics, Metric("seconds", record.seconds, when, 0)], tags=tags)
        self.client.set_terminated(run_id, "FINISHED" if record.status == FINISHED else "FAILED")
        for file in (folder.network_file, folder.journal_file):
            if file.is_file():  # a run that diverged has no model, and where that was soon, no journal
                self.client.log_artifact(run_id, str(file))
        self.client.set_tag(run_id, SENT_TAG, "all")

    def imported_run(self, result: Mapping[str, Any]) -> str:
        """The MLflow run of published weights on a data set: apart from all papers' runs, and no record of one.

        The same weights on the same data are the same run again.
        """
        same = [result.get(name, "") for name in ("network", "sha256", "data", "protocol", "images", "manifest")]
        key = f"published:{digest(same)}"
        about = {name: value for name, value in result.items() if isinstance(value, str) and value}
        protocol = result.get("protocol", "")
        by_name = (
            PART_PATTERN.match(protocol) is not None
        )  # whole small images go by none, and are described in words
        parts = ["test", f"test/{protocol}"] if by_name else ["test"]
        values = {"top1_error_pct": result["top1"], "top5_error_pct": result["top5"], "images": result["images"]}
        from mlflow.entities import Metric, RunTag

        with explain_mlflow_errors(self.uri):
            name = f"{result['network']}, {IMPORTED}" + (f", {protocol}" if by_name else "")
            run_id = self.find_run(IMPORTED, key, name, {"repro.kind": IMPORTED}).info.run_id
            stamp = int(time.time() * 1000)
            points = [Metric(f"{part}/{k}", v, stamp, 0) for part in parts for k, v in values.items()]
            self.client.log_batch(run_id, metrics=points, tags=[RunTag(f"repro.{k}", v) for k, v in about.items()])
            self.client.set_terminated(run_id)
        return run_id

    def ended(self) -> list[TrackedRun]:
        """All ended runs of every paper."""
        try:
            found = read_tracked_runs(self.uri)
        except OSError as error:
            raise tracking_error(self.uri, error) from error
        if found is None:
            with explain_mlflow_errors(self.uri):
                found = self.searched()
        return found

    def searched(self) -> list[TrackedRun]:
        """The same, by MLflow's own client."""
        from mlflow.entities import ViewType

        ids = [found.experiment_id for found in self.client.search_experiments(ViewType.ACTIVE_ONLY)]
        rows, token = [], None
        while True:
            page = self.client.search_runs(ids, ENDED, max_results=SEARCH_PAGE_SIZE, page_token=token)
            for run in page:
                tags = run.data.tags
                rows.append(TrackedRun(run.info.run_id, json.loads(tags[RECORD_TAG]), SENT_TAG in tags))
            token = page.token
            if not token:
                return rows

    def records(self) -> list[Record]:
        """The records of all ended runs."""
        return [record_from_run(row) for row in self.ended()]

    def curves(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """A tracked metric over the updates: (step, value), in order."""
        with explain_mlflow_errors(self.uri):
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
        from mlflow.entities import Metric

        with explain_mlflow_errors(self.uri):
            parent = self.parent_run(experiment, scale)
            now = int(time.time() * 1000)
            points = [Metric(key, value, now, 0) for key, value in aggregate_metrics(records).items()]
            for start in range(0, len(points), LOG_BATCH_SIZE):
                self.client.log_batch(parent, metrics=points[start : start + LOG_BATCH_SIZE])
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


@dataclass(frozen=True)
class FolderContent:
    """What a run's folder holds that a tracking server is told."""

    what: Mapping[str, Any]
    record: Record | None
    entries: Sequence[Mapping[str, Any]]  # of the journal, from a byte on,
    end: int  # to this one

    @classmethod
    def of(cls, folder: RunFolder, offset: int) -> "FolderContent":
        """UserError where the folder is damaged."""
        record = folder.result()  # before the journal, which it comes after
        try:
            what = folder.description()
            missing = [key for key in DESCRIBED if key not in what]
            if missing:
                raise ValueError(f"no {missing[0]}")
            lines = list(folder.journal(offset))
            whole = all(entry.keys() >= {"time", "step", "metrics"} for entry, _ in lines)
            if not whole:
                raise ValueError("a line of the journal is not a report")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"the run in {folder.path} cannot be read ({error}) and is not tracked; move its folder away, and"
                " it will be trained again"
            ) from None
        return cls(what, record, [entry for entry, _ in lines], lines[-1][1] if lines else offset)


def record_from_run(row: TrackedRun) -> Record:
    """A tracked run's record; UserError for one that is none."""
    try:
        return Record.from_dict({**row.record, "run_id": row.run_id})
    except TypeError as error:
        raise UserError(
            f"MLflow's run {row.run_id} has a tag {RECORD_TAG} that is no record ({error}); delete that run"
        ) from None


@contextmanager
def explain_mlflow_errors(uri: str) -> Iterator[None]:
    """Within: whatever MLflow raises becomes one sentence that names the server, without its password.

    RefusedError where it is about one run, TrackingError where the server cannot be used.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:  # requests' are OSErrors
        ours = not str(error).startswith("API request")  # MLflow's own answer, not of something before it
        if ours and getattr(error, "error_code", "") in OF_ONE:
            raise RefusedError(
                f"the tracking server {redact(uri)} refuses: {redact(first_line(error, 200))}"
            ) from error
        raise tracking_error(uri, error) from error


def tracking_error(uri: str, error: Exception) -> TrackingError:
    """That a server cannot be used, and why."""
    return TrackingError(f"the tracking server {redact(uri)} cannot be used: {error_summary(error)}")


def error_summary(error: BaseException) -> str:
    """Why a server cannot be used, in a line: the first of MLflow's own, but for what has a better one."""
    from requests import ConnectionError, Timeout

    below: BaseException | None = error
    while below is not None:
        if isinstance(below, ConnectionError | Timeout):
            return "nothing answers there; start it, or unset MLFLOW_TRACKING_URI to track on this machine"
        below = below.__cause__ or below.__context__
    said = redact(first_line(error, 200))
    if "Invalid Host" in said:
        return "it does not answer to this name; start it with --allowed-hosts and the name"
    if getattr(error, "error_code", "") in ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED"):
        return (
            "it refuses this user; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to one that it knows"
        )
    return said


def aggregate_metrics(records: Sequence[Record]) -> dict[str, float]:
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


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested maps as dotted keys: {"train": {"lr": 0.1}} -> {"train.lr": 0.1}."""
    result: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            result |= flatten(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def silence_mlflow() -> None:
    """MLflow and the libraries below it say nothing on the terminal but errors."""
    for name in ("mlflow", "alembic", "sqlalchemy", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
