"""Test that RESULTS.md, figures, records and README.md's table are functions of the records."""

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
from tests.support.fake_records import fake_record


@pytest.fixture
def experiment(declare):
    """The small experiment with three seeds: at paper scale all of them must have run."""
    return declare("seeds: [0, 1, 2, 3, 4]", "seeds: [0, 1, 2]")


@pytest.fixture
def records(experiment, seed_records):
    """Return runs at paper and laptop scale, then one changed run and one smoke run."""
    return [
        *seed_records(experiment, "plain-20", [9.4, 9.5, 9.6]),
        *seed_records(experiment, "resnet-20", [8.4, 8.5, 8.6], precision="bf16"),
        *seed_records(experiment, "plain-20", [3.4, 3.5, 3.6], scale="laptop", seconds=7.0),
        *seed_records(experiment, "plain-20", [1.0], changes={"train.lr": 0.05}),
        *seed_records(experiment, "plain-20", [77.7], scale="smoke"),
    ]


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    """Set REPRO_HOME to a folder of the test."""
    monkeypatch.setenv("REPRO_HOME", str(tmp_path / "home"))


class NoCurves:
    """Tracker whose runs have no curves."""

    def curves(self, run_id, metric):
        return []


class Curves:
    """Tracker whose runs have the same curve."""

    def curves(self, run_id, metric):
        return [(100, 50.0), (200, 10.0)]


def test_text_is_a_pure_function_of_the_records(experiment, records):
    first = results_text([experiment], records, {})
    assert first == results_text([experiment], records, {})
    assert first != results_text([experiment], [replace(records[0], metrics=records[3].metrics), *records[1:]], {})


def test_numbers_are_those_of_the_records(experiment, records):
    text = results_text([experiment], records[:9], {})
    assert "## toy/depth at paper scale" in text
    assert (
        "| plain-20 | 9.50 ± 0.10 | 0.95 | 4.75 | 9.5 | +0.00 (-0.17 to +0.17) | reproduced | 3 | 10,000 |" in text
    )
    assert "| plain-20 | 3.50 ± 0.10 | 0.35 | 1.75 | 9.5 (cifar10) | 3 | 10,000 |" in text
    assert "- Seeds: 0, 1, 2; 6 runs, 60 s each on average" in text
    assert "- Seeds: 0, 1, 2; 3 runs, 7 s each on average" in text
    assert "- Data: cifar10, manifest manifest of cifa; 10,000 test images in each run" in text
    assert "- Commit: 01234567; lock lock-1; code code-1" in text


def test_every_recipe_has_a_line(experiment, records):
    text = results_text([experiment], records[:9], {})
    assert "- Recipe of plain-20: 64,000 steps of 128 images, learning rate 0.1, sgd, fp32" in text
    assert "- Recipe of resnet-20: 64,000 steps of 128 images, learning rate 0.1, sgd, bf16" in text
    assert "- Recipe: 400 steps of 128 images, learning rate 0.1, sgd, fp32" in text


def test_material_choices_and_departures_are_marked(declare, seed_records):
    declared = declare(
        "departures:\n",
        "choices:\n  - {what: No flips., why: Silent., material: true, of: [plain-20]}\ndepartures:\n"
        "  - {what: Fewer steps., why: Cheaper., material: true}\n",
        "seeds: [0, 1, 2, 3, 4]",
        "seeds: [0, 1, 2]",
    )
    text = results_text([declared], seed_records(declared, "plain-20", [9.4, 9.5, 9.6]), {})
    assert "- Material choice: No flips. Silent. Concerns only plain-20.\n" in text
    assert "- Material departure: Fewer steps. Cheaper.\n- Departure: Pixels are scaled. No scale" in text
    assert "Verdicts from these runs: 1 reached." in text


def test_departures_are_listed_at_paper_scale_only(experiment, records):
    at_paper, at_laptop = results_text([experiment], records[:9], {}).split("## toy/depth at laptop scale")
    assert "- Departure: Pixels are scaled. No scale is named." in at_paper
    assert "Departure" not in at_laptop


def test_networks_with_different_protocols_are_ranked_apart(seed_records):
    vgg = load_experiment("vgg/imagenet")
    errors = {"vgg-16": [27.0], "vgg-16-384": [26.8], "vgg-13": [28.0]}
    records = [record for name, found in errors.items() for record in seed_records(vgg, name, found)]
    lines = readme_block([vgg], records).splitlines()
    shown = [line.partition(" | ")[0] for line in lines if line.startswith(("**", "| vgg"))]
    assert shown == [
        "**vgg/imagenet** at paper scale on imagenet, dense-of-256",
        "| vgg-16",
        "| vgg-13",
        "**vgg/imagenet** at paper scale on imagenet, dense-of-384",
        "| vgg-16-384",
    ]


