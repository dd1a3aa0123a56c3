"""The curve of a training run: loss, learning rate and score over the steps."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.files import atomic_path
from compress.training.log import log_path, read_log, steps_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Points of a smoothed line.
_POINTS = 100


def curve_path(model: Path) -> Path:
    """Where the curve of the run is drawn that writes this model file."""
    return model.with_name(f"{model.stem}.curve.png")


def draw_curve(model: Path) -> bytes | None:
    """The curve of the log beside a model file, as PNG; None without a log or without steps.

    Raises
    ------
    FileError
        If the log can't be read.
    """
    log = log_path(model)
    if not log.is_file():
        return None
    lines = read_log(log)
    return training_curve(steps_of(lines), [line for line in lines if "event" in line])


def write_curve(model: Path) -> None:
    """Draw the curve of the log beside a model file, if there is one."""
    picture = draw_curve(model)
    if picture is not None:
        with atomic_path(curve_path(model)) as temporary:
            temporary.write_bytes(picture)


def training_curve(steps: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]] = ()) -> bytes | None:
    """Loss and its terms, learning rate, and the score if there is one, over the steps, as PNG.

    Parameters
    ----------
    steps : sequence of mapping
        With ``step``, ``loss``, ``parts``, ``learning_rate`` and optionally ``score``, as `compress.training.log`
        writes them; None is left out.
    events : sequence of mapping
        With ``event``, ``step`` and optionally ``score``; rollbacks are marked.

    Returns
    -------
    bytes or None
        None without steps.
    """
    if not steps:
        return None
    scores = [(x["step"], x["score"]) for x in (*events, *steps) if x.get("score") is not None]
    panels = 2 + bool(scores)
    figure, axes = new_figure(4.8 * panels, 3.6, panels)
    x = np.array([entry["step"] for entry in steps])
    axes[0].plot(x, _column(steps, "loss"), color="#cccccc", linewidth=0.8)
    axes[0].plot(*_smooth(x, _column(steps, "loss")), color="C0", label="loss")
    names = list(dict.fromkeys(name for entry in steps for name in entry["parts"]))
    for number, name in enumerate(names if len(names) > 1 else [], 1):
        values = np.array([_number(entry["parts"].get(name)) for entry in steps])
        axes[0].plot(*_smooth(x, values), color=f"C{number}", linewidth=0.9, label=name)
    # Losses span orders of magnitude; a term of weight 0 is always 0 and has no logarithm.
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
    return to_png(figure)


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    """A figure of so many inches, and its axes side by side; needs neither a display nor pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def to_png(figure: Figure) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _column(steps: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    return np.array([_number(entry[key]) for entry in steps])


def _smooth(x: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over equal intervals, as many as a figure can resolve."""
    intervals = np.array_split(np.arange(len(x)), min(_POINTS, len(x)))
    return np.array([x[part].mean() for part in intervals]), np.array([values[part].mean() for part in intervals])
