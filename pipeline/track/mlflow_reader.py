"""Read the records on a tracking server without MLflow's client, which takes seconds to import.

MLflow's search returns every metric, parameter and tag of each run: 4 ms for one run, 40 s for 10,000. So only the
tag with the record is read from a database file. The records of a server are cached in a file; the server is asked
for the runs that ended last, and for the number of its runs, to compare with the cache.
"""

import base64
import hashlib
import json
import os
import re
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from pipeline.common.environment import env_number
from pipeline.common.files import write_atomically
from pipeline.common.paths import runs_folder

RECORD_TAG = "repro.record"  # tag: the Record of an ended run; of a long one the first part, see `record_tags`

PART_SIZE = 7_900  # characters of a record in one tag; MLflow cuts longer values at 8,000 without an error

SENT_TAG = "repro.sent"  # tag: set once all files of a run are sent

ENDED = f"attributes.end_time > 0 AND tags.`{RECORD_TAG}` LIKE '{{%'"

LAST_FIRST = ["attributes.end_time DESC"]

FIRST_PAGE_SIZE, PAGE_SIZE = 20, 250  # runs in one answer, which takes 4 ms per run

FILTERED_RUNS = 100  # ids in one search; 50 variants have about 100 rows

RETRIES = 3  # since runs may end between two requests

TIMEOUT = 10.0  # seconds, unless MLFLOW_HTTP_REQUEST_TIMEOUT is set

FORMAT = 1  # version of the cache file

CREDENTIALS = re.compile(r"//\S*@")  # up to the last @: a password may contain one

QUERY_SECRETS = re.compile(r"([?&][^=&\s]*(?:password|token|secret)[^=&\s]*=)[^&\s]+", re.IGNORECASE)

SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")

SUPPORTED_VARIABLES = {"MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", *SECRETS}

QUERY = f"""
SELECT tags.run_uuid, tags.value, sent.value FROM tags
JOIN runs ON runs.run_uuid = tags.run_uuid AND runs.lifecycle_stage = 'active' AND runs.end_time > 0
JOIN experiments ON experiments.experiment_id = runs.experiment_id AND experiments.lifecycle_stage = 'active'
LEFT JOIN tags AS sent ON sent.run_uuid = tags.run_uuid AND sent.key = '{SENT_TAG}'
WHERE tags.key = '{RECORD_TAG}' AND tags.value LIKE '{{%'
"""

PARTS_QUERY = f"SELECT run_uuid, key, value FROM tags WHERE key GLOB '{RECORD_TAG}.*'"


@dataclass(frozen=True)
class TrackedRun:
    """An ended run on a tracking server."""

    run_id: str  # of MLflow
    record: Mapping[str, Any]  # a Record as plain data
    sent: bool  # all its files are sent


