"""Stores in folders, on http servers with faults, and in S3; addresses and settings that are rejected."""

import os
import pickle
import re
import shutil
import signal
import threading

import pytest

from pipeline.data import store as store_module
from pipeline.data.images import DataError
from pipeline.data.store import MissingFileError, Store, open_store
from tests.support.servers import (
    KEY,
    SECRET,
    FailingOnceHandler,
    ForbiddenHandler,
    SilentHandler,
    TruncatingHandler,
    WholeFileHandler,
    s3_server,
    serve,
    use_s3,
)

CONTENT = bytes(range(256)) * 8
PASSWORD, SIGNATURE = "hunter2", "5167na7ur3"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(store_module, "RETRY_PAUSES", (0.01,))


@pytest.fixture
def folder(tmp_path):
    """A folder with the files a.tar and empty."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.tar").write_bytes(CONTENT)
    (tmp_path / "set" / "empty").write_bytes(b"")
    return tmp_path / "set"


@pytest.fixture(scope="module")
def s3():
    """The address of an S3 server."""
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(s3, monkeypatch, folder):
    """The store s3://bucket/set with the files of `folder`."""
    use_s3(monkeypatch, s3)
    store = open_store("s3://bucket/set/")
    for file in folder.iterdir():
        copy = shutil.copyfile(file, folder.parent / "copy")
        store.put(copy, file.name)
    return store


def store_with_secrets(address, query=""):
    """Open a store at the address with a password, and with a signature in the query."""
    return open_store(address.replace("//", f"//user:{PASSWORD}@") + f"?X-Amz-Signature={SIGNATURE}{query}")


