"""Rows and cells of the tables of `repro analyse`: one network by layer, all networks side by side. Pure."""

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from torch import nn

from pipeline.analyse.catalogue import NetworkCost
from pipeline.analyse.network import NetworkAnalysis
from pipeline.analyse.tracing import POOLING, is_weighted_layer

LAYER_ROW_COLUMNS = ("layer", "output", "kernel", "parameters", "multiply_adds", "activations", "receptive_field")


def layer_rows(found: NetworkAnalysis) -> list[dict[str, Any]]:
    """Return a row for each top-level layer, as in the table of the paper, and the total as the last row."""
    rows = []
    for name, layer in found.network.named_children():
        used = name in found.trace.outputs
        reach = found.trace.fields.get(name)
        rows.append(
            {
                "layer": name,
                "output": list(found.trace.outputs[name].shape[1:]) if used else None,
                "kernel": kernel_summary(layer),
                "parameters": found.count(name, "parameters"),
                "multiply_adds": found.count(name, "multiply_adds") if used else 0,
                "activations": found.count(name, "activations"),
                "receptive_field": reach.field if reach and used and enlarges_field(layer) else None,
            }
        )
    total = {what: found.measure(what) for what in ("parameters", "multiply_adds", "activations")}
    return [*rows, {"layer": "total", "output": None, "kernel": "", "receptive_field": None} | total]


def enlarges_field(layer: nn.Module) -> bool:
    """Return True for a layer that can have a larger receptive field than its input."""
    return any(is_weighted_layer(m) or isinstance(m, POOLING) or hasattr(m, "window") for m in layer.modules())


def kernel_summary(layer: nn.Module) -> str:
    """Return the kernels inside a layer: "7x7/2", "3 x 1x1, 3 x 3x3"; "/2" is the stride, "g32" the groups."""
    found = Counter(text for module in layer.modules() if (text := kernel_text(module)))
    return ", ".join(f"{n} x {text}" if n > 1 else text for text, n in found.items())


def kernel_text(module: nn.Module) -> str:
    """Return the kernel of one module, "" if it has none."""
    if hasattr(module, "window"):
        return f"sum {module.window}x{module.window}/{module.window}"
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return "global avg" if module.output_size in (1, (1, 1)) else f"avg to {module.output_size}"
    if not isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return ""
    high, wide = as_pair(module.kernel_size)
    stride = as_pair(module.stride or module.kernel_size)[0]
    kind = {nn.MaxPool2d: "max ", nn.AvgPool2d: "avg "}.get(type(module), "")
    groups = f" g{module.groups}" if isinstance(module, nn.Conv2d) and module.groups > 1 else ""
    return f"{kind}{high}x{wide}" + (f"/{stride}" if stride > 1 else "") + groups


def as_pair(value: Any) -> tuple[int, int]:
    """Return (3, 3) for 3, and a pair unchanged."""
    return (value, value) if isinstance(value, int) else tuple(value)


def layer_cells(row: dict[str, Any]) -> dict[str, str]:
    """Return a row of `layer_rows` as text."""
    return {
        "layer": row["layer"],
        "output": " x ".join(map(str, row["output"] or ())),
        "kernel": row["kernel"],
        "parameters": f"{row['parameters']:,}" if row["parameters"] else "",
        "multiply-adds": f"{row['multiply_adds']:,}" if row["multiply_adds"] else "",
        "activations": f"{row['activations']:,}" if row["activations"] else "",
        "field": str(row["receptive_field"] or ""),
    }


def complexity_cells(row: NetworkCost) -> dict[str, str]:
    """Return one network's row in the table of all networks, as text."""
    return {
        "network": row.name,
        "input": "x".join(map(str, row.image)),
        "layers": f"{row.layers}",
        "parameters": millions(row.parameters),
        "multiply-adds": millions(row.multiply_adds),
        "activations": millions(row.activations),
        "memory MB": f"{row.memory_mb:.1f}",
    }


def chart_cells(row: NetworkCost) -> dict[str, str]:
    """Return one network's row in the lecture's comparison, as text."""
    return {
        "network": row.name,
        "top-1 %": "" if row.top1_pct is None else f"{row.top1_pct:g}",
        "G ops": f"{2 * row.multiply_adds / 1e9:.2f}",
        "parameters": millions(row.parameters),
        "memory MB": f"{row.memory_mb:.1f}",
        "forward ms": milliseconds(row.forward_s),
    }


def millions(number: int) -> str:
    """Return a number in millions: 60965224 -> "60.97 M"."""
    return f"{number / 1e6:,.2f} M"


def milliseconds(times: Sequence[float]) -> str:
    """Return median and range of times in seconds as milliseconds: "41 (40 to 44)"."""
    if not times:
        return ""
    low, middle, high = (1000 * of(times) for of in (min, median, max))
    digits = 1 if high < 100 else 0
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"
