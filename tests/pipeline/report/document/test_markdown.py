"""Test the report as Markdown: counts, tables, what to do next, and texts that stay texts."""

from pipeline.report.document.markdown import escaped, render_markdown
from pipeline.report.document.unfinished import UnfinishedRun
from tests.support.ledgers import DEEP, PLAIN
from tests.support.reports import toy_report


def test_it_has_counts_leaderboard_verdicts_departures_and_errata(experiment, seed_records):
    records = [*seed_records(experiment, "plain-20", PLAIN), *seed_records(experiment, "plain-32", DEEP)]
    text = render_markdown(toy_report(experiment, records), title="Rerun")
    for line in (
        "# Rerun",
        "- Trained: 4 reproduced, 1 cannot judge (1 no-labels) - results of training, judged by statistics over",
        "## On \\<Depth\\> (2015)",
        "**toy/depth: cifar10 at paper scale, 10,000 test images**",
        "- Departure: Pixels are scaled. No scale is named.",
        "| Decay of 1e-5 | lecture; notes |",
    ):
        assert f"\n{line}" in f"\n{text}", line
    assert "| plain-20 | 9.50 ± 0.07 |" in text
    assert "| ✔ reproduced | Deeper is worse | Figure 6 | plain-32 \\> plain-20 | 1 (" in text


def test_without_runs_it_says_what_to_do(experiment):
    left = [UnfinishedRun("plain-32 seed 4", "toy/depth", "paper", "failed", "out of memory", 120)]
    text = render_markdown(toy_report(experiment, [], unfinished=left, trouble="no answer"), title="Rerun")
    assert "Start some, for example `repro run resnet/cifar10_depth --scale laptop`." in text
    assert "- plain-32 seed 4 of toy/depth: failed (out of memory); to resume: `repro run toy/depth" in text
    assert "Runs may be missing: no answer." in text
    assert "## On" not in text


def test_a_text_is_no_link_no_html_and_no_cell():
    assert escaped("[x](javascript:a) <b> a|b `c` *d*\n# e") == (
        "\\[x\\](javascript:a) \\<b\\> a\\|b \\`c\\` \\*d\\* # e"
    )
    assert escaped("a|b", "|") == "a|b"
