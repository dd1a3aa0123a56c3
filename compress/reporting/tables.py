"""Tables of a report, from the facts of its models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from compress.reporting.facts import ModelFacts

#: What MACs and FLOPs are, wherever both are shown.
OPERATIONS = "MACs are executed multiply-adds of convolution and linear layers; a FLOP count is twice that"


def summary(models: Sequence[ModelFacts]) -> pd.DataFrame:
    """One row for each model, the original first: costs, accuracy before and after fine-tuning, latency per runtime.

    Raises
    ------
    ValueError
        If there is no model.
    """
    import pandas as pd

    if not models:
        raise ValueError("a report needs at least one model")
    original = models[0]
    by_label = {model.label: model for model in models}
    with_errors = any(model.output_error is not None for model in models)
    rows = []
    for model in models:
        row: dict[str, Any] = {
            "model": model.label,
            "params": model.params,
            "params ratio": _ratio(model.params, original.params),
            "MACs": model.macs,
            "FLOPs": model.flops,
            "MACs ratio": _ratio(model.macs, original.macs),
            "weights (MB)": model.size_bytes / 1e6,
        }
        if original.metrics:
            before = by_label.get(model.before or "")
            metric = original.metric
            row[f"{metric} before tuning"] = before.metrics.get(metric) if before else None
            row[metric] = model.metrics.get(metric)
            row[f"{metric} change"] = model.metrics[metric] - original.metrics[metric] if model.metrics else None
            row |= {name: model.metrics.get(name) for name in ("AP50", "AR") if name in original.metrics}
        if with_errors:
            row["output error"] = model.output_error
        for runtime, timed in model.latency.items():
            row[f"{runtime} (ms)"] = timed.latency_ms
            row[f"{runtime} speed-up"] = timed.speedup.median if timed.speedup else None
        rows.append(row)
    return pd.DataFrame(rows)


def _ratio(part: int | None, whole: int | None) -> float | None:
    return part / whole if part is not None and whole else None


def latency(models: Sequence[ModelFacts]) -> pd.DataFrame:
    """One row for each model and runtime: median, interval, p90, and speed-up with its interval and verdict."""
    import pandas as pd

    rows = []
    for model in models:
        for runtime, timed in model.latency.items():
            timing, speedup = timed.timing, timed.speedup
            rows.append(
                {
                    "model": model.label,
                    "runtime": runtime,
                    "median (ms)": timing.latency_ms,
                    "low (ms)": timing.interval_ms[0],
                    "high (ms)": timing.interval_ms[1],
                    "p90 (ms)": timing.p90_ms,
                    "fps": timing.fps,
                    "speed-up": speedup.median if speedup else None,
                    "speed-up low": speedup.low if speedup else None,
                    "speed-up high": speedup.high if speedup else None,
                    "verdict": timed.verdict or "original",
                }
            )
    return pd.DataFrame(rows)


def layers(model: ModelFacts) -> pd.DataFrame:
    """One row for each layer: ranks, costs, kernel error, and the reason why it was changed or kept."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "layer": layer.name,
                "method": layer.method,
                "ranks": ", ".join(map(str, layer.ranks)) or "-",
                "params before": layer.params[0],
                "params after": layer.params[1],
                "MACs before": layer.macs[0],
                "MACs after": layer.macs[1],
                "kernel error": layer.error,
                "reason": layer.reason,
            }
            for layer in model.layers
        ]
    )


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown with readable numbers."""
    shown = table.copy().astype(object)
    for column in table.columns:
        shown[column] = [show(value, str(column)) for value in table[column]]
    return shown.to_markdown(index=False, disable_numparse=True)


def show(value: object, column: str) -> str:
    """A cell: operations in G or M, parameters in M, three decimals for scores, a dash for what is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, str):
        return value
    number = float(value)  # type: ignore[arg-type]
    if column.startswith(("MACs", "FLOPs")) and "ratio" not in column:
        return f"{number / 1e9:.3f} G" if number >= 1e8 else f"{number / 1e6:.2f} M"
    if column.startswith("params") and "ratio" not in column:
        return f"{number / 1e6:.3f} M"
    if "(ms)" in column or column == "fps" or "(MB)" in column or column.endswith("speed-up"):
        return f"{number:.2f}"
    if column.endswith(" change"):
        return f"{number:+.3f}"
    if column == "output error":
        return f"{number:.2e}"
    return f"{number:.3f}"
