"""Test the statements of the lecture: its order, printed statements first, then claims of its own."""

from pipeline.judge.coverage import PrintedRow
from pipeline.report.document.lecture import lecture_topics
from tests.support.ledgers import judge_by_id


def row(name, *claims, why="", kind="lecture", paper="toy"):
    return PrintedRow(paper, kind, name, f"says {name}", None, claims, why)


def topics(experiment, rows):
    entries = list(judge_by_id(experiment, []).values())
    return lecture_topics({"toy": experiment.paper}, entries, rows)


def test_a_claim_of_the_lecture_is_a_statement(experiment):
    (topic,) = topics(experiment, [])
    assert [(one.says, one.entries[0].claim.id) for one in topic.statements] == [("Decay of 1e-5", "decay")]


def test_a_printed_statement_has_its_claims_and_replaces_them(experiment):
    rows = [
        row("first", "toy/depth/decay", "toy/depth/deeper"),
        row("second", why="no labels"),
        row("relation", "toy/depth/ratio", kind="relations"),
        row("elsewhere", "other/file/x", paper="other"),
    ]
    (topic,) = topics(experiment, rows)
    assert topic.title == "On <Depth>"
    assert [one.says for one in topic.statements] == ["says first", "says second"]
    assert [entry.claim.id for entry in topic.statements[0].entries] == ["decay", "deeper"]
    assert topic.statements[1].why == "no labels"
