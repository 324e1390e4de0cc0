"""The stand-in for ImageNet: the same bytes every time, learnable, but not from what does not matter."""

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pipeline.data.prepare.archives import source_from_archives
from pipeline.data.prepare.originals import source_from_folders
from pipeline.data.prepare.standin import (
    EVERY,
    DrawnImage,
    class_appearance,
    draw_image,
    encode_image,
    make_standin,
)

from pipeline.data.images import DataError
from pipeline.data.jpeg import decode
from pipeline.data.prepare import standin
from pipeline.data.prepare.archive_files import (
    DEVKIT_ARCHIVE,
    STAND_IN_FILE,
    TRAIN_ARCHIVE,
    VAL_ARCHIVE,
    imagenet_wnids,
)
from pipeline.data.prepare.devkit import META, TRUTH

SMALL = {"classes": 3, "train": 3, "test": 2, "side": 32}
# sha256 of the pixels of the first 20 pictures of `drawn` below, joined; it changes only with what is drawn. Anew:
# hashlib.sha256(b"".join(draw(one).tobytes() for one in drawn("train", 2)[:20])).hexdigest()
PIXELS = "842b20688474a2bd7d3e6961d43e8064fd21e729a6c10dc7f5b815e90df5d421"


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def drawn(split, each, *, classes=10, side=48):
    """Some pictures of ten classes, that many of each, as make_standin numbers them."""
    return [
        DrawnImage(0, split, label * each + i, label, "x.JPEG", side)
        for label in range(classes)
        for i in range(each)
    ]


# --- the same every time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["archives", "folders"])
def test_it_is_made_the_same_again(tmp_path, layout):
    for name in ("one", "two"):
        make_standin(tmp_path / name, **SMALL, layout=layout)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_another_seed_makes_another(tmp_path):
    for seed in (0, 1):
        make_standin(tmp_path / str(seed), **SMALL, seed=seed)
    one, two = contents(tmp_path / "0"), contents(tmp_path / "1")
    assert one.keys() == two.keys()
    assert all(one[name] != two[name] for name in one)


def test_its_pixels_are_the_same_on_every_machine():
    pixels = b"".join(draw_image(one).tobytes() for one in drawn("train", 2)[:20])
    assert hashlib.sha256(pixels).hexdigest() == PIXELS


def test_neither_time_nor_user_enters(tmp_path, monkeypatch):
    make_standin(tmp_path / "now", **SMALL)
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setattr("time.asctime", lambda *args: "another day")
    make_standin(tmp_path / "later", **SMALL)
    assert contents(tmp_path / "now") == contents(tmp_path / "later")
    with tarfile.open(tmp_path / "now" / TRAIN_ARCHIVE) as archive:
        assert {(one.mtime, one.uid, one.gid, one.uname, one.gname) for one in archive} == {(0, 0, 0, "", "")}


def test_the_devkit_is_a_gzip_file_for_others_too(tmp_path):
    make_standin(tmp_path / "set", **SMALL)
    with tarfile.open(
        fileobj=io.BytesIO(gzip.decompress((tmp_path / "set" / DEVKIT_ARCHIVE).read_bytes()))
    ) as archive:
        assert archive.getnames()[1:] == [META, TRUTH]


@pytest.mark.parametrize("size", [0, 1, 65534, 65535, 65536, 200_000])
def test_gzip_without_compression_unpacks(size):
    content = np.random.default_rng(0).bytes(size)
    assert gzip.decompress(standin._gzip(content)) == content


# --- as ImageNet is --------------------------------------------------------------------------------------------


def test_both_layouts_hold_the_same_pictures(tmp_path):
    make_standin(tmp_path / "archives", **SMALL)
    make_standin(tmp_path / "folders", **SMALL, layout="folders")
    found = source_from_archives(tmp_path / "archives", cache=tmp_path / "cache")
    expected = {}
    for split, name in (("train", "train"), ("test", "val")):
        for one in found.splits[split]:
            expected[f"{name}/{found.classes[one.label]}/{one.stem}.JPEG"] = one.read()
    files = contents(tmp_path / "folders")
    assert json.loads(files.pop(STAND_IN_FILE))["files"] == {}
    assert files == expected


