"""Output and exit codes of the commands, in this process, without training and servers. See also test_main.py."""

import csv
import importlib
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.cli import main, verdicts
from pipeline.cli.run import thread_count
from pipeline.cli.selection import parse_changes
from pipeline.cli.tables import column_names
from pipeline.common.errors import UserError
from pipeline.declare.claims import Departure
from pipeline.declare.load import load_experiment
from pipeline.declare.printed import PrintedFile
from pipeline.judge.collect import FinishedRuns, judge_experiments
from pipeline.judge.counting import variants_of
from pipeline.judge.verdict import Outcome, Reason
from pipeline.report.leaderboard import LeaderboardRow
from pipeline.schedule.reproduce import JobOutcome
from pipeline.track.published_results import PublishedResult, save_result
from tests.support.fake_records import fake_record, set_console

RESNET = "resnet/cifar10_depth"
SMOKE = ("run", RESNET, "--scale", "smoke", "--seeds", "1")
TABLE_6 = next(
    claim for claim in load_experiment(RESNET).claims if (claim.kind, claim.source) == ("metric", "Table 6")
)  # the first row: ResNet-20 has an error of 8.75 %
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def known(monkeypatch):
    """Function that sets the finished runs, and why the server cannot be used, if `trouble` is given."""

    def find(*records, trouble=""):
        monkeypatch.setattr(
            "pipeline.judge.collect.collect_runs", lambda: FinishedRuns(list(records), None, trouble)
        )

    find()
    return find


FEW_EXPERIMENTS = ("lenet5/architecture", "lenet5/mnist", RESNET)


@pytest.fixture
def few_experiments(monkeypatch):
    """Let commands about all experiments load three: measuring the networks of all takes half a minute."""
    monkeypatch.setattr(
        "pipeline.declare.load.load_all", lambda: [load_experiment(name) for name in FEW_EXPERIMENTS]
    )


@pytest.fixture
def terminal(monkeypatch, command):
    """Function that runs a command on a terminal of some width; returns exit code and lines without colours."""

    def run(width, *words):
        seen = io.StringIO()
        shown = Console(file=seen, force_terminal=True, width=width, highlight=False)
        set_console(monkeypatch, shown)
        code, *_ = command(*words)
        return code, ESCAPES.sub("", seen.getvalue()).splitlines()

    return run


def row(variant, errors, **other):
    return [
        fake_record(load_experiment(RESNET), variant, seed, error, **other) for seed, error in enumerate(errors)
    ]


AGREES = [8.6, 8.7, 8.8, 8.9, 8.75]
DIFFERS = [20.0, 20.1, 19.9, 20.2, 19.8]


