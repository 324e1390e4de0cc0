"""The job API: what is sent to it, how a job's output comes back, and what is said where it cannot be used."""

import asyncio
import shlex
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import aiohttp
import pytest
import ray.job_submission
from ray.exceptions import AuthenticationError, RaySystemError
from ray.job_submission import JobStatus

from pipeline.cluster import jobs
from pipeline.cluster.local_head import ClusterAddress, ray_environment
from pipeline.common.errors import UserError

HERE = ClusterAddress("127.0.0.1:1", "http://127.0.0.1:2", "", pid=3)
FAR = ClusterAddress("", "http://far:8265", "")
REQUEST = SimpleNamespace(real_url="http://far:8265/api/jobs/7/logs/tail")
RAYS = "2026-01-02 03:04:05,678\tINFO job_manager.py:568 -- Runtime env is set up.\n"
LOGGED = "[2026-01-02 03:04:05,678 I 12 34] logging.cc:303: Set log level\n"
BROKEN = [
    aiohttp.WSServerHandshakeError(REQUEST, (), status=502, message="Bad Gateway"),
    aiohttp.ServerDisconnectedError(),
    aiohttp.ClientPayloadError("cut off"),
    RaySystemError("a worker is away"),
    RuntimeError("WebSocket connection closed unexpectedly with close code 1006"),
    ConnectionResetError("reset"),
    TimeoutError(),
]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No waiting; and what a client puts into the environment is taken out again."""
    monkeypatch.setattr(jobs, "RETRY_SECONDS", 0.0)
    for name in ray_environment(Path("token")):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


class Api:
    """Stands for Ray's client. `streams`: the pieces of each connection's, an exception breaks it; `infos`: what
    is told of the job each time, the last over and over; `log`: all that it said.
    """

    def __init__(self, streams=(), infos=(), log="", taken="job-1"):
        self.streams, self.infos, self.log, self.taken = list(streams), list(infos), log, taken
        self.asked = 0

    async def tail_job_logs(self, job):
        assert job == "7"
        self.asked += 1
        for piece in self.streams.pop(0) if self.streams else ():
            await asyncio.sleep(0)
            yield told(piece)

    def get_job_info(self, job):
        return told(self.infos.pop(0) if len(self.infos) > 1 else self.infos[0])

    def get_job_logs(self, job):
        return told(self.log)

    def submit_job(self, **words):
        self.words = words
        return told(self.taken)


def told(answer):
    if isinstance(answer, BaseException):
        raise answer
    return answer


def info(status, code=None):
    return SimpleNamespace(status=JobStatus(status), driver_exit_code=code)


RUNS, WELL = info("RUNNING"), info("SUCCEEDED", 0)


@pytest.fixture
def followed(monkeypatch) -> Callable:
    """Follow a job of such an API: its exit code, what was written piece by piece, and the API."""

    def follow(*words, **more):
        api, written = Api(*words, **more), []
        monkeypatch.setattr(jobs, "job_client", lambda cluster: api)
        return jobs.follow_job(FAR, "7", written.append), written, api

    return follow


# --- following ---------------------------------------------------------------------------------------------


def test_output_is_shown_by_whole_lines_as_it_comes(followed):
    code, written, _ = followed([["one\ntw", "o\nthr", "ee"]], [WELL], "one\ntwo\nthree")
    assert (code, written) == (0, ["one\n", "two\n", "three"])


@pytest.mark.parametrize("error", BROKEN, ids=lambda error: type(error).__name__)
def test_a_stream_that_breaks_is_asked_for_again_and_nothing_is_lost_or_shown_twice(followed, error):
    streams = [["one\ntw", error], [error], ["on", error], ["one\ntwo\n", "three\n"]]
    code, written, api = followed(streams, [RUNS, RUNS, RUNS, WELL], "one\ntwo\nthree\n")
    assert (code, "".join(written), api.asked) == (0, "one\ntwo\nthree\n", 4)


@pytest.mark.parametrize("error", BROKEN, ids=lambda error: type(error).__name__)
def test_what_only_the_whole_log_holds_is_shown_and_without_it_what_the_stream_said(followed, error):
    assert followed([["one\ntw", error]], [WELL], "one\ntwo\nthree")[1] == ["one\n", "two\nthree"]
    assert followed([["one\ntw", error]], [WELL], error)[1] == ["one\n", "tw"]
    assert followed([["one\ntw", error]], [WELL], "")[1] == ["one\n", "tw"]  # a file that is gone


def test_lines_of_rays_own_are_left_out_also_in_pieces(followed):
    streams = [[RAYS[:30], RAYS[30:] + "ours INFO\n", LOGGED + "more"]]
    _, written, _ = followed(streams, [WELL], RAYS + "ours INFO\n" + LOGGED + "more")
    assert "".join(written) == "ours INFO\nmore"


@pytest.mark.parametrize("log", [RAYS + LOGGED, RAYS, RAYS.strip(), ""])
def test_a_job_that_said_nothing_of_its_own_shows_nothing(followed, log):
    assert followed([[log]] if log else [], [WELL], log)[1] == []


@pytest.mark.parametrize(
    ("last", "code"),
    [
        (WELL, 0),
        (info("FAILED", 1), 1),
        (info("FAILED", 4), 4),
        (info("FAILED"), 1),
        (info("STOPPED"), 1),
        (info("SUCCEEDED"), 0),
    ],
)
def test_the_exit_code_is_the_jobs(followed, last, code):
    assert followed([], [info("PENDING"), RUNS, last])[0] == code


@pytest.mark.parametrize("error", BROKEN, ids=lambda error: type(error).__name__)
def test_an_api_that_is_away_for_less_than_all_tries_is_waited_for(followed, error):
    away = [error] * (jobs.CONNECT_RETRIES - 1)
    assert followed([[error]], [*away, RUNS, *away, WELL], "one\n")[:2] == (0, ["one\n"])


@pytest.mark.parametrize("error", BROKEN, ids=lambda error: type(error).__name__)
def test_an_api_that_is_gone_for_good_is_one_sentence_after_all_that_was_said(monkeypatch, error):
    api, written = Api([["one\ntw", error]], [error]), []
    monkeypatch.setattr(jobs, "job_client", lambda cluster: api)
    with pytest.raises(UserError, match="http://far:8265 does not answer any more") as said:
        jobs.follow_job(FAR, "7", written.append)
    assert "\n" not in str(said.value)
    assert (written, api.asked) == (["one\n", "tw"], jobs.CONNECT_RETRIES)


def test_an_interrupt_ends_the_following(followed):
    with pytest.raises(KeyboardInterrupt):
        followed([["one\n", KeyboardInterrupt()]], [RUNS])


# --- submitting --------------------------------------------------------------------------------------------


@pytest.fixture
def submitted(monkeypatch) -> Callable:
    """Submit words to such an API: what was sent."""

    def submit(cluster, words, **more):
        api = Api()
        monkeypatch.setattr(jobs, "job_client", lambda cluster: api)
        assert jobs.submit_job(cluster, words, **more) == "job-1"
        return api.words

    return submit


def test_words_arrive_as_they_were_whatever_is_in_them(submitted):
    words = ["launch", "a b", "it's", '"quoted"', "$HOME; rm *", "", "ü\n"]
    assert shlex.split(submitted(FAR, words)["entrypoint"]) == ["python", "-m", "pipeline.cli", *words]


def test_the_job_knows_that_it_is_one_and_gets_nothing_of_the_environment(submitted, monkeypatch, tmp_path):
    secrets = {
        "MLFLOW_TRACKING_PASSWORD": "pw-1",
        "MLFLOW_TRACKING_URI": "http://me:pw-2@tracking",
        "RAY_AUTH_TOKEN": "pw-3",
        "AWS_SECRET_ACCESS_KEY": "pw-4",
        "REPRO_SOMETHING": "pw-5",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    for cluster in (FAR, HERE):
        for where in ({}, {"code": tmp_path}, {"upload": tmp_path}):
            sent = submitted(cluster, ["status"], **where)
            assert sent["runtime_env"]["env_vars"][jobs.INSIDE_VARIABLE] == "1"
            assert "pw-" not in repr(sent)
    own = {"REPRO_HOME", "REPRO_DATA"}
    assert own <= set(submitted(HERE, [])["runtime_env"]["env_vars"])
    assert not own & set(submitted(FAR, [])["runtime_env"]["env_vars"])


@pytest.mark.parametrize("error", BROKEN, ids=lambda error: type(error).__name__)
def test_a_job_that_is_not_taken_is_one_sentence(monkeypatch, error):
    monkeypatch.setattr(jobs, "job_client", lambda cluster: Api(taken=error))
    with pytest.raises(UserError, match="http://far:8265 did not take the job") as said:
        jobs.submit_job(FAR, ["status"])
    assert "\n" not in str(said.value)


# --- an address --------------------------------------------------------------------------------------------


@pytest.fixture
def answering():
    """A server that gives one answer to whatever is asked; its address."""
    servers = []

    def start(status, body=b"{}"):
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *words):
                pass

        server = HTTPServer(("127.0.0.1", 0), Answer)
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def refused(address):
    """The sentence that an address gets."""
    with pytest.raises(UserError) as said:
        jobs.cluster_at(address)
    assert "\n" not in str(said.value)
    return str(said.value)


@pytest.mark.parametrize("address", ["far:8265", "ray://far:10001", "ftp://me:secret@far", ""])
def test_another_scheme_is_told_what_is_needed(address):
    said = refused(address)
    assert "as in http://HOST:8265" in said
    assert "secret" not in said


def test_a_password_in_an_address_is_not_repeated(answering):
    port = answering(404).rpartition(":")[2]
    assert f"no cluster answers at http://***@127.0.0.1:{port};" in refused(f"http://me:secret@127.0.0.1:{port}")


def test_nothing_at_all_listens():
    assert "no cluster answers at http://127.0.0.1:1;" in refused("http://127.0.0.1:1/")


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"<html>"), (200, b"{}"), (200, b"[]"), (404, b""), (500, b"oops"), (200, b'{"ray_version": "x"}')],
)
def test_something_else_answers(answering, status, body):
    assert "no cluster answers at" in refused(answering(status, body))


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_is_missing_or_wrong_is_asked_for(answering, status):
    assert "asks for its token" in refused(answering(status, b"who are you\nthere"))


def test_a_token_file_that_is_not_there_is_asked_for(answering, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert "cannot be read from" in refused(answering(401))


def test_a_token_that_others_can_read_is_refused_and_a_wrong_one_is_named(answering, monkeypatch, tmp_path):
    token = tmp_path / "token"
    token.write_text("wrong", encoding="utf-8")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    token.chmod(0o644)
    assert "other users of this machine can read" in refused(answering(403))
    token.chmod(0o600)
    assert f"does not accept the token in {token}" in refused(answering(403))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (AuthenticationError("Authentication required: no token"), "asks for its token"),
        (RuntimeError("Request failed with status code 403: no"), "asks for its token"),
        (RuntimeError("Request failed with status code 500: no"), "no cluster answers"),
        (ConnectionError("Failed to connect to Ray at address: http://token-401:40301."), "no cluster answers"),
        (RaySystemError("away"), "no cluster answers"),
        (aiohttp.ClientError("away"), "no cluster answers"),
    ],
)
def test_why_an_address_cannot_be_used(monkeypatch, error, says):
    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", lambda address: told(error))
    assert says in refused("http://far:8265")


def test_a_cluster_that_answers_is_used(monkeypatch, tmp_path):
    class Answers:
        def __init__(self, address):
            assert address == "http://far:8265"

    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", Answers)
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("right", encoding="utf-8")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    assert jobs.cluster_at("http://far:8265/") == ClusterAddress("", "http://far:8265", str(token))


def test_a_token_that_stops_being_good_while_a_job_is_followed_is_asked_for(monkeypatch):
    monkeypatch.setattr(jobs, "job_client", lambda cluster: Api([], [AuthenticationError("no")]))
    with pytest.raises(UserError, match="asks for its token"):
        jobs.follow_job(FAR, "7", print)
