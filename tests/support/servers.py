"""Servers on this machine, for the tests of sets that lie far away: http with its troubles, and S3."""

import contextlib
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

KEY, SECRET = "AKIDFORTESTS", "s3cr3t-of-the-tests"  # what S3 is asked with


class Server(http.server.ThreadingHTTPServer):
    """One that takes many connections at once."""

    request_queue_size = 128


class Whole(http.server.SimpleHTTPRequestHandler):
    """Knows no ranges: sends whole files."""

    asked: list[str]  # paths, in order; each server has a class of its own

    def log_message(self, *words: object) -> None:
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        self.answer()

    def answer(self) -> None:
        """The file asked for."""
        super().do_GET()

    def copyfile(self, source, outputfile) -> None:
        with contextlib.suppress(ConnectionError):  # who hangs up has seen enough
            super().copyfile(source, outputfile)


class Ranged(Whole):
    """Knows ranges."""

    def answer(self) -> None:
        span = self.headers.get("Range")
        file = Path(self.translate_path(self.path))
        if not span or not file.is_file():
            super().answer()
            return
        content = file.read_bytes()
        first, last = (int(word) for word in span.removeprefix("bytes=").split("-"))
        if first >= len(content):
            self.send_error(416)
            return
        part = content[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(self.cut(part))

    def cut(self, part: bytes) -> bytes:
        """What is really sent."""
        return part


class Dying(Ranged):
    """Promises a part and sends half of it."""

    def cut(self, part: bytes) -> bytes:
        return part[: len(part) // 2]

    def copyfile(self, source, outputfile) -> None:
        outputfile.write(source.read(100))


class Stumbling(Ranged):
    """Says 503 the first time that it is asked for something, and answers the next time."""

    def answer(self) -> None:
        if self.asked.count(self.path) == 1:
            self.send_error(503)
        else:
            super().answer()


class Refusing(Whole):
    """Lets nobody in."""

    def answer(self) -> None:
        self.send_error(403)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.do_GET()


class Silent(Whole):
    """Accepts and says nothing."""

    hold: threading.Event

    def answer(self) -> None:
        self.hold.wait(10)


@contextlib.contextmanager
def serve(folder: Path, handler: type[Whole] = Ranged, asked: list[str] | None = None) -> Iterator[str]:
    """The address of a server of `folder`, gone afterwards with its threads. `asked` is told every path."""
    own = type(handler.__name__, (handler,), {"asked": [] if asked is None else asked, "hold": threading.Event()})
    server = Server(("127.0.0.1", 0), partial(own, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        own.hold.set()
        server.shutdown()
        server.server_close()
        thread.join()


def use_s3(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    """Let S3's client find a server here, and the tests' keys; nothing of this machine's owner's."""
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
    """The address of an S3 in memory, with one empty bucket of the name `bucket`."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for method, path in (("POST", "moto-api/reset"), ("PUT", "bucket")):  # what it holds is the process's
            with urlopen(Request(f"http://{host}:{port}/{path}", method=method)):
                pass
        yield f"http://{host}:{port}"
    finally:
        server.stop()