def test_bar_in_a_claim_is_escaped(experiment, records):
    for line in results_text([experiment], records[:9], {}).splitlines():
        if line.startswith("| "):
            columns = line.replace("\\|", "").count("|") - 1
            assert columns in (
                5,
                6,
                11,
                13,
            )  # verdicts without and with experiment; networks below paper scale and at it


def test_last_section_has_the_exact_claims(experiment, records):
    last = results_text([experiment], records[:9], {}).split("## Judged without training\n")[1]
    arithmetic, recipe = last.split("### Recipe\n")
    assert "### Arithmetic\n\n1 confirmed.\n" in arithmetic
    assert "| toy/depth | 1 | 1 |  |  |  |" in arithmetic
    assert "0.27 million" not in last  # confirmed, so only counted
    assert "1 erratum.\n" in recipe
    assert "| experiment | claims | followed | erratum | departs | cannot judge |" in recipe
    assert "| toy/depth | 1 |  | 1 |  |  |" in recipe
    assert (
        "| toy/depth | ! erratum | decay | Decay of 1e-5 | lecture; notes | We use 0.0001, which agrees" in recipe
    )


def test_headlines_count_all_claims_by_category(experiment, records):
    headlines = [
        "- Arithmetic: 1 confirmed - shapes, counts and printed values, compared exactly",
        "- Recipe: 1 erratum - our settings compared with the printed ones, not results",
        "- Trained: 1 reproduced, 4 cannot judge (3 not-run, 1 no-labels) - results of training, judged by"
        " statistics over seeds",
    ]
    for text in (results_text([experiment], records[:9], {}), readme_block([experiment], records[:9])):
        assert "\n".join(headlines) in text


def test_scale_with_diverged_runs_only_is_reported(experiment, seed_records):
    gone = seed_records(experiment, "plain-20", [0.0, 0.0, 0.0], status="not converged", metrics={})
    text = results_text([experiment], gone, {})
    assert "| plain-20 | did not converge |" in text
    assert "cannot judge: did-not-converge" in text


def test_runs_shared_by_two_scales_are_listed_once(declare, seed_records):
    declared = declare("  smoke:", "  again: {why: The same recipe.}\n  smoke:")
    records = seed_records(declared, "plain-20", [9.4, 9.5, 9.6])
    text = results_text([declared], records, {})
    assert text.count("| plain-20 | 9.50") == 1


def test_written_files(experiment, records, tmp_path):
    written = write_results([experiment], records, Curves(), tmp_path / "RESULTS.md")
    assert [str(path.relative_to(tmp_path)) for path in written] == [
        "RESULTS.md", "results/records.json", "results/curves.json", "results/toy-depth-paper.png",
        "results/toy-depth-laptop.png",
    ]  # fmt: skip
    text = written[0].read_text(encoding="utf-8")
    assert "](results/toy-depth-paper.png)" in text
    assert written[3].read_bytes().startswith(b"\x89PNG")


def test_smoke_runs_and_changed_runs_are_left_out(experiment, records, tmp_path):
    text_file, kept_file = write_results([experiment], records, NoCurves(), tmp_path / "RESULTS.md")
    text = text_file.read_text(encoding="utf-8")
    assert "77.7" not in text
    assert "train.lr=0.05" not in text
    kept = [Record.from_dict(raw) for raw in json.loads(kept_file.read_text(encoding="utf-8"))]
    assert kept == [*records[:3], *records[3:6], *records[6:9]]
    assert "![" not in text  # no curves


def test_written_records_give_the_same_text(experiment, records, tmp_path):
    text_file, kept_file = write_results([experiment], records, NoCurves(), tmp_path / "RESULTS.md")
    kept = [Record.from_dict(raw) for raw in json.loads(kept_file.read_text(encoding="utf-8"))]
    assert results_text([experiment], kept, {}) == text_file.read_text(encoding="utf-8")


def test_writing_twice_gives_the_same_bytes(experiment, records, tmp_path):
    once = [path.read_bytes() for path in write_results([experiment], records, Curves(), tmp_path / "RESULTS.md")]
    again = [path.read_bytes() for path in write_results([experiment], records, Curves(), tmp_path / "RESULTS.md")]
    assert once == again


