"""Data sets by name; torchvision reads small files in the formats of the published sets."""

import gzip
import hashlib
import http.client
import json
import pickle
import re
import shutil
import struct
import tarfile
import urllib.error
import urllib.request
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from pipeline.data import sources
from pipeline.data.images import DataError, fingerprint, in_canonical_order
from pipeline.data.shard_manifest import with_checksum
from pipeline.data.sources import load_images
from tests.support.error_messages import error_message

N_TRAIN, N_TEST = 30, 10


def random_images(seed, n, shape):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (n, *shape), dtype=np.uint8), (np.arange(n) % 10).astype(np.uint8)


def write_idx(folder, offset=0):
    """Write MNIST's four raw files; return {"train": (pixels, labels), "test": ...}."""
    folder.mkdir(parents=True)
    written = {}
    for split, prefix, n in (("train", "train", N_TRAIN), ("test", "t10k", N_TEST)):
        pixels, labels = random_images(offset + n, n, (28, 28))
        header = struct.pack(">4i", 2051, n, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, n) + labels.tobytes())
        written[split] = (pixels, labels)
    return written


def write_png(folder, written):
    """Write the images as PNG files in class folders."""
    for split, (pixels, labels) in written.items():
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            path = folder / split / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)


def sha256_of(images):
    return fingerprint(images.classes, images.train, images.test)


def multiset(pixels, labels):
    """Return the sorted (label, pixel bytes)."""
    return sorted((int(label), bytes(image)) for image, label in zip(pixels, labels, strict=True))


def load_error(name, root, *texts):
    """Expect a one-line DataError that contains `texts`; return its message."""
    return error_message(lambda: load_images(name, root), *texts)


def test_digits_have_the_pixels_of_scikit_learn(tmp_path):
    from sklearn.datasets import load_digits

    images, bunch = load_images("digits", tmp_path), load_digits()
    assert (len(images.train), len(images.test)) == (1437, 360)
    assert images.train.pixels.shape[1:] == (8, 8, 1)
    assert (int(images.train.pixels.min()), int(images.train.pixels.max())) == (0, 255)
    test = np.arange(1797) % 5 == 0
    for part, chosen in ((images.train, ~test), (images.test, test)):
        back = np.rint(part.pixels.squeeze(-1).numpy() * (16 / 255)).astype(np.uint8)  # 0..255 -> 0..16
        assert multiset(back, part.labels) == multiset(bunch.images[chosen].astype(np.uint8), bunch.target[chosen])


def test_noise_is_deterministic(tmp_path):
    assert sha256_of(load_images("noise", tmp_path)) == sha256_of(load_images("noise", tmp_path))


def test_noise_is_learnable_by_the_nearest_prototype(tmp_path):
    images = load_images("noise", tmp_path)
    assert (len(images.train), len(images.test)) == (200, 100)
    assert images.train.pixels.shape[1:] == (16, 16, 3)
    train, test = images.train.pixels.float().flatten(1), images.test.pixels.float().flatten(1)
    prototypes = torch.stack([train[images.train.labels == label].mean(0) for label in range(10)])
    assert torch.equal(torch.cdist(test, prototypes).argmin(1), images.test.labels)


def test_noise_is_not_trivially_clean(tmp_path):
    train = load_images("noise", tmp_path).train
    same_class = train.pixels[train.labels == 0].float()
    assert same_class.std(0).mean() > 20  # of 255


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_idx_files_are_read_by_torchvision(tmp_path, monkeypatch, name, folder):
    written = write_idx(tmp_path / folder / "raw")
    monkeypatch.setattr(sources, "_checked_mnist", lambda images, where: images)
    images = load_images(name, tmp_path)
    assert images.source == f"torchvision.datasets.{folder}"
    for part, (pixels, labels) in ((images.train, written["train"]), (images.test, written["test"])):
        assert part.pixels.dtype == torch.uint8
        assert part.labels.dtype == torch.int64
        assert multiset(part.pixels.squeeze(-1).numpy(), part.labels) == multiset(pixels, labels)
    assert len(images.classes) == 10


def test_mnist_from_png_folders_equals_mnist_from_its_archive(tmp_path, monkeypatch):
    written = write_idx(tmp_path / "archive" / "MNIST" / "raw")
    write_png(tmp_path / "png" / "mnist", written)
    monkeypatch.setattr(sources, "_checked_mnist", lambda images, where: images)
    archive, png = load_images("mnist", tmp_path / "archive"), load_images("mnist", tmp_path / "png")
    assert archive.classes == png.classes == tuple("0123456789")
    assert archive.source != png.source
    for part, other in ((archive.train, png.train), (archive.test, png.test)):
        assert torch.equal(part.pixels, other.pixels)
        assert torch.equal(part.labels, other.labels)


