"""Damage to a set, two hundred ways: all of it noticed, by verifying and by reading, and named."""

import hashlib
import io
import json
import random
import re
import tarfile
import zlib

import numpy as np
import pytest

from pipeline.data.images import DataError
from pipeline.data.jpeg import decode
from pipeline.data.prepare.verify import verify_shards
from pipeline.data.shard_manifest import MANIFEST_NAME, with_checksum
from pipeline.data.shards import open_shards
from tests.support.making import prepared

BLOCK = 512
SHARD = "train-00001.tar"  # samples 4 to 7


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("made"), classes=3, train=4, test=1, samples=4)


def faults(shards, **options):
    return verify_shards(shards.store, threads=0, **options)


def named(shards, *said, shard=SHARD):
    """Verifying says one thing, with all of `said`."""
    (fault,) = faults(shards)
    assert fault.startswith(f"{shards.store}/{shard}"), fault
    assert "\n" not in fault
    assert all(words in fault for words in said), fault


def not_read(shards, *said):
    """Reading all samples is refused, with all of `said`."""
    with pytest.raises(DataError) as caught:
        shards.train.read(range(len(shards.train)))
    assert SHARD in str(caught.value)
    assert all(words in str(caught.value) for words in said), str(caught.value)


# --- by chance ---------------------------------------------------------------------------------------------


def flip(content, draw, _):
    at = draw.randrange(len(content))
    content[at] ^= 1 << draw.randrange(8)


def cut(content, draw, _):
    del content[draw.randrange(1, len(content)) :]


def insert(content, draw, _):
    at = draw.randrange(len(content) + 1)
    content[at:at] = draw.randbytes(draw.randrange(1, 2000))


