"""Jobs on a cluster: submission, relayed output, and errors of the job API."""

import asyncio
import contextlib
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

from pipeline.cli import main
from pipeline.cluster import jobs
from pipeline.cluster.local_head import ClusterAddress, ray_environment
from pipeline.common.errors import UserError

LOCAL = ClusterAddress("127.0.0.1:1", "http://127.0.0.1:2", "", pid=3)
REMOTE = ClusterAddress("", "http://far:8265", "")
REQUEST = SimpleNamespace(real_url="http://far:8265/api/jobs/7/logs/tail")
RAY_LINE = "2026-01-02 03:04:05,678\tINFO job_manager.py:568 -- Runtime env is set up.\n"
CPP_LINE = "[2026-01-02 03:04:05,678 I 12 34] logging.cc:303: Set log level\n"
CONNECTION_ERRORS = [
    aiohttp.WSServerHandshakeError(REQUEST, (), status=502, message="Bad Gateway"),
    aiohttp.ServerDisconnectedError(),
    aiohttp.ClientPayloadError("cut off"),
    RaySystemError("a worker is away"),
    RuntimeError("WebSocket connection closed unexpectedly with close code 1006"),
    ConnectionResetError("reset"),
    TimeoutError(),
]


@pytest.fixture(autouse=True)
def no_delay(monkeypatch):
    """Retry without delay, and restore the environment variables that a client sets."""
    monkeypatch.setattr(jobs, "RETRY_SECONDS", 0.0)
    for name in ray_environment(Path("token")):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


class FakeClient:
    """Fake of Ray's JobSubmissionClient.

    `streams`: the chunks of each connection, where an exception breaks it. `infos`: the results of `get_job_info`,
    the last one repeated. `log`: the whole output.
    """

    def __init__(self, streams=(), infos=(), log="", job="job-1"):
        self.streams, self.infos, self.log, self.job = list(streams), list(infos), log, job
        self.connections = 0

    async def tail_job_logs(self, job):
        assert job == "7"
        self.connections += 1
        for chunk in self.streams.pop(0) if self.streams else ():
            await asyncio.sleep(0)
            yield returned(chunk)

    def get_job_info(self, job):
        return returned(self.infos.pop(0) if len(self.infos) > 1 else self.infos[0])

    def get_job_logs(self, job):
        return returned(self.log)

    def submit_job(self, **arguments):
        self.arguments = arguments
        return returned(self.job)


def returned(value):
    """Return a value, or raise it if it is an exception."""
    if isinstance(value, BaseException):
        raise value
    return value


def info(status, code=None):
    """Return the information on a job."""
    return SimpleNamespace(status=JobStatus(status), driver_exit_code=code)


RUNNING, SUCCEEDED = info("RUNNING"), info("SUCCEEDED", 0)


@pytest.fixture
def followed(monkeypatch) -> Callable:
    """Follow a job of a FakeClient: return its exit code, the written chunks, and the client."""

    def follow(*args, **options):
        client, written = FakeClient(*args, **options), []
        monkeypatch.setattr(jobs, "job_client", lambda cluster: client)
        return jobs.follow_job(REMOTE, "7", written.append), written, client

    return follow


# --- following ---------------------------------------------------------------------------------------------


def test_output_is_written_in_whole_lines(followed):
    code, written, _ = followed([["one\ntw", "o\nthr", "ee"]], [SUCCEEDED], "one\ntwo\nthree")
    assert (code, written) == (0, ["one\n", "two\n", "three"])


@pytest.mark.parametrize("error", CONNECTION_ERRORS, ids=lambda error: type(error).__name__)
def test_a_broken_stream_is_opened_again_and_no_line_is_lost_or_repeated(followed, error):
    streams = [["one\ntw", error], [error], ["on", error], ["one\ntwo\n", "three\n"]]
    code, written, client = followed(streams, [RUNNING, RUNNING, RUNNING, SUCCEEDED], "one\ntwo\nthree\n")
    assert (code, "".join(written), client.connections) == (0, "one\ntwo\nthree\n", 4)


@pytest.mark.parametrize("error", CONNECTION_ERRORS, ids=lambda error: type(error).__name__)
def test_the_rest_of_the_output_comes_from_the_whole_log_or_else_from_the_stream(followed, error):
    assert followed([["one\ntw", error]], [SUCCEEDED], "one\ntwo\nthree")[1] == ["one\n", "two\nthree"]
    assert followed([["one\ntw", error]], [SUCCEEDED], error)[1] == ["one\n", "tw"]
    assert followed([["one\ntw", error]], [SUCCEEDED], "")[1] == ["one\n", "tw"]  # the log file was deleted


