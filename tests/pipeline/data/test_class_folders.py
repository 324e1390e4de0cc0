"""One crop of each picture in class folders: against PIL and torchvision, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from pipeline.data.crops import WNIDS, Folder, SingleCrop
from pipeline.data.images import DataError

CROP = SingleCrop(crop=8, resize=10)


def picture(path, size=(20, 14), mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    for seed, name in enumerate(["b/1.png", "a/2.png", "a/1.png", "c/1.jpg"]):
        picture(tmp_path / name, seed=seed)
    return tmp_path


def test_a_crop_is_torchvisions_usual_preset(tmp_path):
    with Image.open(picture(tmp_path / "x.png", size=(37, 23))) as image:
        usual = v2.Compose(
            [
                v2.Resize(10),
                v2.CenterCrop(8),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(CROP.mean, CROP.std),
            ]
        )
        torch.testing.assert_close(CROP(image), usual(image), rtol=1e-6, atol=1e-6)


def test_grey_pictures_become_three_equal_channels(tmp_path):
    plain = SingleCrop(crop=8, resize=10, mean=(0, 0, 0), std=(1, 1, 1))
    with Image.open(picture(tmp_path / "x.png", mode="L")) as image:
        pixels = plain(image)
    assert pixels.shape == (3, 8, 8)
    assert torch.equal(pixels[0], pixels[2])


def test_each_picture_comes_once_class_by_class(folder):
    pictures = Folder(folder, 3, CROP)
    assert [(path.relative_to(folder).as_posix(), label) for path, label in pictures.files] == [
        ("a/1.png", 0),
        ("a/2.png", 0),
        ("b/1.png", 1),
        ("c/1.jpg", 2),
    ]
    for workers in (0, 2):
        (batch,) = pictures.batches(workers)
        assert batch.images.shape == (4, 3, 8, 8)
        assert batch.labels.tolist() == [0, 0, 1, 2]


def test_some_of_ilsvrcs_classes_keep_their_numbers(tmp_path):
    wnids = WNIDS.read_text(encoding="ascii").split()
    assert (len(wnids), wnids[0], wnids[999]) == (1000, "n01440764", "n15075141")  # tench, toilet paper
    assert wnids == sorted(set(wnids))
    for number in (999, 7):
        picture(tmp_path / wnids[number] / "x.png")
    assert [label for _, label in Folder(tmp_path, 1000, CROP).files] == [7, 999]


def test_files_that_are_no_pictures_are_counted_not_read(folder):
    (folder / "a" / "notes.txt").write_text("x")
    pictures = Folder(folder, 3, CROP)
    assert [path.name for path in pictures.ignored] == ["notes.txt"]
    assert len(pictures) == 4


@pytest.mark.parametrize(
    ("change", "classes", "words"),
    [
        (lambda f: None, 5, "holds 3 class folders, and the network tells 5 classes apart"),
        (
            lambda f: None,
            1000,
            "tells 1000 classes apart (or some of ILSVRC's, called as n01440764 is; 'a' is not)",
        ),
        (lambda f: (f / "d").mkdir(), 4, "d holds no picture (.jpeg, .jpg, .png, .bmp, .webp, .ppm); fill it, or"),
        (lambda f: (f / "a").rename(f / "val"), 3, "holds val; name the one that is meant: "),
    ],
)
def test_a_folder_that_does_not_fit_is_one_sentence(folder, change, classes, words):
    change(folder)
    with pytest.raises(DataError) as caught:
        Folder(folder, classes, CROP)
    assert words in str(caught.value)
    assert str(folder) in str(caught.value)


def test_no_folder_and_no_class_folders(tmp_path):
    with pytest.raises(DataError, match=r"there is no folder .*/nothing; give one that holds"):
        Folder(tmp_path / "nothing", 3, CROP)
    with pytest.raises(DataError, match=r"holds no class folders; a folder of pictures for each class is needed"):
        Folder(tmp_path, 3, CROP)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "damage", [lambda content: content[:40], lambda content: b"", lambda content: b"no picture"]
)
def test_a_broken_picture_is_named_and_never_skipped(folder, damage, workers):
    path = folder / "c" / "1.jpg"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        DataError, match=r"^\S*c/1.jpg is no readable picture \([^\n]+\); replace it, or remove it$"
    ):
        list(Folder(folder, 3, CROP).batches(workers))
