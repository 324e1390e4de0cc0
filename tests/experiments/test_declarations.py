"""Every declaration under experiments/: it loads, its arithmetic holds, and its claims can be judged.

And RESULTS.md and README.md's leaderboard say what the committed records say: nothing is typed by hand.
"""

import argparse
import inspect
import json
import re
import shlex

import pytest
import yaml

from lightning_modules.networks import NETWORKS
from pipeline.analyse.catalogue import find_network
from pipeline.analyse.measure import class_count, measure_claim, published_image_shape
from pipeline.cli import run as cli_run
from pipeline.common.errors import UserError
from pipeline.common.paths import ROOT
from pipeline.declare.claims import BoundClaim, ExactClaim, GainClaim, MetricClaim, OrderingClaim, RatioClaim
from pipeline.declare.data_settings import Crop
from pipeline.declare.load import EXPERIMENTS, experiment_names, load_all, load_experiment
from pipeline.declare.printed import PRINTED_FILE
from pipeline.declare.protocol import parse_protocol
from pipeline.judge.category import category
from pipeline.judge.counting import scales_of, variants_of
from pipeline.judge.ledger import judge_exact_claim, measured_sides
from pipeline.judge.verdict import Outcome
from pipeline.plan.expand import DerivedRun, Run, plan_runs
from pipeline.report.paper_figures.ensembles import OTHER_TRAINING
from pipeline.report.result_figures import figure_titles
from pipeline.report.results import README_END, README_START, readme_block, results_text, with_block
from pipeline.schedule.tasks import check_derived_run
from pipeline.track.record import Record
from tests.support.claim_counts import claim_counts, claims_table

NAMES = experiment_names()
LOADED = {name: load_experiment(name) for name in NAMES}
TRAINING = [name for name in NAMES if LOADED[name].scales]  # the others are judged by arithmetic alone
EXACT = [
    pytest.param(name, claim, id=f"{name}:{claim.id}")
    for name in NAMES
    for claim in LOADED[name].claims
    if isinstance(claim, ExactClaim)
]
RESPONDING = sorted(
    {
        (name, variant)
        for name in NAMES
        for claim in LOADED[name].claims
        if isinstance(claim, MetricClaim | BoundClaim | OrderingClaim | GainClaim | RatioClaim)
        for variant, metric in measured_sides(claim)
        if metric == "test/response_std"
    }
)