def test_mnist_folder_with_the_right_content_is_accepted(tmp_path, monkeypatch):
    written = write_idx(tmp_path / "archive" / "MNIST" / "raw")
    write_png(tmp_path / "mnist", written)
    with monkeypatch.context() as patch:
        patch.setattr(sources, "_checked_mnist", lambda images, where: images)
        expected = sha256_of(load_images("mnist", tmp_path / "archive"))
    monkeypatch.setattr(sources, "MNIST_SHA256", expected)
    assert sha256_of(load_images("mnist", tmp_path)) == expected


def test_mnist_folder_with_other_content_is_rejected(tmp_path):
    write_png(tmp_path / "mnist", write_idx(tmp_path / "raw"))
    load_error("mnist", tmp_path, str(tmp_path / "mnist"), "are not MNIST: 30 + 10 images", "another name")


def test_mnist_archive_with_other_content_is_rejected(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    load_error("mnist", tmp_path, str(tmp_path / "MNIST" / "raw"), "are not MNIST")


def test_folder_with_a_published_name_is_rejected(tmp_path):
    write_png(tmp_path / "cifar10", write_idx(tmp_path / "raw"))
    load_error(
        "cifar10", tmp_path, "is the name of the published set; rename the folder (for example to cifar10-folders)"
    )


@pytest.mark.parametrize("damage", [lambda raw: raw[:-100], lambda raw: b"", lambda raw: b"<html>" + raw])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_damaged_idx_file_is_reported_in_one_line(tmp_path, damage, file):
    path = tmp_path / "FashionMNIST" / "raw" / file
    write_idx(path.parent)
    path.write_bytes(damage(path.read_bytes()))
    load_error("fashion-mnist", tmp_path, str(path.parent), "delete damaged files and run again")


def test_missing_labels_are_reported(tmp_path):
    write_idx(tmp_path / "FashionMNIST" / "raw")
    path = tmp_path / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.write_bytes(struct.pack(">2i", 2049, 9) + bytes(9))
    load_error("fashion-mnist", tmp_path, "10 images but 9 labels")


def write_cifar(root, monkeypatch, kind, label_key):
    """Write a small archive in CIFAR's format, and set torchvision's md5 sums to those of its files.

    The published pickles were written by an old numpy, whose dtype has 0 and 1 for False and True.
    """
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    written = {"train": [], "test": []}

    def dump(file, content):
        raw = pickle.dumps(content, protocol=2)
        assert (b"\x89\x88\x87" in raw) == ("data" in content)
        raw = raw.replace(b"\x89\x88\x87", b"K\x00K\x01\x87")
        (folder / file).write_bytes(raw)
        return hashlib.md5(raw).hexdigest()

    for split, table in (("train", "train_list"), ("test", "test_list")):
        sums = []
        for number, (file, _) in enumerate(getattr(kind, table)):
            pixels, labels = random_images(number + len(split), 20, (3, 32, 32))
            sums.append([file, dump(file, {"data": pixels.reshape(20, 3072), label_key: labels.tolist()})])
            written[split].append((pixels.transpose(0, 2, 3, 1), labels))
        monkeypatch.setattr(kind, table, sums)
    meta = kind.meta | {"md5": dump(kind.meta["filename"], {kind.meta["key"]: [f"c{i}" for i in range(10)]})}
    monkeypatch.setattr(kind, "meta", meta)
    return {split: tuple(map(np.concatenate, zip(*parts, strict=True))) for split, parts in written.items()}


@pytest.mark.parametrize(
    ("name", "class_name", "label_key"),
    [("cifar10", "CIFAR10", "labels"), ("cifar100", "CIFAR100", "fine_labels")],
)
def test_cifar_pickles_are_read_by_torchvision(tmp_path, monkeypatch, name, class_name, label_key):
    written = write_cifar(tmp_path, monkeypatch, getattr(datasets, class_name), label_key)
    images = load_images(name, tmp_path)
    assert images.train.pixels.shape == (100 if name == "cifar10" else 20, 32, 32, 3)
    assert images.train.pixels.is_contiguous()
    assert images.classes == tuple(f"c{index}" for index in range(10))
    for part, (pixels, labels) in ((images.train, written["train"]), (images.test, written["test"])):
        assert multiset(part.pixels.numpy(), part.labels) == multiset(pixels, labels)


SVHN_COUNTS = {"train": 30, "extra": 50, "test": 20}


@pytest.fixture
def svhn(tmp_path, monkeypatch):
    """Write SVHN's three files with few images; return {part: (pixels (N, 32, 32, 3), digits)}."""
    folder = tmp_path / "SVHN" / "raw"
    folder.mkdir(parents=True)
    written, split_list = {}, {}
    for seed, (part, count) in enumerate(SVHN_COUNTS.items()):
        pixels, digits = random_images(seed, count, (32, 32, 3))
        path = folder / f"{part}_32x32.mat"
        labels = np.where(digits == 0, 10, digits)[:, None]  # class 10 is digit 0
        savemat(path, {"X": pixels.transpose(1, 2, 3, 0), "y": labels}, do_compression=True)
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        split_list[part] = [datasets.SVHN.split_list[part][0], path.name, md5]
        written[part] = (pixels, digits)
    monkeypatch.setattr(datasets.SVHN, "split_list", split_list)
    return written


def test_svhn_is_read_by_torchvision_with_class_10_as_digit_0(tmp_path, svhn):
    images = load_images("svhn", tmp_path)
    assert images.classes == tuple("0123456789")
    assert images.train.pixels.is_contiguous()
    for part, (pixels, digits) in ((images.train, svhn["train"]), (images.test, svhn["test"])):
        assert multiset(part.pixels.numpy(), part.labels) == multiset(pixels, digits)
        ordered = in_canonical_order(part)
        assert torch.equal(ordered.pixels, part.pixels)
        assert torch.equal(ordered.labels, part.labels)


def test_svhn_images_have_the_orientation_and_labels_of_torchvision(tmp_path, svhn):
    images = load_images("svhn", tmp_path)
    theirs = datasets.SVHN(tmp_path / "SVHN" / "raw", split="test")
    expected = sorted((np.asarray(image).tobytes(), label) for image, label in theirs)
    found = zip(images.test.pixels.numpy(), images.test.labels.tolist(), strict=True)
    assert sorted((image.tobytes(), label) for image, label in found) == expected


def test_svhn_extra_adds_the_extra_images_and_records_the_part_of_each(tmp_path, svhn):
    images = load_images("svhn-extra", tmp_path)
    train = images.train
    assert (len(train), len(images.test)) == (80, 20)
    assert torch.equal(in_canonical_order(train).pixels, train.pixels)
    for part in ("train", "extra"):
        indices = images.train_parts[part]
        assert indices.tolist() == sorted(indices.tolist())
        assert multiset(train.pixels[indices].numpy(), train.labels[indices]) == multiset(*svhn[part])


def test_damaged_svhn_file_is_reported(tmp_path, svhn, monkeypatch):
    def fail(*args, **kwargs):
        raise urllib.error.URLError("no route")

    path = tmp_path / "SVHN" / "raw" / "extra_32x32.mat"
    path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.setattr(urllib.request, "urlopen", fail)
    load_error("svhn-extra", tmp_path, str(path.parent), "delete damaged files and run again")
    assert len(load_images("svhn", tmp_path).train) == 30


def test_svhn_with_images_of_another_size_is_rejected(tmp_path, svhn, monkeypatch):
    path = tmp_path / "SVHN" / "raw" / "test_32x32.mat"
    savemat(path, {"X": np.zeros((32, 30, 3, 2), np.uint8), "y": np.ones((2, 1))})
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(datasets.SVHN.split_list, "test", ["", path.name, md5])
    load_error("svhn", tmp_path, "(2, 3, 32, 30)", "delete damaged files")


def test_cifar_archive_copied_by_hand_is_unpacked(tmp_path, monkeypatch):
    source = tmp_path / "source"
    write_cifar(source, monkeypatch, datasets.CIFAR10, "labels")
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(root / datasets.CIFAR10.filename, "w:gz") as archive:
        archive.add(source / datasets.CIFAR10.base_folder, arcname=datasets.CIFAR10.base_folder)
    md5 = hashlib.md5((root / datasets.CIFAR10.filename).read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5)
    assert len(load_images("cifar10", root).train) == 100


def test_mnist_files_copied_by_hand_are_unpacked(tmp_path, monkeypatch):
    write_idx(tmp_path / "source")
    raw = tmp_path / "root" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    sums = []
    for file, _ in datasets.FashionMNIST.resources:
        content = gzip.compress((tmp_path / "source" / file.removesuffix(".gz")).read_bytes())
        (raw / file).write_bytes(content)
        sums.append((file, hashlib.md5(content).hexdigest()))
    monkeypatch.setattr(datasets.FashionMNIST, "resources", sums)
    assert len(load_images("fashion-mnist", tmp_path / "root").train) == N_TRAIN


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no route"), http.client.IncompleteRead(b""), TimeoutError("slow")]
)
@pytest.mark.parametrize(
    ("name", "folder", "file"),
    [
        ("mnist", "MNIST/raw", "t10k-labels-idx1-ubyte.gz"),
        ("fashion-mnist", "FashionMNIST/raw", "train-images-idx3-ubyte.gz"),
        ("cifar10", "", "cifar-10-python.tar.gz"),
        ("cifar100", "", "cifar-100-python.tar.gz"),
        ("svhn", "SVHN/raw", "train_32x32.mat, test_32x32.mat"),
        ("svhn-extra", "SVHN/raw", "train_32x32.mat, extra_32x32.mat, test_32x32.mat"),
    ],
)
def test_failed_download_is_reported_in_one_line(tmp_path, monkeypatch, error, name, folder, file):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    message = load_error(
        name, tmp_path, f"{name} could not be downloaded", str(tmp_path / folder), file, "by hand"
    )
    assert re.search(r"no route|IncompleteRead|slow", message)