def test_help_is_instant():
    """It imports no library whose import takes seconds."""
    code = (
        "import sys\nsys.argv = ['repro', '--help']\nfrom pipeline.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'mlflow', 'pytorch_lightning', 'matplotlib', 'numpy') if m in sys.modules])\n"
        "print({m.split('.')[1] for m in sys.modules if m.startswith('pipeline.')} - {'cli', 'common'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["[]", "set()"]
    assert "run" in done.stdout


def test_version_prints_name_number_and_commit(command, monkeypatch):
    monkeypatch.setattr("pipeline.common.provenance.commit", lambda: "0123456789ab")
    code, out, err = command("--version")
    assert (code, out, err) == (0, f"cnn-repro {metadata.version('cnn-repro')} (commit 0123456789ab)\n", "")


def test_version_without_a_checkout_has_no_commit(command, monkeypatch):
    monkeypatch.setattr("pipeline.common.provenance.commit", lambda: "unknown")
    assert command("--version")[1] == f"cnn-repro {metadata.version('cnn-repro')}\n"


def test_help_lists_version_and_every_command(command):
    _, out, _ = command("--help")
    assert "--version" in out
    for name in ("list", "show", "run", "verify", "analyse", "evaluate", "leaderboard", "results", "ui", "launch"):
        assert re.search(rf"\b{name} ", out)


def test_list_prints_experiments_by_paper_with_data_and_question(command, few_experiments):
    code, out, err = command("list")
    assert (code, err) == (0, "")
    assert out == (
        "Gradient-Based Learning Applied to Document Recognition (1998)\n"
        "  lenet5/architecture   arithmetic, no training\n"
        "      Does the network that the paper describes have the numbers that the paper prints?\n"
        "  lenet5/mnist          paper on mnist; laptop, smoke on digits\n"
        "      Does LeNet-5, trained with the recipe of 1998, reach a test error of 0.95 % on MNIST?\n"
        "\n"
        "Deep Residual Learning for Image Recognition (2015)\n"
        "  resnet/cifar10_depth  paper, paper-45k on cifar10; short on cifar10-jpeg; laptop on digits;"
        " smoke on noise\n"
        "      Do deeper plain networks train worse, while deeper residual networks do not?\n"
        "\n"
        "Details: repro show EXPERIMENT\n"
    )


def test_show_prints_recipe_variants_scales_claims_and_departures(command, known):
    code, out, _ = command("show", RESNET)
    assert code == 0
    for words in (
        "64,000 steps of 128 images, learning rate 0.1; times 0.1 at step 32,000, times 0.1 at step 48,000",
        "sgd: momentum 0.9, weight_decay 0.0001, decay all, loss cross-entropy",
        "warmup.lr 0.01, warmup.train_error_below_pct 80.0",
        "60 runs (12 variants x 5 seeds), 3,840,000 steps",
        "has 0.27 million parameters (claimed 270000; Table 6)",
        "resnet-32 < resnet-20; Table 6)",
    ):
        assert words in out
    for head in ("recipe", "variants", "scales", "choices where the source is silent"):
        assert f"\n{head}\n" in out
    assert "\n  Not material: no effect on verdicts.\n    - " in out
    declared = load_experiment(RESNET)
    assert all(f"  {claim.id}: " in out for claim in declared.claims)
    assert all(f"  {name}" in out for name in (*declared.variants, *declared.scales))


def test_verify_exits_1_where_a_claim_is_not_reproduced(command, known):
    known(*row("resnet-20", DIFFERS))
    code, out, _ = command("verify", RESNET)
    assert code == 1
    assert f"✘ not reproduced  {TABLE_6.id}\n    {TABLE_6.says} (Table 6)\n" in out
    assert "    Runs: paper scale on cifar10, 5 runs, commit " in out


def test_verify_exits_0_where_what_was_run_is_reproduced(command, known):
    known(*row("resnet-20", AGREES))
    code, out, _ = command("verify", RESNET)
    assert code == 0
    assert f"✔ reproduced  {TABLE_6.id}\n" in out


def with_verdicts(monkeypatch, **verdicts):
    """Replace what commands judge by one claim of the experiment with this verdict."""
    entry = judge_experiments([load_experiment(RESNET)], [], unfinished={})[0]
    changed = replace(entry, verdict=replace(entry.verdict, **verdicts))
    monkeypatch.setattr("pipeline.judge.collect.judge_experiments", lambda *_: [changed])


@pytest.mark.parametrize("outcome", Outcome)
def test_verify_exits_1_for_contradicted_claims_only(command, known, monkeypatch, outcome):
    reason = Reason.NOT_RUN if outcome is Outcome.CANNOT_JUDGE else None
    with_verdicts(monkeypatch, outcome=outcome, reason=reason)
    code, _, _ = command("verify", RESNET)
    assert code == (outcome in ("not confirmed", "departs", "not reproduced"))


def test_claims_without_runs_are_listed_by_the_command_that_runs_them(command, known):
    _, out, _ = command("verify", RESNET)
    assert out.count("cannot judge: not-run (") == 1
    assert re.search(r"\n– cannot judge: not-run \(\d+ claims\)\n    repro run ", out)
    assert f"    repro run {RESNET} --scale paper --variant resnet-20\n        judges {TABLE_6.id}\n" in out
    assert re.search(r"\nArithmetic: \d+ confirmed - .*\nRecipe: \d+ followed, 1 erratum - .*\nTrained: ", out)
    assert re.search(r"\nTrained: (\d+) cannot judge \(\1 not-run\) - .*\n$", out)


def test_commands_name_the_experiment_as_the_user_did(command, known):
    path = f"experiments/{RESNET}.yaml"
    _, out, _ = command("verify", path)
    assert f"    repro run {path} --scale paper --variant resnet-20\n" in out
    _, out, _ = command("verify", f"{RESNET}/{TABLE_6.id}")  # one claim of it
    assert f"    repro run {RESNET} --scale paper --variant resnet-20\n" in out


def test_recipe_that_departs_has_no_command(command, known, monkeypatch):
    declared = load_experiment(RESNET)
    departure = Departure(what="Fewer steps.", why="Cheaper.", material=True)
    changed = declared.model_copy(update={"departures": (departure,)})
    monkeypatch.setattr("pipeline.declare.load.load_experiment", lambda _: changed)
    known(*row("resnet-20", DIFFERS))
    code, out, _ = command("verify", RESNET)
    assert code == 0
    assert f"– cannot judge: recipe-departs  {TABLE_6.id}\n" in out
    assert (
        "The recipe departs from the paper's: Fewer steps. The paper's own recipe may give another result.\n"
        in out
    )
    assert "    No command would judge it: the declared recipe departs from the paper's.\n" in out
    known(*row("resnet-20", AGREES))
    assert f"✔ reached  {TABLE_6.id}\n" in command("verify", RESNET)[1]


@pytest.mark.usefixtures("few_experiments")
def test_verify_without_a_name_judges_every_experiment(command, known):
    _, out, _ = command("verify")
    assert out.startswith(f"{FEW_EXPERIMENTS[0]}\n")
    assert all(f"\n{name}\n" in out for name in FEW_EXPERIMENTS[1:])


@pytest.mark.usefixtures("few_experiments")
def test_verify_takes_an_experiment_or_a_suite(command, known):
    assert command("verify", RESNET, "--suite", "cs231n")[2] == "error: give an experiment or --suite, not both\n"
    assert command("verify", "--suite", "cs")[2] == "error: unknown suite 'cs'; known suites: cs231n\n"
    assert command("verify", "--suite", "cs231n")[1] == command("verify")[1]


def test_coverage_counts_printed_rows_and_names_the_missing_ones(command, monkeypatch):
    results = {"Table 6": {"CIFAR-10 test, error %": {"ResNet-20": 8.75, "ResNet-99": 1.25}}}
    printed = PrintedFile.model_validate({"results": results, "lecture": {"depth": {"says": "It is deep"}}})
    experiment = load_experiment(RESNET).model_copy(update={"not_claimed": ()})  # names rows of the real file
    monkeypatch.setattr("pipeline.declare.load.load_all", lambda: [experiment])
    monkeypatch.setattr("pipeline.declare.load.load_all_printed", lambda: {"resnet": printed})
    code, out, _ = command("verify", "--coverage")
    assert code == 1
    lines = out.splitlines()
    assert lines[1].split() == ["resnet", "1", "of", "2", "0", "of", "1", "2"]
    assert "    resnet results: Table 6: ResNet-99 = 1.25 (CIFAR-10 test, error %)" in lines
    assert "    resnet lecture: depth (It is deep)" in lines
    code, out, _ = command("verify", RESNET, "--coverage", "--json")
    assert (code, [row["state"] for row in json.loads(out)]) == (1, ["claimed", "missing", "missing"])
    assert (
        command("verify", "lenet5/mnist", "--coverage")[2] == "error: experiments/lenet5/printed.yaml not found\n"
    )


def test_leaderboard_ranks_networks_beside_the_paper_s_number(command, known):
    known(*row("resnet-20", AGREES), *row("plain-20", [9.0, 9.2], changes={"train.lr": 0.05}))
    code, out, _ = command("leaderboard", RESNET)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"{RESNET} at paper scale on cifar10 (10,000 test images)"
    heads = "network  top-1 error %  top-5 %  training %  paper %  difference  verdict  seeds  noise  parameters"
    assert lines[1].split() == [*heads.split(), "multiply-adds", "time"]
    found = "resnet-20 8.75 ± 0.11 0.88 4.38 8.75 +0.00 (-0.11 to +0.11) reproduced 5 ± 0.28 270 k 40.6 M 60 s"
    assert lines[2].split() == found.split()  # t(0.95) is 2.132 with 4 degrees of freedom; 2.132 x 0.112 / sqrt(5)
    # The label of a changed run is not interpreted as rich markup.
    assert lines[3].split()[:2] == ["plain-20", "[train.lr=0.05]"]


def test_leaderboard_by_top5_has_no_column_about_the_top1_error(command, known):
    """ResNet-20's paper prints no top-5 error: neither a number of it nor a remark on its data."""
    known(*row("resnet-20", AGREES), *row("plain-20", [3.0, 4.0, 5.0], scale="laptop"))
    lines = command("leaderboard", RESNET, "--by", "top5")[1].splitlines()
    heads = "network  top-1 error %  top-5 %  training %  seeds  noise  parameters  multiply-adds  time"
    assert [line.split() for line in lines if line.startswith("network")] == [heads.split()] * 2
    assert not any(line.startswith("The paper's errors") for line in lines)


def test_leaderboard_of_a_paper_by_data_and_scale(command, known):
    known(*row("resnet-20", AGREES), *row("resnet-20", [50.0, 60.0], scale="smoke"))
    assert command("leaderboard", "resnet")[1] == command("leaderboard", RESNET)[1]
    _, out, _ = command("leaderboard", "resnet", "--scale", "smoke")
    assert (out.count("at smoke scale"), out.count("at paper scale")) == (1, 0)
    _, out, _ = command("leaderboard", "resnet", "--data", "cifar10")
    assert (out.count("at smoke scale"), out.count("at paper scale")) == (0, 1)
    _, _, err = command("leaderboard", "resnet", "--data", "cifar1")
    assert err == "error: --data cifar1: no results on this data set; did you mean 'cifar10'?\n"
    _, _, err = command("leaderboard", "resnet", "--scale", "papr")
    assert err == "error: --scale papr: unknown scale; did you mean 'paper'?\n"


def test_leaderboard_as_json_csv_and_markdown(command, known):
    known(*row("resnet-20", AGREES))
    (found,) = json.loads(command("leaderboard", RESNET, "--json")[1])
    head, values = csv.reader(io.StringIO(command("leaderboard", RESNET, "--csv")[1]))
    assert head == list(found)
    shown = dict(zip(head, values, strict=True))
    assert (shown["variant"], shown["top1"], shown["verdict"]) == ("resnet-20", str(found["top1"]), "reproduced")
    assert json.loads(shown["difference_interval"]) == found["difference_interval"]
    lines = command("leaderboard", RESNET, "--markdown")[1].splitlines()
    assert lines[0] == f"| {' | '.join(head)} |"
    assert lines[2].count(" | ") == len(head) - 1
    assert command("leaderboard", "--json", "--csv")[2] == "error: give one of --json and --csv\n"


def test_diff_lists_what_differs(command, known):
    first, second = row("resnet-20", [8.5, 8.75])
    known(first, replace(second, threads=2))
    code, out, _ = command("diff", "resnet-20/0", "resnet-20/1")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["first", first.identity[:8], f"{RESNET}/resnet-20/0", "at", "paper"]
    assert ["declaration", "seed", "0", "1"] in lines
    assert ["environment", "threads", "1", "2"] in lines
    assert ["result", "test/top1_error_pct", "8.5", "8.75"] in lines
    assert "No differences:" in command("diff", "resnet-20/0", "resnet-20/0")[1]
    found = json.loads(command("diff", "resnet-20/0", "resnet-20/1", "--json")[1])
    assert {"part": "environment", "name": "threads", "first": 1, "second": 2} in found
    assert command("diff", "resnet-2/0", "resnet-20/1")[2] == (
        "error: no finished run 'resnet-2/0'; use VARIANT/SEED, as in 'resnet-20/0'\n"
    )


def test_a_network_that_did_not_converge_is_in_the_leaderboard(command, known):
    bad = row("resnet-20", [0.0] * 3, status="not converged", ended="the loss became nan at step 3", metrics={})
    known(*bad)
    _, out, _ = command("leaderboard", RESNET)
    assert "did not converge" in out


def test_an_empty_leaderboard_prints_how_to_fill_it(command, known, few_experiments):
    first, empty, title, *_ = command("leaderboard")[1].splitlines()
    assert (first, empty) == ("No finished runs. Start some: repro run EXPERIMENT --scale laptop", "")
    assert title == "winners of ILSVRC, the lecture's chart: published top-5 errors, not ours"
    assert command("leaderboard", "--json")[1] == "[]\n"
    (head,) = csv.reader(io.StringIO(command("leaderboard", "--csv")[1]))
    assert head == ["kind", *column_names(LeaderboardRow)]


def test_winners_of_ilsvrc_are_the_papers_numbers(command, known, few_experiments):
    """The lecture gives AlexNet 16.4, which is another entry, and ZFNet the error of Clarifai."""
    found = json.loads(command("leaderboard", "ilsvrc", "--json")[1])
    shown = {row["entry"]: (row["year"], row["lecture_top5"], row["paper_top5"], row["layers"]) for row in found}
    assert shown == {
        "Lin et al. (NEC-UIUC)": (2010, 28.2, 28.2, None),
        "Sanchez & Perronnin (XRCE)": (2011, 25.8, 25.8, None),
        "AlexNet (SuperVision)": (2012, 16.4, 15.3, 8),
        "ZFNet / Clarifai": (2013, 11.7, 14.8, 8),
        "VGG (2nd)": (2014, 7.3, 7.32, 19),
        "GoogLeNet (1st)": (2014, 6.7, 6.67, 22),
        "ResNet": (2015, 3.57, 3.57, 152),
        "human (Russakovsky et al.)": (None, 5.1, 5.1, None),
    }
    assert {row["entry"] for row in found if row["verdict"] == "erratum"} == {
        "AlexNet (SuperVision)",
        "ZFNet / Clarifai",
    }
    assert {row["ours_top5"] for row in found} == {None}  # nothing was trained


def test_winners_are_not_among_filtered_rows(command, known, few_experiments):
    known(*row("resnet-20", AGREES))
    assert "winners of ILSVRC" in command("leaderboard")[1]
    for words in (["resnet"], ["--scale", "paper"], ["--data", "cifar10"], ["--variant", "resnet-20"], ["--json"]):
        assert "winner" not in command("leaderboard", *words)[1]


def test_leaderboard_of_variants(command, known):
    known(*row("resnet-20", AGREES), *row("plain-20", [9.0, 9.2]))
    found = json.loads(command("leaderboard", RESNET, "--variant", "plain-20", "--json")[1])
    assert [one["variant"] for one in found] == ["plain-20"]
    assert command("leaderboard", RESNET, "--variant", "plan-20")[2] == (
        "error: --variant plan-20: no such variant; did you mean 'plain-20'?\n"
    )


def test_one_claim_is_judged_by_its_name(command, known):
    known(*row("resnet-20", AGREES))
    code, out, err = command("verify", f"{RESNET}/{TABLE_6.id}")
    assert (code, err) == (0, "")
    assert out.splitlines()[1] == f"✔ reproduced  {TABLE_6.id}"
    assert out.splitlines()[-1].startswith("Trained: 1 reproduced")
    (found,) = csv.DictReader(io.StringIO(command("verify", f"{RESNET}/{TABLE_6.id}", "--csv")[1]))
    assert (found["claim"], found["outcome"], found["claimed"], found["runs"]) == (
        *(TABLE_6.id, "reproduced", "8.75"),
        "5",
    )
    assert command("verify", f"{RESNET}/{TABLE_6.id[:-1]}")[2] == (
        f"error: {RESNET} has no claim {TABLE_6.id[:-1]!r}; did you mean {TABLE_6.id!r}?\n"
    )


def test_show_of_a_scale_has_the_settings_of_its_runs(command, known):
    _, out, _ = command("show", RESNET, "--scale", "smoke")
    assert (
        "  resnet-20  resnet_cifar depth 20, shortcut A; data noise, augment pad1-crop/flip; 12 steps of 20" in out
    )
    assert "6 runs (2 variants x 3 seeds), 72 steps" in out
    assert "  resnet-56 " not in out
    found = json.loads(command("show", RESNET, "--scale", "smoke", "--variant", "plain-20", "--json")[1])
    assert found["recipes"]["plain-20"]["train"]["steps"] == 12
    assert ([*found["recipes"]], found["seeds_of"], [*found["scales"]]) == (
        ["plain-20"],
        {"plain-20": [0, 1, 2]},
        ["smoke"],
    )
    assert command("show", RESNET, "--scale", "smok")[2] == (
        f"error: {RESNET} has no scale 'smok'; did you mean 'smoke'?\n"
    )
    assert "did you mean 'resnet-20'" in command("show", RESNET, "--variant", "resnt-20")[2]


def test_show_of_a_variant_has_its_claims(command, known):
    found = csv.DictReader(io.StringIO(command("show", RESNET, "--variant", "plain-110", "--csv")[1]))
    claims = {one["claim"]: one for one in found}
    about = [one for one in load_experiment(RESNET).claims if "plain-110" in variants_of(one)]
    assert set(claims) == {one.id for one in about}
    assert 0 < len(claims) < 20


def test_a_format_of_launch_needs_a_plan(command):
    assert command("launch", RESNET, "--csv")[2] == (
        "error: --csv prints the plan of --dry-run; add it, or omit --csv\n"
    )


def test_a_dry_run_is_a_table_too(command):
    found = json.loads(command(*SMOKE, "--dry-run", "--json")[1])
    shown = [(one["variant"], one["seed"], one["state"], one["steps"]) for one in found]
    assert shown == [("plain-20", 0, "to do", 12), ("resnet-20", 0, "to do", 12)]


def test_leaderboard_says_where_the_paper_s_data_differ(command, known):
    known(*row("resnet-20", [50.0, 60.0, 70.0], scale="smoke"))
    assert "\nThe paper's errors are on cifar10.\n" in command("leaderboard", RESNET)[1]


@pytest.mark.parametrize(
    "words",
    [
        ("list",),
        ("show", RESNET),
        ("verify", RESNET),
        ("leaderboard",),
        pytest.param(("verify",), marks=pytest.mark.slow),  # measures every network of every experiment
    ],
)
@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_wider_than_the_terminal(terminal, known, words, width):
    known(*row("resnet-20", AGREES), *row("resnet-20-wd-1e-5", DIFFERS))
    _, lines = terminal(width, *words)
    assert len(lines) > 4
    assert max(map(len, lines)) <= width


def test_a_network_is_one_line_on_80_columns(terminal, known):
    known(*row("resnet-20-wd-1e-5", DIFFERS))
    _, lines = terminal(80, "leaderboard")
    assert lines[2].split() == ["resnet-20-wd-1e-5", "20.00", "±", "0.16", "2.00", "10.00", "5", "±", "0.40"]


@pytest.mark.parametrize("words", [("list",), ("show", RESNET), ("verify", RESNET), ("leaderboard",)])
def test_in_a_pipe_sentences_are_not_wrapped_and_nothing_is_coloured(command, known, words):
    known(*row("resnet-20", DIFFERS))
    _, out, err = command(*words)
    assert "\x1b" not in out + err
    if words[0] == "verify":
        assert re.search(r"\n    The mean .*\.\n    Runs: ", out)


def test_an_unreachable_server_is_reported_once_and_local_runs_are_judged(command, known):
    known(*row("resnet-20", AGREES), trouble="the tracking server http://x cannot be used: [/nobody]")
    code, out, err = command("verify", RESNET)
    assert code == 0
    assert f"✔ reproduced  {TABLE_6.id}" in out
    assert err == (
        "the tracking server http://x cannot be used: [/nobody].\nUsing only the runs on this machine.\n"
    )


# After training


def test_after_training_claims_that_need_another_scale_are_one_line(capsys):
    records = row("resnet-20", [50.0, 60.0, 70.0], scale="smoke") + row(
        "plain-20", [80.0, 90.0, 85.0], scale="smoke"
    )
    entries = judge_experiments([load_experiment(RESNET)], records, ["smoke"])
    verdicts.print_outcome(entries, RESNET)
    out = capsys.readouterr().out
    assert "cannot judge: not-run" not in out
    assert "3 more claims about these networks cannot be judged at this scale.\n" in out
    assert re.search(r"\nArithmetic: \d+ confirmed - .*\nRecipe: .*\nTrained: ", out)
    assert f"All verdicts: repro verify {RESNET}\n" in out


@pytest.fixture
def trained(monkeypatch):
    """Function that replaces training by an outcome."""

    def end(ending, *records, untracked=""):
        monkeypatch.setattr(
            "pipeline.schedule.reproduce.run_tasks", lambda *_, **__: JobOutcome(ending, list(records), untracked)
        )

    return end


def test_ctrl_c_exits_130_and_prints_how_to_resume(command, known, trained):
    trained("stopped")
    code, out, err = command(*SMOKE)
    assert (code, out) == (130, "")
    assert err == "Stopped. Finished runs are kept. Run the same command again to resume.\n"


def test_several_experiments_are_reported_one_after_the_other(command, known, trained):
    trained("ended")
    known(*row("resnet-20", [50.0], scale="smoke"))
    words = ("run", RESNET, "lenet5/mnist", "--scale", "smoke", "--seeds", "1")
    code, out, _ = command(*words)
    assert code == 0
    ends = [f"All verdicts: repro verify {name}\n" for name in (RESNET, "lenet5/mnist")]
    assert [out.count(end) for end in ends] == [1, 1]
    assert out.index(ends[0]) < out.index(ends[1])
    _, out, _ = command(*words, "--json")
    reports = json.loads(out)
    assert [len(report["leaderboard"]) for report in reports] == [1, 0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "nothing to run; name an experiment, as in repro run resnet/cifar10_depth, or use --suite cs231n"),
        (("--suite", "cs231"), "unknown suite 'cs231'; known suites: cs231n"),
        (
            (RESNET, "lenet5/mnist", "--variant", "resnet-20"),
            "--variant names a variant of one experiment, but 2 are selected",
        ),
    ],
)
def test_run_refuses_what_it_cannot_select(command, words, said):
    code, _, err = command("run", *words)
    assert (code, err) == (2, f"error: {said}\n")