def asked(command):
    """The words of a command line such as "repro run lenet5/mnist --scale paper"; ValueError if it is none."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("program", choices=["repro"])
    parser.add_argument("command", choices=["run", "verify", "analyse"])
    parser.add_argument("experiment", nargs="?")
    parser.add_argument("--scale", default=inspect.signature(cli_run.run).parameters["scale"].default)
    parser.add_argument("--variant", action="append", default=[])
    parser.add_argument("--seeds", type=int)
    words, unknown = parser.parse_known_args(shlex.split(command))
    if unknown or (words.command == "run" and not words.experiment):
        raise ValueError(f"{command!r} is no command line: {unknown or 'which experiment?'}")
    return words


def would_do(command):
    """The runs that a command line would make, none of them begun; UserError for a name that does not exist."""
    words = asked(command)
    if words.command == "run":
        return plan_runs(
            load_experiment(words.experiment), scale=words.scale, variants=words.variant, seeds=words.seeds
        )
    if words.experiment:
        load_experiment(words.experiment)
    return []


def run_lines(text):
    """The commands after "# Run:" in a declaration: "repro verify a/b; the chart: repro analyse" has two."""
    lines = re.findall(r"^# Run: +(.+)$", text, re.MULTILINE)
    return [found for line in lines for part in line.split(";") for found in re.findall(r"\brepro\b.*", part)]


def test_every_declaration_is_found():
    found = sorted(path for path in EXPERIMENTS.rglob("*.y*ml") if path.name != PRINTED_FILE)
    assert [f"{path.parent.name}/{path.stem}" for path in found] == NAMES
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_under_its_name(name):
    declared = load_experiment(name)
    assert declared.name == name
    assert declared.question.endswith("?")
    assert declared.paper.title
    assert declared.claims


@pytest.mark.parametrize("name", NAMES)
def test_every_network_is_one_that_can_be_built(name):
    assert {variant.model.name for variant in LOADED[name].variants.values()} <= set(NETWORKS)


@pytest.mark.parametrize("name", TRAINING)
def test_every_scale_can_be_planned_and_says_what_it_is_for(name):
    declared = LOADED[name]
    for scale, words in declared.scales.items():
        assert plan_runs(declared, scale=scale)
        assert words.why.endswith("."), scale


@pytest.mark.parametrize("name", NAMES)
def test_the_command_at_its_head_can_be_given(name):
    commands = run_lines((EXPERIMENTS / f"{name}.yaml").read_text(encoding="utf-8"))
    assert commands
    first = asked(commands[0])
    assert (first.command, first.experiment) == ("run" if name in TRAINING else "verify", name)
    runs = [run for command in commands for run in would_do(command)]
    assert bool(runs) == (name in TRAINING)


def test_two_commands_of_one_line_are_told_apart():
    text = "# A question?\n# Run:   repro verify a/b; the chart: repro analyse\n# Cost:  repro is not run\n"
    assert run_lines(text) == ["repro verify a/b", "repro analyse"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("repro run alexnet/imagenet", "no scale 'laptop'"),
        ("repro run alexnet/imagenet --scale papre", "no scale 'papre'"),
        ("repro run alexnet/imagenet --scale paper --variant alexent", "no variant 'alexent'"),
        ("repro run alexnet/imagnet --scale paper", "no experiment 'alexnet/imagnet'"),
        ("repro verify alexnet/imagnet", "no experiment 'alexnet/imagnet'"),
        ("repro run alexnet/architecture", "trains nothing"),
    ],
)
def test_a_command_that_cannot_be_given_is_noticed(command, words):
    with pytest.raises(UserError, match=words):
        would_do(command)


@pytest.mark.parametrize("command", ["repro run", "repro train a/b", "repro run a/b --scales paper"])
def test_a_command_that_does_not_exist_is_noticed(command):
    with pytest.raises((ValueError, argparse.ArgumentError)):
        asked(command)


@pytest.mark.parametrize("name", [name for name in TRAINING if not LOADED[name].data.crop])
def test_it_has_a_smoke_scale_of_seconds_on_data_that_need_no_download(name):
    declared = LOADED[name]
    runs = [run for run in plan_runs(declared, scale="smoke") if isinstance(run, Run)]
    assert {run.recipe.data.name for run in runs} <= {"noise", "digits"}
    assert all(run.recipe.train.steps * run.recipe.train.batch_size <= 2000 for run in runs)


@pytest.mark.parametrize("name", TRAINING)
def test_at_least_three_seeds_are_declared_wherever_claims_are_judged(name):
    declared = LOADED[name]
    assert all(len(declared.seeds_at(scale)) >= 3 for scale in declared.scales if scale != "smoke")


def test_what_trains_nothing_is_called_architecture():
    assert {name.partition("/")[2] for name in set(NAMES) - set(TRAINING)} == {"architecture"}


def test_what_trains_nothing_declares_and_claims_no_recipe():
    for name in set(NAMES) - set(TRAINING):
        declared = LOADED[name]
        assert declared.train is None, name
        assert not any(variant.train for variant in declared.variants.values()), name
        own = [claim for claim in declared.claims if getattr(claim, "of", None) in declared.variants]
        assert not any(claim.metric.startswith("recipe/") for claim in own), name


def test_every_paper_has_its_architecture_judged():
    papers = {path.name for path in EXPERIMENTS.iterdir() if path.is_dir() and not path.name.startswith("_")}
    assert papers == {name.partition("/")[0] for name in NAMES if name.endswith("/architecture")}


def test_one_name_means_one_network_wherever_it_is_declared():
    """`repro analyse NAME` takes a variant's name, so two papers may share it only for the same network."""
    meant = {}
    for name in NAMES:
        declared = LOADED[name]
        for variant in declared.variants:
            published = declared.published(variant)
            network = (
                published.model.model_dump_json(),
                class_count(published.data),
                published_image_shape(published),
            )
            assert meant.setdefault(variant, (network, name))[0] == network, (variant, name, meant[variant][1])


