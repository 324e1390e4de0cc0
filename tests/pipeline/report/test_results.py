"""RESULTS.md is a function of the records: nothing typed, nothing left out but smoke runs."""

import json
from dataclasses import replace

import pytest

from pipeline.common.errors import UserError
from pipeline.common.paths import runs_folder
from pipeline.declare.load import load_experiment
from pipeline.judge.collect import unfinished_runs
from pipeline.plan.expand import plan_runs
from pipeline.report import results as module
from pipeline.report.results import readme_block, results_text, write_results
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder


@pytest.fixture
def records(experiment, seed_records):
    return [
        *seed_records(experiment, "plain-20", [9.4, 9.5, 9.6]),
        *seed_records(experiment, "resnet-20", [8.4, 8.5, 8.6], precision="bf16"),
        *seed_records(experiment, "plain-20", [3.4, 3.5, 3.6], scale="laptop", seconds=7.0),
        *seed_records(experiment, "plain-20", [1.0], changes={"train.lr": 0.05}),
        *seed_records(experiment, "plain-20", [77.7], scale="smoke"),
    ]


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_HOME", str(tmp_path / "home"))


class NoCurves:
    def curves(self, run_id, metric):
        return []


class Curves:
    def curves(self, run_id, metric):
        return [(100, 50.0), (200, 10.0)]


def test_the_text_is_a_pure_function_of_the_records(experiment, records):
    first = results_text([experiment], records, {})
    assert first == results_text([experiment], records, {})
    assert first != results_text([experiment], [replace(records[0], metrics=records[3].metrics), *records[1:]], {})


def test_every_number_is_that_of_the_records(experiment, records):
    text = results_text([experiment], records[:9], {})
    assert "## toy/depth at paper scale" in text
    assert "| plain-20 | 9.50 ± 0.10 | 0.95 | 4.75 | 9.5 | 3 | 10,000 |" in text
    assert "| plain-20 | 3.50 ± 0.10 | 0.35 | 1.75 | 9.5 (cifar10) | 3 | 10,000 |" in text
    assert "- Seeds: 0, 1, 2; 6 runs, 60 s each in the mean" in text
    assert "- Seeds: 0, 1, 2; 3 runs, 7 s each in the mean" in text
    assert "- Data: cifar10, manifest manifest of cifa; 10,000 test images counted in each run" in text
    assert "- Commit: 01234567; lock lock-1; code code-1" in text


def test_each_recipe_in_use_is_told(experiment, records):
    text = results_text([experiment], records[:9], {})
    assert "- Recipe of plain-20: 64,000 updates of 128, rate 0.1, sgd, computed in fp32" in text
    assert "- Recipe of resnet-20: 64,000 updates of 128, rate 0.1, sgd, computed in bf16" in text
    assert "- Recipe: 400 updates of 128, rate 0.1, sgd, computed in fp32" in text


def test_departures_belong_to_the_paper_scale(experiment, records):
    at_paper, at_laptop = results_text([experiment], records[:9], {}).split("## toy/depth at laptop scale")
    assert "- Departure: Pixels are scaled. No scale is named." in at_paper
    assert "Departure" not in at_laptop


def test_networks_judged_by_different_protocols_are_not_ranked_together(seed_records):
    vgg = load_experiment("vgg/imagenet")
    errors = {"vgg-16": [27.0], "vgg-16-384": [26.8], "vgg-13": [28.0]}
    records = [record for name, found in errors.items() for record in seed_records(vgg, name, found)]
    lines = readme_block([vgg], records).splitlines()
    shown = [line.partition(" | ")[0] for line in lines if line.startswith(("**", "| vgg"))]
    assert shown == [
        "**vgg/imagenet** at paper scale on imagenet, dense-of-384",
        "| vgg-16-384",
        "**vgg/imagenet** at paper scale on imagenet, dense-of-256",
        "| vgg-16",
        "| vgg-13",
    ]


def test_a_bar_in_a_claim_breaks_no_table(experiment, records):
    for line in results_text([experiment], records[:9], {}).splitlines():
        if line.startswith("| "):
            assert line.replace("\\|", "").count("|") in (
                6,
                7,
                11,
            )  # five or six columns of verdicts, ten of networks


def test_exact_claims_are_judged_by_arithmetic_at_the_end(experiment, records):
    last = results_text([experiment], records[:9], {}).split("## Judged by arithmetic\n")[1]
    assert "1 reproduced, 1 erratum. " in last
    assert "| toy/depth | 2 | 1 | 1 |  |  |" in last
    assert (
        "| toy/depth | ! erratum | decay | Decay of 1e-5 | lecture; notes | We measure 0.0001, which agrees"
        in last
    )
    assert "0.27 million" not in last  # holds, so it is counted only


