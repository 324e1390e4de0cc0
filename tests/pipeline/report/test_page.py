"""Test the HTML page: complete in one file, with escaped text."""

import base64
import re
from html.parser import HTMLParser

import pytest

from pipeline.common.errors import UserError
from pipeline.judge.ledger import ledger
from pipeline.report.leaderboard import build_leaderboard
from pipeline.report.page import CLASSES, write_page
from pipeline.report.text import MARKS

VOID = {"meta", "img", "br"}


class Tags(HTMLParser):
    """Parser that records all tags with their attributes, and the tags left open."""

    def __init__(self):
        super().__init__()
        self.seen, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def page(experiment, seed_records, tmp_path):
    """Return a function that writes a page and returns its text."""

    def write(*, figure=None, records=None):
        if records is None:
            records = [
                *seed_records(experiment, "plain-20", [9.4, 9.5, 9.6]),
                *seed_records(experiment, "plain-32", [10.4, 10.5, 10.6], changes={"model.depth": "<script>"}),
            ]
        entries = ledger(experiment, records, lambda *_: 1e-4)
        rows = build_leaderboard([experiment], records)
        path = write_page(experiment, "paper", rows, entries, figure, tmp_path / "new" / "page.html")
        return path.read_text(encoding="utf-8")

    return write


def tags(html):
    parser = Tags()
    parser.feed(html)
    parser.close()
    return parser


def test_page_refers_to_no_other_file(page, tmp_path):
    (tmp_path / "f.png").write_bytes(b"PNG bytes")
    html = page(figure=tmp_path / "f.png")
    references = [
        v
        for _, attributes in tags(html).seen
        for k, v in attributes.items()
        if k in ("src", "href", "action", "data")
    ]
    assert references == ["data:image/png;base64," + base64.b64encode(b"PNG bytes").decode()]
    assert not re.search(r"https?://|url\(|@import|<script|<link", html)


def test_text_of_a_declaration_is_escaped(page):
    html = page()
    assert "Won &lt;b&gt;first&lt;/b&gt; | place" in html
    assert "On &lt;Depth&gt;" in html
    assert "A &amp; B" in html
    assert "<b>first" not in html


def test_page_has_tables_verdicts_and_departures(page, experiment):
    html = page()
    assert "9.50 ± 0.10" in html
    assert all(f"<b>{claim.id}</b>" in html for claim in experiment.claims)
    for line in ("Arithmetic: ", "Recipe: 1 erratum - ", "Trained: 1 reproduced, 4 cannot judge"):
        assert f"<li>{line}" in html
    assert '<td class="n good">✔ reproduced</td>' in html
    assert "<h2>Departures from the paper</h2>" in html
    assert "Not material: no effect on verdicts." in html
    assert "<li>Pixels are scaled. No scale is named.</li>" in html
    assert "paper scale on cifar10, 3 runs, commit 01234567" in html


def test_page_is_well_formed_with_and_without_runs(page):
    for html in (page(), page(records=[])):
        assert tags(html).open == []
        assert "error curves" not in html


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


def test_every_mark_has_a_colour():
    assert set(MARKS.values()) == set(CLASSES)