def test_damaged_download_is_reported_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: Response(zlib.compress(b"not this")))
    load_error("cifar10", tmp_path, "File not found or corrupted", str(tmp_path), "cifar-10-python.tar.gz")


class Response:
    """The part of urlopen's result that torchvision uses."""

    def __init__(self, content):
        self.rest, self.length, self.url = content, len(content), None

    def __enter__(self):
        return self

    def __exit__(self, *args):
        pass

    def read(self, size):
        part, self.rest = self.rest[:size], self.rest[size:]
        return part


def test_any_other_name_is_read_from_class_folders(tmp_path):
    write_png(tmp_path / "shapes", write_idx(tmp_path / "raw"))
    images = load_images("shapes", tmp_path)
    assert (images.name, len(images.train), len(images.test)) == ("shapes", N_TRAIN, N_TEST)


def test_unknown_name_suggests_the_nearest_set(tmp_path):
    load_error(
        "cifar01",
        tmp_path,
        f"no data set 'cifar01', and no class folders in {tmp_path / 'cifar01'} (train/CLASS and test/CLASS);"
        " did you mean 'cifar10'?",
    )


def test_unknown_name_suggests_the_nearest_folder(tmp_path):
    write_png(tmp_path / "shapes", write_idx(tmp_path / "raw"))
    load_error("shape", tmp_path, "did you mean 'shapes'?")