def test_a_failed_run_exits_1_after_the_report_of_the_others(command, known, trained):
    trained("failed", *row("resnet-20", [50.0], scale="smoke"))
    code, out, err = command(*SMOKE)
    assert code == 1
    assert "resnet-20" in out
    assert err.startswith("Some runs failed. Finished runs are kept.")


def test_an_untracked_run_is_reported_with_one_warning(command, trained):
    trained("ended", *row("resnet-20", [50.0], scale="smoke"), untracked="nothing answers there")
    code, out, err = command(*SMOKE)
    assert code == 0
    assert "resnet-20" in out
    assert err == (
        "Not tracked yet: nothing answers there.\n"
        "The runs are kept on this machine; the next repro command sends them.\n"
    )


def test_a_second_ctrl_c_exits_130_with_one_line(command, monkeypatch):
    def pressed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.schedule.reproduce.run_tasks", pressed)
    code, out, err = command(*SMOKE)
    assert (code, out) == (130, "")
    assert err == "Interrupted. Run the same command again to resume from the last checkpoints.\n"


# User errors


def test_brackets_in_an_error_message_are_printed_as_given(command):
    code, out, err = command(*SMOKE, "--set", "train.lr=[/x]")
    assert (code, out) == (2, "")
    assert err.endswith("should be a valid number, not ['/x']\n")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("train.lr", "--set train.lr: give a key and a value, as in train.lr=0.05"),
        ("=1", "--set =1: give a key and a value, as in train.lr=0.05"),
        ("train.lr=", "should be a valid number, not None"),
        ("train.lr={", "'{' is not a YAML value"),
        ("train.lr.x=1", "'lr' is a value, not a map of settings"),
        ("model.depth=abc", "depth of network 'plain_cifar' should be a valid integer"),
        ("model.width=2", "network 'plain_cifar' has no argument 'width'"),
        ("data.name=nois", "no data set 'nois', .*; did you mean 'noise'?"),
        ("data.train=900", "900 training images cannot be taken from 200; .* training may have 1 to 200"),
        ("data.pad_to=8", "pad_to 8 is smaller than the 16 x 16 images; use 16 or more"),
    ],
)
def test_an_invalid_setting_is_an_error_of_one_sentence_before_anything_starts(
    command, tmp_path, change, sentence
):
    code, out, err = command(*SMOKE, "--set", change)
    assert (code, out) == (2, "")
    assert re.fullmatch("error: .*" + "(?:.*)".join(map(re.escape, sentence.split(".*"))) + ".*\n", err)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("words", [SMOKE, ("ui",)])