def record_tags(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags that hold a record: its JSON text, in several parts where it is long."""
    text = json.dumps(record)
    starts = range(0, len(text), PART_SIZE)
    return {part_tag(number): text[start : start + PART_SIZE] for number, start in enumerate(starts)}


def part_tag(number: int) -> str:
    """Return the name of the tag with a part of a record; part 0 is the first."""
    return f"{RECORD_TAG}.{number}" if number else RECORD_TAG


def make_tracked_run(run_id: str, tags: Mapping[str, str]) -> TrackedRun:
    """Return the ended run that has these tags. Raises ValueError or TypeError where they hold no record."""
    text = part = tags[RECORD_TAG]
    number = 1
    while len(part) == PART_SIZE and (part := tags.get(part_tag(number), "")):
        text, number = text + part, number + 1
    return TrackedRun(run_id, {**from_json(text)}, SENT_TAG in tags)  # json.loads takes twice as long


def redact(text: str) -> str:
    """Return an address, or a text with addresses, with *** for passwords and tokens."""
    text = QUERY_SECRETS.sub(r"\1***", CREDENTIALS.sub("//***@", text))
    for name in SECRETS:
        if os.environ.get(name):
            text = text.replace(os.environ[name], "***")
    return text


def server_key(uri: str) -> str:
    """Return the address of a server without user, password and query."""
    return CREDENTIALS.sub("//", uri).partition("?")[0].rstrip("/")


def read_tracked_runs(uri: str) -> list[TrackedRun] | None:
    """Return all ended runs of a server; None where only MLflow's client can read them.

    Raises OSError (as the exceptions of requests are) where nothing answers.
    """
    if uri.startswith("sqlite:///") and "?" not in uri:
        return read_sqlite(Path(uri.removeprefix("sqlite:///")))
    unknown = {name for name in os.environ if name.startswith("MLFLOW_TRACKING_")} - SUPPORTED_VARIABLES
    if uri.startswith(("http://", "https://")) and not unknown and "MLFLOW_WORKSPACE" not in os.environ:
        with suppress(UnexpectedAnswerError):
            return read_server(uri)
    return None


def read_sqlite(path: Path) -> list[TrackedRun] | None:
    """Return all ended runs in a database file, none if it does not exist; None if it is not one of MLflow."""
    if not path.is_file():
        return []
    try:
        with open_sqlite(path) as database:
            rows = database.execute(QUERY).fetchall()
            parts: dict[str, dict[str, str]] = defaultdict(dict)
            for run_id, key, value in database.execute(PARTS_QUERY):
                parts[run_id][key] = value
        return [
            make_tracked_run(
                run_id,
                {RECORD_TAG: text} | parts.get(run_id, {}) | ({} if sent is None else {SENT_TAG: sent}),
            )
            for run_id, text, sent in rows
        ]
    except (sqlite3.Error, ValueError, TypeError):
        return None


def open_sqlite(path: Path) -> AbstractContextManager[sqlite3.Connection]:
    """Open a database file for reading, closed at the end of the block."""
    return closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=TIMEOUT))


def are_active_runs(uri: str, run_ids: Collection[str]) -> bool:
    """Return True if a server has all these runs and none is deleted; False also where that cannot be read."""
    try:
        if uri.startswith("sqlite:///") and "?" not in uri:
            with open_sqlite(Path(uri.removeprefix("sqlite:///"))) as database:
                marks = ", ".join("?" * len(run_ids))
                query = f"SELECT count(*) FROM runs WHERE run_uuid IN ({marks}) AND lifecycle_stage = 'active'"
                return bool(database.execute(query, [*run_ids]).fetchone()[0] == len(run_ids))
        if not uri.startswith(("http://", "https://")):
            return False
        return RestServer(uri).has_active_runs(run_ids)
    except (sqlite3.Error, OSError, UnexpectedAnswerError):
        return False


def find_experiment(uri: str, name: str) -> str | None:
    """Return the id of an MLflow experiment; None if it does not exist, is deleted, or cannot be read."""
    try:
        if uri.startswith("sqlite:///") and "?" not in uri:
            with open_sqlite(Path(uri.removeprefix("sqlite:///"))) as database:
                query = "SELECT experiment_id FROM experiments WHERE name = ? AND lifecycle_stage = 'active'"
                found = database.execute(query, (name,)).fetchone()
                return None if found is None else str(found[0])
        return RestServer(uri).names.get(name) if uri.startswith(("http://", "https://")) else None
    except (sqlite3.Error, OSError, UnexpectedAnswerError):
        return None


# --- a server ----------------------------------------------------------------------------------------------


class UnexpectedAnswerError(Exception):
    """The server answered something that only MLflow's client may understand or explain."""


@dataclass
class RunPage:
    """Some runs of a search; `more` if others follow."""

    runs: dict[str, TrackedRun]
    more: bool


class RestServer:
    """The parts of MLflow's REST API that reading records needs."""

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
        self.names = self._experiments()  # name -> id
        self.experiments = list(self.names.values())

    def _search(self, kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Search runs or experiments. Raises UnexpectedAnswerError."""
        url = f"{self.uri}/api/2.0/mlflow/{kind}/search"
        return parse_answer(self.session.post(url, json=body, timeout=self.timeout))

    def _experiments(self) -> dict[str, str]:
        found: dict[str, str] = {}
        token = ""
        while True:
            body = {"max_results": 1000, "view_type": "ACTIVE_ONLY", "page_token": token}
            page = self._search("experiments", body)
            found |= {one["name"]: one["experiment_id"] for one in page.get("experiments", [])}
            token = page.get("next_page_token", "")
            if not token:
                return found

    def page(self, start: int, count: int, view: str = "ACTIVE_ONLY") -> RunPage:
        """Return `count` of the ended runs, last ended first, from number `start`."""
        body: dict[str, Any] = {"experiment_ids": self.experiments, "filter": ENDED, "order_by": LAST_FIRST}
        body |= {"run_view_type": view, "max_results": count}
        if start:  # the format of MLflow's page tokens; another server would answer from the first run
            body["page_token"] = base64.b64encode(json.dumps({"offset": start}).encode()).decode()
        found = self._search("runs", body)
        try:
            runs = [parse_run(run) for run in found.get("runs", [])]
        except (KeyError, TypeError, ValueError):
            raise UnexpectedAnswerError from None
        return RunPage({run.run_id: run for run in runs}, bool(found.get("next_page_token")))

    def has_active_runs(self, run_ids: Collection[str]) -> bool:
        """Return True if all these runs exist and none is deleted. Raises UnexpectedAnswerError."""
        ids = sorted(set(run_ids))
        for start in range(0, len(ids), FILTERED_RUNS):
            part = ids[start : start + FILTERED_RUNS]
            wanted = ", ".join(f"'{run_id}'" for run_id in part)
            body = {
                "experiment_ids": self.experiments,
                "filter": f"attributes.run_id IN ({wanted})",
                "run_view_type": "ACTIVE_ONLY",
                "max_results": len(part),
            }
            if len(self._search("runs", body).get("runs", [])) != len(part):
                return False
        return True

    def has_only(self, known: Mapping[str, TrackedRun]) -> bool:
        """Return True if the server has as many ended runs as `known`: the last is known and none follows."""
        page = self.page(max(0, len(known) - 1), 1)
        return page.runs.keys() <= known.keys() and bool(page.runs) == bool(known) and not page.more

    def pages(self, view: str = "ACTIVE_ONLY", *, first: int | None = None) -> Iterator[RunPage]:
        """Yield all ended runs. If a run ends in the meantime, others move to the next page and are repeated."""
        start, count = 0, first or PAGE_SIZE
        while True:
            page = self.page(start, count, view)
            yield page
            if not page.more:
                return
            start, count = start + count, PAGE_SIZE


def parse_answer(answer: Any) -> dict[str, Any]:
    """Return the JSON object in a server's answer. Raises UnexpectedAnswerError."""
    if answer.status_code != 200:
        raise UnexpectedAnswerError
    try:
        found = answer.json()
    except ValueError:
        raise UnexpectedAnswerError from None
    if not isinstance(found, dict):
        raise UnexpectedAnswerError
    return found


def parse_run(run: Mapping[str, Any]) -> TrackedRun:
    """Return the ended run in a server's answer."""
    tags = {tag["key"]: tag.get("value", "") for tag in run["data"]["tags"]}
    return make_tracked_run(run["info"]["run_id"], tags)


def read_server(uri: str) -> list[TrackedRun]:
    """Return all ended runs of a server, most of them from the cache."""
    server, cache = RestServer(uri), RecordCache(server_key(uri))
    before = cache.read() if server.experiments else {}
    known = refresh(server, dict(before)) if server.experiments else {}
    if known != before:
        cache.write(known)
    return list(known.values())


def refresh(server: RestServer, known: dict[str, TrackedRun]) -> dict[str, TrackedRun]:
    """Return the runs of the server, given the `known` ones.

    Runs that ended since are read first. If the server then has as many runs as are known, they are the same. If
    not, some were deleted, or a machine with a slow clock ended a run; then all runs are read.
    """
    known = known or fetch_all(server)
    for _ in range(RETRIES):
        for page in server.pages(first=FIRST_PAGE_SIZE):
            new = {name: run for name, run in page.runs.items() if known.get(name) != run}
            known |= new
            if not new:
                break
        if server.has_only(known):
            return known
        for page in server.pages("DELETED_ONLY"):
            for name in page.runs:
                known.pop(name, None)
        if server.has_only(known):
            return known
    return fetch_all(server)


def fetch_all(server: RestServer) -> dict[str, TrackedRun]:
    """Return all ended runs of the server."""
    return {name: run for page in server.pages() for name, run in page.runs.items()}


@dataclass(frozen=True)
class RecordCache:
    """Cache file of the records of a server. A damaged file or one of another format counts as empty."""

    server: str
    file: Path = field(init=False)

    def __post_init__(self) -> None:
        name = hashlib.sha256(self.server.encode()).hexdigest()[:16]
        object.__setattr__(self, "file", runs_folder() / f".tracked-{name}.json")

    def read(self) -> dict[str, TrackedRun]:
        """Return the runs by run id."""
        try:
            kept = json.loads(self.file.read_text(encoding="utf-8"))
            if (kept["format"], kept["server"]) != (FORMAT, self.server):
                return {}
            return {name: TrackedRun(name, {**record}, sent is True) for name, record, sent in kept["runs"]}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def write(self, known: Mapping[str, TrackedRun]) -> None:
        """Replace the file. If it cannot be written, the next command takes longer."""
        runs = [[run.run_id, run.record, run.sent] for run in known.values()]
        with suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.file, json.dumps({"format": FORMAT, "server": self.server, "runs": runs}))
