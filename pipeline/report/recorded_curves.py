"""results/curves.json: the curves of recorded runs, so that figures can be drawn without their run folders."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.report.paper_figures.error_curves import binned
from pipeline.report.paper_figures.figure_data import Curve, CurveReader
from pipeline.track.record import Record

CURVES_FILE = "curves.json"
RECORDED_POINTS = 400  # largest number of points of a recorded curve
DECIMALS = 3  # of a recorded value

# Identity of a run -> metric -> curve.
Curves = Mapping[str, Mapping[str, Curve]]


class RecordedCurves:
    """Reads curves from `read`; those of the runs `elsewhere`, identities, are the `recorded` ones.

    All curves are thinned and rounded as in the file, so that a figure is the same on every machine.
    """

    def __init__(self, read: CurveReader, recorded: Curves, elsewhere: Collection[str] = ()) -> None:
        self._read = read
        self._elsewhere = elsewhere
        self._curves = {identity: dict(curves) for identity, curves in recorded.items()}

    def curve(self, record: Record, metric: str) -> Curve:
        """Return the curve of a run; empty if it is neither at hand nor recorded."""
        if record.identity not in self._elsewhere and (curve := self._read(record, metric)):
            self._curves.setdefault(record.identity, {})[metric] = thinned(curve)
        return self._curves.get(record.identity, {}).get(metric, [])

    def text(self, identities: Collection[str]) -> str:
        """Return the text of the file for these runs, a line a curve; "" without any curve."""
        runs = []
        for identity in sorted(self._curves.keys() & set(identities)):
            curves = sorted(self._curves[identity].items())
            lines = [f"  {json.dumps(metric)}: {json.dumps(curve)}" for metric, curve in curves if curve]
            if lines:
                runs.append(f" {json.dumps(identity)}: {{\n" + ",\n".join(lines) + "\n }")
        return "{\n" + ",\n".join(runs) + "\n}\n" if runs else ""


def thinned(curve: Curve) -> list[tuple[int, float]]:
    """Return at most RECORDED_POINTS points, each the mean over a part of the run, with DECIMALS decimals."""
    return [(step, round(value, DECIMALS)) for step, value in binned([curve], RECORDED_POINTS)[0]]


def read_recorded(path: Path) -> dict[str, dict[str, Curve]]:
    """Return the curves in the file `path`; none if it does not exist. Raises UserError if it cannot be read."""
    if not path.is_file():
        return {}
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(identity): {
                str(metric): [(int(step), float(value)) for step, value in curve]
                for metric, curve in curves.items()
            }
            for identity, curves in raw.items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} holds no curves ({error}); restore it from Git, or delete it") from None
