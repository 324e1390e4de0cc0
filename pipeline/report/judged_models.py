"""Models for the registry: of each variant of an experiment at a scale, the run of its first seed. Pure."""

from collections.abc import Container, Iterable, Mapping, Sequence

from pipeline.common.words import plural
from pipeline.report.leaderboard import TOP1, LeaderboardRow
from pipeline.track.mlflow_registry import JudgedModel
from pipeline.track.record import FINISHED, Record


def judged_models(
    rows: Iterable[LeaderboardRow],
    counted: Mapping[str, Sequence[Record]],
    run_ids: Mapping[str, str],
    derived: Container[str] = (),
) -> list[JudgedModel]:
    """Return the model of each variant in `rows`. `run_ids`: identity of a run -> its MLflow id.

    `derived`: names of derived runs, such as ensembles, which are no model.

    Of a variant with several test protocols, the row of the first one comes first (`in_protocol_order`): that one
    measured the record's top-1 error.

    The first seed is fixed before any test error is known; choosing the best one would use the test set.
    """
    models: dict[str, JudgedModel] = {}
    for row in rows:
        finished = [one for one in counted.get(row.variant, ()) if one.status == FINISHED]
        if row.departs or row.variant in models or row.variant in derived or not finished:
            continue
        first = min(finished, key=lambda record: record.seed)
        run_id = run_ids.get(first.identity, "")
        if run_id:
            record = Record.from_dict({**first.to_dict(), "run_id": run_id})
            text = describe_model(row, record)
            models[row.variant] = JudgedModel(row.experiment, row.variant, row.scale, record, text, row.verdict)
    return list(models.values())


def describe_model(row: LeaderboardRow, record: Record) -> str:
    """Return scale, data, seed, commit, errors and verdict of a registered model."""
    by = f" by {row.protocol}" if row.protocol else ""
    sentences = [
        f"{row.experiment} {row.variant} at {row.scale} scale on {record.data}, seed {record.seed} of"
        f" {plural(row.seeds, 'seed')}, commit {record.commit[:12]}.",
        f"Top-1 error{by} {record.metrics[TOP1]:.2f} %" if TOP1 in record.metrics else "",
    ]
    if row.top1 is not None and sentences[1]:
        sentences[1] += f"; mean over the seeds {row.top1:.2f} %"
        if row.paper is not None:
            sentences[1] += f"; the paper prints {row.paper:g} % on {row.paper_data}"
        sentences[1] += "."
    if row.verdict:
        sentences.append(f"Verdict of the mean: {row.verdict}.")
    sentences.append("Input: pixels 0..255, uint8 (N, C, H, W). The normalisation is part of the model.")
    return " ".join(filter(None, sentences))