def store_error(call, *texts, kind=DataError):
    """Expect a one-line error that contains `texts` and no secret; return its message."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert all(text in message for text in texts), message
    assert "\n" not in message
    for secret in (PASSWORD, SIGNATURE, SECRET, KEY):
        assert secret not in message
    assert caught.value.__cause__ is None
    return message


def check_reading(store):
    """Check every way to read a store that holds the files of `folder`."""
    assert store.exists("a.tar")
    assert not store.exists("b.tar")
    assert store.size("a.tar") == len(CONTENT)
    assert store.read("a.tar") == CONTENT
    assert store.read("empty") == b""
    assert store.read_ranges([("a.tar", 3, 5), ("a.tar", 0, 2), ("a.tar", 3, 5)]) == [
        CONTENT[3:8],
        CONTENT[:2],
        CONTENT[3:8],
    ]
    assert store.read_ranges([]) == []
    store_error(lambda: store.read("b.tar"), f"{store}/b.tar not found", kind=MissingFileError)
    ranges = [("a.tar", 0, 1), ("b.tar", 0, 1)]
    store_error(lambda: store.read_ranges(ranges), f"{store}/b.tar not found", kind=MissingFileError)


def check_short_reads(store):
    """Check that ranges beyond the end of a file are cut."""
    end = len(CONTENT)
    assert store.read_ranges([("a.tar", end - 2, 5), ("a.tar", end, 5), ("a.tar", end + 100, 5)]) == [
        CONTENT[-2:],
        b"",
        b"",
    ]


# --- folders -----------------------------------------------------------------------------------------------


def test_a_folder_is_read(folder):
    store = open_store(folder)
    check_reading(store)
    check_short_reads(store)
    (folder / "below").mkdir()
    assert store.names() == ["a.tar", "empty"]
    assert store.names(folders=True) == ["a.tar", "below", "empty"]
    assert open_store(folder / "nothing").names() == []


def test_missing_file_says_what_to_do(folder):
    missing = f"{folder}/b.tar not found; restore it or correct the path"
    assert store_error(lambda: open_store(folder).read("b.tar"), kind=MissingFileError) == missing
    with serve(folder) as address:
        store_error(lambda: open_store(address).read("b.tar"), "; check the address", kind=MissingFileError)


def test_put_and_remove_in_a_folder(folder, tmp_path):
    store = open_store(tmp_path / "new" / "one")
    store.put(shutil.copyfile(folder / "a.tar", tmp_path / "x"), "b.tar")
    assert store.read("b.tar") == CONTENT
    store.put(shutil.copyfile(folder / "empty", tmp_path / "x"), "b.tar")
    assert store.read("b.tar") == b""
    store.remove("b.tar")
    store.remove("b.tar")
    assert list((tmp_path / "new" / "one").iterdir()) == []


def test_put_to_another_disk_copies(folder, tmp_path, monkeypatch):
    def rename(self, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("pathlib.Path.rename", rename)
    open_store(tmp_path / "new").put(folder / "a.tar", "b.tar")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["b.tar"]
    assert (tmp_path / "new" / "b.tar").read_bytes() == CONTENT


def test_fetched_file_is_complete_or_does_not_exist(folder, tmp_path):
    target = tmp_path / "new" / "a.tar"
    store_error(lambda: open_store(folder).fetch("nothing", target), "not found", kind=MissingFileError)
    assert list((tmp_path / "new").iterdir()) == []
    open_store(folder).fetch("a.tar", target)
    assert target.read_bytes() == CONTENT
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.tar"]


@pytest.mark.parametrize("remote", [False, True])
def test_full_disk_is_reported_for_the_local_folder(folder, tmp_path, remote):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serve(folder) as address:
        store = open_store(address if remote else folder)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the kernel's error, with a smaller disk
        try:
            store_error(
                lambda: store.fetch("a.tar", tmp_path / "new" / "a.tar"),
                f"{tmp_path}/new: File too large; fix this",
            )
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.skipif(os.getuid() == 0, reason="root can read everything")
def test_unreadable_file_names_its_permissions(folder):  # pragma: no cover
    (folder / "a.tar").chmod(0)
    store_error(lambda: open_store(folder).read("a.tar"), "permissions")


def test_permission_error_names_the_file(folder, monkeypatch):
    def read(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", read)
    store_error(lambda: open_store(folder).read("a.tar"), f"{folder}/a.tar", "check its permissions")


@pytest.mark.parametrize(
    ("kind", "call"), [("is_file", Store.exists), ("iterdir", lambda store, _: store.names())]
)
def test_permission_error_of_a_folder_is_reported(folder, monkeypatch, kind, call):
    def fail(self):
        raise PermissionError(13, "Permission denied")

    store = open_store(folder)
    monkeypatch.setattr(f"pathlib.Path.{kind}", fail)
    store_error(lambda: call(store, "a.tar"), f"{folder}", "check its permissions")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("~nobody-of-that-name/x", "begins with the home of an unknown user"),
        ("loop", "loop: Too many levels of symbolic links; fix this"),
        ("loop/x", "loop/x: Too many levels of symbolic links; fix this"),
        ("a" * 256, "File name too long; fix this"),
    ],
)
def test_unusable_path_is_rejected(tmp_path, monkeypatch, path, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    store_error(lambda: open_store(path), path, text)


def test_path_below_a_folder_without_permission_is_rejected(tmp_path, monkeypatch):
    def stat(self, **_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.stat", stat)
    store_error(lambda: open_store(tmp_path / "x"), f"no access to {tmp_path}/x: check its permissions")


# --- addresses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "pipe:cat /etc/passwd",
        "exec:rm -r x",
        "ftp://host/x",
        "file::/x",
        "simplecache::s3://bucket/x",
        "zip://a.tar::http://user:hunter2@host/x",
        "http:host/x",
        "gs://bucket/x",
        "data:hunter2",
        "memory://x",
        "local:///x",
        "github://org:repo@/x",
        "http://user:hunter2/3@host/x",  # a slash in the password: the rest of it would be printed
        "http:///x",
        "s3://",
        "s3://AKIDFORTESTS:hunter2@bucket/x",
        "s3://bucket/x#5167na7ur3",  # the prefix would end before it
        "s3://bucket/x?versionId=5167na7ur3",
        "file://elsewhere/x",
        "file:x",
    ],
)
def test_unsupported_address_is_rejected_and_not_repeated(address):
    store_error(lambda: open_store(address))


@pytest.mark.parametrize(
    ("address", "local", "printed"),
    [
        ("data/set", "data/set", "data/set"),
        ("file:///data/set", "/data/set", "/data/set"),
        ("file:/data/set", "/data/set", "/data/set"),
        ("HTTP://Host:80/x/", None, "http://Host:80/x"),
        ("s3://bucket/a/b/", None, "s3://bucket/a/b"),
        ("https://user:hunter2@host/x?X-Amz-Signature=5167na7ur3#y", None, "https://host/x"),
    ],
)
def test_address_is_printed_without_secrets(address, local, printed):
    store = open_store(address)
    assert (store.local and str(store.local)) == local
    assert str(store) == printed
    assert PASSWORD not in repr(store)
    assert SIGNATURE not in repr(store)


def test_query_follows_the_file_name():
    assert open_store("https://host/set/?sig=1").path("a.tar") == "https://host/set/a.tar?sig=1"
    assert open_store("https://host").path("a.tar") == "https://host/a.tar"


def test_store_is_pickled_without_connections(folder):
    with serve(folder) as address:
        store = open_store(address)
        store.read("a.tar")
        copy = pickle.loads(pickle.dumps(store))
        assert copy == store
        assert copy.read("a.tar") == CONTENT


# --- http --------------------------------------------------------------------------------------------------


def test_an_http_server_is_read(folder):
    with serve(folder) as address:
        check_reading(store_with_secrets(address))
        check_short_reads(store_with_secrets(address))
        assert store_with_secrets(address).names() == []  # http cannot list files


def test_http_is_read_only(folder):
    store_error(lambda: open_store("http://host/x").put(folder / "a.tar", "b.tar"), "http is read-only", "s3://")


def test_server_without_ranges_is_rejected_before_it_sends_the_whole_file(folder):
    with serve(folder, WholeFileHandler) as address:
        store = store_with_secrets(address)
        assert store.read("a.tar") == CONTENT
        message = store_error(lambda: store.read_ranges([("a.tar", 3, 5)]), f"{address}/a.tar", "whole files")
        assert "bytes 3 to 8" in message


def test_interrupted_response_is_reported(folder, tmp_path):
    with serve(folder, TruncatingHandler) as address:
        store = store_with_secrets(address)
        store_error(lambda: store.read_ranges([("a.tar", 0, 100)]), f"{address}/a.tar", "request failed")
        store_error(lambda: store.read("a.tar"), f"{address}/a.tar")
        store_error(lambda: store.fetch("a.tar", tmp_path / "new" / "a.tar"), f"{address}/a.tar")
        assert list((tmp_path / "new").iterdir()) == []


def test_failed_request_is_retried(folder):
    with serve(folder, FailingOnceHandler) as address:
        assert open_store(address).read_ranges([("a.tar", 3, 5)]) == [CONTENT[3:8]]
    with serve(folder, FailingOnceHandler) as address:
        assert open_store(address).read("a.tar") == CONTENT


def test_last_failure_names_the_status(folder, monkeypatch):
    monkeypatch.setattr(store_module, "RETRY_PAUSES", ())
    with serve(folder, FailingOnceHandler) as address:
        store_error(lambda: store_with_secrets(address).read("a.tar"), "status 503")


def test_silent_server_times_out(folder, monkeypatch):
    monkeypatch.setattr(store_module, "READ_TIMEOUT", 0.2)
    monkeypatch.setattr(store_module, "RETRY_PAUSES", ())
    with serve(folder, SilentHandler) as address:
        store_error(lambda: store_with_secrets(address).read("a.tar"), f"{address}/a.tar", "request failed")


def test_refused_connection_is_reported(folder):
    with serve(folder) as address:
        pass
    store_error(lambda: store_with_secrets(address).exists("a.tar"), "Connection refused; check address")


def test_refused_access_names_the_credentials(folder):
    with serve(folder, ForbiddenHandler) as address:
        store = store_with_secrets(address)
        for call in (store.exists, store.read, store.size, lambda name: store.read_ranges([(name, 0, 1)])):
            store_error(lambda call=call: call("a.tar"), f"{address}/a.tar", "refuses access", "credentials")


def test_threads_share_a_store(folder):
    with serve(folder) as address:
        store, results = open_store(address), []
        threads = [
            threading.Thread(target=lambda: results.append(store.read_ranges([("a.tar", 7, 9)] * 5)))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [[CONTENT[7:16]] * 5] * 6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # the test forks on purpose
def test_store_works_after_a_fork(folder):
    with serve(folder) as address:
        store = open_store(address)
        store.read("a.tar")
        read, write = os.pipe()
        child = os.fork()
        if not child:  # pragma: no cover
            signal.alarm(20)  # ends a child that hangs
            os.write(write, b"y" if store.read("a.tar") == CONTENT else b"n")
            os._exit(0)
        os.close(write)
        assert os.read(read, 1) == b"y"
        os.close(read)
        os.waitpid(child, 0)


# --- S3 ----------------------------------------------------------------------------------------------------


def test_s3_is_read_and_written(bucket, tmp_path):
    check_reading(bucket)
    check_short_reads(bucket)
    assert bucket.names() == ["a.tar", "empty"]
    assert open_store("s3://bucket/nothing").names() == []
    assert open_store("s3://bucket").names(folders=True) == ["set"]
    bucket.fetch("a.tar", tmp_path / "new" / "a.tar")
    assert (tmp_path / "new" / "a.tar").read_bytes() == CONTENT
    bucket.remove("empty")
    bucket.remove("empty")
    assert bucket.names() == ["a.tar"]


def test_s3_shows_the_changes_of_another_store(bucket):
    other = Store(bucket.address)
    assert other.names() == ["a.tar", "empty"]
    bucket.remove("empty")
    assert other.names() == ["a.tar"]
    assert not other.exists("empty")


def test_missing_bucket_is_reported(bucket, folder):
    missing = open_store("s3://no-such-bucket/set")
    store_error(lambda: missing.read("a.tar"), "s3://no-such-bucket/set/a.tar not found", kind=MissingFileError)
    store_error(lambda: missing.put(folder / "a.tar", "a.tar"), "s3://no-such-bucket/set/a.tar not found")


def test_missing_credentials_name_the_variables(bucket, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store_error(lambda: open_store("s3://bucket/set").read("a.tar"), "no credentials", "AWS_ACCESS_KEY_ID")


def test_refused_access_to_a_bucket_names_the_credentials(folder, monkeypatch):
    with serve(folder, ForbiddenHandler) as address:
        use_s3(monkeypatch, address)
        store = open_store("s3://bucket/set")
        for call in (
            store.exists,
            store.read,
            lambda name: store.read_ranges([(name, 0, 1)]),
            lambda _: store.names(),
        ):
            store_error(lambda call=call: call("a.tar"), "s3://bucket/set", "refuses access", "credentials")
        store_error(lambda: store.put(folder / "a.tar", "b.tar"), "refuses access")


def test_unreachable_s3_server_is_reported(folder, monkeypatch):
    with serve(folder) as address:
        pass
    use_s3(monkeypatch, address)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    message = store_error(
        lambda: open_store("s3://bucket/set").read("a.tar"), "s3://bucket/set/a.tar", "connection"
    )
    assert re.search("request failed|refused", message)


CALLS = {  # every operation that sends a request to S3
    "read": lambda store, file: store.read("a"),
    "exists": lambda store, file: store.exists("a"),
    "names": lambda store, file: store.names(),
    "modified": lambda store, file: store.modified("a"),
    "ranges": lambda store, file: store.read_ranges([("a", 0, 2)]),
    "fetch": lambda store, file: store.fetch("a", file.with_name("b")),
    "put": lambda store, file: store.put(file, "a"),
    "remove": lambda store, file: store.remove("a"),
}


@pytest.fixture
def aws(monkeypatch):
    """A function that sets AWS_... variables and opens a store on an S3 server that does not answer."""

    def settings(**values):
        use_s3(monkeypatch, "http://127.0.0.1:1")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        return open_store("s3://bucket/set")

    return settings


@pytest.mark.parametrize("operation", CALLS)
def test_invalid_endpoint_is_named_by_its_variable_and_not_repeated(aws, folder, operation):
    store = aws(AWS_ENDPOINT_URL=f"user:{PASSWORD}@host")
    texts = "s3://bucket/set", "AWS_ENDPOINT_URL is not an address such as https://host:port; fix it"
    store_error(lambda: CALLS[operation](store, folder / "a.tar"), *texts)


@pytest.mark.parametrize("wrong", ["", "http://", "ftp://", "http://[", "http://user:", "http://a b "])
def test_no_invalid_endpoint_is_repeated(aws, wrong):
    store = aws(AWS_ENDPOINT_URL_S3=f"{wrong}{PASSWORD}")
    if wrong == "http://":  # a valid address without a server
        store_error(lambda: store.read("a"), "check address and connection")
    else:
        store_error(lambda: store.read("a"), "AWS_ENDPOINT_URL_S3 is not an address such as https://host:port")


def test_invalid_endpoint_in_the_configuration_file_is_named(aws, monkeypatch, tmp_path):
    (tmp_path / "config").write_text(f"[default]\nendpoint_url = {PASSWORD}\n")
    store = aws(AWS_CONFIG_FILE=str(tmp_path / "config"))
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    store_error(lambda: store.read("a"), "endpoint_url in the AWS configuration is not an address")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"AWS_PROFILE": PASSWORD}, "AWS_PROFILE names a profile that does not exist; fix it"),
        ({"AWS_DEFAULT_REGION": f"x {PASSWORD}"}, "AWS_DEFAULT_REGION is not a region such as us-east-1"),
        ({"AWS_MAX_ATTEMPTS": PASSWORD}, "an AWS setting, in a variable AWS_"),  # int() raises a ValueError
        ({"AWS_RETRY_MODE": PASSWORD}, "an AWS setting, in a variable AWS_"),
    ],
)
def test_invalid_aws_setting_is_named_and_not_repeated(aws, values, text):
    store = aws(**values)
    for operation in ("read", "names", "ranges"):
        store_error(lambda call=CALLS[operation]: call(store, None), "s3://bucket/set", text)


def test_unreadable_aws_configuration_file_is_reported(aws, tmp_path):
    (tmp_path / "config").write_text(f"[profile x\n{PASSWORD}")
    store_error(
        lambda: aws(AWS_CONFIG_FILE=str(tmp_path / "config")).read("a"), "the AWS configuration file cannot"
    )


def test_invalid_bucket_name_is_reported(aws):
    aws()
    store_error(
        lambda: open_store("s3://Bad_Bucket!/x").read("a"),
        "s3://Bad_Bucket!/x/a: 'Bad_Bucket!' is not a valid bucket name",
    )


def test_internal_error_is_not_translated():
    for where in ("folder", "http://host/x"):
        with pytest.raises(ValueError, match=r"^internal$") as caught, open_store(where).translate_errors("a"):
            raise ValueError("internal")
        assert caught.type is ValueError


def test_store_error_detects_a_secret():
    with pytest.raises(AssertionError):
        store_error(lambda: (_ for _ in ()).throw(DataError(f"x {SECRET}")))
