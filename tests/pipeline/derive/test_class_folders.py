"""Class folders of images of any size: classes, reading, and folders that are rejected."""

import pytest
from pipeline.data.class_folders import WNIDS_FILE, ClassFolders

from pipeline.data.images import DataError
from tests.support.image_sets import write_image


@pytest.fixture
def folder(tmp_path):
    """Four images in the classes a, b and c."""
    for seed, name in enumerate(["b/1.png", "a/2.png", "a/1.png", "c/1.jpg"]):
        write_image(tmp_path / name, seed)
    return tmp_path


def test_images_are_sorted_by_class_and_name(folder):
    images = ClassFolders(folder, 3)
    files = ["a/1.png", "a/2.png", "b/1.png", "c/1.jpg"]
    assert [images.where(number) for number in range(4)] == [str(folder / file) for file in files]
    assert images.read([3, 0]) == [(folder / files[3]).read_bytes(), (folder / files[0]).read_bytes()]
    assert images.labels.tolist() == [0, 0, 1, 2]


def test_subset_of_ilsvrcs_classes_keeps_its_indices(tmp_path):
    wnids = WNIDS_FILE.read_text(encoding="ascii").split()
    assert (len(wnids), wnids[0], wnids[999]) == (1000, "n01440764", "n15075141")  # tench, toilet paper
    assert wnids == sorted(set(wnids))
    for number in (999, 7):
        write_image(tmp_path / wnids[number] / "x.png", 0)
    assert ClassFolders(tmp_path, 1000).labels.tolist() == [7, 999]


def test_other_files_are_listed_and_not_read(folder):
    (folder / "a" / "notes.txt").write_text("x")
    images = ClassFolders(folder, 3)
    assert [path.name for path in images.ignored] == ["notes.txt"]
    assert len(images) == 4


@pytest.mark.parametrize(
    ("change", "classes", "text"),
    [
        (lambda f: None, 5, "holds 3 classes, but the network has 5"),
        (
            lambda f: None,
            1000,
            "has 1000; use all of them, or any of ILSVRC's by name, such as n01440764 ('a' is none of them)",
        ),
        (lambda f: (f / "d").mkdir(), 4, "d holds no images (.jpeg, .jpg, .png, .bmp, .webp, .ppm); add some or"),
        (lambda f: (f / "a").rename(f / "val"), 3, "holds the splits val; pass one of them, such as "),
    ],
)
def test_folder_that_does_not_fit_is_rejected(folder, change, classes, text):
    change(folder)
    with pytest.raises(DataError) as caught:
        ClassFolders(folder, classes)
    assert text in str(caught.value)
    assert str(folder) in str(caught.value)


def test_missing_folder_and_missing_class_folders_are_rejected(tmp_path):
    with pytest.raises(DataError, match=r"folder .*/nothing not found; pass a folder that holds"):
        ClassFolders(tmp_path / "nothing", 3)
    with pytest.raises(DataError, match=r"holds no class folders; it must hold one folder of images per class"):
        ClassFolders(tmp_path, 3)


def test_missing_image_is_named(folder):
    images = ClassFolders(folder, 3)
    (folder / "c" / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"c/1.jpg cannot be read \(No such file or directory\); restore or"):
        images.read([0, 3])
