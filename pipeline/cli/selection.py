"""What a command works on: the named experiments, the changes of --set, the finished runs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.cli.terminal import print_warning_line
from pipeline.common.errors import UserError

if TYPE_CHECKING:
    from pipeline.declare.experiment import Experiment
    from pipeline.judge.collect import FinishedRuns
    from pipeline.plan.expand import DerivedRun, Run

LIST_CLAIMS = "; list them with: repro show "


def collect_with_warnings() -> "FinishedRuns":
    """Return all finished runs; warn where runs cannot be sent to the tracking server or read from it."""
    from pipeline.judge.collect import collect_runs

    found = collect_runs()
    if found.trouble:
        print_warning_line(
            found.trouble if found.tracker else f"{found.trouble}.\nUsing only the runs on this machine."
        )
    return found


def select_experiments(names: Sequence[str], suite: str | None, scale: str) -> "list[Experiment]":
    """Return the named experiments and those of a suite with the scale. Raises UserError if there are none."""
    from pipeline.declare.load import load_experiment
    from pipeline.declare.suites import suite_at

    found = {one.name: one for one in map(load_experiment, names)}
    if suite:
        found |= {one.name: one for one in suite_at(suite, scale).experiments if one.name not in found}
    if not found:
        raise UserError(
            "nothing to run; name an experiment, as in repro run resnet/cifar10_depth, or use --suite cs231n"
        )
    return list(found.values())


def experiments_or_suite(names: Sequence[str], suite: str | None) -> "list[Experiment]":
    """Return the experiments of these papers and names, each once; all if there are none, or with a suite.

    Raises UserError for an unknown name or suite, and for both.
    """
    from pipeline.declare.suites import check_suite

    if suite:
        check_suite(suite)
        if names:
            raise UserError("give experiments or --suite, not both")
    wanted: Sequence[str | None] = names or [None]
    return list({one.name: one for name in wanted for one in experiments_of(name)}.values())


def check_scale(experiments: "Sequence[Experiment]", scale: str | None) -> None:
    """Raise UserError for a scale that none of the experiments has."""
    from lightning_modules.names import nearest

    known = sorted({one for experiment in experiments for one in experiment.scales})
    if scale and scale not in known:
        raise UserError(f"--scale {scale}: unknown scale{nearest(scale, known)}")


def warn_of_precision(runs: "Iterable[Run | DerivedRun]", changes: Mapping[str, Any]) -> None:
    """Warn if a change of the precision leaves timings as they are, which always compute in fp32."""
    if "train.precision" not in changes:
        return
    from pipeline.plan.expand import DerivedRun

    if timed := dict.fromkeys(one.experiment for one in runs if isinstance(one, DerivedRun) and one.networks):
        names = ", ".join(timed)
        print_warning_line(f"The precision of timings is not changed ({names}): they always compute in fp32.")


def load_with_claim(name: str) -> tuple["Experiment", str]:
    """Return the experiment, of PAPER/FILE/CLAIM with that claim alone, and its name or file as it was given."""
    from lightning_modules.names import nearest
    from pipeline.declare.load import load_experiment
    from pipeline.declare.references import split_reference

    experiment, wanted = split_reference(name)
    if experiment is None or name.endswith(".yaml"):
        return load_experiment(name), name
    declared = load_experiment(experiment)
    claims = {claim.id: claim for claim in declared.claims}
    if wanted not in claims:
        raise UserError(f"{experiment} has no claim {wanted!r}{nearest(wanted, claims, LIST_CLAIMS + experiment)}")
    return declared.model_copy(update={"claims": (claims[wanted],)}), experiment


def read_changes(changes: Sequence[str] | None, *, precision: str | None, data: str | None) -> dict[str, Any]:
    """Return the changes of --set, and those of --precision and --data, which are short for it."""
    shorthands = {"--precision": ("train.precision", precision), "--data": ("data.name", data)}
    return with_shorthands(parse_changes(changes or []), shorthands)


def parse_changes(changes: Sequence[str]) -> dict[str, Any]:
    """Parse the values of --set: ["train.lr=0.05"] -> {"train.lr": 0.05}; values are YAML."""
    import yaml

    from pipeline.declare.yaml_loader import parse_yaml

    result = {}
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise UserError(f"--set {change}: give a key and a value, as in train.lr=0.05")
        if key in result:
            raise UserError(f"--set {change}: {key} is set twice; give one value")
        try:
            result[key] = parse_yaml(text)
        except yaml.YAMLError:
            raise UserError(f"--set {change}: {text!r} is not a YAML value") from None
    return result


def with_shorthands(changes: dict[str, Any], shorthands: dict[str, tuple[str, str | None]]) -> dict[str, Any]:
    """Return the changes of --set and of options that are short for it: option -> (setting, value).

    Raises UserError if both change the same setting.
    """
    found = dict(changes)
    for option, (setting, value) in shorthands.items():
        if value is None:
            continue
        if setting in changes:
            raise UserError(f"{option} and --set {setting} change the same setting; give one of them")
        found[setting] = value
    return found


def experiments_of(name: str | None) -> "list[Experiment]":
    """Return the experiments of a paper, or the named one; all if no name is given."""
    from pipeline.declare.load import load_all, load_experiment, load_paper

    if name is None:
        return load_all()
    return load_paper(name) or [load_experiment(name)]
