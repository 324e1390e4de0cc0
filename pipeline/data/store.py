"""Stores of files: a folder, or a prefix that is read over http(s) or in S3. An address never runs a program.

S3 and the connections come from fsspec. Reading over http is implemented here, since fsspec does not retry,
returns whole files from servers that ignore ranges, and reports an unreachable server as a missing file.
"""

import asyncio
import contextlib
import errno
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pipeline.data.images import DataError

REMOTE_SCHEMES = ("http", "https", "s3")
ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):")
NOT_FOUND_STATUSES = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
NO_ACCESS_STATUSES = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
PASSING_STATUSES = (429, 500, 502, 503, 504)  # worth a retry
READ_TIMEOUT = 60  # seconds without a byte after which an http connection counts as lost
RETRY_PAUSES = (0.5, 2, 8)  # seconds before each retry of an http request; S3's client has retries of its own
COPY_CHUNK = 2**20  # bytes written at once
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
CLIENT_LIBRARIES = ("botocore", "aiohttp", "aiobotocore", "fsspec")
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # the first one that is set counts
BAD_ENDPOINT = ("Invalid endpoint", "Invalid IPv6 URL", "Custom endpoint")  # beginnings of botocore's messages
UNCACHED = {"skip_instance_cache": True, "use_listings_cache": False}  # other processes write to the same place

Range = tuple[str, int, int]  # name of a file, first byte, number of bytes


class MissingFileError(DataError):
    """A file does not exist."""


