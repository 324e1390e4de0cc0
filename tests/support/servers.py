"""Local servers for tests of remote sets: http servers, also with faults, and S3."""

import contextlib
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

KEY, SECRET = "AKIDFORTESTS", "s3cr3t-of-the-tests"  # the credentials of the S3 tests


class Server(http.server.ThreadingHTTPServer):
    """A server with a long queue of connections."""

    request_queue_size = 128


class WholeFileHandler(http.server.SimpleHTTPRequestHandler):
    """Ignores ranges and sends whole files."""

    requests: list[str]  # paths, in order; `serve` makes one list per server

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        type(self).requests.append(self.path)
        self.respond()

    def respond(self) -> None:
        """Send the requested file."""
        super().do_GET()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        with contextlib.suppress(ConnectionError):  # the client has closed the connection
            super().copyfile(source, outputfile)


class RangeHandler(WholeFileHandler):
    """Supports ranges."""

    def respond(self) -> None:
        span = self.headers.get("Range")
        file = Path(self.translate_path(self.path))
        if not span or not file.is_file():
            super().respond()
            return
        content = file.read_bytes()
        first, last = (int(number) for number in span.removeprefix("bytes=").split("-"))
        if first >= len(content):
            self.send_error(416)
            return
        part = content[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(self.sent_bytes(part))

    def sent_bytes(self, part: bytes) -> bytes:
        """Return the bytes that are sent for a range."""
        return part


class TruncatingHandler(RangeHandler):
    """Sends less than the announced number of bytes."""

    def sent_bytes(self, part: bytes) -> bytes:
        return part[: len(part) // 2]

    def copyfile(self, source: Any, outputfile: Any) -> None:
        outputfile.write(source.read(100))


class FailingOnceHandler(RangeHandler):
    """Answers the first request for each path with status 503."""

    def respond(self) -> None:
        if self.requests.count(self.path) == 1:
            self.send_error(503)
        else:
            super().respond()


class ForbiddenHandler(WholeFileHandler):
    """Answers every request with status 403."""

    def respond(self) -> None:
        self.send_error(403)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.do_GET()


class SilentHandler(WholeFileHandler):
    """Accepts connections and does not answer until the server is closed."""

    closing: threading.Event

    def respond(self) -> None:
        self.closing.wait(10)


@contextlib.contextmanager
def serve(
    folder: Path, handler: type[WholeFileHandler] = RangeHandler, requests: list[str] | None = None
) -> Iterator[str]:
    """Serve `folder` within the context; yield the address. `requests` receives the path of each request."""
    attributes = {"requests": [] if requests is None else requests, "closing": threading.Event()}
    own: Any = type(handler.__name__, (handler,), attributes)
    server = Server(("127.0.0.1", 0), partial(own, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        own.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def use_s3(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    """Set the AWS variables to the tests' credentials and to a local server, without this user's settings."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_PROFILE", "AWS_ROLE_ARN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    if address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Run an in-memory S3 server with an empty bucket `bucket` within the context; yield its address."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for method, path in (("POST", "moto-api/reset"), ("PUT", "bucket")):  # moto's state is global
            with urlopen(Request(f"http://{host}:{port}/{path}", method=method)):
                pass
        yield f"http://{host}:{port}"
    finally:
        server.stop()