def test_class_folders_and_archives_are_listed_in_the_same_order(tmp_path):
    make_standin(tmp_path / "archives", **SMALL)
    make_standin(tmp_path / "folders", **SMALL, layout="folders")
    one = source_from_archives(tmp_path / "archives", cache=tmp_path / "cache")
    two = source_from_folders(tmp_path / "folders")
    assert one.classes == two.classes
    for split in ("train", "test"):
        assert [(p.label, p.stem) for p in one.splits[split]] == [(p.label, p.stem) for p in two.splits[split]]


def test_the_devkits_numbers_are_in_another_order_than_the_classes(tmp_path):
    from scipy.io import loadmat

    make_standin(tmp_path / "set", classes=10, train=1, test=1, side=32)
    numbers = json.loads((tmp_path / "set" / STAND_IN_FILE).read_text())["numbers"]
    assert sorted(numbers) == list(range(1, 11))
    assert numbers != sorted(numbers)
    with tarfile.open(tmp_path / "set" / DEVKIT_ARCHIVE) as archive:
        synsets = loadmat(archive.extractfile(META), squeeze_me=True)["synsets"]
    leaves = {str(row["WNID"]): int(row["ILSVRC2012_ID"]) for row in synsets if row["num_children"] == 0}
    assert leaves == dict(zip(imagenet_wnids()[:10], numbers, strict=True))
    assert len(synsets) == 11  # one is no class


def test_every_class_has_its_pictures_and_the_validation_pictures_are_mixed(tmp_path):
    make_standin(tmp_path / "set", classes=5, train=2, test=4, side=32)
    found = source_from_archives(tmp_path / "set", cache=tmp_path / "cache")
    assert np.bincount([one.label for one in found.splits["train"]]).tolist() == [2] * 5
    assert np.bincount([one.label for one in found.splits["test"]]).tolist() == [4] * 5
    by_number = [one.label for one in sorted(found.splits["test"], key=lambda one: one.stem)]
    assert by_number != sorted(by_number)


def test_some_pictures_are_grey_some_cmyk_and_some_png():
    kinds = {}
    for number in range(EVERY * 2):
        if number % EVERY < 5 or number % EVERY == EVERY - 1:
            content = encode_image(DrawnImage(0, "train", number, 0, "x.JPEG", 32))
            with Image.open(io.BytesIO(content)) as image:
                kinds[number] = image.format, image.mode
            pixels = decode(content, "x")
            assert pixels.shape == draw_image(DrawnImage(0, "train", number, 0, "x.JPEG", 32)).shape
    special = {0: ("JPEG", "L"), 1: ("JPEG", "CMYK"), 2: ("PNG", "RGB")}
    assert kinds == {number: special.get(number % EVERY, ("JPEG", "RGB")) for number in kinds}


def test_what_is_encoded_is_what_was_drawn():
    for number, most in ((1, 8.0), (2, 0.0), (3, 8.0)):  # CMYK, PNG, JPEG: mean difference of 255
        picture = DrawnImage(0, "train", number, 1, "x.JPEG", 64)
        difference = abs(decode(encode_image(picture), "x").astype(int) - draw_image(picture))
        assert difference.mean() <= most


def test_pictures_differ_in_size_and_aspect():
    shapes = np.array([draw_image(one).shape[:2] for one in drawn("train", 10)])
    short, long = shapes.min(1), shapes.max(1)
    assert short.min() >= 48
    assert short.max() <= 72
    assert (long >= short).all()
    assert (long <= 2 * short).all()
    assert len(np.unique(shapes, axis=0)) > 80
    wide = (shapes[:, 1] > shapes[:, 0]).mean()
    assert 0.3 < wide < 0.7


