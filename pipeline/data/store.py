"""Where files lie: a folder, or a prefix reached by http(s) or S3. Nothing that an address says is ever run."""

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
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pipeline.data.images import DataError

REMOTE = ("http", "https", "s3")
ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):")
GONE, REFUSED_ERRORS, BEYOND, PART_SUFFIX = (404, 410), (401, 403), 416, 206  # what http servers answer
SILENCE = 60  # seconds without a byte after which an http server counts as lost
PAUSES = (0.5, 2, 8)  # seconds before an http server that failed is asked again; S3's client does so by itself
COPY_CHUNK = 2**20  # bytes written at once
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
SCHEME_LIBRARIES = ("botocore", "aiohttp", "aiobotocore", "fsspec")
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # the first that is set holds
NO_ENDPOINT = ("Invalid endpoint", "Invalid IPv6 URL", "Custom endpoint")  # how botocore begins to say so
FRESH = {"skip_instance_cache": True, "use_listings_cache": False}  # other processes write there too

Range = tuple[str, int, int]  # a file's name, first byte, number of bytes


class MissingFileError(DataError):
    """There is no such file."""


@dataclass(frozen=True, repr=False)
class Store:
    """A folder of files; `local` or behind fsspec. May be shared by threads, pickled, and used after a fork."""

    address: str  # without a final slash; may hold a password: for messages there is `shown`

    @property
    def local(self) -> Path | None:
        """The folder, if it is on this machine."""
        return None if "://" in self.address else Path(self.address)

    @property
    def shown(self) -> str:
        """The address without user, password and query."""
        if self.local:
            return self.address
        parts = urlsplit(self.address)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def __str__(self) -> str:
        return self.shown

    def __repr__(self) -> str:
        return f"Place({self.shown!r})"  # never the password

    def __reduce__(self) -> tuple[type["Store"], tuple[str]]:
        return Store, (self.address,)  # without open connections

    @property
    def http(self) -> bool:
        """Whether this is read by http or https."""
        return self.address.startswith(("http:", "https:"))

    @property
    def s3(self) -> bool:
        """Whether this is a bucket's."""
        return self.address.startswith("s3:")

    @property
    def _files(self) -> Any:
        """This process's fsspec file system; S3 takes credentials and endpoint from where AWS's tools do."""
        made, process = self.__dict__.setdefault("_made", {}), os.getpid()
        if process not in made:  # connections do not survive a fork
            import fsspec

            if self.http:
                import aiohttp

                silence = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
                made[process] = fsspec.filesystem("http", client_kwargs={"timeout": silence}, **FRESH)
            else:
                made[process] = fsspec.filesystem("s3", **FRESH)
        return made[process]

    def path(self, name: str) -> str:
        """A file's full address; a query, which may sign it, stays at the end."""
        if not self.http:
            return f"{self.address}/{name}"
        parts = urlsplit(self.address)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))

    def exists(self, name: str) -> bool:
        """Whether there is such a file; DataError where that cannot be known."""
        if self.local:
            with self.trouble(name):
                return (self.local / name).is_file()
        try:
            self.size(name)
        except MissingFileError:
            return False
        return True

    def names(self, *, folders: bool = False) -> list[str]:
        """The files' names, in order, or those of `folders` too; empty where there is no such folder, and by http,
        which cannot list."""
        if self.local:
            with self.trouble(""):
                inside = self.local.iterdir() if self.local.is_dir() else ()
                return sorted(path.name for path in inside if folders or path.is_file())
        if self.http:
            return []
        try:
            with self.trouble(""):
                found = self._files.ls(self.address, detail=True, refresh=True)
        except MissingFileError:
            return []
        named = {str(one["name"]).rpartition("/")[2] for one in found if folders or one["type"] == "file"}
        return sorted(named - {""})  # of the prefix itself, where a console made a "folder" of it

    def size(self, name: str) -> int:
        """A file's bytes."""
        with self.trouble(name):
            if self.local:
                return (self.local / name).stat().st_size
            if self.http:
                return int(self._ask(name, length))
            return int(self._files.info(self.path(name), refresh=True)["size"])

    def modified(self, name: str) -> float:
        """When a file was written, in seconds since 1970; S3 says whole ones, which are rounded up."""
        with self.trouble(name):
            if self.local:
                return (self.local / name).stat().st_mtime
            return float(self._files.info(self.path(name), refresh=True)["LastModified"].timestamp()) + 1

    def read(self, name: str) -> bytes:
        """A whole file."""
        with self.trouble(name):
            if self.local:
                return (self.local / name).read_bytes()
            if self.http:
                return bytes(self._ask(name, content))
            return bytes(self._files.cat_file(self.path(name)))

    def ranges(self, wanted: Sequence[Range]) -> list[bytes]:
        """Parts of files, remote ones all at once; a part beyond a file's end comes short."""
        if "://" not in self.address:
            return [self._part(*one) for one in wanted]
        import fsspec.asyn

        with self.trouble(wanted[0][0] if wanted else ""):
            files = self._files
            return list(fsspec.asyn.sync(files.loop, self._parts, files, wanted))

    async def _parts(self, files: Any, wanted: Sequence[Range]) -> list[bytes]:
        """All parts, asked for at the same time; the first failure is raised."""
        part = self._http_part if self.http else self._s3_part
        return await asyncio.gather(*(part(files, *one) for one in wanted))

    async def _s3_part(self, files: Any, name: str, first: int, size: int) -> bytes:
        with self.trouble(name):
            try:
                return bytes(await files._cat_file(self.path(name), start=first, end=first + size))
            except OSError as error:
                if "InvalidRange" in f"{error} {error.__cause__}" or "not satisfiable" in str(error):
                    return b""  # the file ends before the part begins
                raise

    async def _http_part(self, files: Any, name: str, first: int, size: int) -> bytes:
        async def part(answer: Any) -> bytes:
            if answer.status == BEYOND:
                return b""
            if answer.status != PART_SUFFIX:  # nothing of the whole file that is coming is read
                raise DataError(
                    f"{self.shown}/{name}: the server sends whole files where bytes {first} to {first + size} were"
                    " asked for; use one that knows ranges, or copy the set to a folder"
                )
            return bytes(await answer.read())

        with self.trouble(name):
            return bytes(await asked(files, self.path(name), part, f"bytes={first}-{first + size - 1}"))

    def _ask(self, name: str, take: Callable[[Any], Any]) -> Any:
        """What `take` makes of the http server's answer."""
        import fsspec.asyn

        files = self._files
        return fsspec.asyn.sync(files.loop, asked, files, self.path(name), take)

    def _part(self, name: str, first: int, size: int) -> bytes:
        with self.trouble(name):
            file = os.open(f"{self.address}/{name}", os.O_RDONLY)
            try:
                return os.pread(file, size, first)
            finally:
                os.close(file)

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file to `target`, which is there whole or not at all."""
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            with Store(str(target.parent)).trouble(target.name):
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary.touch()
            with self.trouble(name, target.parent):
                if self.local:
                    shutil.copyfile(self.local / name, temporary)
                elif self.http:
                    self._ask(name, partial(save, temporary))
                else:
                    self._files.get_file(self.path(name), str(temporary))
            temporary.replace(target)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def put(self, file: Path, name: str) -> None:
        """Bring a finished local file here, whole or not at all under its name. `file` may be gone after."""
        if self.http:
            raise DataError(f"{self.shown}: http is for reading; write to a folder or to s3://")
        with self.trouble(name):
            if self.local:
                self.local.mkdir(parents=True, exist_ok=True)
                temporary = self.local / f".{name}.{uuid.uuid4().hex}"
                try:
                    try:
                        file.rename(temporary)
                    except OSError:  # another disk
                        shutil.copyfile(file, temporary)
                    temporary.replace(self.local / name)
                finally:
                    with contextlib.suppress(OSError):
                        temporary.unlink()
            else:
                self._files.put_file(str(file), self.path(name))

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        with self.trouble(name):
            if self.local:
                (self.local / name).unlink(missing_ok=True)
            elif self._files.exists(self.path(name)):
                self._files.rm_file(self.path(name))

    @contextmanager
    def trouble(self, name: str, target: Path | None = None) -> Iterator[None]:
        """Within: what file systems, servers and clouds raise becomes one sentence, without secrets.

        `target`: the folder written to on this machine, if any; a full disk is that one's.
        """
        try:
            yield
        except DataError:
            raise
        except FileNotFoundError:
            todo = "restore it, or mend the path" if self.local else "check the address"
            raise MissingFileError(f"there is no {self._where(name)}; {todo}") from None
        except PermissionError:
            why = "check its permissions" if self.local else "the server refuses access; check the credentials"
            raise DataError(f"{self._where(name)} may not be used: {why}") from None
        except OSError as error:
            full = target and error.errno in FULL
            raise DataError(f"{target if full else self._where(name)}: {self._said(error)}") from None
        except Exception as error:  # botocore and aiohttp have a family each, with no common root
            setting = isinstance(error, ValueError) and self.s3  # botocore's plain word for a wrong setting
            if not setting and type(error).__module__.partition(".")[0] not in SCHEME_LIBRARIES:
                raise
            raise DataError(f"{self._where(name)}: {self._said(error)}") from None

    def _where(self, name: str) -> str:
        return f"{self.shown}/{name}" if name else self.shown

    def _said(self, error: Exception) -> str:
        """What went wrong, in words that hold no secret."""
        kind = type(error).__name__
        if kind in ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError"):
            return (
                "no credentials for S3 were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            )
        if self.s3 and (wrong := self._wrong_setting(error)):
            return f"{wrong}; mend it and start again"
        number: int = getattr(error, "errno", None) or 0
        known = os.strerror(number) if number in errno.errorcode else ""  # not so: those of looking up a name
        if self.local or number in FULL:
            return f"{known or error}; mend that and start again"
        if known:
            return f"{known}; check address and connection"
        status = getattr(error, "status", None)
        said = f" (status {status})" if status else ""
        return f"the server could not be used: {kind}{said}; check address and connection"

    def _wrong_setting(self, error: Exception) -> str:
        """Which of the user's settings for S3 is wrong, without its value; "" where none is."""
        kind = type(error).__name__
        if str(error).startswith(NO_ENDPOINT):
            named = next((name for name in ENDPOINTS if os.environ.get(name)), "endpoint_url of AWS's settings")
            return f"{named} is no address such as https://host:port"
        if kind == "ProfileNotFound":
            return "there is no AWS profile of the name in AWS_PROFILE"
        if kind == "ParamValidationError" and "bucket name" in str(error):
            return f"{urlsplit(self.address).netloc!r} is no bucket's name"
        if kind == "ConfigParseError":
            return "AWS's configuration file cannot be read"
        if kind == "InvalidRegionError":
            return "the region in AWS_DEFAULT_REGION is none such as us-east-1"
        if isinstance(error, ValueError) or kind.startswith("Invalid"):
            return f"a setting of AWS, in a variable AWS_... or in its configuration file, is not usable ({kind})"
        return ""