def test_records_of_another_machine_are_kept(experiment, records, tmp_path):
    file, at_paper, at_laptop = tmp_path / "RESULTS.md", records[:6], records[6:9]
    write_results([experiment], at_paper, Curves(), file)
    figure = tmp_path / "results" / "toy-depth-paper.png"
    before = figure.read_bytes()
    written = write_results([experiment], at_laptop, Curves(), file)  # here only the small runs are at hand
    kept = [Record.from_dict(raw) for raw in json.loads(written[1].read_text(encoding="utf-8"))]
    assert kept == [*at_paper, *at_laptop]
    assert figure.read_bytes() == before
    assert figure in written  # from the recorded curves
    assert "](results/toy-depth-paper.png)" in file.read_text(encoding="utf-8")


def test_curves_of_another_machine_are_drawn_with_those_of_this_one(experiment, records, tmp_path):
    def figure(name, *parts):
        file = tmp_path / name / "RESULTS.md"
        file.parent.mkdir()
        for part in parts:
            write_results([experiment], part, Curves(), file)
        return (file.parent / "results" / "toy-depth-paper.png").read_bytes()

    whole = figure("whole", records[:6])
    assert figure("in parts", records[:2], records[2:6]) == whole
    assert figure("one part", records[:2]) != whole


def test_runs_of_another_machine_without_curves_are_named_and_not_counted_as_drawn(experiment, records, tmp_path):
    file, warnings = tmp_path / "RESULTS.md", []
    write_results([experiment], records[:2], Curves(), file)
    (tmp_path / "results" / "curves.json").unlink()
    write_results([experiment], records[2:3], Curves(), file, warn=warnings.append)
    assert warnings == [
        f"Missing from the figures: plain-20 seed {seed} of toy/depth at paper scale: "
        "its curves are neither on this machine nor in results/curves.json"
        for seed in (0, 1)
    ]
    alone = tmp_path / "alone"
    alone.mkdir()
    write_results([experiment], records[2:3], Curves(), alone / "RESULTS.md")
    name = "results/toy-depth-paper.png"
    assert (tmp_path / name).read_bytes() == (alone / name).read_bytes()


def test_a_figure_stays_while_a_variant_has_no_curves(experiment, records, tmp_path):
    file, warnings = tmp_path / "RESULTS.md", []
    write_results([experiment], [records[0], records[3]], Curves(), file)  # a seed of plain-20 and of resnet-20
    figure = tmp_path / "results" / "toy-depth-paper.png"
    figure.write_bytes(b"drawn before")
    (tmp_path / "results" / "curves.json").unlink()
    assert figure not in write_results([experiment], [records[1]], Curves(), file, warn=warnings.append)
    assert figure.read_bytes() == b"drawn before"
    assert warnings == [
        f"{figure} stays as it was drawn before: the runs of resnet-20 have no curves here or in"
        " results/curves.json"
    ]
    recorded = json.loads((tmp_path / "results" / "curves.json").read_text(encoding="utf-8"))
    assert recorded[records[1].identity].keys() == {"train/top1_error_pct", "test/top1_error_pct"}
    write_results([experiment], [records[4]], Curves(), file)  # resnet-20 again
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_newer_runs_of_a_recipe_replace_those_of_another_machine(experiment, seed_records, tmp_path):
    old = seed_records(experiment, "plain-20", [9.4, 9.5, 9.6], code="old", finished="2026-01-01T00:00:00+00:00")
    new = seed_records(experiment, "plain-20", [9.1, 9.2, 9.3], code="new", finished="2026-01-02T00:00:00+00:00")
    new = [replace(record, identity=f"new-{record.seed}") for record in new]
    for found in (old, new):
        _, kept_file = write_results([experiment], found, NoCurves(), tmp_path / "RESULTS.md")
    assert {raw["code"] for raw in json.loads(kept_file.read_text(encoding="utf-8"))} == {"new"}


