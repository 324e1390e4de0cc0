"""A report is made again only if what it shows, or its files, changed."""

import threading

import pytest
from filelock import FileLock

from pipeline.common.paths import runs_folder
from pipeline.report import publish
from pipeline.report.publish import make_report, make_reports
from pipeline.track.run_folder import RunFolder


@pytest.fixture
def pages(monkeypatch, tmp_path):
    """List that gets the path of every page that is written."""
    from pipeline.report import page

    monkeypatch.setenv("REPRO_HOME", str(tmp_path))
    written, write = [], page.write_page
    monkeypatch.setattr(page, "write_page", lambda *args, **more: written.append(args[-1]) or write(*args, **more))
    return written


def test_an_unchanged_report_is_kept(experiment, seed_records, pages):
    records = seed_records(experiment, "plain-20", [9.0, 9.5])
    first = make_report(experiment, "paper", records, None)
    assert make_report(experiment, "paper", records, None) == first
    assert pages == [first.page]


def test_another_record_makes_the_report_again(experiment, seed_records, pages):
    records = seed_records(experiment, "plain-20", [9.0, 9.5])
    make_report(experiment, "paper", records[:1], None)
    make_report(experiment, "paper", records, None)
    assert len(pages) == 2


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("x")])
def test_a_missing_or_edited_page_is_written_again(experiment, seed_records, pages, damage):
    records = seed_records(experiment, "plain-20", [9.0])
    report = make_report(experiment, "paper", records, None)
    whole = report.page.read_text(encoding="utf-8")
    damage(report.page)
    make_report(experiment, "paper", records, None)
    assert report.page.read_text(encoding="utf-8") == whole
    assert len(pages) == 2


@pytest.mark.parametrize("content", ["", "[]", '{"content": 1}'])
def test_a_damaged_stamp_makes_the_report_again(experiment, seed_records, pages, content):
    records = seed_records(experiment, "plain-20", [9.0])
    report = make_report(experiment, "paper", records, None)
    [stamp] = report.page.parent.glob(".*.json")
    stamp.write_text(content)
    make_report(experiment, "paper", records, None)
    assert len(pages) == 2


def test_a_scale_has_a_stamp_of_its_own(experiment, seed_records, pages):
    make_report(experiment, "paper", seed_records(experiment, "plain-20", [9.0]), None)
    make_report(experiment, "smoke", seed_records(experiment, "plain-20", [9.0], scale="smoke"), None)
    assert len(set(pages)) == 2
    assert publish.report_folder().is_dir()


def test_a_report_with_a_damaged_journal_says_so_and_is_made_again(experiment, seed_records, pages):
    records = seed_records(experiment, "plain-20", [9.0, 9.5])
    folder = RunFolder(runs_folder() / records[0].identity)
    folder.path.mkdir(parents=True)
    folder.journal_file.write_text("damaged\n")
    report = make_report(experiment, "paper", records, None)
    assert "journal.jsonl is damaged: line 1 is not a journal entry" in report.page.read_text(encoding="utf-8")
    folder.journal_file.unlink()  # as after a repair
    report = make_report(experiment, "paper", records, None)
    assert "is damaged" not in report.page.read_text(encoding="utf-8")
    assert len(pages) == 2


def test_reports_wait_for_those_of_another_command(experiment, seed_records, pages):
    records = seed_records(experiment, "plain-20", [9.0])
    publish.report_folder().mkdir(parents=True)
    command = threading.Thread(target=make_reports, args=([(experiment, "paper")], records, None))
    with FileLock(publish.report_folder() / ".publish.lock"):
        command.start()
        command.join(0.3)
        assert command.is_alive()
        assert pages == []
    command.join(30)
    assert len(pages) == 1
