"""Write run folders to MLflow.

Training never waits for a tracking server. A run writes its journal; `Tracker.sync` sends what is new, in batches.
If that fails, the next call sends it. In MLflow a paper is an experiment, an experiment at a scale is a parent run
with the aggregates over seeds, and every training is a child run.

Only `track` imports MLflow, and only where something is sent, since the import takes seconds.
"""

import json
import logging
import os
import re
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import Timeout

from pipeline.common.errors import UserError
from pipeline.common.files import write_atomically
from pipeline.common.locks import file_lock
from pipeline.common.paths import home, tracking_uri
from pipeline.track.folder_content import FolderContent
from pipeline.track.mlflow_errors import RefusedError, explain_mlflow_errors, tracking_error
from pipeline.track.mlflow_reader import (
    ENDED,
    RECORD_TAG,
    SENT_TAG,
    TrackedRun,
    make_tracked_run,
    read_tracked_runs,
    server_key,
)
from pipeline.track.mlflow_run import is_up_to_date, send_content
from pipeline.track.mlflow_views import changed_tags, outdated_tags, views_of
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # the address may hold a password

os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

DATABASE = re.compile(r"(sqlite|postgresql|mysql|mssql)(\+\w+)?://")  # addresses of MLflow's databases

SEARCH_PAGE_SIZE = 250  # runs in one answer; for 1,000 a busy server exceeds the timeout of ten seconds

LOCK_SECONDS = 10.0  # wait for another process that sends the same folder


