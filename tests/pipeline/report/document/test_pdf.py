"""Test the PDF: its text and links, what it may read, and what a missing library says."""

import sys

import pytest

from pipeline.common.errors import UserError
from pipeline.report.document.pdf import weasyprint_module, write_pdf
from tests.support.ledgers import DEEP, PLAIN
from tests.support.reports import toy_report

try:
    weasyprint_module()
except UserError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.mark.slow
def test_a_pdf_has_summary_claims_and_runs(experiment, seed_records, tmp_path):
    from pypdf import PdfReader

    records = [*seed_records(experiment, "plain-20", PLAIN), *seed_records(experiment, "plain-32", DEEP)]
    report = toy_report(experiment, records)
    path = write_pdf(report, tmp_path / "new" / "report.pdf", title="Rerun", address=lambda record: "")
    reader = PdfReader(path)
    text = " ".join(" ".join(page.extract_text() for page in reader.pages).split())
    for expected in ("Rerun", "reproduced", "On <Depth>", "9.50 ± 0.07", "Deeper is worse", "Finished runs"):
        assert expected in text, expected
    assert "search claims" not in text
    width, height = reader.pages[0].mediabox[2:]
    assert (round(float(width)), round(float(height))) == (842, 595)  # A4 landscape in points


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "weasyprint", None)
    with pytest.raises(
        UserError, match=r"^--pdf needs WeasyPrint; install it, in the checkout: pip install -e '.\[pdf\]'$"
    ):
        weasyprint_module()


def test_a_missing_library_says_what_to_install(monkeypatch):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "weasyprint":
                raise OSError("cannot load library 'libpango-1.0-0'\nsecond line")

    monkeypatch.delitem(sys.modules, "weasyprint", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(
        UserError, match=r"cannot load \(cannot load library 'libpango-1\.0-0'\); .*apt-get install"
    ):
        weasyprint_module()
