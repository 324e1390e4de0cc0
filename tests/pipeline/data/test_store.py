"""Where files lie: folders, http servers with their troubles, S3; and what is refused."""

import os
import pickle
import re
import shutil
import signal
import threading

import pytest

from pipeline.data import store
from pipeline.data.images import DataError
from pipeline.data.store import MissingFileError, Store, open_store
from tests.support.servers import (
    KEY,
    SECRET,
    Dying,
    Refusing,
    Silent,
    Stumbling,
    Whole,
    s3_server,
    serve,
    use_s3,
)

CONTENT = bytes(range(256)) * 8
PASSWORD, SIGNATURE = "hunter2", "5167na7ur3"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(store, "PAUSES", (0.01,))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.tar").write_bytes(CONTENT)
    (tmp_path / "set" / "empty").write_bytes(b"")
    return tmp_path / "set"


@pytest.fixture(scope="module")
def s3():
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(s3, monkeypatch, folder):
    """s3://bucket/set, with what `folder` holds."""
    use_s3(monkeypatch, s3)
    there = open_store("s3://bucket/set/")
    for file in folder.iterdir():
        copy = shutil.copyfile(file, folder.parent / "copy")
        there.put(copy, file.name)
    return there


def secretly(address, query=""):
    """The same address with a password, and a signature in the query."""
    return open_store(address.replace("//", f"//user:{PASSWORD}@") + f"?X-Amz-Signature={SIGNATURE}{query}")