def test_an_impossible_home_is_an_error_of_one_sentence(command, tmp_path, monkeypatch, words):
    (tmp_path / "taken").write_text("by a file")
    monkeypatch.setenv("REPRO_HOME", str(tmp_path / "taken" / "home"))
    code, _, err = command(*words)
    assert code == 2
    assert re.fullmatch(rf"error: cannot write to {tmp_path}/taken/home: not a directory; .*REPRO_HOME.*\n", err)


@pytest.mark.parametrize("left", ['{"why": "failed"}', '{"why": "failed", "text": "no room", "asked": 0}'])
@pytest.mark.parametrize("run", ["{", "[]", '{"experiment": "lenet5/mnist"}', '{"experiment": []}'])
def test_a_damaged_folder_of_an_unfinished_run_is_reported_and_stops_nothing(command, tmp_path, run, left):
    folder = tmp_path / "runs" / "0123"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(run)
    (folder / "left.json").write_text(left)
    code, out, err = command("verify", "lenet5/mnist")
    assert (code, "cannot judge: not-run" in out) == (0, True)
    assert f"the run in {folder} cannot be read" in err


PLAIN = ["-c", "from pipeline.cli.main import main; main()"]


def test_characters_outside_the_encoding_are_replaced():
    words = [sys.executable, *PLAIN, "verify", "lenet5/architecture"]
    plain = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(words, env=plain, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"? confirmed" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full does not exist")
@pytest.mark.parametrize(
    "asked", [["list", "--json"], ["--help"]], ids=["more than a buffer", "less than a buffer"]
)
def test_output_that_cannot_be_written_is_an_error_of_one_sentence(asked):
    with Path("/dev/full").open("wb") as full:
        words = [sys.executable, *PLAIN, *asked]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (2, b"error: cannot write the output: no space left on device\n")


def test_a_closed_pipe_ends_the_command_silently():
    words = [sys.executable, *PLAIN, "list"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.parametrize("count", ["0", "-1", "many"])
def test_number_of_threads_must_be_at_least_one(monkeypatch, count):
    monkeypatch.setenv("OMP_NUM_THREADS", count)
    with pytest.raises(UserError, match=f"OMP_NUM_THREADS is '{count}': must be an integer >= 1"):
        thread_count()


def test_number_of_threads_is_read_from_the_environment(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert thread_count() is None
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert thread_count() == 3


def test_changes_are_yaml():
    words = ["train.lr=1e-3", "train.lr_drops.at=[3, 4]", "data.name=noise", "train.compile=true", "a=b=c"]
    assert parse_changes(words) == {
        "train.lr": 0.001,
        "train.lr_drops.at": [3, 4],
        "data.name": "noise",
        "train.compile": True,
        "a": "b=c",
    }


def test_a_setting_that_is_changed_twice_is_an_error():
    with pytest.raises(UserError, match=r"--set train.lr=2: train.lr is set twice; give one value"):
        parse_changes(["train.lr=1", "train.lr=2"])


# --- analyse, published weights ----------------------------------------------------------------------------


def test_analyse_prints_a_network_as_its_papers_table(command):
    code, out, err = command("analyse", "lenet5")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "lenet5, 10 classes, one image of 1 x 32 x 32"
    heads = ["layer", "output", "kernel", "parameters", "multiply-adds", "activations", "field"]
    assert lines[1].split() == heads
    assert lines[2].split() == ["c1", "6", "x", "28", "x", "28", "156", "117,600", "4,704", "5"]
    assert lines[9].split()[:2] == ["total", "60,000"]


def test_analyse_changes_arguments_of_a_network(command):
    code, out, _ = command("analyse", "resnet-20", "--set", "depth=38", "--json")
    shown = json.loads(out)
    assert (code, shown["network"], shown["input"]) == (0, "resnet-20 (depth 38)", [3, 32, 32])
    more = 3 * (18 * (16**2 + 32**2 + 64**2) + 4 * (16 + 32 + 64))  # three blocks more at each size
    assert shown["layers"][-1]["parameters"] == 269_722 + more


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("show", "my/none.yaml"), "no file my/none.yaml"),
        (
            ("verify", "resnet"),
            "no experiment 'resnet'; known: resnet/architecture, resnet/cifar10_depth, resnet/imagenet",
        ),
        (("analyse", "resnt-20"), "network 'resnt-20' not found; did you mean 'resnet-20'?"),
        (
            ("analyse", "resnet-20", "--set", "depth=21"),
            "depth 21 is not 6n + 2 (section 4.2); the nearest valid depths are 20 and 26",
        ),
        (("analyse", "resnet-20", "--set", "dept=20"), "has no argument 'dept'; did you mean 'depth'?"),
        (
            ("analyse", "resnet-20", "--set", "depth=abc"),
            "depth of network 'resnet_cifar' should be a valid integer",
        ),
        (
            ("analyse", "resnet-20", "--set", "depth=110.0"),
            "depth of network 'resnet_cifar' should be a valid integer",
        ),
        (("analyse", "resnet-50", "--set", "depth=[50]"), "depth of network 'resnet_imagenet' should be"),
        (("analyse", "resnet-50", "--set", "num_classes=10"), "has no argument 'num_classes'"),
        (("analyse", "resnet-50", "--set", "name=vgg"), "has no argument 'name'"),
        (("analyse", "alexnet", "--set", "without=3"), "without of network 'alexnet' should be"),
        (("analyse", "wrn-28-10", "--set", "k=wide"), "k of network 'wide_resnet_cifar' should be"),
        (
            ("evaluate", "resnet-50", "--weights", "torchvision", "--data", "x", "--set", "foo=1"),
            "network 'resnet_imagenet' has no argument 'foo'",
        ),
        (("analyse", "--set", "depth=20"), "--set changes one network; name it, as in repro analyse resnet-50"),
        (
            ("evaluate", "resnet-20", "--weights", "nowhere.pth", "--data", "cifar10"),
            "weights file nowhere.pth not found; give a .safetensors or .pth file, or 'torchvision'",
        ),
        (
            ("evaluate", "resnet-20", "--weights", "https://me:secret@host/w.pth", "--data", "cifar10"),
            "--weights must be a file on this machine, not an address; download the file first",
        ),
        (
            ("evaluate", "alexnet", "--weights", "torchvision", "--data", "x"),
            "torchvision publishes no weights for alexnet: torchvision's alexnet is another function, it has 64",
        ),
        (
            ("evaluate", "zfnet", "--weights", "torchvision", "--data", "x"),
            "torchvision publishes no weights for zfnet, only for its densenet121",
        ),
        (
            ("evaluate", "resnet-50", "--weights", "torchvision", "--data", "x", "--key", "state_dict_ema"),
            "--key selects weights in a file, and --weights torchvision is none; leave out --key",
        ),
        (
            ("run", "alexnet/architecture"),
            "alexnet/architecture trains nothing: its claims are judged by arithmetic",
        ),
    ],
)
def test_an_error_about_a_network_is_one_sentence(command, words, said):
    code, _, err = command(*words)
    assert code == 2
    assert said in err
    assert "Traceback" not in err