def test_every_network_is_declared_somewhere():
    declared = {variant.model.name for name in NAMES for variant in LOADED[name].variants.values()}
    assert declared == set(NETWORKS)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_printed_is_used(name):
    declared = LOADED[name]
    exact = [claim for claim in declared.claims if isinstance(claim, ExactClaim)]
    used = {metric for claim in exact for metric in (claim.metric, claim.over_metric) if metric}
    drawn = {  # not claimed: accuracies of the complexity charts, errors in charts of numbers of networks
        printed for printed in declared.printed if printed.startswith("top1_") or OTHER_TRAINING.fullmatch(printed)
    }
    assert {f"printed/{printed}" for printed in set(declared.printed) - drawn} <= used


def test_claims_are_unique():
    ids = [(name, claim.id) for name in NAMES for claim in LOADED[name].claims]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", NAMES)
def test_no_statement_is_claimed_twice_in_the_same_words(name):
    said = [(claim.says, claim.by) for claim in LOADED[name].claims]
    assert len(set(said)) == len(said)


def repeated_settings(experiments):
    """Return the ids of the claims that state the same printed setting, in lists of at least two.

    The same setting is of one paper, source (paper or lecture), network, data set, metric and value.
    """
    found = {}
    for declared in experiments:
        for claim in declared.claims:
            if category(claim) == "recipe" and claim.of:
                published = declared.published(claim.of)
                value = (claim.op, tuple(claim.claimed) if isinstance(claim.claimed, list) else claim.claimed)
                over = (claim.over, claim.over_metric)
                network = (published.model.model_dump_json(), published.data.name)
                key = (declared.folder, claim.by, *network, claim.metric, *over, *value)
                found.setdefault(key, []).append(f"{declared.name}/{claim.id}")
    return [ids for ids in found.values() if len(ids) > 1]


def test_no_printed_setting_is_claimed_twice_within_a_paper():
    """The lecture may repeat a setting of the paper, and two data sets may have the same one."""
    assert repeated_settings(LOADED.values()) == []


def test_a_setting_that_is_claimed_twice_is_noticed():
    declared = LOADED["resnext/imagenet"]
    drops = next(claim for claim in declared.claims if claim.id == "recipe-drops")
    for change, repeated in (
        ({"id": "again", "claimed": [30.0, 60.0, 90.0], "source": "Table 3"}, True),
        ({"id": "again", "claimed": [30.0, 60.0, 80.0]}, False),
        ({"id": "again", "of": "resnext-101-32x4d"}, False),
        ({"id": "lecture-drops", "by": "lecture"}, False),
    ):
        other = declared.model_copy(update={"name": "resnext/copy", "claims": (drops.model_copy(update=change),)})
        pair = ["resnext/imagenet/recipe-drops", "resnext/copy/again"]
        assert repeated_settings([declared, other]) == ([pair] if repeated else [])


def size_without_a_margin(claim):
    """Whether a comparison says by how much, though its sign alone is judged."""
    said = re.search(r"\bby (about |more than )?\d|\d points?\b|\bslightly\b|\bconsiderably\b", claim.says)
    return bool(said) and not claim.margin


@pytest.mark.parametrize("name", NAMES)
def test_a_comparison_that_says_a_size_is_judged_by_it(name):
    claims = [claim for claim in LOADED[name].claims if isinstance(claim, OrderingClaim)]
    assert [claim.id for claim in claims if size_without_a_margin(claim)] == []


@pytest.mark.parametrize(
    ("says", "margin", "without"),
    [
        ("Normalisation lowers the top-1 error, by 1.4", 0.0, True),
        ("The error is higher, by about 2: the third", 0.0, True),
        ("The deeper net has the lower error, by 2.8 points", 0.0, True),
        ("Option B is slightly better than A", 0.0, True),
        ("Shifted colours lower the top-1 error by more than 1", 1.0, False),
        ("Depth lowers the error of nets of 18 and 34 layers", 0.0, False),
    ],
)
def test_a_size_that_is_said_and_not_judged_is_noticed(says, margin, without):
    claim = OrderingClaim(
        id="x", kind="ordering", says=says, source="", lhs="a", op="<", rhs="b", metric="test/m", margin=margin
    )
    assert size_without_a_margin(claim) is without


