"""Test the figures of a data set, and what happens to any figure in a folder that cannot be written."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from pipeline.common.errors import UserError
from pipeline.report.figures import ACROSS, balance_figure, class_balance, contact_figure, contact_sheet
from pipeline.report.paper_figures.paper_figure import FigureTitle
from tests.support.image_sets import random_image

DRAWERS = {  # every figure that is written to a file
    "paper": lambda path: FigureTitle("f", "", "", "").drawn("", lambda _: Figure()).write(path),
    "images": lambda path: contact_sheet([np.zeros((9, 9, 3), np.uint8)], ["a"], path),
    "classes": lambda path: class_balance({"train": [3, 9, 1]}, path),
}


@pytest.mark.parametrize("drawer", DRAWERS)
def test_folder_that_cannot_be_created_raises_user_error(tmp_path, drawer):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "report"
    with pytest.raises(UserError) as caught:
        DRAWERS[drawer](folder / "f.png")
    assert str(caught.value) == (
        f"cannot write to {folder}: not a directory; free some space, fix the folder, or set REPRO_HOME to"
        " another one, and run the same command again"
    )


@pytest.mark.parametrize("drawer", DRAWERS)
def test_full_disk_keeps_the_previous_figure(tmp_path, drawer):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "f.png").write_bytes(b"previous")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the kernel raises the error of a full disk
    try:
        with pytest.raises(UserError, match=rf"^cannot write to {tmp_path}: file too large; .*REPRO_HOME"):
            DRAWERS[drawer](tmp_path / "f.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "f.png").read_bytes() == b"previous"
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["f.png"]


def test_contact_sheet_shows_every_image_with_its_title(tmp_path):
    images, titles = [random_image(seed) for seed in range(15)], [f"class {seed // 5}" for seed in range(15)]
    figure = contact_figure(images, [*titles[:-1], "$n_0$ of a very long name"], "images")
    shown = [ax for ax in figure.axes if ax.images]
    assert len(figure.axes) == 2 * ACROSS
    assert [ax.texts[0].get_text() for ax in shown] == [*titles[:-1], "$n_0$ of a very long…"]
    assert all((ax.images[0].get_array() == image).all() for ax, image in zip(shown, images, strict=True))
    path = contact_sheet(images, titles, tmp_path / "new" / "sheet.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert contact_sheet(images, titles, tmp_path / "2.png").read_bytes() == path.read_bytes()


def test_balance_figure_sorts_classes_by_size(tmp_path):
    figure = balance_figure({"train": [3, 9, 1], "test": [2, 2, 2]}, "images")
    assert [ax.get_title() for ax in figure.axes] == [
        "train: 13 images, 1 to 9 per class",
        "test: 6 images, 2 to 2 per class",
    ]
    (area,) = figure.axes[0].collections
    heights = area.get_paths()[0].vertices[:, 1]
    assert heights.max() == 9
    assert class_balance({"train": [3, 9, 1]}, tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