async def asked(files: Any, url: str, take: Callable[[Any], Awaitable[Any]], span: str | None = None) -> Any:
    """What `take` makes of an http server's answer; asked again after a pause where the connection fails."""
    import aiohttp

    headers = {"Accept-Encoding": "identity"} | ({"Range": span} if span else {})
    session = await files.set_session()
    for pause in (*PAUSES, None):
        try:
            async with session.get(files.encode_url(url), headers=headers) as answer:
                if answer.status in GONE:
                    raise FileNotFoundError
                if answer.status in REFUSED_ERRORS:
                    raise PermissionError
                if answer.status != BEYOND:
                    answer.raise_for_status()
                return await take(answer)
        except (aiohttp.ClientError, TimeoutError) as error:
            passing = getattr(error, "status", 500) in (429, 500, 502, 503, 504)
            if pause is None or not passing or isinstance(error, aiohttp.InvalidURL):
                raise
        await asyncio.sleep(pause)
    raise AssertionError("the last answer is returned or raised")


async def length(answer: Any) -> int:
    """A file's bytes, from the answer's header; what follows it is not read."""
    if answer.content_length is None:
        raise DataError(f"{answer.url.host} does not say how long its files are; copy the set to a folder")
    return int(answer.content_length)


async def content(answer: Any) -> bytes:
    """All of a file."""
    return bytes(await answer.read())