@pytest.mark.parametrize(("name", "claim"), EXACT)
def test_an_exact_claim_holds_or_is_a_declared_erratum(name, claim):
    verdict = judge_exact_claim(claim, LOADED[name], measure_claim)
    wrong = Outcome.CANNOT_JUDGE if claim.confidence == "memory" else Outcome.ERRATUM  # recalled, not read
    right = Outcome.FOLLOWED if category(claim) == "recipe" else Outcome.CONFIRMED
    expected = right if claim.corrected is None else wrong
    assert verdict.outcome is expected, verdict.sentence


@pytest.mark.parametrize(("name", "variant"), RESPONDING)
def test_responses_are_claimed_of_networks_that_have_some(name, variant):
    assert measure_claim("model/count/BatchNorm2d", LOADED[name], variant) > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_comparison_is_of_two_variants_on_the_same_data(name):
    declared = LOADED[name]
    for claim in declared.claims:
        if not isinstance(claim, OrderingClaim | GainClaim | RatioClaim):
            continue
        for scale in scales_of(claim, declared):
            left, right = (data_of(declared, side, scale) for side in (claim.lhs, claim.rhs))
            assert left == right, claim.id


def data_of(declared, name, scale):
    """The data set of a variant, or of the first that a step consumes."""
    declared, name = declared.owner(name)
    if declared.measures:
        return declared.paper_data(name)
    variant = next(iter(declared.derived[name].consumes)) if name in declared.derived else name
    return declared.recipe(variant, scale).data.name


STEPS = [pytest.param(name, step, id=f"{name}:{step}") for name in TRAINING for step in LOADED[name].derived]


@pytest.mark.parametrize(("name", "step"), STEPS)
def test_a_step_that_is_claimed_something_of_is_done_often_enough_to_be_judged(name, step):
    """Three times, as with seeds; each from runs of its own."""
    declared = LOADED[name]
    done = [
        one
        for one in plan_runs(declared, scale="paper", variants=list(declared.derived[step].consumes))
        if isinstance(one, DerivedRun)
    ]
    mine = [one for one in done if one.variant == step]
    claimed = any(step in variants_of(claim) for claim in declared.claims)
    assert len(mine) >= (3 if claimed else 1)
    consumed = [(member.variant, member.seed) for one in mine for member in one.members]
    assert len(set(consumed)) == len(consumed)


@pytest.mark.parametrize(("name", "step"), STEPS)
def test_the_network_of_a_step_has_what_the_step_needs(name, step):
    """A column, for example. Else the error would come with the first run at a scale."""
    declared = LOADED[name]
    consumed = list(declared.derived[step].consumes)
    for scale in declared.scales:
        consumed = list(declared.derived_spec(step, scale).consumes)
        if not set(consumed) <= {*declared.variants, *declared.consumed_elsewhere(scale)}:
            continue  # of another experiment, where they do not run at this scale
        for run in plan_runs(declared, scale=scale, variants=consumed):
            if run.variant == step:
                check_derived_run(run)
                break


def test_there_are_steps_of_several_kinds():
    assert {LOADED[name].derived[step].kind for name, step in (p.values for p in STEPS)} >= {
        "ensemble",
        "ensemble-sizes",
        "compression",
    }


@pytest.mark.parametrize("name", TRAINING)
def test_more_seeds_than_the_others_are_declared_for_what_a_step_consumes_alone(name):
    declared = LOADED[name]
    consumed = {variant for step in declared.derived.values() for variant in step.consumes}
    assert {variant for variant, own in declared.variants.items() if own.seeds} <= consumed


IN_DOCS = [
    line.partition("#")[0].strip()
    for file in sorted((EXPERIMENTS.parent / "docs").glob("*.md"))
    for line in file.read_text(encoding="utf-8").splitlines()
    if line.startswith("repro ")
]


