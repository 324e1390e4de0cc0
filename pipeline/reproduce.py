"""The main job: from an experiment to its verdicts. What is finished is not trained again."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.experiment import Experiment, TransferStep, load, names
from pipeline.home import data_folder, home, report_folder, runs_folder
from pipeline.ledger import Entry, Lefts, counted, declarations, ledger
from pipeline.mistakes import UserError, unwritable_named
from pipeline.plan import Run, Step, code_hash, identity, step_code
from pipeline.record import Record
from pipeline.report.leaderboard import Row, leaderboard
from pipeline.runs import RunFolder
from pipeline.schedule.local import Ending, Event, run_all, worker_count
from pipeline.schedule.task import Task
from pipeline.syncing import Syncing, ended_here, sync_all
from pipeline.tracking import Tracker, TrackingError

LONGEST_NOTE = 5000  # characters of a tag on an MLflow experiment


def tasks_for(runs: Iterable[Run | Step]) -> list[Task]:
    """The runs and steps with their identities: reads the data (for manifests) and the code (for its hashes).

    UserError for data that cannot be read and networks that cannot be built, before any worker starts.
    """
    make = TaskMaker()
    return [make.of_run(run) if isinstance(run, Run) else make.of_step(run) for run in runs]


class TaskMaker:
    """Makes tasks; what several share is read and checked once."""

    def __init__(self) -> None:
        self.sets: dict[tuple[str, bool], tuple[Any, Any]] = {}  # images and their manifest
        self.codes: dict[str, str] = {}  # by network
        self.checked: set[tuple[str, str]] = set()
        self.runs: dict[tuple[str, bool], Task] = {}

    def images(self, name: str, photographs: bool) -> tuple[Any, Any]:
        """A set and its manifest."""
        from pipeline.data import manifest, sources

        if (name, photographs) not in self.sets:
            images = sources.load(name, data_folder(), photographs=photographs)
            self.sets[name, photographs] = images, manifest.manifest_of(images)
        return self.sets[name, photographs]

    def of_run(self, run: Run) -> Task:
        """A run's task."""
        from lightning_modules.networks import NETWORKS

        key = run.declaration, bool(run.changes)
        if key in self.runs:
            return replace(self.runs[key], run=run)
        data, network = run.recipe.data, run.recipe.model.name
        images, manifest = self.images(data.name, data.crop is not None)
        if (run.experiment, run.variant) not in self.checked:
            check(run, images)
            self.checked.add((run.experiment, run.variant))
        if network not in self.codes:
            self.codes[network] = code_hash(Path(inspect.getsourcefile(NETWORKS[network].build) or ""))
        code = self.codes[network]
        self.runs[key] = task_of(run, identity(run, manifest=manifest.sha256, code=code), code, manifest)
        return self.runs[key]

    def of_step(self, step: Step) -> Task:
        """A step's task, which names those of its runs."""
        members = [self.of_run(member) for member in step.members]
        data = step.members[0].recipe.data
        name = step.step.data if isinstance(step.step, TransferStep) else data.name
        _, manifest = self.images(name, data.crop is not None)
        code = step_code(step, [member.code for member in members])
        needs = tuple(member.identity for member in members)
        made = identity(step, manifest=manifest.sha256, code=code, members=needs)
        return replace(task_of(step, made, code, manifest), needs=needs)


def task_of(run: Run | Step, name: str, code: str, manifest: Any) -> Task:
    """The task of a run whose identity is `name`."""
    from pipeline.data.manifest import to_dict

    return Task(run, name, code, to_dict(manifest), runs_folder() / name, data_folder())


def check(run: Run, images: Any) -> None:
    """UserError where the network cannot be built, the images not be split or padded, or the two do not fit.

    Without memory for weights, and on one image: what a worker would find out only after it has started.
    """
    import torch

    from lightning_modules.networks import build
    from pipeline.supply import image_shape

    model = run.recipe.model
    try:
        shape = image_shape(images, run.recipe.data)
        with torch.device("meta"), torch.no_grad():
            network = build(model.name, model.args, num_classes=len(images.classes), in_channels=shape[0])
            network.eval()(torch.zeros(1, *shape))
    except (ValueError, TypeError, RuntimeError) as error:
        args = ", ".join(f"{key} {value!r}" for key, value in model.args.items())
        named = f"{model.name} ({args})" if args else model.name
        what = "" if isinstance(error, ValueError) else f"{named} on {images.name} does not work: "
        raise UserError(f"{run.experiment}, {run.variant}: {what}{error}") from None


