"""The note of a paper: what was tried, what it says, what we got, within MLflow's length."""

from dataclasses import replace

from pipeline.declare.load import load_experiment
from pipeline.report.leaderboard import build_leaderboard
from pipeline.report.paper_note import paper_note
from pipeline.track.mlflow_notes import MAX_NOTE_LENGTH
from tests.support.fake_records import fake_record

DEPTH = load_experiment("resnet/cifar10_depth")
RECORDS = [fake_record(DEPTH, "resnet-20", seed, error) for seed, error in enumerate((8.5, 9.5))]
ROWS = build_leaderboard([DEPTH], RECORDS)


def note(rows, experiments=(DEPTH,)):
    return paper_note(experiments, rows, [], lambda experiment, scale: f"#/{experiment}/{scale}")


def test_a_note_says_what_was_tried_what_the_paper_says_and_what_we_got():
    lines = note(ROWS).splitlines()
    assert lines[0] == f"# {DEPTH.paper.title}"
    assert "## resnet/cifar10_depth" in lines
    assert DEPTH.question in lines
    tried = "Tried: [paper scale](#/resnet/cifar10_depth/paper): 1 network on cifar10."
    assert f"{tried} The links have tables, verdicts and figures." in lines
    assert "| network | scale | paper % | ours % | seeds | verdict |" in lines
    # The paper's Table 6 prints 8.75; the mean of 8.5 and 9.5 is 9, their standard deviation the root of 1/2.
    assert "| resnet-20 | paper | 8.75 | 9.00 ± 0.71 | 2 |  |" in lines


def test_an_experiment_that_was_not_run_is_left_out():
    others = (DEPTH, load_experiment("resnet/imagenet"))
    assert "resnet/imagenet" not in note(ROWS, others)


def test_a_note_keeps_whole_lines_within_the_length_that_mlflow_stores():
    many = [replace(ROWS[0], variant=f"network-{number:04d}") for number in range(500)]
    text = note(many)
    assert len(text) <= MAX_NOTE_LENGTH
    shown = sum(line.startswith("| network-") for line in text.splitlines())
    assert 10 < shown < 500
    assert f"{500 - shown} more rows in the tables of these runs." in text


def test_the_papers_error_on_other_data_names_the_data():
    digits = [replace(row, data="digits") for row in ROWS]
    assert "| resnet-20 | paper | 8.75 (cifar10) | 9.00 ± 0.71 | 2 |  |" in note(digits).splitlines()
