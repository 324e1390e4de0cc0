"""Shard records: a shard that does not match its record is written again."""

import shutil

import pytest

from pipeline.data.prepare import (
    write_shards,
)
from pipeline.data.prepare.write_shards import ShardWriter
from pipeline.data.shards import open_shards
from tests.support.image_sets import write_image
from tests.support.preparing import (
    copy_folder,
    file_sums,
    prepare_folder,
)


@pytest.mark.parametrize("damage", ["shard", "record", "image"])
def test_a_shard_that_differs_from_its_record_is_written_again(source, out, tmp_path, damage, monkeypatch):
    expected = file_sums(out) if prepare_folder(source, out) else {}
    shutil.rmtree(out.local)
    own = copy_folder(source, tmp_path / "mine" / "animals")
    monkeypatch.setattr(write_shards, "write_manifest", lambda *_: pytest.fail("stop here"))
    with pytest.raises(pytest.fail.Exception):
        prepare_folder(own, out)
    monkeypatch.undo()
    if damage == "shard":
        (out.local / "train-00001.tar").write_bytes(b"short")
    elif damage == "record":
        record = out.local / ".preparing" / "train-00001.tar.note"
        record.write_bytes(record.read_bytes()[:-1] + b"x")
    else:
        file = next((own / "train" / "bee").iterdir())
        write_image(file, 12345)
    written = []
    write = ShardWriter.write_file
    monkeypatch.setattr(
        ShardWriter, "write_file", lambda self, job, *rest: written.append(job) or write(self, job, *rest)
    )
    prepare_folder(own, out)
    assert len(written) == 1
    if damage == "image":
        assert any(image.file == str(file) for image in written[0].images)
        assert file.read_bytes() in open_shards(out).train.read(range(10))
    else:
        assert written[0].name == "train-00001.tar"
        assert file_sums(out) == expected
