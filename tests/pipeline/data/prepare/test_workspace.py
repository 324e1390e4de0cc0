"""The working folder: locks, claims of a server, and targets with other content."""

import dataclasses
import hashlib
import http.server
import threading

import pytest

from pipeline.data.images import DataError
from pipeline.data.prepare import (
    write_shards,
)
from pipeline.data.prepare.source_folders import source_from_folders
from pipeline.data.prepare.source_images import SourceSet, source_from_named_set
from pipeline.data.prepare.workspace import check_writable
from pipeline.data.prepare.write_shards import ShardWriter, prepare_shards
from pipeline.data.store import Store, open_store
from tests.support.image_sets import write_class_folders
from tests.support.preparing import (
    SECRET,
    assert_prepare_refused,
    configure_s3,
    file_sums,
    prepare_folder,
    s3_objects,
)


def test_a_folder_with_other_files_is_refused(source, out, tmp_path):
    out.local.mkdir()
    (out.local / "thesis.txt").write_text("mine")
    assert_prepare_refused("contains other files (thesis.txt); use a new or an empty folder", source, out)
    assert file_sums(out) == {"thesis.txt": hashlib.sha256(b"mine").hexdigest()}
    assert not (out.local / ".preparing").exists()
    assert_prepare_refused("is a file; give a folder", source, Store(str(out.local / "thesis.txt")))
    assert_prepare_refused(
        "cannot be written (Not a directory)", source, Store(str(out.local / "thesis.txt" / "below"))
    )


def test_a_refused_call_creates_no_folder(tmp_path, out):
    with pytest.raises(DataError, match="each must be an integer >= 1"):
        prepare_shards(SourceSet("x", "", ("a",), {"train": []}), out, samples=0)
    with pytest.raises(DataError, match="x has no images in its train split"):
        prepare_shards(SourceSet("x", "", ("a",), {"train": []}), out)
    with pytest.raises(DataError, match="http is read-only"):
        prepare_shards(source_from_named_set("noise", tmp_path), open_store("http://user:pw@127.0.0.1:1/x"))
    assert list(tmp_path.iterdir()) == []


def test_a_second_command_for_the_same_folder_is_refused(source, out):
    started, release, errors = threading.Event(), threading.Event(), []

    def block(done, total):
        started.set()
        release.wait(30)

    def prepare_first():
        try:
            prepare_folder(source, out, progress=block)
        except BaseException as error:
            errors.append(error)
            raise

    thread = threading.Thread(target=prepare_first)
    thread.start()
    try:
        assert started.wait(30)
        assert_prepare_refused("another command is writing to", source, out)
    finally:
        release.set()
        thread.join()
    assert errors == []
    assert prepare_folder(source, out).splits["train"].samples == 10


def test_a_users_file_in_an_unfinished_set_is_kept(tmp_path, source, out, monkeypatch):
    monkeypatch.setattr(write_shards, "write_manifest", lambda *_: pytest.fail("stop here"))
    with pytest.raises(pytest.fail.Exception):
        prepare_folder(source, out)
    monkeypatch.undo()
    (out.local / "mine.tmp").write_text("thesis")
    prepare_folder(source, out)
    assert (out.local / "mine.tmp").read_text() == "thesis"


def test_an_unfinished_set_without_a_record_may_be_replaced(source, out, tmp_path, monkeypatch):
    monkeypatch.setattr(write_shards, "write_small_file", lambda *_: pytest.fail("stop before the first record"))
    with pytest.raises(pytest.fail.Exception):
        prepare_folder(source, out)
    monkeypatch.undo()
    assert (out.local / "train-00000.tar").is_file()
    (out.local / f".train-00001.tar.{'a' * 32}").write_bytes(b"as a killed Store.put leaves it")
    prepare_folder(source, out, samples=50)
    prepare_folder(source, Store(str(tmp_path / "whole")), samples=50)
    assert file_sums(out) == file_sums(tmp_path / "whole")


def test_an_unfinished_set_is_started_again_if_images_were_removed(tmp_path, out):
    folder, reports = write_class_folders(tmp_path / "animals", classes=2, train=5, test=3), []
    bad = folder / "train" / "bee" / "bee_00001.jpg"
    bad.write_bytes(b"none")
    assert_prepare_refused("restore or remove it", folder, out, samples=2)
    assert list((out.local / ".preparing").glob("*.note"))
    bad.unlink()
    prepare_folder(folder, out, samples=2, report=reports.append)
    assert reports == [
        f"the images of the unfinished set at {out} have changed (10 train + 6 test, now 9 train + 6 test);"
        " starting again"
    ]
    prepare_folder(folder, Store(str(tmp_path / "whole")), samples=2)
    assert file_sums(out) == file_sums(tmp_path / "whole")


