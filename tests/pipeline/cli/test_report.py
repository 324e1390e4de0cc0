"""Test `repro report`: what it writes, what it refuses, and what it says without runs."""

import pytest

from pipeline.declare.load import load_experiment
from pipeline.judge.collect import FinishedRuns


@pytest.fixture
def runs(monkeypatch):
    """List of the records that the command finds."""
    records = []
    monkeypatch.setattr("pipeline.cli.report.collect_with_warnings", lambda: FinishedRuns(records, None, ""))
    return records


def test_a_file_and_markdown_of_one_experiment(command, runs, seed_records, tmp_path):
    runs += seed_records(load_experiment("resnet/cifar10_depth"), "plain-20", [3.1, 3.4, 3.9], scale="laptop")
    page, text = tmp_path / "out" / "page.html", tmp_path / "report.md"
    code, out, err = command("report", "resnet/cifar10_depth", "--html", page, "--markdown", text)
    assert (code, out, err) == (0, f"wrote {page}\nwrote {text}\n", "")
    assert "<title>resnet/cifar10_depth</title>" in page.read_text(encoding="utf-8")
    assert "| plain-20 | 3.47 ± 0.40 |" in text.read_text(encoding="utf-8")


def test_a_folder_is_a_site_of_a_paper(command, runs, tmp_path):
    code, out, _ = command("report", "nin", "--html", tmp_path / "site")
    assert code == 0
    assert out.startswith(
        f"wrote {tmp_path}/site/index.html\nNo finished runs yet. Start some: repro run EXPERIMENT"
    )
    assert {path.name for path in (tmp_path / "site").glob("*.html")} == {"index.html", "nin.html"}


def test_without_an_option_the_page_is_in_the_home(command, runs, tmp_path):
    code, out, _ = command("report", "nin/mnist")
    assert (code, out.splitlines()[0]) == (0, f"wrote {tmp_path}/report/report.html")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resnt"], "no experiment 'resnt'"),
        (["resnet", "--suite", "cs231n"], "give experiments or --suite, not both"),
        (["--suite", "cs231"], "unknown suite 'cs231'; known suites: cs231n"),
    ],
)
def test_a_wrong_selection_is_one_sentence(command, runs, words, message):
    code, out, err = command("report", *words)
    assert (code, out) == (2, "")
    assert message in err


def test_a_folder_with_other_files_is_refused_before_the_work(command, monkeypatch, tmp_path):
    monkeypatch.setattr("pipeline.cli.report.collect_with_warnings", lambda: pytest.fail("began to work"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    code, _, err = command("report", "nin/mnist", "--html", tmp_path / "mine")
    assert code == 2
    assert "holds other files and no report" in err