def test_a_scale_of_diverged_runs_alone_is_reported(experiment, seed_records):
    gone = seed_records(experiment, "plain-20", [0.0, 0.0, 0.0], status="not converged", metrics={})
    text = results_text([experiment], gone, {})
    assert "| plain-20 | did not converge |" in text
    assert "cannot judge: did-not-converge" in text


def test_two_scales_of_one_recipe_are_told_apart(declare, seed_records):
    declared = declare("  smoke:", "  again: {why: The same recipe.}\n  smoke:")
    records = seed_records(declared, "plain-20", [9.4, 9.5, 9.6])
    text = results_text([declared], records, {})
    assert text.count("| plain-20 | 9.50") == 1


def test_files_are_written_beside_each_other(experiment, records, tmp_path):
    written = write_results([experiment], records, Curves(), tmp_path / "RESULTS.md")
    assert [str(path.relative_to(tmp_path)) for path in written] == [
        "RESULTS.md", "results/records.json", "results/toy-depth-paper.png", "results/toy-depth-laptop.png",
    ]  # fmt: skip
    text = written[0].read_text(encoding="utf-8")
    assert "](results/toy-depth-paper.png)" in text
    assert written[2].read_bytes().startswith(b"\x89PNG")


def test_smoke_runs_and_changed_runs_stay_out(experiment, records, tmp_path):
    text_file, kept_file = write_results([experiment], records, NoCurves(), tmp_path / "RESULTS.md")
    text = text_file.read_text(encoding="utf-8")
    assert "77.7" not in text
    assert "train.lr=0.05" not in text
    kept = [Record.from_dict(raw) for raw in json.loads(kept_file.read_text(encoding="utf-8"))]
    assert kept == [*records[:3], *records[3:6], *records[6:9]]
    assert "![" not in text  # no curves, no figure


def test_the_kept_records_give_the_same_text_again(experiment, records, tmp_path):
    text_file, kept_file = write_results([experiment], records, NoCurves(), tmp_path / "RESULTS.md")
    kept = [Record.from_dict(raw) for raw in json.loads(kept_file.read_text(encoding="utf-8"))]
    assert results_text([experiment], kept, {}) == text_file.read_text(encoding="utf-8")


def test_writing_twice_writes_the_same_bytes(experiment, records, tmp_path):
    once = [path.read_bytes() for path in write_results([experiment], records, Curves(), tmp_path / "RESULTS.md")]
    again = [path.read_bytes() for path in write_results([experiment], records, Curves(), tmp_path / "RESULTS.md")]
    assert once == again


def test_without_runs_the_way_to_some_is_told(experiment, tmp_path):
    with pytest.raises(UserError, match=r"no finished runs to report; start some with: repro run EXPERIMENT"):
        write_results([experiment], [], NoCurves(), tmp_path / "RESULTS.md")
    assert list(tmp_path.glob("RES*")) == []


def test_smoke_is_the_only_scale_left_out():
    assert module.LEFT_OUT == ("smoke", "stand-in")


def test_steps_are_told_with_what_they_are(declare, seed_records):
    two = "derived:\n  two: {kind: ensemble, members: {plain-20: 2}}\nscales:\n"
    declared = declare("scales:\n", two)
    alone = seed_records(declared, "plain-20", [9.4, 9.5, 9.6])
    steps = [one for one in plan_runs(declared, scale="paper") if one.variant == "two"]
    own = {"variant": "two", "seconds": 1.0, "commit": "c0ffee00", "code": "of-steps", "members": ("a", "b")}
    done = [replace(alone[0], seed=one.seed, declaration=one.declaration, **own) for one in steps]
    assert len(done) == 2
    text = results_text([declared], [*alone, *done], {})
    assert "- Recipe: 64,000 updates of 128, rate 0.1, sgd, computed in fp32" in text
    assert "- Step two: 2 plain-20 averaged" in text
    assert "| two | 9.40 ± 0.00 | " in text
    assert "- Seeds: 0, 1, 2; 3 runs, 60 s each in the mean and 2 steps\n" in text
    assert (
        "- Commit: 01234567; lock lock-1; code code-1; of the steps c0ffee00; lock lock-1; code of-steps\n" in text
    )
    assert "- Seeds: 2 steps\n- Hardware" in results_text([declared], done, {})


def test_what_is_kept_on_this_machine_of_runs_left_unfinished_is_no_part_of_it(experiment, records):
    before = results_text([experiment], records[:9], {})
    folder = RunFolder(runs_folder() / "left")
    [first, *_] = plan_runs(experiment, scale="paper", variants=["plain-20"], seeds=4)[3:]
    run = {"experiment": "toy/depth", "scale": "paper", "variant": "plain-20", "seed": 3, "changes": {}}
    folder.create(run | {"declaration": first.declaration})
    folder.mark_unfinished("over-budget", "spent")
    assert len(unfinished_runs([experiment])) == 1
    assert results_text([experiment], records[:9], {}) == before