# --- learnable, but not from what does not matter -------------------------------------------------------------


def test_no_two_of_a_thousand_classes_look_the_same():
    assert len({class_appearance(label) for label in range(1000)}) == 1000
    for cue in range(3):
        assert len({class_appearance(label)[cue] for label in range(10)}) == 10
    assert {value for label in range(1000) for value in class_appearance(label)} == set(range(10))


def test_every_shape_and_texture_is_its_own():
    y, x = np.arange(-40, 41)[:, None], np.arange(-40, 41)[None, :]
    shapes = [np.broadcast_to(standin.shape_mask(kind, y, x, 30), (81, 81)) for kind in range(10)]
    assert len({shape.tobytes() for shape in shapes}) == 10
    for shape in shapes:
        assert 0.05 < shape.mean() < 0.6
        assert shape.sum() == shape[9:-9, 9:-9].sum()  # within the radius
    textures = [standin.texture_mask(kind, y, x, 30, 7) for kind in range(10)]
    assert len({one.tobytes() for one in textures}) == 10
    for one in textures:
        assert 0.4 < one.mean() < 0.6
    assert len(set(standin.PALETTES)) == 10


def linear_accuracy(features):
    """Of a linear model on 60 training pictures of each of ten classes, on 40 others."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = {}
    for split, each in (("train", 60), ("test", 40)):
        pictures = drawn(split, each)
        data[split] = np.array([features(draw_image(one)) for one in pictures]), [one.label for one in pictures]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(*data["train"])
    return model.score(*data["test"])


CHANCE, SPREAD = 0.1, 0.015  # of 400 guesses: sqrt(0.1 x 0.9 / 400)


def test_the_mean_colour_says_nothing():
    assert linear_accuracy(lambda pixels: pixels.mean((0, 1))) < CHANCE + 4 * SPREAD


def test_one_pixel_says_next_to_nothing():
    assert linear_accuracy(lambda pixels: pixels[pixels.shape[0] // 2, pixels.shape[1] // 2]) < 2 * CHANCE


def test_size_and_aspect_say_nothing():
    assert linear_accuracy(lambda pixels: np.array(pixels.shape[:2])) < CHANCE + 4 * SPREAD


@pytest.mark.slow
def test_a_small_network_learns_it_in_a_minute(tmp_path):
    """Four convolutions, central crops resized to 64: 99 % of 500 after half a minute, where guessing gives 10."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    make_standin(tmp_path / "set")
    found = source_from_archives(tmp_path / "set", cache=tmp_path / "cache")

    def loaded(split):
        pictures = []
        for one in found.splits[split]:
            with Image.open(io.BytesIO(one.read())) as image:
                width, height = image.size
                left, top, side = (
                    (width - min(width, height)) // 2,
                    (height - min(width, height)) // 2,
                    min(width, height),
                )
                part = image.convert("RGB").resize((64, 64), box=(left, top, left + side, top + side))
            pictures.append(np.asarray(part))
        labels = torch.tensor([one.label for one in found.splits[split]])
        return torch.tensor(np.stack(pictures)).permute(0, 3, 1, 2).float() / 128 - 1, labels

    def block(inside, outside):
        layers = nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU(), nn.MaxPool2d(2)
        return nn.Sequential(*layers)

    (x, y), (x_test, y_test) = loaded("train"), loaded("test")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
        net = nn.Sequential(block(3, 16), block(16, 32), block(32, 64), block(64, 64), *pooled)
        optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
        for _ in range(6):
            for i in torch.randperm(len(x)).split(50):
                loss = F.cross_entropy(net(x[i]), y[i])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    with torch.no_grad():
        accuracy = (net.eval()(x_test).argmax(1) == y_test).float().mean()
    assert accuracy > 0.8