def test_analyse_prints_all_networks_and_draws_the_comparison(command, monkeypatch, tmp_path):
    shown = [load_experiment("resnet/cifar10_depth"), load_experiment("complexity/architecture")]
    few = {name: v for name, v in shown[1].variants.items() if name in ("alexnet", "resnet-18")}
    shown[1] = shown[1].model_copy(update={"variants": few})
    monkeypatch.setattr("pipeline.declare.load.load_all", lambda: shown)
    monkeypatch.setattr("pipeline.analyse.timing.forward_times", lambda named: (0.01, 0.02, 0.03))
    code, out, _ = command("analyse")
    assert code == 0
    lines = out.splitlines()
    (row,) = (line.split() for line in lines if line.startswith("resnet-110 "))
    assert row == ["resnet-110", "3x32x32", "110", "1.73", "M", "252.89", "M", "1.05", "M", "11.1"]
    at = lines.index("the lecture's comparison: published accuracy against cost")
    assert [line.split()[0] for line in lines[at + 2 : at + 4]] == ["resnet-18", "alexnet"]  # by accuracy
    assert lines[at + 3].endswith("20.0 (10.0 to 30.0)")
    picture = Path(lines[-1].removeprefix("figure   "))
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.is_relative_to(tmp_path)


def test_published_weights_are_a_labelled_row_of_the_leaderboard(command, known, monkeypatch, tmp_path):
    about = ("resnet-50", "torchvision X", "00", "stride 2 elsewhere", "val", "one crop")
    save_result(PublishedResult(*about, 50000, 23.85, 7.13, 23.87, 3, "hardware", "commit", "today"))
    code, out, _ = command("leaderboard")
    assert code == 0
    assert "published weights on val: imported, not trained here; not a reproduction\n" in out
    assert "Skipped 3 files of val that are not images.\n" in out
    assert "resnet-50 differs from its paper for these weights: stride 2 elsewhere.\n" in out
    (line,) = (line for line in out.splitlines() if "torchvision X" in line)
    assert line.split() == ["resnet-50", "torchvision", "X", "23.85", "7.13", "23.87", "50,000", "±", "0.19"]
    _, out, _ = command("leaderboard", "--json")
    (kept,) = (row for row in json.loads(out) if row["kind"] == "published weights")
    assert kept["top1"] == 23.85
    _, out, _ = command("leaderboard", RESNET)
    assert "published weights" not in out
    known(*row("resnet-20", AGREES))
    code, out, _ = command("leaderboard", "--data", "val")
    assert (code, out.count("test images"), out.count("published weights on val")) == (0, 0, 1)