IN_TABLE = {  # a paper in the docs' table of preprocessing -> its experiment
    "AlexNet": "alexnet/imagenet",
    "ZFNet": "zfnet/imagenet",
    "VGG": "vgg/imagenet",
    "GoogLeNet": "googlenet/imagenet",
    "ResNet": "resnet/imagenet",
    "pre-activation ResNet": "preact_resnet/imagenet",
    "SqueezeNet": "squeezenet/imagenet",
    "Wide ResNet": "wide_resnet/imagenet",
    "stochastic depth": "stochastic_depth/imagenet",
    "DenseNet": "densenet/imagenet",
    "ResNeXt": "resnext/imagenet",
    "ResNet on CIFAR": "resnet/cifar10_depth",
    "DenseNet on CIFAR": "densenet/cifar",
    "Wide ResNet on CIFAR": "wide_resnet/cifar",
    "NiN on CIFAR": "nin/cifar",
}


def test_the_docs_table_of_preprocessing_says_what_is_declared():
    text = (EXPERIMENTS.parent / "docs" / "data.md").read_text(encoding="utf-8")
    lines = text.partition("| paper | crop |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    papers = [paper for row in rows for paper in row[0].split(", ")]  # of one recipe
    assert papers == list(IN_TABLE)
    for paper, (_, crops, augment, normalise) in [(paper, row) for row in rows for paper in row[0].split(", ")]:
        declared = LOADED[IN_TABLE[paper]]
        seen = [declared.published(variant).data for variant in declared.variants]
        assert (tuple(filter(None, augment.split(", "))), normalise) == (seen[0].augment, seen[0].normalise), paper
        said = [printed(Crop(**yaml.safe_load(crop))) for crop in re.findall(r"`(.+?)`", crops)]
        assert all(crop in [printed(one.crop) for one in seen if one.crop] for crop in said), paper
        assert (printed(declared.data.crop) in said) if declared.data.crop else not said, paper


def printed(crop):
    """A crop as in the table, which leaves some digits out."""
    return crop.model_dump() | {"aspect": crop.aspect and [round(value, 4) for value in crop.aspect]}


def test_the_docs_commands_can_be_given():
    runs = [command for command in IN_DOCS if command.startswith("repro run ")]
    assert runs
    assert all(would_do(command) for command in runs)
    experiments = load_all()
    for command in IN_DOCS:
        if command.startswith("repro evaluate "):
            networks = command.removeprefix("repro evaluate ").partition(" --")[0].split()
            assert all(find_network(name, experiments, {}) for name in networks)
            parse_protocol(command.partition("--protocol ")[2])


# --- the committed results: here, where all networks have been looked at already ------------------------------


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return [
        Record.from_dict(row) for row in json.loads((ROOT / "results/records.json").read_text(encoding="utf-8"))
    ]


def test_results_are_written_from_the_records(records):
    experiments = load_all()
    figures = {
        (e.name, scale, end): f"results/{path.name}"
        for e in experiments
        for scale in e.scales
        for end in figure_titles(e)
        if (path := ROOT / "results" / f"{e.name.replace('/', '-')}-{scale}{end}.png").is_file()
    }
    assert (ROOT / "RESULTS.md").read_text(encoding="utf-8") == results_text(experiments, records, figures)


def test_the_readmes_leaderboard_is_the_records(records):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == with_block(text, readme_block(load_all(), records))


def test_a_number_changed_by_hand_is_noticed(records):
    block = readme_block(load_all(), records)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    start = text.index(README_START)
    digit = next(i for i in range(start, text.index(README_END)) if text[i : i + 2] == "0.")
    forged = f"{text[:digit]}7{text[digit + 1 :]}"
    assert forged != with_block(forged, block)


def test_every_record_is_of_clean_code(records):
    assert records
    assert not [record.identity for record in records if record.commit.endswith("-dirty")]


def test_the_printed_table_counts_every_claim_once():
    *_, total = claims_table().splitlines()[-1].split()
    assert int(total) == sum(len(declared.claims) for declared in LOADED.values())
    assert set(claim_counts()) == {declared.folder for declared in LOADED.values()}


@pytest.mark.parametrize("name", NAMES)
def test_no_line_of_a_declaration_is_longer_than_120_characters(name):
    lines = (EXPERIMENTS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 120] == []


def texts(value):
    """Yield all texts in nested lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts(part)


@pytest.mark.parametrize("name", NAMES)
def test_no_text_of_a_declaration_has_a_line_break(name):
    """A line that is indented deeper than the others of a folded text keeps its line break."""
    content = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text(encoding="utf-8"))
    assert [text for text in texts(content) if "\n" in text.strip()] == []
