"""The curve of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compress.reporting.figures import _new_figure, _png

#: Points of a smoothed line.
_POINTS = 100


def training_curve(steps: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]] = ()) -> bytes | None:
    """Loss and its parts, learning rate, and the score where there is one, over the steps, as PNG.

    Parameters
    ----------
    steps : sequence of mapping
        With ``step``, ``loss``, ``parts``, ``learning_rate`` and perhaps ``score``, as `compress.training.log` writes
        them. What is None is left out.
    events : sequence of mapping
        With ``event``, ``step`` and perhaps ``score``; rollbacks are marked.

    Returns
    -------
    bytes or None
        None without steps.
    """
    if not steps:
        return None
    scores = [(x["step"], x["score"]) for x in (*events, *steps) if x.get("score") is not None]
    figure, axes = _new_figure(4.8 * (2 + bool(scores)), 3.6, 2 + bool(scores))
    x = np.array([entry["step"] for entry in steps])
    axes[0].plot(x, _column(steps, "loss"), color="#cccccc", linewidth=0.8)
    axes[0].plot(*_smooth(x, _column(steps, "loss")), color="C0", label="loss")
    names = list(dict.fromkeys(name for entry in steps for name in entry["parts"]))
    for number, name in enumerate(names if len(names) > 1 else [], 1):
        values = np.array([_number(entry["parts"].get(name)) for entry in steps])
        axes[0].plot(*_smooth(x, values), color=f"C{number}", linewidth=0.9, label=name)
    # Losses fall by orders of magnitude; a part that is 0 (its weight is) has no logarithm.
    if np.nanmin(_column(steps, "loss")) > 0:
        axes[0].set_yscale("log")
    figure.legend(loc="outside lower center", ncols=4, fontsize=6)
    axes[1].plot(x, _column(steps, "learning_rate"), color="C1")
    axes[1].set_ylim(bottom=0)
    for axis, name in zip(axes, ("loss", "learning rate"), strict=False):
        axis.set_ylabel(name)
    if scores:
        axes[2].plot(*zip(*sorted(scores), strict=True), color="C2", marker="o", markersize=3)
        axes[2].set_ylabel("validation score")
    for axis in axes:
        axis.set_xlabel("step")
        axis.grid(alpha=0.25)
        for event in events:
            if event["event"] == "rollback":
                axis.axvline(event["step"], color="C3", linestyle=":", linewidth=1)
    return _png(figure)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _column(steps: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    return np.array([_number(entry[key]) for entry in steps])


def _smooth(x: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of equal stretches, as many as a figure can show."""
    stretches = np.array_split(np.arange(len(x)), min(_POINTS, len(x)))
    return np.array([x[part].mean() for part in stretches]), np.array([values[part].mean() for part in stretches])