# --- whole or not at all --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE, "notes.txt", ".hidden"])
def test_a_folder_that_holds_anything_is_refused(tmp_path, name):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_text("dear")
    with pytest.raises(DataError, match=f"holds {name} already; choose a new or an empty folder"):
        make_standin(tmp_path / "set", **SMALL)
    assert contents(tmp_path) == {f"set/{name}": b"dear"}


def test_a_folder_that_may_not_be_looked_into_is_one_sentence(tmp_path, monkeypatch):
    def iterdir(self):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "set").mkdir()
    monkeypatch.setattr("pathlib.Path.iterdir", iterdir)
    with pytest.raises(DataError, match=r"set cannot be written \(Permission denied\); mend that"):
        make_standin(tmp_path / "set", **SMALL)


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "set").write_text("dear")
    with pytest.raises(DataError, match="is no folder"):
        make_standin(tmp_path / "set", **SMALL)
    assert (tmp_path / "set").read_text() == "dear"


@pytest.mark.parametrize("out", [".", ""])
def test_the_folder_one_is_in_is_refused(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="the folder you are in"):
        make_standin(Path(out), **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_relative_name_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_standin(Path("set"), **SMALL)
    assert (tmp_path / "set" / STAND_IN_FILE).is_file()


def test_the_number_of_threads_does_not_matter(tmp_path, monkeypatch):
    make_standin(tmp_path / "some", **SMALL)
    monkeypatch.setattr(standin.os, "cpu_count", lambda: 5)
    make_standin(tmp_path / "five", **SMALL)
    assert contents(tmp_path / "some") == contents(tmp_path / "five")


def test_an_empty_folder_and_a_deep_new_one_will_do(tmp_path):
    (tmp_path / "set").mkdir()
    make_standin(tmp_path / "set", **SMALL)
    make_standin(tmp_path / "a" / "b" / "set", **SMALL)
    assert contents(tmp_path / "set") == contents(tmp_path / "a" / "b" / "set")


@pytest.mark.parametrize("layout", ["archives", "folders"])
@pytest.mark.parametrize("at", [1, 7, 15])
def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, layout, at):
    def full(picture):
        if picture.number + 1 == at or (at > 9 and picture.split == "test"):
            raise OSError(28, "No space left on device")
        return encode_image(picture)

    monkeypatch.setattr(standin, "encode_image", full)
    with pytest.raises(DataError, match=r"set cannot be written \(No space left on device\)"):
        make_standin(tmp_path / "set", **SMALL, layout=layout)
    assert list(tmp_path.iterdir()) == []


def test_stopping_it_leaves_nothing_behind(tmp_path):
    def stop(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_standin(tmp_path / "set", **SMALL, progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"classes": 0}, "classes of a stand-in is 0; it should be from 1 to 1000"),
        ({"classes": 1001}, "from 1 to 1000"),
        ({"train": 0}, "train of a stand-in is 0"),
        ({"test": 0}, "test of a stand-in is 0"),
        ({"side": 31}, "side of a stand-in is 31; it should be from 32"),
    ],
)
def test_impossible_sizes_are_refused(tmp_path, asked, words):
    with pytest.raises(DataError, match=words):
        make_standin(tmp_path / "set", **(SMALL | asked))
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_every_picture(tmp_path):
    said = []
    make_standin(tmp_path / "set", **SMALL, progress=lambda done, total: said.append((done, total)))
    assert said == [(i, 15) for i in range(1, 16)]


def test_it_says_what_it_is(tmp_path):
    make_standin(tmp_path / "set", **SMALL, seed=3)
    said = json.loads((tmp_path / "set" / STAND_IN_FILE).read_text())
    assert "not ImageNet" in said["what"]
    assert {key: said[key] for key in (*SMALL, "seed")} == SMALL | {"seed": 3}
    for name in (TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE):
        content = (tmp_path / "set" / name).read_bytes()
        assert said["files"][name] == {"md5": hashlib.md5(content).hexdigest(), "bytes": len(content)}