def test_log_lines_of_ray_are_skipped_even_in_several_chunks(followed):
    streams = [[RAY_LINE[:30], RAY_LINE[30:] + "ours INFO\n", CPP_LINE + "more"]]
    _, written, _ = followed(streams, [SUCCEEDED], RAY_LINE + "ours INFO\n" + CPP_LINE + "more")
    assert "".join(written) == "ours INFO\nmore"


@pytest.mark.parametrize("log", [RAY_LINE + CPP_LINE, RAY_LINE, RAY_LINE.strip(), ""])
def test_a_job_without_output_of_its_own_writes_nothing(followed, log):
    assert followed([[log]] if log else [], [SUCCEEDED], log)[1] == []


@pytest.mark.parametrize(
    ("last", "code"),
    [
        (SUCCEEDED, 0),
        (info("FAILED", 1), 1),
        (info("FAILED", 4), 4),
        (info("FAILED"), 1),
        (info("STOPPED"), 1),
        (info("SUCCEEDED"), 0),
    ],
)
def test_the_exit_code_is_that_of_the_job(followed, last, code):
    assert followed([], [info("PENDING"), RUNNING, last])[0] == code


@pytest.mark.parametrize("error", CONNECTION_ERRORS, ids=lambda error: type(error).__name__)
def test_an_unreachable_api_is_retried(followed, error):
    away = [error] * (jobs.CONNECT_RETRIES - 1)
    assert followed([[error]], [*away, RUNNING, *away, SUCCEEDED], "one\n")[:2] == (0, ["one\n"])


@pytest.mark.parametrize("error", CONNECTION_ERRORS, ids=lambda error: type(error).__name__)
def test_after_the_last_retry_the_output_is_written_and_an_error_raised(monkeypatch, error):
    client, written = FakeClient([["one\ntw", error]], [error]), []
    monkeypatch.setattr(jobs, "job_client", lambda cluster: client)
    with pytest.raises(UserError, match="http://far:8265 no longer responds") as caught:
        jobs.follow_job(REMOTE, "7", written.append)
    assert "\n" not in str(caught.value)
    assert (written, client.connections) == (["one\n", "tw"], jobs.CONNECT_RETRIES)


def test_an_interrupt_ends_the_relay(followed):
    with pytest.raises(KeyboardInterrupt):
        followed([["one\n", KeyboardInterrupt()]], [RUNNING])


# --- submitting --------------------------------------------------------------------------------------------


@pytest.fixture
def submitted(monkeypatch) -> Callable:
    """Submit a command to a FakeClient and return what was sent."""

    def submit(cluster, argv, **options):
        client = FakeClient()
        monkeypatch.setattr(jobs, "job_client", lambda cluster: client)
        assert jobs.submit_job(cluster, argv, **options) == "job-1"
        return client.arguments

    return submit


def test_arguments_are_quoted(submitted):
    argv = ["launch", "a b", "it's", '"quoted"', "$HOME; rm *", "", "ü\n"]
    assert shlex.split(submitted(REMOTE, argv)["entrypoint"]) == ["python", "-m", "pipeline.cli", *argv]


def test_a_job_gets_its_own_variables_and_no_secret_of_the_environment(submitted, monkeypatch, tmp_path):
    secrets = {
        "MLFLOW_TRACKING_PASSWORD": "pw-1",
        "MLFLOW_TRACKING_URI": "http://me:pw-2@tracking",
        "RAY_AUTH_TOKEN": "pw-3",
        "AWS_SECRET_ACCESS_KEY": "pw-4",
        "REPRO_SOMETHING": "pw-5",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    for cluster in (REMOTE, LOCAL):
        for where in ({}, {"code": tmp_path}, {"upload": tmp_path}):
            sent = submitted(cluster, ["status"], **where)
            assert sent["runtime_env"]["env_vars"][jobs.INSIDE_VARIABLE] == "1"
            assert "pw-" not in repr(sent)
    own = {"REPRO_HOME", "REPRO_DATA"}
    assert own <= set(submitted(LOCAL, [])["runtime_env"]["env_vars"])
    assert not own & set(submitted(REMOTE, [])["runtime_env"]["env_vars"])


@pytest.mark.parametrize("error", CONNECTION_ERRORS, ids=lambda error: type(error).__name__)
def test_a_job_that_is_not_accepted_is_an_error_in_one_line(monkeypatch, error):
    monkeypatch.setattr(jobs, "job_client", lambda cluster: FakeClient(job=error))
    with pytest.raises(UserError, match="http://far:8265 did not accept the job") as caught:
        jobs.submit_job(REMOTE, ["status"])
    assert "\n" not in str(caught.value)


# --- an address --------------------------------------------------------------------------------------------


@pytest.fixture
def start_server():
    """Start a server with one response to every request, and return its URL."""
    servers = []

    def start(status, body=b"{}"):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def refusal(address):
    """Return the message of the UserError for an address."""
    with pytest.raises(UserError) as caught:
        jobs.cluster_at(address)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("address", ["far:8265", "ray://far:10001", "ftp://me:secret@far", ""])
def test_an_address_must_be_an_http_url(address):
    message = refusal(address)
    assert "as in http://HOST:8265" in message
    assert "secret" not in message


def test_a_password_in_an_address_is_not_printed(start_server):
    port = start_server(404).rpartition(":")[2]
    assert f"no cluster responds at http://***@127.0.0.1:{port};" in refusal(f"http://me:secret@127.0.0.1:{port}")


def test_an_address_where_nothing_listens_is_refused():
    assert "no cluster responds at http://127.0.0.1:1;" in refusal("http://127.0.0.1:1/")


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"<html>"), (200, b"{}"), (200, b"[]"), (404, b""), (500, b"oops"), (200, b'{"ray_version": "x"}')],
)
def test_another_server_is_refused(start_server, status, body):
    assert "no cluster responds at" in refusal(start_server(status, body))


