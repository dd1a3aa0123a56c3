"""Tables of a report: plain rows from measured facts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ModelFacts:
    """All that was measured of one model.

    Attributes
    ----------
    label : str
        Short name in tables and figures.
    file : str
        The checkpoint.
    params, macs : int
        Parameters, and executed multiply-adds of convolution and linear layers at the report's input size.
    size_bytes : int
        Bytes of its weights.
    edits : tuple of str
        What was done to the structure.
    tuned : bool
        Whether it was fine-tuned after its last edit.
    before : str or None
        Label of the same network before its fine-tuning, where that is part of the report.
    metrics : dict
        Keypoint metrics, the headline first, empty where the data has no annotations.
    latency : dict
        Runtime label to ``{"latency_ms", "interval_ms", "p90_ms", "fps", "speedup"}``; ``speedup`` is (median, low,
        high) against the original or None.
    layers : tuple of dict
        The layers of its last factorization: name, method, ranks, reason, params, macs, error.
    """

    label: str
    file: str
    params: int
    macs: int
    size_bytes: int
    edits: tuple[str, ...] = ()
    tuned: bool = False
    before: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    latency: dict[str, dict[str, Any]] = field(default_factory=dict)
    layers: tuple[dict[str, Any], ...] = ()

    @property
    def metric(self) -> str:
        """Name of the metric that stands for the accuracy; AP where there is none."""
        return next(iter(self.metrics), "AP")

    @property
    def accuracy(self) -> float | None:
        """That metric."""
        return self.metrics.get(self.metric)


def summary(models: Sequence[ModelFacts]) -> pd.DataFrame:
    """One row a model, the original first: costs, accuracy before and after fine-tuning, latency per runtime.

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
    rows = []
    for model in models:
        row: dict[str, Any] = {
            "model": model.label,
            "params": model.params,
            "params ratio": model.params / original.params,
            "MACs": model.macs,
            "MACs ratio": model.macs / original.macs,
            "weights (MB)": model.size_bytes / 1e6,
        }
        if original.metrics:
            before = by_label.get(model.before or "")
            metric = original.metric
            row[f"{metric} before tuning"] = before.metrics.get(metric) if before else None
            row[metric] = model.metrics.get(metric)
            row[f"{metric} change"] = model.metrics[metric] - original.metrics[metric] if model.metrics else None
            row |= {name: model.metrics.get(name) for name in ("AP50", "AR") if name in original.metrics}
        for runtime, found in model.latency.items():
            row[f"{runtime} (ms)"] = found["latency_ms"]
            row[f"{runtime} speed-up"] = found["speedup"][0] if found["speedup"] else None
        rows.append(row)
    return pd.DataFrame(rows)


def latency(models: Sequence[ModelFacts]) -> pd.DataFrame:
    """One row a model and runtime: median, interval, p90, speed-up with its interval and what may be said of it."""
    import pandas as pd

    rows = []
    for model in models:
        for runtime, found in model.latency.items():
            speedup = found["speedup"]
            rows.append(
                {
                    "model": model.label,
                    "runtime": runtime,
                    "median (ms)": found["latency_ms"],
                    "low (ms)": found["interval_ms"][0],
                    "high (ms)": found["interval_ms"][1],
                    "p90 (ms)": found["p90_ms"],
                    "fps": found["fps"],
                    "speed-up": speedup[0] if speedup else None,
                    "speed-up low": speedup[1] if speedup else None,
                    "speed-up high": speedup[2] if speedup else None,
                    "verdict": found.get("verdict") or "original",
                }
            )
    return pd.DataFrame(rows)


def layers(model: ModelFacts) -> pd.DataFrame:
    """One row a layer: ranks, costs, kernel error, and the reason it was changed or kept."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "layer": row["name"],
                "method": row["method"],
                "ranks": ", ".join(map(str, row["ranks"])) or "-",
                "params before": row["params"][0],
                "params after": row["params"][1],
                "MACs before": row["macs"][0],
                "MACs after": row["macs"][1],
                "kernel error": row["error"],
                "reason": row["reason"],
            }
            for row in model.layers
        ]
    )


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown with readable numbers."""
    shown = table.copy().astype(object)
    for column in table.columns:
        shown[column] = [show(value, str(column)) for value in table[column]]
    return shown.to_markdown(index=False, disable_numparse=True)


def show(value: object, column: str) -> str:
    """One cell: counts with separators, costs in G or M, three decimals for scores, a dash for what is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, str):
        return value
    number = float(value)  # type: ignore[arg-type]
    if column.startswith("MACs") and "ratio" not in column:
        return f"{number / 1e9:.3f} G" if number >= 1e8 else f"{number / 1e6:.2f} M"
    if column.startswith("params") and "ratio" not in column:
        return f"{number / 1e6:.3f} M"
    if "(ms)" in column or column == "fps" or "(MB)" in column or column.endswith("speed-up"):
        return f"{number:.2f}"
    if column.endswith(" change"):
        return f"{number:+.3f}"
    return f"{number:.3f}"
