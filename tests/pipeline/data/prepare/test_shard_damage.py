"""Diagnosis of damaged shards: random damage, deliberate damage, and crafted shards."""

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
from pipeline.data.prepare.shard_damage import list_samples
from pipeline.data.prepare.verify import verify_shards
from pipeline.data.shard_manifest import MANIFEST_NAME, with_checksum
from pipeline.data.shards import open_shards
from tests.support.image_sets import prepare_random_set

BLOCK = 512


SHARD = "train-00001.tar"  # samples 4 to 7


@pytest.fixture(scope="module")
def prepared_set(tmp_path_factory):
    """A prepared set of 3 classes with 4 training images and 1 test image each."""
    return prepare_random_set(tmp_path_factory.mktemp("prepared"), classes=3, train=4, test=1, samples=4)


def problems(shards, **options):
    """Verify without threads."""
    return verify_shards(shards.store, threads=0, **options)


def assert_one_problem(shards, *texts, shard=SHARD):
    """Expect exactly one problem, of `shard`, with all of `texts`."""
    (problem,) = problems(shards)
    assert problem.startswith(f"{shards.store}/{shard}"), problem
    assert "\n" not in problem
    assert all(text in problem for text in texts), problem


def assert_unreadable(shards, *texts):
    """Expect that reading all samples raises DataError with all of `texts`."""
    with pytest.raises(DataError) as caught:
        shards.train.read(range(len(shards.train)))
    assert SHARD in str(caught.value)
    assert all(text in str(caught.value) for text in texts), str(caught.value)


def flip(content, rng, _):
    at = rng.randrange(len(content))
    content[at] ^= 1 << rng.randrange(8)


def cut(content, rng, _):
    del content[rng.randrange(1, len(content)) :]


def insert(content, rng, _):
    at = rng.randrange(len(content) + 1)
    content[at:at] = rng.randbytes(rng.randrange(1, 2000))