async def save(target: Path, answer: Any) -> None:
    """A file's bytes, written as they come."""
    with target.open("wb") as opened:
        async for piece in answer.content.iter_chunked(COPY_CHUNK):
            opened.write(piece)


def open_store(where: str | Path) -> Store:
    """The place at a path or an address; DataError for an address of another kind, `pipe:` above all.

    What is refused is not repeated: it may hold a password.
    """
    text = str(where)
    found = ADDRESS.match(text)
    if "::" in text and found:
        raise DataError(f"addresses joined by :: are not read; use {supported_schemes()}")
    if not found:
        return Store(str(local_folder(text)))
    scheme = found["scheme"].lower()
    if scheme == "file" and re.match("/(?!/)|//(localhost)?/", text[found.end() :]):
        return Store(urlsplit(text).path)
    if scheme not in REMOTE or not text[found.end() :].startswith("//"):
        raise DataError(
            f"addresses that begin with {scheme}: are not read, let alone run; use {supported_schemes()}"
        )
    try:
        parts = urlsplit(scheme + text[len(scheme) :])
        usable = bool(parts.hostname) and (parts.port or True)
    except ValueError:  # no port's number
        usable = False
    if not usable:
        raise DataError(
            f"an address that begins with {scheme}:// has no usable server's or bucket's name; mend it"
        )
    if scheme == "s3" and "@" in parts.netloc:
        raise DataError("keys do not belong in an s3:// address; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if scheme == "s3" and {"?", "#"} & {*text}:
        raise DataError(
            "an s3:// address holds neither ? nor #, where the prefix would end; choose another prefix"
        )
    return Store(urlunsplit(parts._replace(path=parts.path.rstrip("/"), fragment="")))


def local_folder(text: str) -> Path:
    """The path that a user wrote, with ~ replaced, whether it is there or not; DataError for an unusable one."""
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise DataError(f"{text} begins with the home of a user who has none; write out the folder") from None
    with Store(str(path)).trouble(""), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.stat()
    return path


def scratch_folder() -> Path:
    """The system's folder for temporary files."""
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        raise DataError(
            "no folder for temporary files can be written to; make room, or set TMPDIR to another folder"
        ) from None


def supported_schemes() -> str:
    """The addresses that are read, for a message."""
    return "a folder, or an address that begins with http://, https:// or s3://"