def test_what_is_assumed_stands_in_the_row_of_published_weights(command):
    about = ("squeezenet", "sq.pth", "00", "", "val", "1-crop-224-of-256")
    normalisation = "mean 0.485, 0.456, 0.406 and standard deviation 0.229, 0.224, 0.225"
    save_result(
        PublishedResult(
            *about, 1010, 98.91, 90.0, None, 2, "hardware", "commit", "today",
            normalisation=normalisation,
            class_order="numbers by value",
            assumed="normalisation, test protocol, class order",
            note="sq.pth: left out 1 tensor: criterion.weight",
            skipped="val/.git, val/2/Thumbs.db",
        )
    )  # fmt: skip
    code, out, _ = command("leaderboard")
    assert code == 0
    (line,) = (line for line in out.splitlines() if line.startswith("squeezenet"))
    assert line.rstrip().endswith("normalisation, test protocol, class order")
    assert "Skipped 2 files of val that are not images: val/.git, val/2/Thumbs.db.\n" in out
    assert (
        "Assumed for sq.pth, since neither their publisher nor an option says it: normalisation"
        f" ({normalisation}), test protocol, class order (numbers by value); set it with --normalise, --protocol,"
        " --classes.\n"
    ) in out
    assert "sq.pth: left out 1 tensor: criterion.weight.\n" in out


