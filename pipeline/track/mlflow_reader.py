"""The records on a tracking server, read without MLflow's client, which alone takes seconds to import.

MLflow's search gives every metric, parameter and tag of each run it finds: 4 ms for a run, 40 s for 10,000. So a
database file is asked for the one tag that is needed. Of a server's records those already seen are kept in a file;
it is asked for the runs that ended last, and whether all runs are then as many as are known.
"""

import base64
import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.common.environment import env_number
from pipeline.common.files import write_atomically
from pipeline.common.paths import runs_folder

RECORD_TAG, SENT_TAG = (
    "repro.record",
    "repro.sent",
)  # tags: a run's Record; there once all its files have been sent too

ENDED = f"attributes.end_time > 0 AND tags.`{RECORD_TAG}` LIKE '{{%'"

LAST_FIRST = ["attributes.end_time DESC"]

FIRST_PAGE_SIZE, PAGE_SIZE = 20, 250  # runs in an answer: where little is new, and where much is; one takes 4 ms

RETRIES = 3  # runs may end while it is asked

TIMEOUT = 10.0  # seconds, unless MLFLOW_HTTP_REQUEST_TIMEOUT says otherwise

FORMAT = 1  # of the file

CREDENTIALS = re.compile(r"//\S*@")  # up to the last @, whatever the password holds

ASKED = re.compile(r"([?&][^=&\s]*(?:password|token|secret)[^=&\s]*=)[^&\s]+", re.IGNORECASE)

SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")

PLAIN_ADDRESS = {"MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", *SECRETS}  # all that is understood here

QUERY = f"""
SELECT tags.run_uuid, tags.value, sent.value FROM tags
JOIN runs ON runs.run_uuid = tags.run_uuid AND runs.lifecycle_stage = 'active' AND runs.end_time > 0
JOIN experiments ON experiments.experiment_id = runs.experiment_id AND experiments.lifecycle_stage = 'active'
LEFT JOIN tags AS sent ON sent.run_uuid = tags.run_uuid AND sent.key = '{SENT_TAG}'
WHERE tags.key = '{RECORD_TAG}' AND tags.value LIKE '{{%'
"""


@dataclass(frozen=True)
class TrackedRun:
    """An ended run on a tracking server."""

    run_id: str  # MLflow's
    record: Mapping[str, Any]  # a Record, as plain data
    sent: bool  # whether its files are there too


def redact(text: str) -> str:
    """A tracking address, or a text with one, without the passwords it may hold."""
    text = ASKED.sub(r"\1***", CREDENTIALS.sub("//***@", text))
    for name in SECRETS:
        if os.environ.get(name):
            text = text.replace(os.environ[name], "***")
    return text


def server_key(uri: str) -> str:
    """Which server an address is of, whoever asks: without name, password and query."""
    return CREDENTIALS.sub("//", uri).partition("?")[0].rstrip("/")


def read_tracked_runs(uri: str) -> list[TrackedRun] | None:
    """All ended runs of a server; None where only MLflow's own client can tell.

    Raises OSError (requests' are some) where nothing answers.
    """
    if uri.startswith("sqlite:///") and "?" not in uri:
        return read_sqlite(Path(uri.removeprefix("sqlite:///")))
    unknown = {name for name in os.environ if name.startswith("MLFLOW_TRACKING_")} - PLAIN_ADDRESS
    if uri.startswith(("http://", "https://")) and not unknown and "MLFLOW_WORKSPACE" not in os.environ:
        with suppress(UnexpectedAnswerError):
            return read_server(uri)
    return None


def read_sqlite(path: Path) -> list[TrackedRun] | None:
    """All ended runs in a database file, none where there is no file; None where it is not as MLflow makes it."""
    if not path.is_file():
        return []
    try:
        base = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=TIMEOUT)
        try:
            rows = base.execute(QUERY).fetchall()
        finally:
            base.close()
        return [TrackedRun(run_id, json.loads(text), sent is not None) for run_id, text, sent in rows]
    except (sqlite3.Error, ValueError):
        return None


# A server


class UnexpectedAnswerError(Exception):
    """An answer that MLflow's own client may understand, or explain."""


@dataclass
class RunPage:
    """Some runs, and whether there are more after them."""

    runs: dict[str, TrackedRun]
    more: bool