@dataclass(frozen=True)
class Outcome:
    """What came of a job."""

    ending: Ending
    records: list[Record]  # of the runs asked for
    untracked: str = ""  # why the tracking server could not be used, if it could not


def carry_out(
    tasks: Sequence[Task],
    *,
    threads: int,
    happened: Callable[[Event], None],
    tick: Callable[[], None] = lambda: None,
) -> Outcome:
    """Train what is not finished, track everything, and return all records."""
    with unwritable_named(home()):
        runs_folder().mkdir(parents=True, exist_ok=True)
    syncing = Syncing()
    found, missing = finished(tasks, syncing)
    for task in tasks:
        syncing.watch(task.folder)
    for task in missing:
        RunFolder(task.folder).begin_anew()
    records = dict(found)

    def note(event: Event) -> None:
        if event.record:
            records[event.task.identity] = event.record
        happened(event)

    ending: Ending = "ended"
    if missing:
        with syncing:
            workers = worker_count(len(missing), threads)
            ending = run_all(missing, workers=workers, threads=threads, happened=note, tick=tick)
    syncing.sync()
    ordered = [records[task.identity] for task in tasks if task.identity in records]
    return Outcome(ending, ordered, syncing.trouble)


def finished(tasks: Sequence[Task], syncing: Syncing) -> tuple[dict[str, Record], list[Task]]:
    """Records of the tasks already ended, here or on the tracking server, and the tasks that are left."""
    found = {}
    for task in tasks:
        record = RunFolder(task.folder).result()
        if record:
            found[task.identity] = record
    if len(found) < len(tasks):
        wanted = {task.identity for task in tasks}
        for record in syncing.records():
            if record.identity in wanted:
                found.setdefault(record.identity, record)
    return found, [task for task in tasks if task.identity not in found]


@dataclass(frozen=True)
class Known:
    """All ended runs that can be found."""

    records: list[Record]
    tracker: Any | None  # None where the server cannot be used
    trouble: str = ""  # why, or which run folder cannot be sent


def known() -> Known:
    """The runs ended here and those on the tracking server, after sending it what is unsent."""
    tracker = Tracker()
    try:
        tracked, trouble = sync_all(tracker)
    except TrackingError as error:
        return Known(ended_here(but=()), None, str(error))
    there = {record.identity: record for record in tracked}
    here = {record.identity: record for record in ended_here(but=there)}
    return Known(list((here | there).values()), tracker, trouble)


def judged(
    experiments: Sequence[Experiment],
    records: Sequence[Record],
    scales: Sequence[str] = (),
    left: Lefts | None = None,
) -> list[Entry]:
    """The ledger of several experiments; without `left`, what is known here of runs left unfinished is told."""
    from pipeline.analyse import measure

    known_left = lefts(experiments) if left is None else left
    return [entry for one in experiments for entry in ledger(one, records, measure, scales, known_left)]


def lefts(experiments: Sequence[Experiment]) -> dict[tuple[str, str, str, int], dict[str, str]]:
    """Why runs in this machine's or the cluster's folder were left unfinished: the latest word on each.

    Of what --set changed nothing is told, as it counts for no claim; nor of what is now declared otherwise.
    """
    declared = {experiment.name: experiment for experiment in experiments}
    found = {}
    for path in sorted(runs_folder().glob("*/left.json"), key=lambda path: path.stat().st_mtime):
        folder = RunFolder(path.parent)
        left = folder.left()
        if not left or folder.result_file.is_file() or not (path.parent / "run.json").is_file():
            continue
        try:
            run = folder.description()
            experiment = declared.get(run["experiment"])
            if experiment and not run["changes"] and is_declared(experiment, run):
                said = {key: str(left[key]) for key in ("why", "text")}
                found[run["experiment"], run["scale"], run["variant"], run["seed"]] = said
        except (ValueError, TypeError, KeyError):  # damaged: whoever sends it to MLflow complains of it
            continue
    return found