class Tracker:
    """A tracking server. MLflow's exceptions become TrackingError or RefusedError."""

    def __init__(self, uri: str | None = None) -> None:
        self.uri = uri or tracking_uri()
        self.experiments: dict[str, str] = {}  # paper -> id of the MLflow experiment

    @cached_property
    def client(self) -> "MlflowClient":
        """MLflow's client. If the database file does not exist, it is created, by one process at a time.

        Raises TrackingError.
        """
        from mlflow.tracking import MlflowClient

        silence_mlflow()
        with explain_mlflow_errors(self.uri):
            if "sqlite:" not in self.uri:
                return MlflowClient(self.uri)
            file = Path(self.uri.partition(":///")[2])
            file.parent.mkdir(parents=True, exist_ok=True)
            with file_lock(file.with_name(file.name + ".lock")):
                if not file.exists():
                    create_database(file)
                return MlflowClient(self.uri)

    def experiment_id(self, paper: str) -> str:
        """Return the id of a paper's MLflow experiment; create it if it does not exist."""
        if paper not in self.experiments:
            from mlflow.exceptions import MlflowException

            # A server stores the artifacts itself. For a database MLflow's default is the current folder.
            is_database = DATABASE.match(self.uri) is not None
            artifacts = (home() / "mlartifacts" / paper).as_uri() if is_database else None
            found = self.client.get_experiment_by_name(paper)
            if found is None:
                try:
                    created = self.client.create_experiment(paper, artifacts, changed_tags({}, views_of(paper)))
                    return self.experiments.setdefault(paper, created)
                except MlflowException:  # another process has just created it, or an answer was lost
                    found = self.client.get_experiment_by_name(paper)
                    if found is None:
                        raise
            if found.lifecycle_stage == "deleted":
                self.client.restore_experiment(found.experiment_id)
            self.experiments[paper] = found.experiment_id
        return self.experiments[paper]

    def update_views(self, paper: str) -> None:
        """Set kind and saved views of an MLflow experiment where they are missing or of an older version."""
        place, views = self.experiment_id(paper), views_of(paper)
        tags = self.client.get_experiment(place).tags
        for key, value in changed_tags(tags, views).items():
            self.client.set_experiment_tag(place, key, value)
        for key in outdated_tags(tags, views):
            self.client.delete_experiment_tag(place, key)

    def find_run(self, paper: str, key: str, name: str, tags: Mapping[str, str]) -> "Run":
        """Return the run tagged `key` ("run:IDENTITY" or "parent:EXPERIMENT@SCALE"); create it if missing.

        MLflow has no unique tags. Two processes may create the run at the same time, or one process twice if an
        answer is lost. So the run is searched again after it is created; of several runs, all processes keep the
        same one and delete the others.
        """
        found = self.runs_with_key(paper, key)
        if not found:
            self.create_run(paper, key, name, tags)
            found = self.runs_with_key(paper, key)
        for other in found[1:]:
            for child in self.search(paper, f"tags.`mlflow.parentRunId` = '{other.info.run_id}'"):
                self.client.set_tag(child.info.run_id, "mlflow.parentRunId", found[0].info.run_id)
            self.client.delete_run(other.info.run_id)
        return found[0]

    def create_run(self, paper: str, key: str, name: str, tags: Mapping[str, str]) -> "Run":
        """Create a run tagged `key`."""
        return self.client.create_run(self.experiment_id(paper), tags={**tags, "repro.key": key}, run_name=name)

    def runs_with_key(self, paper: str, key: str) -> "list[Run]":
        """Return all runs tagged `key`: completely sent ones first, then ended ones, then by start time."""

        def rank(run: "Run") -> tuple[bool, bool, int, str]:
            return (
                SENT_TAG not in run.data.tags,
                RECORD_TAG not in run.data.tags,
                run.info.start_time,
                run.info.run_id,
            )

        return sorted(self.search(paper, f"tags.`repro.key` = '{key}'"), key=rank)

    def search(self, paper: str, filter_string: str) -> "list[Run]":
        """Return the runs of a paper that match an MLflow filter."""
        found, token = [], None
        while True:
            page = self.client.search_runs(
                [self.experiment_id(paper)], filter_string, max_results=SEARCH_PAGE_SIZE, page_token=token
            )
            found += page
            token = page.token
            if not token:
                return found

    def parent_run(self, experiment: str, scale: str) -> str:
        """Return the id of the parent run of an experiment at a scale; create it if it does not exist."""
        paper, _, file = experiment.partition("/")
        tags = {"repro.experiment": experiment, "repro.scale": scale}
        run_id: str = self.find_run(paper, f"parent:{experiment}@{scale}", f"{file} @ {scale}", tags).info.run_id
        return run_id

    def sync(self, folder: RunFolder) -> bool:
        """Send what is new in a run's folder. An unfinished run has status KILLED while nothing trains it.

        Returns True once the run has ended and all of it is sent. Raises TrackingError where the server cannot be
        used, another UserError where something is wrong with this run alone.
        """
        if self.state(folder).get("done"):
            return True
        try:
            with file_lock(folder.path / "tracking.lock", timeout=LOCK_SECONDS):  # several commands may send it
                return self._sync(folder)
        except Timeout:  # another process sends it
            return False

    def state(self, folder: RunFolder) -> dict[str, Any]:
        """Return what this server has of a folder: server, run_id, status, done, and offset in the journal."""
        new = {"server": server_key(self.uri), "offset": 0}
        try:
            state = json.loads((folder.path / "tracked.json").read_text(encoding="utf-8"))
            return state if (state["server"], type(state["offset"])) == (new["server"], int) else new
        except (OSError, ValueError, KeyError, TypeError):  # sending everything again changes nothing
            return new

    def forget(self, folder: RunFolder) -> None:
        """Forget what this server has of a folder: it was deleted there and is sent again."""
        if self.state(folder).get("done"):
            (folder.path / "tracked.json").unlink(missing_ok=True)

    def find_experiment(self, name: str) -> str | None:
        """Return the id of an MLflow experiment; None if it does not exist or is deleted. Raises TrackingError."""
        if self.uri.startswith("sqlite:///") and not Path(self.uri.removeprefix("sqlite:///")).is_file():
            return None
        with explain_mlflow_errors(self.uri):
            found = self.client.get_experiment_by_name(name)
        return found.experiment_id if found and found.lifecycle_stage == "active" else None

    def _sync(self, folder: RunFolder) -> bool:
        state = self.state(folder)
        if state.get("done"):
            return True
        content = FolderContent.of(folder, state["offset"], state.get("system_offset", 0))
        if is_up_to_date(folder, content, state):
            return False
        try:
            after = send_content(self, folder, content, state)
        except RefusedError:
            # The run or the whole database was deleted: create the run again. Or another process logged the same
            # data set at the same time, which MLflow refuses to one of them.
            state = {"server": state["server"], "offset": 0}
            after = send_content(self, folder, FolderContent.of(folder, 0), state)
        if after != state:
            write_atomically(folder.path / "tracked.json", json.dumps(after))
        return bool(after.get("done"))

    def ended(self) -> list[TrackedRun]:
        """Return all ended runs of every paper. Raises TrackingError."""
        try:
            found = read_tracked_runs(self.uri)
        except OSError as error:
            raise tracking_error(self.uri, error) from error
        if found is None:
            with explain_mlflow_errors(self.uri):
                found = self.search_ended()
        return found

    def search_ended(self) -> list[TrackedRun]:
        """Return all ended runs by means of MLflow's client."""
        from mlflow.entities import ViewType

        ids = [found.experiment_id for found in self.client.search_experiments(ViewType.ACTIVE_ONLY)]
        rows: list[TrackedRun] = []
        token = None
        while True:
            page = self.client.search_runs(ids, ENDED, max_results=SEARCH_PAGE_SIZE, page_token=token)
            rows += map(read_run, page)
            token = page.token
            if not token:
                return rows

    def records(self) -> list[Record]:
        """Return the records of all ended runs."""
        return [record_from_run(row) for row in self.ended()]

    def curves(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """Return the history of a metric as (optimizer step, value), in order."""
        with explain_mlflow_errors(self.uri):
            return sorted((point.step, point.value) for point in self.client.get_metric_history(run_id, metric))


def read_run(run: "Run") -> TrackedRun:
    """Return an ended run of MLflow with its record; UserError if its tags hold none."""
    try:
        return make_tracked_run(run.info.run_id, run.data.tags)
    except (ValueError, TypeError) as error:
        raise not_a_record(run.info.run_id, error) from None


def record_from_run(row: TrackedRun) -> Record:
    """Return the record of a tracked run; UserError if its tag holds none."""
    try:
        return Record.from_dict({**row.record, "run_id": row.run_id})
    except TypeError as error:
        raise not_a_record(row.run_id, error) from None


def not_a_record(run_id: str, error: Exception) -> UserError:
    """Return the error of a run whose tag was changed by hand, or cut."""
    return UserError(f"MLflow run {run_id}: its tag {RECORD_TAG} is not a record ({error}); delete that run")


def create_database(file: Path) -> None:
    """Create MLflow's SQLite database under another name first: MLflow cannot repair a half-created one.

    The name is a new one for each attempt, since MLflow keeps its connections to the file of the last one.
    """
    from mlflow.tracking import MlflowClient

    begun = f".{file.name}-begun"
    for leftover in file.parent.glob(f"{begun}*"):  # also SQLite's journal files
        leftover.unlink()
    partial = file.with_name(f"{begun}-{time.time_ns()}")
    MlflowClient(f"sqlite:///{partial}").search_experiments()
    partial.rename(file)


def silence_mlflow() -> None:
    """Let MLflow and the libraries it uses log errors only."""
    for name in ("mlflow", "alembic", "sqlalchemy", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