class RestServer:
    """MLflow's REST interface, as far as it is needed here."""

    def __init__(self, uri: str) -> None:
        import requests

        self.uri = uri.rstrip("/")
        self.session = requests.Session()
        user, password, token = (
            os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD", "TOKEN")
        )
        if user and password:
            self.session.auth = (user, password)
        elif token:
            self.session.headers["Authorization"] = f"Bearer {token}"
        self.timeout = env_number("MLFLOW_HTTP_REQUEST_TIMEOUT", TIMEOUT)
        self.experiments = self._experiments()

    def _ask(self, what: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = self.session.post(f"{self.uri}/api/2.0/mlflow/{what}/search", json=body, timeout=self.timeout)
        if answer.status_code != 200:
            raise UnexpectedAnswerError
        try:
            found = answer.json()
        except ValueError:
            raise UnexpectedAnswerError from None
        if not isinstance(found, dict):
            raise UnexpectedAnswerError
        return found

    def _experiments(self) -> list[str]:
        found: list[str] = []
        token = ""
        while True:
            page = self._ask("experiments", {"max_results": 1000, "view_type": "ACTIVE_ONLY", "page_token": token})
            found += [one["experiment_id"] for one in page.get("experiments", [])]
            token = page.get("next_page_token", "")
            if not token:
                return found

    def page(self, start: int, count: int, view: str = "ACTIVE_ONLY") -> RunPage:
        """`count` of the ended runs from number `start` on, the one that ended last first."""
        body: dict[str, Any] = {"experiment_ids": self.experiments, "filter": ENDED, "order_by": LAST_FIRST}
        body |= {"run_view_type": view, "max_results": count}
        if start:  # what MLflow gives as a page's token; another server would answer from the first run on
            body["page_token"] = base64.b64encode(json.dumps({"offset": start}).encode()).decode()
        found = self._ask("runs", body)
        try:
            runs = [parse_run(run) for run in found.get("runs", [])]
        except (KeyError, TypeError, ValueError):
            raise UnexpectedAnswerError from None
        return RunPage({run.run_id: run for run in runs}, bool(found.get("next_page_token")))

    def has(self, known: Mapping[str, TrackedRun]) -> bool:
        """Whether there are as many ended runs as are known: the last of them is, and nothing comes after it."""
        page = self.page(max(0, len(known) - 1), 1)
        return page.runs.keys() <= known.keys() and bool(page.runs) == bool(known) and not page.more

    def pages(self, view: str = "ACTIVE_ONLY", *, first: int | None = None) -> Iterator[RunPage]:
        """All ended runs. A run that ends meanwhile pushes others to the next page, where they come again."""
        start, count = 0, first or PAGE_SIZE
        while True:
            page = self.page(start, count, view)
            yield page
            if not page.more:
                return
            start, count = start + count, PAGE_SIZE


def parse_run(run: Mapping[str, Any]) -> TrackedRun:
    """An ended run, from a server's answer."""
    tags = {tag["key"]: tag.get("value", "") for tag in run["data"]["tags"]}
    record = json.loads(tags[RECORD_TAG])
    return TrackedRun(run["info"]["run_id"], {**record}, SENT_TAG in tags)


def read_server(uri: str) -> list[TrackedRun]:
    """All ended runs of a server, most of them from the file of those that were seen before."""
    server, file = RestServer(uri), RecordCache(server_key(uri))
    before = file.read() if server.experiments else {}
    known = refresh(server, dict(before)) if server.experiments else {}
    if known != before:
        file.write(known)
    return list(known.values())


def refresh(server: RestServer, known: dict[str, TrackedRun]) -> dict[str, TrackedRun]:
    """What the server has, from what is known of it.

    What ended since is read first; if the server then counts as many runs as are known, they are the same. If not,
    some were deleted, or a run was ended by a machine whose clock is slow, and all is read.
    """
    known = known or fetch_all(server)
    for _ in range(RETRIES):
        for page in server.pages(first=FIRST_PAGE_SIZE):
            new = {name: run for name, run in page.runs.items() if known.get(name) != run}
            known |= new
            if not new:
                break
        if server.has(known):
            return known
        for page in server.pages("DELETED_ONLY"):
            for name in page.runs:
                known.pop(name, None)
        if server.has(known):
            return known
    return fetch_all(server)


def fetch_all(server: RestServer) -> dict[str, TrackedRun]:
    """All that the server has."""
    return {name: run for page in server.pages() for name, run in page.runs.items()}


@dataclass(frozen=True)
class RecordCache:
    """The file of the records seen on a server. Damaged, of another server or format, it counts as none."""

    server: str
    file: Path = field(init=False)

    def __post_init__(self) -> None:
        name = hashlib.sha256(self.server.encode()).hexdigest()[:16]
        object.__setattr__(self, "file", runs_folder() / f".tracked-{name}.json")

    def read(self) -> dict[str, TrackedRun]:
        """Run id -> run."""
        try:
            kept = json.loads(self.file.read_text(encoding="utf-8"))
            if (kept["format"], kept["server"]) != (FORMAT, self.server):
                return {}
            return {name: TrackedRun(name, {**record}, sent is True) for name, record, sent in kept["runs"]}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def write(self, known: Mapping[str, TrackedRun]) -> None:
        """Keep these; where they cannot be, the next question takes longer."""
        runs = [[run.run_id, run.record, run.sent] for run in known.values()]
        with suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.file, json.dumps({"format": FORMAT, "server": self.server, "runs": runs}))