def is_declared(experiment: Experiment, run: Mapping[str, Any]) -> bool:
    """Whether what a folder describes is, recipe and all, what is declared now."""
    scale, name = run["scale"], run["variant"]
    if scale not in experiment.scales or not (name in experiment.variants or name in experiment.steps):
        return False
    return run.get("declaration") in declarations(experiment, scale, name, {run["seed"]})


def all_experiments() -> list[Experiment]:
    """Every declared experiment."""
    return [load(name) for name in names()]


def curves_of(records: Sequence[Record], tracker: Any | None) -> dict[str, dict[str, list[Any]]]:
    """The curves of runs: variant -> metric -> one list of (update, value) per seed; from here or the server."""
    from pipeline.report.figures import CURVES

    result: dict[str, dict[str, list[Any]]] = {}
    for record in records:
        here = RunFolder(runs_folder() / record.identity)
        entries = [entry for entry, _ in here.journal()]
        for metric in CURVES:
            points = [(e["step"], e["metrics"][metric]) for e in entries if metric in e["metrics"]]
            if not points and tracker and record.run_id:
                points = tracker.curves(record.run_id, metric)
            elif points and metric in record.metrics and points[-1][0] < entries[-1]["step"]:
                points.append((entries[-1]["step"], record.metrics[metric]))  # of the last model
            if points:
                result.setdefault(record.variant, {}).setdefault(metric, []).append(points)
    return result


@dataclass(frozen=True)
class Report:
    """What is shown and kept of an experiment at a scale."""

    rows: list[Row]
    entries: list[Entry]
    figure: Path | None
    page: Path


def report(experiment: Experiment, scale: str, records: Sequence[Record], tracker: Any | None) -> Report:
    """Judge, rank and draw an experiment at one scale; write figure and page; publish them where possible."""
    from pipeline.report.figures import error_curves
    from pipeline.report.page import write_page
    from pipeline.report.text import leaderboard_cells, verdict_cells

    here = [record for rows in counted(experiment, scale, records).values() for record in rows]
    rows = [row for row in leaderboard([experiment], records) if row.scale == scale]
    entries = judged([experiment], here, [scale])
    stem = f"{experiment.name.replace('/', '-')}-{scale}"
    curves = curves_of(here, tracker)
    figure = error_curves(experiment, scale, curves, report_folder() / f"{stem}.png") if curves else None
    page = write_page(experiment, scale, rows, entries, figure, report_folder() / f"{stem}.html")
    if tracker and rows:
        tables = {
            "leaderboard": [leaderboard_cells(row) for row in rows],
            "verdicts": [verdict_cells(entry) for entry in entries],
        }
        note = note_of(experiment, scale, tables["leaderboard"], entries)
        files = [page, *([figure] if figure else [])]
        tracker.publish(experiment.name, scale, here, tables=tables, files=files, note=note)
    return Report(rows, entries, figure, page)


def note_of(experiment: Experiment, scale: str, board: Sequence[dict[str, str]], entries: Sequence[Entry]) -> str:
    """Leaderboard and the verdicts that rest on runs, as Markdown for MLflow, which holds so much and no more."""
    from pipeline.report.text import counts, markdown, verdict_cells

    said = [verdict_cells(entry) for entry in entries if entry.evidence]
    for shown in range(len(said), -1, -1):
        note = "\n\n".join(
            [
                f"# {experiment.question}",
                f"Scale: {scale}. {experiment.scales[scale].why}",
                markdown(board),
                markdown(said[:shown], ("verdict", "claim", "says")),
                f"All {len(entries)} claims: {counts(entries)}. With their evidence: verdicts.json.",
            ]
        )
        if len(note) <= LONGEST_NOTE:
            break
    return note[:LONGEST_NOTE]