def test_unknown_name_without_a_near_one_lists_all(tmp_path):
    load_error(
        "zzz",
        tmp_path / "absent",
        "; known: cifar10, cifar100, digits, fashion-mnist, mnist, noise, svhn, svhn-extra",
    )


def test_invalid_name_of_a_prepared_set_is_rejected(tmp_path):
    for name in ("My Photos", "_x", "\u732b"):
        with pytest.raises(DataError, match=f"^'{name}' cannot be the name of a prepared set; use the name that"):
            load_images(name, tmp_path, sharded=True)


@pytest.mark.parametrize("name", ["", ".cache", "../outside", "a/b", "a\\b"])
def test_name_is_never_a_path(tmp_path, name):
    for folder in (".cache", "a/b", "a\\b"):
        (tmp_path / "root" / folder).mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    load_error(name, tmp_path / "root", f"no data set {name!r}")


@pytest.fixture
def shards_root(prepared_set, tmp_path):
    """A data folder with the prepared set 'photographs'."""
    root = tmp_path / "data"
    shutil.copytree(prepared_set.store.local, root / "photographs")
    return root


def test_missing_prepared_set_is_an_error_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(
        DataError, match=r"no shards of imagenet in \S+imagenet; make them with: repro data prepare SOURCE"
    ):
        load_images("imagenet", tmp_path, sharded=True)
    commands = r"repro data stand-in imagenet --out DIR && repro data prepare DIR --out \S+/imagenet-standin$"
    with pytest.raises(DataError, match=rf"no shards of imagenet-standin in \S+; make them with: {commands}"):
        load_images("imagenet-standin", tmp_path, sharded=True)


def test_shards_in_a_folder_of_another_name_are_refused(shards_root):
    (shards_root / "pictures").symlink_to(shards_root / "photographs")
    with pytest.raises(
        DataError, match=r"the shards in \S+ are of 'photographs'; move them to a folder of that name"
    ):
        load_images("pictures", shards_root, sharded=True)


def test_set_called_imagenet_must_have_the_counts_of_imagenet(shards_root):
    (shards_root / "photographs").rename(shards_root / "imagenet")
    manifest_file = shards_root / "imagenet" / "manifest.json"
    values = json.loads(manifest_file.read_text(encoding="utf-8"))
    manifest_file.write_text(with_checksum(values | {"name": "imagenet"}), encoding="utf-8")
    with pytest.raises(DataError, match=r"is not ImageNet: it has 12 \+ 6 images, but ILSVRC-2012 has 1281167"):
        load_images("imagenet", shards_root, sharded=True)