@pytest.mark.usefixtures("few_experiments")
def test_verify_of_all_counts_exact_claims_and_prints_errata(command, known):
    _, out, _ = command("verify")
    assert re.search(r"^lenet5/architecture\n✔ confirmed \(\d+ claims\)\n✔ followed \(\d+ claims?\)\n", out)
    assert "    Details: repro verify lenet5/architecture\n" in out
    assert "! erratum  lecture-weight-decay\n" in out
    assert not re.search(r"✔ (confirmed|followed)  ", out)
    assert "    The commands that would judge them: repro verify lenet5/mnist\n" in out
    assert "repro run" not in out


def test_an_s3_address_without_its_extra_says_what_to_install(command, monkeypatch):
    from fsspec.registry import _registry

    monkeypatch.setitem(sys.modules, "s3fs", None)  # an import of it fails, as without the package
    monkeypatch.delitem(_registry, "s3", raising=False)
    monkeypatch.setenv("REPRO_SHARDS", "s3://shards")
    for words in (("data", "verify", "imagenet"), ("data", "prepare", "digits", "--out", "s3://shards/digits")):
        code, _, err = command(*words)
        assert code == 2
        assert err == "error: this needs the extra 's3'; install it, in the checkout: pip install -e '.[s3]'\n"


def test_another_missing_package_is_a_fault_of_the_installation(command, monkeypatch):
    monkeypatch.setattr(main, "app", lambda: importlib.import_module("missing_package"))
    with pytest.raises(ModuleNotFoundError, match="missing_package"):
        command("list")
