"""Test the page of a paper: verdicts, scales with their cost, errata, printed rows without claims."""

from dataclasses import replace

import pytest

from pipeline.declare.printed import PrintedFile
from pipeline.judge.collect import judge_experiments
from pipeline.judge.coverage import printed_rows
from pipeline.report.paper_page import hours_text, measured_rates, paper_page, scale_cells

# Multiply-adds of plain-20 on 32 x 32: 3 x 3 x 3 x 16 x 32², six layers of 16 x 16 channels, and so on, and fc.
PLAIN_20 = (
    9 * (3 * 16 * 1024 + 6 * 16**2 * 1024 + 16 * 32 * 256 + 5 * 32**2 * 256 + 32 * 64 * 64 + 5 * 64**2 * 64) + 640
)


@pytest.fixture
def paper_record(experiment, record):
    return replace(record(experiment, "plain-20", 0, 9.5), seconds=1000.0)


def page(experiment, records, content=None):
    printed = {"toy": PrintedFile.model_validate(content)} if content else {}
    entries = judge_experiments([experiment], records, unfinished={})
    rates = measured_rates([experiment], records)
    return paper_page([experiment], entries, rates, printed_rows([experiment], printed))


def test_rate_is_the_work_of_a_run_by_its_seconds(experiment, paper_record):
    rates = measured_rates([experiment], [paper_record])
    assert list(rates) == [f"{paper_record.hardware} (1 thread)"]
    assert next(iter(rates.values())) == pytest.approx(3 * PLAIN_20 * 64000 * 128 / 1000)


def test_runs_of_another_declaration_have_no_rate(experiment, paper_record):
    assert measured_rates([experiment], [replace(paper_record, declaration="other")]) == {}


def test_hours_of_a_scale_follow_from_work_and_rate(experiment):
    """Three variants, five seeds, 64,000 steps of 128 images."""
    cells = scale_cells(experiment, "paper", {"a device": 3e9})
    assert (cells["data"], cells["runs"], cells["training images"]) == ("cifar10", "15 runs", "122,880,000")
    hours = float(cells["multiply-adds"]) / 3e9 / 3600
    assert float(cells["hours on a device"].replace(",", "")) == pytest.approx(hours, rel=0.05)


@pytest.mark.parametrize(("hours", "text"), [(0.02, "< 0.1"), (2.54, "2.5"), (1234.5, "1,234")])
def test_hours_have_the_digits_of_an_estimate(hours, text):
    assert hours_text(hours) == text


def test_page_has_verdicts_errata_deviations_and_unclaimed_rows(declare, paper_record):
    experiment = declare("departures:", "not_claimed:\n  - {rows: [Table 9], why: Only cited}\ndepartures:")
    content = {"results": {"Table 9": {"error %": {"SIFT": 26.2}}, "Figure 6": {"error %": {"plain-20": 9.5}}}}
    text = page(experiment, [paper_record], content)
    assert text.startswith("# On <Depth>\n\nA & B 2015, [arXiv:0000.00000](https://arxiv.org/abs/0000.00000).")
    assert "Claims cover 1 of 2 results." in text
    assert "## toy/depth\n\nDo deep | wide networks train worse? `repro show toy/depth` prints the recipe." in text
    assert "| Plain-20 reaches 9.5 % | Figure 6 (read from a figure) | – cannot judge: underpowered |" in text
    assert "## Errata\n\n| says | source | evidence |\n|---|---|---|\n| Decay of 1e-5 | lecture; notes |" in text
    assert "- Pixels are scaled. No scale is named." in text
    assert text.endswith("## Printed, but not claimed\n\n- Only cited: Table 9: SIFT\n")