def refused(call, *said, kind=DataError):
    """One sentence with all of `said`, and no secret."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert all(words in message for words in said), message
    assert "\n" not in message
    for secret in (PASSWORD, SIGNATURE, SECRET, KEY):
        assert secret not in message
    assert caught.value.__cause__ is None
    return message


def behaves(here):
    """Reading a place that holds what `folder` does."""
    assert here.exists("a.tar")
    assert not here.exists("b.tar")
    assert here.size("a.tar") == len(CONTENT)
    assert here.read("a.tar") == CONTENT
    assert here.read("empty") == b""
    assert here.ranges([("a.tar", 3, 5), ("a.tar", 0, 2), ("a.tar", 3, 5)]) == [
        CONTENT[3:8],
        CONTENT[:2],
        CONTENT[3:8],
    ]
    assert here.ranges([]) == []
    refused(lambda: here.read("b.tar"), f"{here}/b.tar", "there is no", kind=MissingFileError)
    refused(lambda: here.ranges([("a.tar", 0, 1), ("b.tar", 0, 1)]), f"{here}/b.tar", kind=MissingFileError)


def short_beyond_the_end(here):
    end = len(CONTENT)
    assert here.ranges([("a.tar", end - 2, 5), ("a.tar", end, 5), ("a.tar", end + 100, 5)]) == [
        CONTENT[-2:],
        b"",
        b"",
    ]


# --- folders -----------------------------------------------------------------------------------------------


def test_a_folder(folder):
    here = open_store(folder)
    behaves(here)
    short_beyond_the_end(here)
    (folder / "below").mkdir()
    assert here.names() == ["a.tar", "empty"]
    assert here.names(folders=True) == ["a.tar", "below", "empty"]
    assert open_store(folder / "nothing").names() == []


def test_a_file_gone_from_a_folder_is_to_be_restored_and_one_from_a_server_looked_for(folder):
    lost = f"there is no {folder}/b.tar; restore it, or mend the path"
    assert refused(lambda: open_store(folder).read("b.tar"), kind=MissingFileError) == lost
    with serve(folder) as address:
        refused(lambda: open_store(address).read("b.tar"), "; check the address", kind=MissingFileError)


def test_put_and_remove_in_a_folder(folder, tmp_path):
    here = open_store(tmp_path / "new" / "one")
    here.put(shutil.copyfile(folder / "a.tar", tmp_path / "x"), "b.tar")
    assert here.read("b.tar") == CONTENT
    here.put(shutil.copyfile(folder / "empty", tmp_path / "x"), "b.tar")
    assert here.read("b.tar") == b""
    here.remove("b.tar")
    here.remove("b.tar")
    assert list((tmp_path / "new" / "one").iterdir()) == []


def test_put_to_another_disk_copies(folder, tmp_path, monkeypatch):
    def rename(self, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("pathlib.Path.rename", rename)
    open_store(tmp_path / "new").put(folder / "a.tar", "b.tar")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["b.tar"]
    assert (tmp_path / "new" / "b.tar").read_bytes() == CONTENT


def test_a_copy_is_whole_or_not_there(folder, tmp_path):
    target = tmp_path / "new" / "a.tar"
    refused(lambda: open_store(folder).fetch("nothing", target), "there is no", kind=MissingFileError)
    assert list((tmp_path / "new").iterdir()) == []
    open_store(folder).fetch("a.tar", target)
    assert target.read_bytes() == CONTENT
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.tar"]


@pytest.mark.parametrize("far", [False, True])
def test_a_full_disk_is_said_to_be_this_machines(folder, tmp_path, far):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serve(folder) as address:
        here = open_store(address if far else folder)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the kernel's own error, with a smaller disk
        try:
            refused(
                lambda: here.fetch("a.tar", tmp_path / "new" / "a.tar"), f"{tmp_path}/new: File too large; mend"
            )
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_folder_without_permission(folder):  # pragma: no cover
    (folder / "a.tar").chmod(0)
    refused(lambda: open_store(folder).read("a.tar"), "permissions")


def test_permission_errors_of_a_folder(folder, monkeypatch):
    def read(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", read)
    refused(lambda: open_store(folder).read("a.tar"), f"{folder}/a.tar", "check its permissions")


@pytest.mark.parametrize(("kind", "call"), [("is_file", Store.exists), ("iterdir", lambda here, _: here.names())])
def test_a_folder_that_may_not_be_looked_into(folder, monkeypatch, kind, call):
    def look(self):
        raise PermissionError(13, "Permission denied")

    here = open_store(folder)
    monkeypatch.setattr(f"pathlib.Path.{kind}", look)
    refused(lambda: call(here, "a.tar"), f"{folder}", "check its permissions")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("~nobody-of-that-name/x", "begins with the home of a user who has none"),
        ("loop", "loop: Too many levels of symbolic links; mend"),
        ("loop/x", "loop/x: Too many levels of symbolic links; mend"),
        ("a" * 256, "File name too long; mend"),
    ],
)
def test_a_path_that_leads_nowhere(tmp_path, monkeypatch, path, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    refused(lambda: open_store(path), path, said)


def test_a_path_below_a_folder_that_may_not_be_entered(tmp_path, monkeypatch):
    def stat(self, **_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.stat", stat)
    refused(lambda: open_store(tmp_path / "x"), f"{tmp_path}/x may not be used: check its permissions")


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
        "http://user:hunter2/3@host/x",  # a slash within the password: what follows would be shown
        "http:///x",
        "s3://",
        "s3://AKIDFORTESTS:hunter2@bucket/x",
        "s3://bucket/x#5167na7ur3",  # what is cut off would be another prefix
        "s3://bucket/x?versionId=5167na7ur3",
        "file://elsewhere/x",
        "file:x",
    ],
)
def test_other_addresses_are_refused_without_repeating_them(address):
    refused(lambda: open_store(address))


@pytest.mark.parametrize(
    ("address", "local", "shown"),
    [
        ("data/set", "data/set", "data/set"),
        ("file:///data/set", "/data/set", "/data/set"),
        ("file:/data/set", "/data/set", "/data/set"),
        ("HTTP://Host:80/x/", None, "http://Host:80/x"),
        ("s3://bucket/a/b/", None, "s3://bucket/a/b"),
        ("https://user:hunter2@host/x?X-Amz-Signature=5167na7ur3#y", None, "https://host/x"),
    ],
)
def test_addresses(address, local, shown):
    here = open_store(address)
    assert (here.local and str(here.local)) == local
    assert str(here) == here.shown == shown
    assert PASSWORD not in repr(here)
    assert SIGNATURE not in repr(here)


def test_a_query_stays_behind_the_files_name():
    assert open_store("https://host/set/?sig=1").path("a.tar") == "https://host/set/a.tar?sig=1"
    assert open_store("https://host").path("a.tar") == "https://host/a.tar"


def test_a_place_is_pickled_without_its_connections(folder):
    with serve(folder) as address:
        here = open_store(address)
        here.read("a.tar")
        again = pickle.loads(pickle.dumps(here))
        assert again == here
        assert again.read("a.tar") == CONTENT


# --- http --------------------------------------------------------------------------------------------------


def test_http(folder):
    with serve(folder) as address:
        behaves(secretly(address))
        short_beyond_the_end(secretly(address))
        assert secretly(address).names() == []  # http lists nothing


def test_http_cannot_be_written_to(folder):
    refused(lambda: open_store("http://host/x").put(folder / "a.tar", "b.tar"), "http is for reading", "s3://")


def test_a_server_without_ranges_is_refused_before_it_sends_everything(folder):
    with serve(folder, Whole) as address:
        here = secretly(address)
        assert here.read("a.tar") == CONTENT
        message = refused(lambda: here.ranges([("a.tar", 3, 5)]), f"{address}/a.tar", "whole files")
        assert "bytes 3 to 8" in message


def test_a_server_that_dies_in_the_middle(folder, tmp_path):
    with serve(folder, Dying) as address:
        here = secretly(address)
        refused(lambda: here.ranges([("a.tar", 0, 100)]), f"{address}/a.tar", "the server could not be used")
        refused(lambda: here.read("a.tar"), f"{address}/a.tar")
        refused(lambda: here.fetch("a.tar", tmp_path / "new" / "a.tar"), f"{address}/a.tar")
        assert list((tmp_path / "new").iterdir()) == []


def test_a_server_that_stumbles_is_asked_again(folder):
    with serve(folder, Stumbling) as address:
        assert open_store(address).ranges([("a.tar", 3, 5)]) == [CONTENT[3:8]]
    with serve(folder, Stumbling) as address:
        assert open_store(address).read("a.tar") == CONTENT


def test_a_server_that_stays_away_is_said_to(folder, monkeypatch):
    monkeypatch.setattr(store, "PAUSES", ())
    with serve(folder, Stumbling) as address:
        refused(lambda: secretly(address).read("a.tar"), "status 503")


def test_a_server_that_says_nothing(folder, monkeypatch):
    monkeypatch.setattr(store, "SILENCE", 0.2)
    monkeypatch.setattr(store, "PAUSES", ())
    with serve(folder, Silent) as address:
        refused(lambda: secretly(address).read("a.tar"), f"{address}/a.tar", "the server could not be used")


def test_no_server(folder):
    with serve(folder) as address:
        pass
    refused(lambda: secretly(address).exists("a.tar"), "Connection refused; check address")


def test_a_server_that_refuses(folder):
    with serve(folder, Refusing) as address:
        here = secretly(address)
        for call in (here.exists, here.read, here.size, lambda name: here.ranges([(name, 0, 1)])):
            refused(lambda call=call: call("a.tar"), f"{address}/a.tar", "refuses access", "credentials")


def test_threads_share_a_place(folder):
    with serve(folder) as address:
        here, found = open_store(address), []
        threads = [
            threading.Thread(target=lambda: found.append(here.ranges([("a.tar", 7, 9)] * 5))) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [[CONTENT[7:16]] * 5] * 6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # that is what is tried
def test_a_place_works_after_a_fork(folder):
    with serve(folder) as address:
        here = open_store(address)
        here.read("a.tar")
        read, write = os.pipe()
        child = os.fork()
        if not child:  # pragma: no cover
            signal.alarm(20)  # it would hang
            os.write(write, b"y" if here.read("a.tar") == CONTENT else b"n")
            os._exit(0)
        os.close(write)
        assert os.read(read, 1) == b"y"
        os.close(read)
        os.waitpid(child, 0)


# --- S3 ----------------------------------------------------------------------------------------------------


def test_s3(bucket, tmp_path):
    behaves(bucket)
    short_beyond_the_end(bucket)
    assert bucket.names() == ["a.tar", "empty"]
    assert open_store("s3://bucket/nothing").names() == []
    assert open_store("s3://bucket").names(folders=True) == ["set"]
    bucket.fetch("a.tar", tmp_path / "new" / "a.tar")
    assert (tmp_path / "new" / "a.tar").read_bytes() == CONTENT
    bucket.remove("empty")
    bucket.remove("empty")
    assert bucket.names() == ["a.tar"]


def test_s3_sees_what_another_process_wrote(bucket, folder):
    other = Store(bucket.address)
    assert other.names() == ["a.tar", "empty"]
    bucket.remove("empty")
    assert other.names() == ["a.tar"]
    assert not other.exists("empty")


def test_no_such_bucket(bucket, folder):
    missing = open_store("s3://no-such-bucket/set")
    refused(lambda: missing.read("a.tar"), "there is no s3://no-such-bucket/set/a.tar", kind=MissingFileError)
    refused(lambda: missing.put(folder / "a.tar", "a.tar"), "there is no s3://no-such-bucket/set/a.tar")


def test_no_credentials(bucket, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    refused(lambda: open_store("s3://bucket/set").read("a.tar"), "no credentials", "AWS_ACCESS_KEY_ID")


def test_a_bucket_that_refuses(folder, monkeypatch):
    with serve(folder, Refusing) as address:
        use_s3(monkeypatch, address)
        here = open_store("s3://bucket/set")
        for call in (here.exists, here.read, lambda name: here.ranges([(name, 0, 1)]), lambda _: here.names()):
            refused(lambda call=call: call("a.tar"), "s3://bucket/set", "refuses access", "credentials")
        refused(lambda: here.put(folder / "a.tar", "b.tar"), "refuses access")


def test_no_s3_server(folder, monkeypatch):
    with serve(folder) as address:
        pass
    use_s3(monkeypatch, address)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    message = refused(lambda: open_store("s3://bucket/set").read("a.tar"), "s3://bucket/set/a.tar", "connection")
    assert re.search("could not be used|refused", message)


ASKING = {  # every way in which a bucket is asked
    "read": lambda here, file: here.read("a"),
    "exists": lambda here, file: here.exists("a"),
    "names": lambda here, file: here.names(),
    "modified": lambda here, file: here.modified("a"),
    "ranges": lambda here, file: here.ranges([("a", 0, 2)]),
    "fetch": lambda here, file: here.fetch("a", file.with_name("b")),
    "put": lambda here, file: here.put(file, "a"),
    "remove": lambda here, file: here.remove("a"),
}


@pytest.fixture
def aws(monkeypatch):
    """Sets AWS_... variables beside those of an S3 server that nobody answers at."""

    def settings(**values):
        use_s3(monkeypatch, "http://127.0.0.1:1")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        return open_store("s3://bucket/set")

    return settings


@pytest.mark.parametrize("how", ASKING)
def test_an_endpoint_that_is_no_address_is_named_by_its_variable_and_not_repeated(aws, folder, how):
    here = aws(AWS_ENDPOINT_URL=f"user:{PASSWORD}@host")
    said = "s3://bucket/set", "AWS_ENDPOINT_URL is no address such as https://host:port; mend it"
    refused(lambda: ASKING[how](here, folder / "a.tar"), *said)


@pytest.mark.parametrize("wrong", ["", "http://", "ftp://", "http://[", "http://user:", "http://a b "])
def test_whatever_is_wrong_with_an_endpoint_it_is_not_repeated(aws, wrong):
    here = aws(AWS_ENDPOINT_URL_S3=f"{wrong}{PASSWORD}")
    if wrong == "http://":  # an address, at which there is no server
        refused(lambda: here.read("a"), "check address and connection")
    else:
        refused(lambda: here.read("a"), "AWS_ENDPOINT_URL_S3 is no address such as https://host:port")


def test_an_endpoint_of_the_configuration_file_is_not_blamed_on_a_variable(aws, monkeypatch, tmp_path):
    (tmp_path / "config").write_text(f"[default]\nendpoint_url = {PASSWORD}\n")
    here = aws(AWS_CONFIG_FILE=str(tmp_path / "config"))
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    refused(lambda: here.read("a"), "endpoint_url of AWS's settings is no address")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"AWS_PROFILE": PASSWORD}, "there is no AWS profile of the name in AWS_PROFILE; mend it"),
        ({"AWS_DEFAULT_REGION": f"x {PASSWORD}"}, "the region in AWS_DEFAULT_REGION is none such as us-east-1"),
        ({"AWS_MAX_ATTEMPTS": PASSWORD}, "a setting of AWS, in a variable AWS_"),  # int() raises a ValueError
        ({"AWS_RETRY_MODE": PASSWORD}, "a setting of AWS, in a variable AWS_"),
    ],
)
def test_wrong_settings_of_aws_are_named_and_not_repeated(aws, values, said):
    here = aws(**values)
    for how in ("read", "names", "ranges"):
        refused(lambda how=how: ASKING[how](here, None), "s3://bucket/set", said)


def test_a_configuration_file_of_aws_that_cannot_be_read(aws, tmp_path):
    (tmp_path / "config").write_text(f"[profile x\n{PASSWORD}")
    refused(lambda: aws(AWS_CONFIG_FILE=str(tmp_path / "config")).read("a"), "AWS's configuration file cannot")


def test_what_is_no_buckets_name_is_said_to_be_none(aws):
    aws()
    refused(
        lambda: open_store("s3://Bad_Bucket!/x").read("a"),
        "s3://Bad_Bucket!/x/a: 'Bad_Bucket!' is no bucket's name",
    )


def test_a_mistake_of_ours_is_no_mistake_of_the_user():
    for where in ("folder", "http://host/x"):
        with pytest.raises(ValueError, match=r"^ours$") as caught, open_store(where).trouble("a"):
            raise ValueError("ours")
        assert caught.type is ValueError


def test_the_secret_would_be_found():
    with pytest.raises(AssertionError):
        refused(lambda: (_ for _ in ()).throw(DataError(f"x {SECRET}")))