def piece(content, draw, members):
    """First and last byte of a block, or of a member with its header."""
    if draw.random() < 0.5:
        begin = BLOCK * draw.randrange(len(content) // BLOCK)
        return begin, begin + BLOCK
    return draw.choice(members)


def drop(content, draw, members):
    begin, end = piece(content, draw, members)
    del content[begin:end]


def duplicate(content, draw, members):
    begin, end = piece(content, draw, members)
    at = draw.choice([end, BLOCK * draw.randrange(len(content) // BLOCK + 1)])
    content[at:at] = content[begin:end]


def swap(content, draw, members):
    one, other = sorted([piece(content, draw, members), piece(content, draw, members)])
    if one[1] <= other[0]:
        content[:] = (
            content[: one[0]]
            + content[other[0] : other[1]]
            + content[one[1] : other[0]]
            + content[one[0] : one[1]]
            + content[other[1] :]
        )


def zero(content, draw, members):
    begin, end = piece(content, draw, members)
    content[begin:end] = bytes(end - begin)


def empty(content, *_):
    content.clear()


WAYS = (flip, flip, flip, cut, insert, drop, duplicate, swap, zero, empty, None)  # None: no file


def members_of(file):
    """First byte and end of each member with its header."""
    with tarfile.open(file) as tar:
        return [(one.offset, one.offset_data + -(-one.size // BLOCK) * BLOCK) for one in tar]


def test_two_hundred_mutations_are_all_noticed(shards):
    file = shards.store.local / SHARD
    good, members = file.read_bytes(), members_of(shards.store.local / SHARD)
    assert faults(shards) == []
    draw, done = random.Random(2012), 0
    while done < 200:
        way, content = draw.choice(WAYS), bytearray(good)
        if way:
            way(content, draw, members)
            if content == good:
                continue  # zeros for zeros
            file.write_bytes(content)
        else:
            file.unlink(missing_ok=True)
        done += 1
        found = faults(shards)
        assert found, way
        assert all(fault.startswith(f"{shards.store}/{SHARD}") for fault in found), found
        not_read(shards)
    file.write_bytes(good)
    assert faults(shards) == []
    assert len(shards.train.read(range(len(shards.train)))) == 12


def test_one_flipped_bit_anywhere_names_the_sample(shards):
    file, index = shards.store.local / SHARD, shards.train.index
    good, draw = file.read_bytes(), random.Random(0)
    for number in range(4, 8):
        begin, size = int(index["offset"][number]), int(index["size"][number])
        for _ in range(5):
            content = bytearray(good)
            content[begin + draw.randrange(size)] ^= 1 << draw.randrange(8)
            file.write_bytes(content)
            (fault,) = faults(shards)
            assert re.search(rf"is damaged: (it has .*; )?sample {number} is", fault), fault
            not_read(shards, f"sample {number} of train is damaged")


# --- on purpose, and what is said --------------------------------------------------------------------------


def rewrite(shards, change):
    file = shards.store.local / SHARD
    content = bytearray(file.read_bytes())
    change(content, members_of(file))
    file.write_bytes(content)


def test_missing(shards):
    (shards.store.local / SHARD).unlink()
    named(shards, "is missing; restore it")
    not_read(shards, "there is no")


def test_empty(shards):
    rewrite(shards, lambda content, members: content.clear())
    named(shards, "it is empty")
    not_read(shards, "sample 4 of train is cut off: 0 of")


def test_truncated_at_a_sample(shards):
    end = int(shards.train.index["offset"][6])
    total = shards.train.split.shards[1].bytes
    rewrite(shards, lambda content, members: content.__delitem__(slice(end, None)))
    named(shards, f"{total - end} of its {total} bytes are missing", "samples 6, 7 are missing")
    not_read(shards, "sample 6 of train is cut off")


def test_truncated_within_a_sample(shards):
    rewrite(shards, lambda content, members: content.__delitem__(slice(members[5][0] + 700, None)))
    named(shards, "bytes are missing", "sample 6 is cut off", "sample 7 is missing")


def test_a_member_is_missing(shards):
    rewrite(shards, lambda content, members: content.__delitem__(slice(*members[2])))
    named(shards, "sample 5 is without label", "samples 6, 7 are whole, but not in place")
    not_read(shards, "sample 5 of train is damaged")


def test_a_picture_is_missing(shards):
    rewrite(shards, lambda content, members: content.__delitem__(slice(*members[3])))
    named(shards, "sample 5 is without picture")


def test_a_sample_is_missing(shards):
    rewrite(shards, lambda content, members: content.__delitem__(slice(members[2][0], members[3][1])))
    named(shards, "sample 5 is missing", "samples 6, 7 are whole, but not in place")


def test_a_member_is_there_twice(shards):
    def change(content, members):
        begin, end = members[3]
        content[end:end] = content[begin:end]

    rewrite(shards, change)
    named(shards, "bytes too many", "sample 5 is there more than once")
    not_read(shards)


def test_two_samples_changed_places(shards):
    def change(content, members):
        a, b, c = members[0][0], members[2][0], members[4][0]
        content[a:c] = content[b:c] + content[a:b]

    rewrite(shards, change)
    named(shards, "samples 4, 5 are whole, but not in place")
    not_read(shards, "sample 4 of train is damaged")


def test_a_sample_of_another_shard(shards):
    def change(content, members):
        other = (shards.store.local / "train-00002.tar").read_bytes()
        end = members_of(shards.store.local / "train-00002.tar")[1][1]
        content[members[7][1] : members[7][1]] = other[:end]

    rewrite(shards, change)
    named(shards, "sample 8 is of another shard")


def test_a_changed_label(shards):
    said = int(shards.train.labels[5])

    def change(content, members):
        content[members[2][0] + BLOCK] = ord("7")

    rewrite(shards, change)
    named(shards, f"sample 5 is changed (label '7' where the index says {said})")


def test_a_picture_that_cannot_be_decoded(shards):
    rewrite(shards, lambda content, members: content.__setitem__(members[3][0] + BLOCK, 0))
    named(shards, "sample 5 is changed (the picture cannot be decoded)")


def test_bytes_behind_the_end(shards):
    rewrite(shards, lambda content, members: content.extend(b"\0" * 7))
    named(shards, "it has 7 bytes too many")
    not_read(shards, "sample 7 of train is followed by bytes that were not prepared")


def test_shards_changed_places(shards):
    folder = shards.store.local
    one, other = (folder / name for name in ("train-00000.tar", SHARD))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    found = faults(shards)
    assert len(found) == 2
    assert all("are missing" in fault and "are of another shard" in fault for fault in found), found


# --- with the right sums: a set that was made to harm ------------------------------------------------------


def tar_of(members):
    """A tar file of (TarInfo, content)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def forged(shards, change):
    """`change` the second shard's members, and make index and manifest agree with what came of it."""
    folder = shards.store.local
    with tarfile.open(folder / SHARD) as tar:
        members = [(one, tar.extractfile(one).read()) for one in tar]
    change(members)
    content = tar_of(members)
    (folder / SHARD).write_bytes(content)
    index = np.array(shards.train.index)
    rows = index[4:8]
    # The first sample takes what was put in; the last one ends with the file.
    grown = content.index(b"00000005-") - int(rows["offset"][1])
    rows["offset"][1:] += grown
    rows["size"][0] += grown
    rows["size"][3] = len(content) - rows["offset"][3]
    for row in rows:
        row["crc32"] = zlib.crc32(content[row["offset"] : row["offset"] + row["size"]])
    file = io.BytesIO()
    np.save(file, index)
    (folder / "train.index.npy").write_bytes(file.getvalue())
    values = json.loads((folder / MANIFEST_NAME).read_text())
    values["splits"]["train"]["index_sha256"] = hashlib.sha256(file.getvalue()).hexdigest()
    values["splits"]["train"]["shards"][1].update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    (folder / MANIFEST_NAME).write_text(with_checksum(values))


def renamed(name, kind=tarfile.REGTYPE, member=1):
    def change(members):
        info, content = members[member]
        info.name, info.type = name(info.name) if callable(name) else name, kind
        if kind != tarfile.REGTYPE:
            info.linkname = "/etc/passwd"
        members[member] = info, content

    return change


HARM = {
    "absolute": (renamed("/etc/cron.d/x"), "absolute or climbing name"),
    "climbing": (renamed("../../x.jpg"), "absolute or climbing name"),
    "climbing within": (renamed(lambda name: f"a/../../{name}"), "absolute or climbing name"),
    "below": (renamed(lambda name: f"a/{name}"), "neither the label nor the picture"),
    "symbolic link": (renamed(lambda name: name, tarfile.SYMTYPE), "a symbolic link"),
    "hard link": (renamed(lambda name: name, tarfile.LNKTYPE), "a hard link"),
    "device": (renamed(lambda name: name, tarfile.CHRTYPE), "a device"),
    "pipe": (renamed(lambda name: name, tarfile.FIFOTYPE), "a pipe"),
    "other kind": (renamed(lambda name: name.replace(".jpg", ".pyd")), "neither the label nor the picture"),
    "other number": (renamed("00000099-x.jpg"), "of another one"),
    "two labels": (renamed(lambda name: name.replace(".jpg", ".cls")), "not one label and one picture"),
    "other label": (lambda members: members.__setitem__(0, (members[0][0], b"9")), "has the label '9'"),
    "no label": (lambda members: members.__setitem__(0, (members[0][0], b"x")), "has the label 'x'"),
    "a third member": (
        lambda members: members.insert(2, (tarfile.TarInfo("00000004-x.py"), b"import os")),
        "followed by bytes of no member",
    ),
    "long name": (renamed("a" * 99), "neither the label nor the picture"),
    "escapes": (renamed("00000004-\x1b[2J.jpg"), "\\x1b"),
}


@pytest.mark.parametrize("harm", HARM)
def test_members_that_could_harm_are_refused_though_all_sums_are_right(shards, harm):
    change, said = HARM[harm]
    forged(shards, change)
    found = faults(open_shards(shards.store))
    assert any("sample 4" in fault and said in fault for fault in found), found
    assert all(fault.startswith(str(shards.store)) and "\x1b" not in fault for fault in found)


def test_the_forger_makes_no_mistake_of_his_own(shards):
    forged(shards, lambda members: None)
    assert faults(open_shards(shards.store)) == []


def broken(members):
    info, content = members[1]
    members[1] = info, content[:100] + bytes(len(content) - 100)


def test_a_broken_picture_with_the_right_sums_is_named_when_it_is_reached(shards):
    forged(shards, broken)
    again = open_shards(shards.store)
    (content,) = again.train.read([4])
    with pytest.raises(DataError, match=rf"{SHARD}, sample 4 of train is no readable picture"):
        decode(content, again.train.where(4))
    found = faults(again)
    assert f"{shards.store}/{SHARD}, sample 4 has a picture that cannot be decoded" in found[0]
    (fault,) = faults(again, decoding=False)  # only the sum of all pictures, which the forger left
    assert "sha256 of 'train'" in fault


def test_another_picture_of_the_same_length_is_noticed_by_the_sets_own_sum(shards):
    def change(members):
        info, content = members[1]
        members[1] = info, content[:-1] + bytes([content[-1] ^ 1])

    forged(shards, change)
    found = faults(open_shards(shards.store), decoding=False)
    assert found == [
        f"{shards.store}/manifest.json: the sha256 of 'train' is not that of its pictures and labels;"
        " restore it, or prepare the set anew"
    ]


def with_index(shards, change):
    """Change the training part's index, and let the manifest agree."""
    index = np.array(shards.train.index)
    change(index)
    file = io.BytesIO()
    np.save(file, index)
    (shards.store.local / "train.index.npy").write_bytes(file.getvalue())
    values = json.loads((shards.store.local / MANIFEST_NAME).read_text())
    values["splits"]["train"]["index_sha256"] = hashlib.sha256(file.getvalue()).hexdigest()
    (shards.store.local / MANIFEST_NAME).write_text(with_checksum(values))


@pytest.mark.parametrize(
    ("column", "said"),
    [("height", "has a picture of"), ("width", "has a picture of"), ("image", "has its picture elsewhere")],
)
def test_an_index_that_says_other_things_of_a_picture_is_named(shards, column, said):
    def change(index):
        index[column][5] += 1

    with_index(shards, change)
    found = faults(shards)
    assert f"{SHARD}, sample 5 {said}" in found[0]


def test_bytes_hidden_behind_the_last_member_are_found(shards):
    file = shards.store.local / SHARD
    content = bytearray(file.read_bytes())
    content[-9:] = b"import os"
    file.write_bytes(content)

    def change(index):
        row = index[7]
        row["crc32"] = zlib.crc32(content[row["offset"] :])

    with_index(shards, change)
    values = json.loads((shards.store.local / MANIFEST_NAME).read_text())
    values["splits"]["train"]["shards"][1]["sha256"] = hashlib.sha256(content).hexdigest()
    (shards.store.local / MANIFEST_NAME).write_text(with_checksum(values))
    (fault,) = verify_shards(shards.store, threads=0)
    assert f"{SHARD}, sample 7 is followed by bytes of no member" in fault


def test_a_shard_whose_sum_alone_differs_is_named(shards):
    values = json.loads((shards.store.local / MANIFEST_NAME).read_text())
    values["splits"]["train"]["shards"][1]["sha256"] = "0" * 64
    (shards.store.local / MANIFEST_NAME).write_text(with_checksum(values))
    named(shards, "its bytes are not those that the manifest lists")
