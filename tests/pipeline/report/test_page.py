"""Test the page of one experiment at one scale: a report of its own, in one file."""

import pytest

from pipeline.common.errors import UserError
from pipeline.report.leaderboard import build_leaderboard
from pipeline.report.page import write_page
from pipeline.report.text import MARKS, TONES
from tests.support.ledgers import judge_by_id
from tests.support.reports import Tags, empty_figure


@pytest.fixture
def experiment(declare):
    """The small experiment with three seeds: at paper scale all of them must have run."""
    return declare("seeds: [0, 1, 2, 3, 4]", "seeds: [0, 1, 2]")


@pytest.fixture
def page(experiment, seed_records, tmp_path):
    """Return a function that writes a page and returns its text."""

    def write(*, figures=(), records=None):
        if records is None:
            records = [
                *seed_records(experiment, "plain-20", [9.4, 9.5, 9.6]),
                *seed_records(experiment, "plain-32", [10.4, 10.5, 10.6], changes={"model.depth": "<script>"}),
            ]
        entries = list(judge_by_id(experiment, records).values())
        rows = build_leaderboard([experiment], records)
        path = write_page(experiment, "paper", rows, entries, records, figures, tmp_path / "new" / "page.html")
        return path.read_text(encoding="utf-8")

    return write


def test_page_refers_to_no_other_file(page):
    addresses = Tags(page(figures=[empty_figure()])).addresses("src", "srcset", "href", "action")
    outside = [one for one in addresses if not one.startswith(("#", "data:image/svg+xml;base64,"))]
    assert outside == ["https://arxiv.org/abs/0000.00000"]


def test_text_of_a_declaration_is_escaped(page):
    html = page()
    assert "Won &lt;b&gt;first&lt;/b&gt; | place" in html
    assert "On &lt;Depth&gt;" in html
    assert "A &amp; B" in html
    assert "<b>first" not in html


def test_page_names_the_scale_and_has_tables_verdicts_and_departures(page, experiment):
    html = page()
    assert "toy/depth at paper scale (As published)" in html
    assert "9.50 ± 0.10" in html
    assert all(f'id="claim.toy.depth.{claim.id}"' in html for claim in experiment.claims)
    assert "<li>Trained: 1 reproduced, 4 cannot judge" in html
    assert 'class="verdict good">✔ reproduced</td>' in html
    assert "Departures from the paper" in html
    assert "paper scale on cifar10, 3 runs, commit 01234567" in html
    assert "<td>Minutes.</td>" not in html  # the laptop scale is another page


def test_page_is_well_formed_with_and_without_runs(page):
    for html in (page(), page(records=[])):
        assert Tags(html).open == []
        assert "<figure" not in html


def test_folder_that_cannot_be_created_raises_user_error(page, tmp_path):
    (tmp_path / "new").write_text("")  # a file in place of the folder
    with pytest.raises(
        UserError, match=rf"^cannot write to {tmp_path}/new: file exists; .* REPRO_HOME to another"
    ):
        page()


def test_full_disk_keeps_the_previous_page(page, tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = page()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the kernel raises the error of a full disk
    try:
        with pytest.raises(UserError, match=rf"^cannot write to {tmp_path}/new: file too large; free some space"):
            page(records=[])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "new" / "page.html").read_text(encoding="utf-8") == before
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["page.html"]


def test_every_mark_has_a_tone():
    assert set(MARKS.values()) == set(TONES)