def choose_range(content, rng, members):
    """Return the begin and end of a random block, or of a member with its header."""
    if rng.random() < 0.5:
        begin = BLOCK * rng.randrange(len(content) // BLOCK)
        return begin, begin + BLOCK
    return rng.choice(members)


def drop(content, rng, members):
    begin, end = choose_range(content, rng, members)
    del content[begin:end]


def duplicate(content, rng, members):
    begin, end = choose_range(content, rng, members)
    at = rng.choice([end, BLOCK * rng.randrange(len(content) // BLOCK + 1)])
    content[at:at] = content[begin:end]


def swap(content, rng, members):
    first, second = sorted([choose_range(content, rng, members), choose_range(content, rng, members)])
    if first[1] <= second[0]:
        content[:] = (
            content[: first[0]]
            + content[second[0] : second[1]]
            + content[first[1] : second[0]]
            + content[first[0] : first[1]]
            + content[second[1] :]
        )


def zero(content, rng, members):
    begin, end = choose_range(content, rng, members)
    content[begin:end] = bytes(end - begin)


def empty(content, *_):
    content.clear()


MUTATIONS = (flip, flip, flip, cut, insert, drop, duplicate, swap, zero, empty, None)  # None: remove the file


def members_of(file):
    """Return the begin and end of each member with its header."""
    with tarfile.open(file) as tar:
        return [(member.offset, member.offset_data + -(-member.size // BLOCK) * BLOCK) for member in tar]


def test_two_hundred_random_mutations_are_all_noticed(shards):
    file = shards.store.local / SHARD
    good, members = file.read_bytes(), members_of(shards.store.local / SHARD)
    assert problems(shards) == []
    rng, done = random.Random(2012), 0
    while done < 200:
        mutate, content = rng.choice(MUTATIONS), bytearray(good)
        if mutate:
            mutate(content, rng, members)
            if content == good:
                continue  # zeros replaced by zeros
            file.write_bytes(content)
        else:
            file.unlink(missing_ok=True)
        done += 1
        found = problems(shards)
        assert found, mutate
        assert all(problem.startswith(f"{shards.store}/{SHARD}") for problem in found), found
        assert_unreadable(shards)
    file.write_bytes(good)
    assert problems(shards) == []
    assert len(shards.train.read(range(len(shards.train)))) == 12


def test_a_flipped_bit_is_reported_with_its_sample(shards):
    file, index = shards.store.local / SHARD, shards.train.index
    good, rng = file.read_bytes(), random.Random(0)
    for number in range(4, 8):
        begin, size = int(index["offset"][number]), int(index["size"][number])
        for _ in range(5):
            content = bytearray(good)
            content[begin + rng.randrange(size)] ^= 1 << rng.randrange(8)
            file.write_bytes(content)
            (problem,) = problems(shards)
            assert re.search(rf"is damaged: (it has .*; )?sample {number} is", problem), problem
            assert_unreadable(shards, f"sample {number} of train is damaged")


def rewrite(shards, change):
    """Change the content of SHARD in place."""
    file = shards.store.local / SHARD
    content = bytearray(file.read_bytes())
    change(content, members_of(file))
    file.write_bytes(content)


def test_a_missing_shard_is_reported(shards):
    (shards.store.local / SHARD).unlink()
    assert_one_problem(shards, "is missing; restore it")
    assert_unreadable(shards, "not found")


def test_an_empty_shard_is_reported(shards):
    rewrite(shards, lambda content, members: content.clear())
    assert_one_problem(shards, "it is empty")
    assert_unreadable(shards, "sample 4 of train is truncated: 0 of")


def test_a_shard_truncated_between_samples_is_reported(shards):
    end = int(shards.train.index["offset"][6])
    total = shards.train.split.shards[1].bytes
    rewrite(shards, lambda content, members: content.__delitem__(slice(end, None)))
    assert_one_problem(shards, f"{total - end} of its {total} bytes are missing", "samples 6, 7 are missing")
    assert_unreadable(shards, "sample 6 of train is truncated")


def test_a_shard_truncated_within_a_sample_is_reported(shards):
    rewrite(shards, lambda content, members: content.__delitem__(slice(members[5][0] + 700, None)))
    assert_one_problem(shards, "bytes are missing", "sample 6 is truncated", "sample 7 is missing")


def test_a_missing_label_is_reported(shards):
    rewrite(shards, lambda content, members: content.__delitem__(slice(*members[2])))
    assert_one_problem(shards, "sample 5 is without label", "samples 6, 7 are intact, but at another offset")
    assert_unreadable(shards, "sample 5 of train is damaged")


def test_a_missing_image_is_reported(shards):
    rewrite(shards, lambda content, members: content.__delitem__(slice(*members[3])))
    assert_one_problem(shards, "sample 5 is without image")


def test_a_missing_sample_is_reported(shards):
    rewrite(shards, lambda content, members: content.__delitem__(slice(members[2][0], members[3][1])))
    assert_one_problem(shards, "sample 5 is missing", "samples 6, 7 are intact, but at another offset")


def test_a_duplicated_member_is_reported(shards):
    def change(content, members):
        begin, end = members[3]
        content[end:end] = content[begin:end]

    rewrite(shards, change)
    assert_one_problem(shards, "bytes too many", "sample 5 is duplicated")
    assert_unreadable(shards)


def test_swapped_samples_are_reported(shards):
    def change(content, members):
        a, b, c = members[0][0], members[2][0], members[4][0]
        content[a:c] = content[b:c] + content[a:b]

    rewrite(shards, change)
    assert_one_problem(shards, "samples 4, 5 are intact, but at another offset")
    assert_unreadable(shards, "sample 4 of train is damaged")


def test_a_sample_from_another_shard_is_reported(shards):
    def change(content, members):
        other = (shards.store.local / "train-00002.tar").read_bytes()
        end = members_of(shards.store.local / "train-00002.tar")[1][1]
        content[members[7][1] : members[7][1]] = other[:end]

    rewrite(shards, change)
    assert_one_problem(shards, "sample 8 is from another shard")


def test_a_changed_label_is_reported(shards):
    label = int(shards.train.labels[5])

    def change(content, members):
        content[members[2][0] + BLOCK] = ord("7")

    rewrite(shards, change)
    assert_one_problem(shards, f"sample 5 is changed (label '7', but the index says {label})")


def test_an_image_that_cannot_be_decoded_is_reported(shards):
    rewrite(shards, lambda content, members: content.__setitem__(members[3][0] + BLOCK, 0))
    assert_one_problem(shards, "sample 5 is changed (the image cannot be decoded)")


def test_bytes_after_the_end_are_reported(shards):
    rewrite(shards, lambda content, members: content.extend(b"\0" * 7))
    assert_one_problem(shards, "it has 7 bytes too many")
    assert_unreadable(shards, "sample 7 of train is followed by extra bytes")


def test_swapped_shards_are_reported(shards):
    folder = shards.store.local
    path, other_path = (folder / name for name in ("train-00000.tar", SHARD))
    first, second = path.read_bytes(), other_path.read_bytes()
    path.write_bytes(second)
    other_path.write_bytes(first)
    found = problems(shards)
    assert len(found) == 2
    assert all("are missing" in problem and "are from another shard" in problem for problem in found), found


def build_shard(members):
    """Return a tar file of (TarInfo, content)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def forge_shard(shards, change):
    """Change the members of SHARD, and update index and manifest to match it."""
    folder = shards.store.local
    with tarfile.open(folder / SHARD) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    change(members)
    content = build_shard(members)
    (folder / SHARD).write_bytes(content)
    index = np.array(shards.train.index)
    rows = index[4:8]
    # The first sample includes inserted members; the last one ends with the file.
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


def rename_member(name, kind=tarfile.REGTYPE, member=1):
    """Return a change that gives a member another name and type."""

    def change(members):
        info, content = members[member]
        info.name, info.type = name(info.name) if callable(name) else name, kind
        if kind != tarfile.REGTYPE:
            info.linkname = "/etc/passwd"
        members[member] = info, content

    return change


FORGERIES = {
    "absolute": (rename_member("/etc/cron.d/x"), "path is absolute or contains '..'"),
    "climbing": (rename_member("../../x.jpg"), "path is absolute or contains '..'"),
    "climbing within": (rename_member(lambda name: f"a/../../{name}"), "path is absolute or contains '..'"),
    "below": (rename_member(lambda name: f"a/{name}"), "neither the label nor the image"),
    "symbolic link": (rename_member(lambda name: name, tarfile.SYMTYPE), "a symbolic link"),
    "hard link": (rename_member(lambda name: name, tarfile.LNKTYPE), "a hard link"),
    "device": (rename_member(lambda name: name, tarfile.CHRTYPE), "a device"),
    "pipe": (rename_member(lambda name: name, tarfile.FIFOTYPE), "a pipe"),
    "other kind": (rename_member(lambda name: name.replace(".jpg", ".pyd")), "neither the label nor the image"),
    "other number": (rename_member("00000099-x.jpg"), "of another sample"),
    "two labels": (
        rename_member(lambda name: name.replace(".jpg", ".cls")),
        "does not consist of one label and one image",
    ),
    "other label": (lambda members: members.__setitem__(0, (members[0][0], b"9")), "has label '9'"),
    "no label": (lambda members: members.__setitem__(0, (members[0][0], b"x")), "has label 'x'"),
    "a third member": (
        lambda members: members.insert(2, (tarfile.TarInfo("00000004-x.py"), b"import os")),
        "followed by bytes that belong to no member",
    ),
    "long name": (rename_member("a" * 99), "neither the label nor the image"),
    "escapes": (rename_member("00000004-\x1b[2J.jpg"), "\\x1b"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_members_are_reported_although_all_checksums_match(shards, forgery):
    change, text = FORGERIES[forgery]
    forge_shard(shards, change)
    found = problems(open_shards(shards.store))
    assert any("sample 4" in problem and text in problem for problem in found), found
    assert all(problem.startswith(str(shards.store)) and "\x1b" not in problem for problem in found)


def test_an_unchanged_forgery_has_no_problems(shards):
    forge_shard(shards, lambda members: None)
    assert problems(open_shards(shards.store)) == []


def break_image(members):
    """Overwrite most of the first image with zeros."""
    info, content = members[1]
    members[1] = info, content[:100] + bytes(len(content) - 100)


def test_a_broken_image_with_matching_checksums_is_reported_when_decoded(shards):
    forge_shard(shards, break_image)
    again = open_shards(shards.store)
    (content,) = again.train.read([4])
    with pytest.raises(DataError, match=rf"{SHARD}, sample 4 of train is not a readable image"):
        decode(content, again.train.where(4))
    found = problems(again)
    assert f"{shards.store}/{SHARD}, sample 4 has an image that cannot be decoded" in found[0]
    (problem,) = problems(again, decoding=False)  # only the sha256 of the split, which was not forged
    assert "sha256 of 'train'" in problem


def test_another_image_of_the_same_size_is_noticed_by_the_sha256_of_the_split(shards):
    def change(members):
        info, content = members[1]
        members[1] = info, content[:-1] + bytes([content[-1] ^ 1])

    forge_shard(shards, change)
    found = problems(open_shards(shards.store), decoding=False)
    assert found == [
        f"{shards.store}/manifest.json: the sha256 of 'train' does not match its images and labels;"
        " restore it or prepare the set again"
    ]


def rewrite_index(shards, change):
    """Change the index of the train split, and update the manifest to match it."""
    index = np.array(shards.train.index)
    change(index)
    file = io.BytesIO()
    np.save(file, index)
    (shards.store.local / "train.index.npy").write_bytes(file.getvalue())
    values = json.loads((shards.store.local / MANIFEST_NAME).read_text())
    values["splits"]["train"]["index_sha256"] = hashlib.sha256(file.getvalue()).hexdigest()
    (shards.store.local / MANIFEST_NAME).write_text(with_checksum(values))


@pytest.mark.parametrize(
    ("column", "text"),
    [("height", "has an image of"), ("width", "has an image of"), ("image", "has its image at another place")],
)
def test_an_index_that_does_not_match_an_image_is_reported(shards, column, text):
    def change(index):
        index[column][5] += 1

    rewrite_index(shards, change)
    found = problems(shards)
    assert f"{SHARD}, sample 5 {text}" in found[0]


def test_bytes_hidden_after_the_last_member_are_reported(shards):
    file = shards.store.local / SHARD
    content = bytearray(file.read_bytes())
    content[-9:] = b"import os"
    file.write_bytes(content)

    def change(index):
        row = index[7]
        row["crc32"] = zlib.crc32(content[row["offset"] :])

    rewrite_index(shards, change)
    values = json.loads((shards.store.local / MANIFEST_NAME).read_text())
    values["splits"]["train"]["shards"][1]["sha256"] = hashlib.sha256(content).hexdigest()
    (shards.store.local / MANIFEST_NAME).write_text(with_checksum(values))
    (problem,) = verify_shards(shards.store, threads=0)
    assert f"{SHARD}, sample 7 is followed by bytes that belong to no member" in problem


def test_a_shard_with_only_a_wrong_sha256_is_reported(shards):
    values = json.loads((shards.store.local / MANIFEST_NAME).read_text())
    values["splits"]["train"]["shards"][1]["sha256"] = "0" * 64
    (shards.store.local / MANIFEST_NAME).write_text(with_checksum(values))
    assert_one_problem(shards, "its bytes do not match the sha256 in the manifest")


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([3], "sample 3 is"),
        ([3, 4], "samples 3, 4 are"),
        ([9, 5, 7, 6], "samples 5 to 7, 9 are"),
        (range(0, 40, 2), "samples 0, 2, 4, 6, 8 and 15 more are"),
        ([*range(100), *range(200, 1000)], "samples 0 to 99, 200 to 999 are"),
    ],
)
def test_samples_are_listed_as_ranges(numbers, text):
    assert list_samples(list(numbers)) == text
