"""Curves and weights of finished runs: from the run folder if it is here, else curves from the tracking server."""

from collections.abc import Mapping
from typing import Any

from pipeline.common.paths import runs_folder
from pipeline.report.paper_figures.figure_data import Curve, CurveReader
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder


def curve_reader(tracker: Any | None) -> CurveReader:
    """Return a function that reads the curve of a run, each journal once."""
    journals: dict[str, list[dict[str, Any]]] = {}

    def read(record: Record, metric: str) -> Curve:
        if record.identity not in journals:
            folder = RunFolder(runs_folder() / record.identity)
            journals[record.identity] = [entry for entry, _ in folder.journal()]
        entries = journals[record.identity]
        points = [(e["step"], e["metrics"][metric]) for e in entries if metric in e["metrics"]]
        if not points and tracker and record.run_id:
            return list(tracker.curves(record.run_id, metric))
        if points and metric in record.metrics and points[-1][0] < entries[-1]["step"]:
            # of the last model, or of the selected one
            points.append((entries[-1]["step"], record.metrics[metric]))
        return points

    return read


def read_run_weights(record: Record) -> Mapping[str, Any] | None:
    """Return the tensors of a run's network, the last or the selected one; None if its file is not here."""
    file = RunFolder(runs_folder() / record.identity).network_file
    if not file.is_file():
        return None
    from safetensors.torch import load_file

    return load_file(file)