# --- on a server ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("same", [True, False])
def test_of_two_machines_with_one_address_the_second_continues_and_the_first_fails(
    source, s3, tmp_path, monkeypatch, same
):
    far, put, second = open_store("s3://shop/animals"), Store.put, []
    other_source = source if same else write_class_folders(tmp_path / "other", classes=2, train=5, test=3, seed=1)
    source_set = dataclasses.replace(source_from_folders(other_source), name="animals")

    def put_then_prepare(self, file, name):
        """Prepare on another machine as soon as the first one has written its first record."""
        put(self, file, name)
        if name.endswith(".note"):
            monkeypatch.setattr(Store, "put", put)
            monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
            second.append(prepare_shards(source_set, far, samples=4))

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(Store, "put", put_then_prepare)
    assert_prepare_refused(
        "another command has started to write to s3://shop/animals; wait until it ends", source, far
    )
    assert [manifest.splits["train"].samples for manifest in second] == [10]
    prepare_shards(source_set, Store(str(tmp_path / "whole")), samples=4)
    assert s3_objects(s3) == {f"animals/{path.name}": path.read_bytes() for path in (tmp_path / "whole").iterdir()}


def test_the_plan_of_another_set_on_a_server_is_kept(source, s3, tmp_path, monkeypatch):
    far = open_store("s3://shop/animals")
    monkeypatch.setattr(ShardWriter, "write_all", lambda *_: pytest.fail("stop before the first shard"))
    with pytest.raises(pytest.fail.Exception):
        prepare_folder(source, far)
    before = s3_objects(s3)
    other = write_class_folders(tmp_path / "other", classes=2, train=1, test=1)
    assert_prepare_refused("or remove s3://shop/animals/preparing and the shards", other, far)
    assert s3_objects(s3) == before
    assert list(before) == ["animals/preparing/plan.json"]


def test_check_writable_refuses_a_target_before_the_source_is_read(s3, out, monkeypatch, tmp_path):
    check_writable(open_store("s3://shop/new"))
    check_writable(out)
    assert s3_objects(s3) == {}
    assert not out.local.exists()
    with pytest.raises(DataError, match="s3://nowhere/x cannot be written: the bucket does not exist"):
        check_writable(open_store("s3://nowhere/x"))
    out.local.write_text("a file")
    with pytest.raises(DataError, match="is a file; give a folder"):
        check_writable(out)

    def no_temporary_folder():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", no_temporary_folder)
    with pytest.raises(DataError, match="no folder for temporary files is writable"):
        check_writable(open_store("s3://shop/new"))


def test_a_folder_object_in_a_bucket_counts_as_empty(source, s3):
    s3.put_object(Bucket="shop", Key="marked/", Body=b"")
    assert prepare_folder(source, open_store("s3://shop/marked")).splits["train"].samples == 10


def test_a_prefix_with_other_objects_is_refused(source, s3):
    s3.put_object(Bucket="shop", Key="photos/thesis.txt", Body=b"mine")
    assert_prepare_refused(
        "s3://shop/photos contains other files (thesis.txt); use another address",
        source,
        open_store("s3://shop/photos"),
    )
    assert set(s3_objects(s3)) == {"photos/thesis.txt"}


def test_a_missing_bucket_is_reported(source, s3):
    message = assert_prepare_refused(
        "s3://nowhere/x cannot be written: the bucket does not exist", source, open_store("s3://nowhere/x")
    )
    assert SECRET not in message


def test_missing_credentials_are_reported_with_the_variables_to_set(source, s3, monkeypatch):
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key)
    assert_prepare_refused(
        "no credentials for S3 found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        source,
        open_store("s3://shop/x"),
    )


class ForbiddenBucket(http.server.BaseHTTPRequestHandler):
    """An S3 server that answers every request with 403."""

    def do_GET(self):
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


def test_a_refusing_bucket_is_reported_without_the_secret(source, monkeypatch, tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), ForbiddenBucket) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            configure_s3(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path)
            message = assert_prepare_refused("s3://shop/x", source, open_store("s3://shop/x"))
        finally:
            server.shutdown()
            thread.join()
    assert "the server refuses access; check the credentials" in message
    assert SECRET not in message
    assert "AKIAEXAMPLE" not in message