@dataclass(frozen=True, repr=False)
class Store:
    """A folder of files on this machine or behind fsspec. Threads can share it; it survives pickling and forks.

    Methods raise DataError with a message that names the file and holds no secret; MissingFileError if it does not
    exist.
    """

    address: str  # without a final slash; may contain a password, so use str(store) in messages

    @property
    def local(self) -> Path | None:
        """The folder, or None if it is not on this machine."""
        return None if "://" in self.address else Path(self.address)

    def __str__(self) -> str:
        """Return the address without user, password and query."""
        if self.local:
            return self.address
        parts = urlsplit(self.address)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def __repr__(self) -> str:
        return f"Store({str(self)!r})"

    def __reduce__(self) -> tuple[type["Store"], tuple[str]]:
        return Store, (self.address,)  # without open connections

    @property
    def http(self) -> bool:
        """True for an http or https address."""
        return self.address.startswith(("http:", "https:"))

    @property
    def s3(self) -> bool:
        """True for an S3 address."""
        return self.address.startswith("s3:")

    @property
    def _files(self) -> Any:
        """This process's fsspec file system; S3's credentials and endpoint are those of AWS's tools."""
        by_process, process = self.__dict__.setdefault("_file_systems", {}), os.getpid()
        if process not in by_process:  # connections do not survive a fork
            import fsspec

            if self.http:
                import aiohttp

                timeout = aiohttp.ClientTimeout(total=None, sock_connect=READ_TIMEOUT, sock_read=READ_TIMEOUT)
                by_process[process] = fsspec.filesystem("http", client_kwargs={"timeout": timeout}, **UNCACHED)
            else:
                by_process[process] = fsspec.filesystem("s3", **UNCACHED)
        return by_process[process]

    def path(self, name: str) -> str:
        """Return a file's full address. A query, which may be a signature, stays at the end."""
        if not self.http:
            return f"{self.address}/{name}"
        parts = urlsplit(self.address)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))

    def exists(self, name: str) -> bool:
        """Return True if the file exists."""
        # fsspec's `exists` also returns False for a server that cannot be reached, which is an error here.
        if self.local:
            with self.translate_errors(name):
                return (self.local / name).is_file()
        try:
            self.size(name)
        except MissingFileError:
            return False
        return True

    def names(self, *, folders: bool = False) -> list[str]:
        """Return the sorted names of files, and of folders with `folders`.

        The list is empty for a folder that does not exist, and for http, which cannot list files.
        """
        if self.local:
            with self.translate_errors(""):
                entries = self.local.iterdir() if self.local.is_dir() else ()
                return sorted(path.name for path in entries if folders or path.is_file())
        if self.http:
            return []
        try:
            with self.translate_errors(""):
                entries = self._files.ls(self.address, detail=True, refresh=True)
        except MissingFileError:
            return []
        names = {str(e["name"]).rpartition("/")[2] for e in entries if folders or e["type"] == "file"}
        return sorted(names - {""})  # "" is the prefix itself, if S3's console created a "folder" for it

    def size(self, name: str) -> int:
        """Return a file's size in bytes."""
        with self.translate_errors(name):
            if self.local:
                return (self.local / name).stat().st_size
            if self.http:
                return int(self._get(name, content_length))
            return int(self._files.info(self.path(name), refresh=True)["size"])

    def modified(self, name: str) -> float:
        """Return when a file was written, in seconds since 1970; S3 has whole seconds, which are rounded up."""
        with self.translate_errors(name):
            if self.local:
                return (self.local / name).stat().st_mtime
            return float(self._files.info(self.path(name), refresh=True)["LastModified"].timestamp()) + 1

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        with self.translate_errors(name):
            if self.local:
                return (self.local / name).read_bytes()
            if self.http:
                return bytes(self._get(name, content))
            return bytes(self._files.cat_file(self.path(name)))

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """Return parts of files, remote ones read concurrently; a part beyond the end of its file is shorter."""
        if self.local:
            return [self._local_range(*part) for part in ranges]
        if not ranges:
            return []
        import fsspec.asyn

        with self.translate_errors(ranges[0][0]):
            files = self._files
            if self.http:
                return list(fsspec.asyn.sync(files.loop, self._http_ranges, files, ranges))
            paths = [self.path(name) for name, _, _ in ranges]
            starts, ends = [first for _, first, _ in ranges], [first + size for _, first, size in ranges]
            results = files.cat_ranges(paths, starts, ends, on_error="return")
        return [self._s3_range(name, result) for (name, _, _), result in zip(ranges, results, strict=True)]

    def _local_range(self, name: str, first: int, size: int) -> bytes:
        with self.translate_errors(name):
            file = os.open(f"{self.address}/{name}", os.O_RDONLY)
            try:
                return os.pread(file, size, first)
            finally:
                os.close(file)

    def _s3_range(self, name: str, result: bytes | BaseException) -> bytes:
        """Return one result of fsspec's `cat_ranges`, or raise its error."""
        if not isinstance(result, BaseException):
            return bytes(result)
        if "InvalidRange" in f"{result} {result.__cause__}" or "not satisfiable" in str(result):
            return b""  # the file ends before the part begins
        with self.translate_errors(name):
            raise result

    async def _http_ranges(self, files: Any, ranges: Sequence[Range]) -> list[bytes]:
        return await asyncio.gather(*(self._http_range(files, *part) for part in ranges))

    async def _http_range(self, files: Any, name: str, first: int, size: int) -> bytes:
        async def partial_content(response: Any) -> bytes:
            if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return b""
            if response.status != HTTPStatus.PARTIAL_CONTENT:  # raise before the whole file is read
                raise DataError(
                    f"{self}/{name}: the server sends whole files instead of bytes {first} to {first + size};"
                    " use a server that supports ranges, or copy the set to a folder"
                )
            return bytes(await response.read())

        with self.translate_errors(name):
            span = f"bytes={first}-{first + size - 1}"
            return bytes(await get_with_retries(files, self.path(name), partial_content, span))

    def _get(self, name: str, handle: Callable[[Any], Awaitable[Any]]) -> Any:
        """Request a file over http and return the result of `handle(response)`."""
        import fsspec.asyn

        files = self._files
        return fsspec.asyn.sync(files.loop, get_with_retries, files, self.path(name), handle)

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file to `target`, which is complete or does not exist."""
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            with Store(str(target.parent)).translate_errors(target.name):
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary.touch()
            with self.translate_errors(name, target.parent):
                if self.local:
                    shutil.copyfile(self.local / name, temporary)
                elif self.http:
                    self._get(name, partial(save, temporary))
                else:
                    self._files.get_file(self.path(name), str(temporary))
            temporary.replace(target)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def put(self, file: Path, name: str) -> None:
        """Move or copy a local file here; `name` is complete or unchanged. `file` may be gone afterwards."""
        if self.http:
            raise DataError(f"{self}: http is read-only; write to a folder or to s3://")
        with self.translate_errors(name):
            if self.local:
                self.local.mkdir(parents=True, exist_ok=True)
                temporary = self.local / f".{name}.{uuid.uuid4().hex}"
                try:
                    try:
                        file.rename(temporary)
                    except OSError:  # on another disk
                        shutil.copyfile(file, temporary)
                    temporary.replace(self.local / name)
                finally:
                    with contextlib.suppress(OSError):
                        temporary.unlink()
            else:
                self._files.put_file(str(file), self.path(name))

    def remove(self, name: str) -> None:
        """Delete a file if it exists."""
        with self.translate_errors(name), contextlib.suppress(FileNotFoundError):
            if self.local:
                (self.local / name).unlink()
            else:
                self._files.rm_file(self.path(name))

    @contextmanager
    def translate_errors(self, name: str, target: Path | None = None) -> Iterator[None]:
        """Within the context, turn errors of file systems, servers and clients into DataError without secrets.

        `name` is the file in use, "" for the store. `target` is the local folder written to, if any: a full disk
        is reported as that folder's error.
        """
        file = f"{self}/{name}" if name else str(self)
        try:
            yield
        except DataError:
            raise
        except FileNotFoundError:
            action = "restore it or correct the path" if self.local else "check the address"
            raise MissingFileError(f"{file} not found; {action}") from None
        except PermissionError:
            reason = "check its permissions" if self.local else "the server refuses access; check the credentials"
            raise DataError(f"no access to {file}: {reason}") from None
        except OSError as error:
            is_target = target and error.errno in DISK_FULL
            raise DataError(f"{target if is_target else file}: {self._explain(error)}") from None
        except Exception as error:  # errors of botocore and aiohttp have no common base class
            is_setting = isinstance(error, ValueError) and self.s3  # raised by botocore for a wrong setting
            if not is_setting and type(error).__module__.partition(".")[0] not in CLIENT_LIBRARIES:
                raise
            raise DataError(f"{file}: {self._explain(error)}") from None

    def _explain(self, error: Exception) -> str:
        """Return what failed and what to do, without secrets."""
        kind = type(error).__name__
        if kind in ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError"):
            return "no credentials for S3 found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        if self.s3 and (setting := self._wrong_setting(error)):
            return f"{setting}; fix it and run again"
        number: int = getattr(error, "errno", None) or 0
        known = os.strerror(number) if number in errno.errorcode else ""  # errors of name look-ups are not
        if self.local or number in DISK_FULL:
            return f"{known or error}; fix this and run again"
        if known:
            return f"{known}; check address and connection"
        status = getattr(error, "status", None)
        details = f"{kind}, status {status}" if status else kind
        return f"request failed ({details}); check address and connection"

    def _wrong_setting(self, error: Exception) -> str:
        """Name the user's wrong S3 setting, without its value; "" if no setting is wrong."""
        kind = type(error).__name__
        if str(error).startswith(BAD_ENDPOINT):
            variable = next((name for name in ENDPOINT_VARIABLES if os.environ.get(name)), None)
            return f"{variable or 'endpoint_url in the AWS configuration'} is not an address such as https://host:port"
        if kind == "ProfileNotFound":
            return "AWS_PROFILE names a profile that does not exist"
        if kind == "ParamValidationError" and "bucket name" in str(error):
            return f"{urlsplit(self.address).netloc!r} is not a valid bucket name"
        if kind == "ConfigParseError":
            return "the AWS configuration file cannot be read"
        if kind == "InvalidRegionError":
            return "AWS_DEFAULT_REGION is not a region such as us-east-1"
        if isinstance(error, ValueError) or kind.startswith("Invalid"):
            return f"an AWS setting, in a variable AWS_... or in the AWS configuration file, is not valid ({kind})"
        return ""