def test_damaged_records_are_named_and_left_alone(experiment, records, tmp_path):
    path = tmp_path / "results" / "records.json"
    path.parent.mkdir()
    for text in ('[{"experiment"', '{"a": 1}', "[1]"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(
            UserError, match=r"records\.json holds no records .*; restore it from Git, or delete it"
        ):
            write_results([experiment], records, NoCurves(), tmp_path / "RESULTS.md")
        assert path.read_text(encoding="utf-8") == text


def test_readme_counts_the_verdicts_of_small_runs(experiment, records):
    block = readme_block([experiment], records[:9])
    assert "**toy/depth** at paper scale on cifar10" in block
    assert "at laptop scale" not in block
    assert "| experiment | question | runs | trend supported | trend not supported | cannot judge |" in block
    assert "| toy/depth at laptop | Do deep \\| wide networks train worse? | 3 |  |  |  |" in block


@pytest.mark.parametrize(("scale", "data"), [("laptop", "digits"), ("short", "cifar10-jpeg")])
def test_readme_shows_the_depth_experiment_in_full(seed_records, scale, data):
    depth = load_experiment("resnet/cifar10_depth")
    block = readme_block([depth], seed_records(depth, "plain-20", [3.4, 3.5, 3.6], scale=scale))
    assert f"**resnet/cifar10_depth** at {scale} scale on {data}" in block
    assert "Other runs" not in block


def test_no_runs_raises_user_error_with_the_command(experiment, tmp_path):
    with pytest.raises(UserError, match=r"no finished runs to report; start some with: repro run EXPERIMENT"):
        write_results([experiment], [], NoCurves(), tmp_path / "RESULTS.md")
    assert list(tmp_path.glob("RES*")) == []


def test_runs_of_trial_scales_are_not_reported(experiment):
    records = [fake_record(experiment, "plain-20", 0, 9.0, scale=scale) for scale in ("smoke", "laptop")]
    assert [record.scale for record in module.reported_records([experiment], records)] == ["laptop"]


def test_derived_runs_have_lines_and_rows(declare, seed_records):
    two = "derived:\n  two: {kind: ensemble, members: {plain-20: 2}}\nscales:\n"
    declared = declare("scales:\n", two)
    alone = seed_records(declared, "plain-20", [9.4, 9.5, 9.6])
    derived = [run for run in plan_runs(declared, scale="paper") if run.variant == "two"]
    own = {"variant": "two", "seconds": 1.0, "commit": "c0ffee00", "code": "code-2", "members": ("a", "b")}
    ensembles = [replace(alone[0], seed=run.seed, declaration=run.declaration, **own) for run in derived]
    assert len(ensembles) == 2
    text = results_text([declared], [*alone, *ensembles], {})
    assert "- Recipe: 64,000 steps of 128 images, learning rate 0.1, sgd, fp32" in text
    assert "- Derived run two: average of 2 plain-20" in text
    assert "| two | 9.40 ± 0.00 | " in text
    assert "- Seeds: 0, 1, 2; 3 runs, 60 s each on average; 2 derived runs\n" in text
    assert (
        "- Commit: 01234567; lock lock-1; code code-1; derived runs: c0ffee00; lock lock-1; code code-2\n" in text
    )
    assert "- Seeds: 2 derived runs\n- Hardware" in results_text([declared], ensembles, {})


def test_ensembles_of_several_sizes_have_a_figure(declare, seed_records, tmp_path):
    sizes = "derived:\n  sizes: {kind: ensemble-sizes, members: {plain-20: 3}, sizes: [1, 2]}\nscales:\n"
    declared = declare("scales:\n", sizes)
    alone = seed_records(declared, "plain-20", [9.4, 9.5, 9.6])
    [derived] = [run for run in plan_runs(declared, scale="paper") if run.variant == "sizes"]
    found = {f"test/of-{size}/top1_error_pct{end}": 1.0 for size in (1, 2) for end in ("", "_std")}
    record = replace(
        alone[0],
        variant="sizes",
        declaration=derived.declaration,
        members=("a",),
        metrics=alone[0].metrics | found,
    )
    written = write_results([declared], [*alone, record], NoCurves(), tmp_path / "RESULTS.md")
    figure = tmp_path / "results" / "toy-depth-paper-ensembles.png"
    assert written[2:] == [figure]
    assert figure.read_bytes().startswith(b"\x89PNG")
    text = written[0].read_text(encoding="utf-8")
    assert "- Derived run sizes: ensembles of 1, 2 networks of 3 plain-20\n" in text
    assert "![test error by number of networks](results/toy-depth-paper-ensembles.png)\n" in text
    assert "training and test error by step" not in text


def test_unfinished_runs_of_this_machine_do_not_change_the_text(experiment, records):
    before = results_text([experiment], records[:9], {})
    folder = RunFolder(runs_folder() / "left")
    first = plan_runs(experiment, scale="paper", variants=["plain-32"])[0]
    run = {"experiment": "toy/depth", "scale": "paper", "variant": "plain-32", "seed": 0, "changes": {}}
    folder.create(run | {"declaration": first.declaration})
    folder.mark_unfinished("over-budget", "spent")
    assert len(unfinished_runs([experiment])) == 1
    assert results_text([experiment], records[:9], {}) == before