@pytest.mark.parametrize("status", [401, 403])
def test_a_missing_or_wrong_token_is_an_error_that_says_how_to_get_it(start_server, status):
    assert "requires its token" in refusal(start_server(status, b"who are you\nthere"))


def test_a_missing_token_file_is_an_error(start_server, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert "cannot read the cluster token" in refusal(start_server(401))


def test_a_token_file_that_others_can_read_and_a_wrong_token_are_refused(start_server, monkeypatch, tmp_path):
    token = tmp_path / "token"
    token.write_text("wrong", encoding="utf-8")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    token.chmod(0o644)
    assert "other users of this machine can read" in refusal(start_server(403))
    token.chmod(0o600)
    assert f"does not accept the token in {token}" in refusal(start_server(403))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (AuthenticationError("Authentication required: no token"), "requires its token"),
        (RuntimeError("Request failed with status code 403: no"), "requires its token"),
        (RuntimeError("Request failed with status code 500: no"), "no cluster responds"),
        (ConnectionError("Failed to connect to Ray at address: http://token-401:40301."), "no cluster responds"),
        (RaySystemError("away"), "no cluster responds"),
        (aiohttp.ClientError("away"), "no cluster responds"),
    ],
)
def test_each_error_of_the_client_has_its_message(monkeypatch, error, expected):
    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", lambda address: returned(error))
    assert expected in refusal("http://far:8265")


def test_a_cluster_that_responds_is_returned(monkeypatch, tmp_path):
    class Client:
        def __init__(self, address):
            assert address == "http://far:8265"

    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", Client)
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("right", encoding="utf-8")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    assert jobs.cluster_at("http://far:8265/") == ClusterAddress("", "http://far:8265", str(token))


def test_a_token_that_becomes_invalid_while_a_job_is_followed_is_an_error(monkeypatch):
    monkeypatch.setattr(jobs, "job_client", lambda cluster: FakeClient([], [AuthenticationError("no")]))
    with pytest.raises(UserError, match="requires its token"):
        jobs.follow_job(REMOTE, "7", print)


# --- proxies ------------------------------------------------------------------------------------------------


class Recorder(BaseHTTPRequestHandler):
    """Answers 404 and records the path of each request; as a proxy it receives whole URLs."""

    def do_GET(self):
        self.server.seen.append(self.path)
        self.send_error(404)

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def recorder():
    """A server on loopback, with the list `seen`."""
    with HTTPServer(("127.0.0.1", 0), Recorder) as server:
        server.seen = []
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("protected", [True, False])
def test_requests_go_to_the_cluster_and_not_to_a_proxy(command, monkeypatch, protected):
    """Without the protection they go to the proxy, so the test can fail. Their headers contain the token."""
    if not protected:
        for module in (jobs, main):
            monkeypatch.setattr(module, "use_no_proxy", lambda *hosts: None)
    with recorder() as cluster, recorder() as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
        address = f"http://127.0.0.1:{cluster.server_port}"
        code, _, err = command("status", "--address", address)
    assert code == 2
    assert err.splitlines()[-1].startswith(f"error: no cluster responds at {address}")
    if protected:
        assert cluster.seen
        assert proxy.seen == []
    else:
        assert all(path.startswith(address) for path in proxy.seen)
        assert proxy.seen
        assert cluster.seen == []