async def get_with_retries(
    files: Any, url: str, handle: Callable[[Any], Awaitable[Any]], span: str | None = None
) -> Any:
    """GET `url`, or its byte range `span`, and return the result of `handle(response)`.

    Failed connections and passing server errors are retried after RETRY_PAUSES. Raises FileNotFoundError,
    PermissionError, or the last error of aiohttp.
    """
    import aiohttp

    headers = {"Accept-Encoding": "identity"} | ({"Range": span} if span else {})
    session = await files.set_session()
    for pause in (*RETRY_PAUSES, None):
        try:
            async with session.get(files.encode_url(url), headers=headers) as response:
                if response.status in NOT_FOUND_STATUSES:
                    raise FileNotFoundError
                if response.status in NO_ACCESS_STATUSES:
                    raise PermissionError
                if response.status != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    response.raise_for_status()
                return await handle(response)
        except (aiohttp.ClientError, TimeoutError) as error:
            is_passing = getattr(error, "status", 500) in PASSING_STATUSES
            if pause is None or not is_passing or isinstance(error, aiohttp.InvalidURL):
                raise
        await asyncio.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


async def content_length(response: Any) -> int:
    """Return a file's size in bytes from the header, without reading the body."""
    if response.content_length is None:
        raise DataError(f"{response.url.host} does not report the size of its files; copy the set to a folder")
    return int(response.content_length)


async def content(response: Any) -> bytes:
    """Return the whole body."""
    return bytes(await response.read())


async def save(target: Path, response: Any) -> None:
    """Write the body to `target` in chunks."""
    with target.open("wb") as file:
        async for chunk in response.content.iter_chunked(COPY_CHUNK):
            file.write(chunk)


def open_store(where: str | Path) -> Store:
    """Return the store at a path or address.

    Raises DataError for an address of another kind, above all `pipe:`. The message does not repeat the address,
    which may contain a password.
    """
    text = str(where)
    match = ADDRESS.match(text)
    if "::" in text and match:
        raise DataError(f"chained addresses with :: are not supported; use {supported_schemes()}")
    if not match:
        return Store(str(local_folder(text)))
    scheme = match["scheme"].lower()
    if scheme == "file" and re.match("/(?!/)|//(localhost)?/", text[match.end() :]):
        return Store(urlsplit(text).path)
    if scheme not in REMOTE_SCHEMES or not text[match.end() :].startswith("//"):
        raise DataError(f"addresses that begin with {scheme}: are not supported; use {supported_schemes()}")
    try:
        parts = urlsplit(scheme + text[len(scheme) :])
        is_valid = bool(parts.hostname) and (parts.port or True)
    except ValueError:  # the port is not a number
        is_valid = False
    if not is_valid:
        raise DataError(f"the {scheme}:// address has no valid name of a server or bucket; correct it")
    if scheme == "s3" and "@" in parts.netloc:
        raise DataError(
            "an s3:// address must not contain keys; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"
        )
    if scheme == "s3" and {"?", "#"} & {*text}:  # they would cut off the prefix
        raise DataError("an s3:// address must not contain ? or #; choose another prefix")
    return Store(urlunsplit(parts._replace(path=parts.path.rstrip("/"), fragment="")))


def local_folder(text: str) -> Path:
    """Return a user's path with ~ expanded; it need not exist. DataError for a path that cannot be used."""
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise DataError(f"{text} begins with the home of an unknown user; write the full path") from None
    with Store(str(path)).translate_errors(""), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.stat()
    return path


def scratch_folder() -> Path:
    """Return the system's folder for temporary files; DataError if none is writable."""
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        raise DataError(
            "no folder for temporary files is writable; free disk space, or set TMPDIR to another folder"
        ) from None


def supported_schemes() -> str:
    """Return the supported kinds of addresses, for a message."""
    return "a folder, or an address that begins with http://, https:// or s3://"
