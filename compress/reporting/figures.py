"""Figures: trade-offs, kernel errors, keypoint sensitivity of layers, and pictures side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from compress.planning.pareto import pareto_front
from compress.training.curve import new_figure, to_png

if TYPE_CHECKING:
    from compress.reporting.facts import ModelFacts

Image = NDArray[np.uint8]


def trade_off(models: Sequence[ModelFacts], runtimes: Sequence[str]) -> bytes | None:
    """Accuracy against MACs and against latency on each runtime, as PNG; None without accuracies.

    The line is the Pareto front.
    """
    scored = [model for model in models if model.metrics]
    macs = [model.macs / 1e9 for model in scored if model.macs is not None]
    panels: list[tuple[str, list[float]]] = [("GMACs", macs)] if len(macs) == len(scored) else []
    for runtime in runtimes:
        if all(runtime in model.latency for model in scored):
            panels.append((f"{runtime}, median ms", [model.latency[runtime].latency_ms for model in scored]))
    if not scored or not panels:
        return None
    figure, axes = new_figure(4.6 * len(panels), 3.9, len(panels))
    metric = scored[0].metric
    accuracy = [model.metrics[metric] for model in scored]
    for panel, (axis, (name, cost)) in enumerate(zip(axes, panels, strict=True)):
        front = pareto_front([(c, -a) for c, a in zip(cost, accuracy, strict=True)])
        axis.plot([cost[i] for i in front], [accuracy[i] for i in front], color="#999999", linewidth=1, zorder=1)
        for index, model in enumerate(scored):
            axis.scatter(
                cost[index], accuracy[index], s=46, zorder=3, color=f"C{index}", label=model.label, clip_on=False
            )
        axis.set_xlabel(name)
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=min(0.0, *accuracy), top=max(accuracy) * 1.1 + 0.01)
        axis.grid(alpha=0.25)
        if panel == 0:
            axis.set_ylabel("AP (OKS)" if metric == "AP" else metric)
            axis.legend(fontsize=7, loc="lower right")
    return to_png(figure)


def kernel_errors(models: Sequence[ModelFacts]) -> bytes | None:
    """Relative kernel error of each factorized layer, as PNG; None if nothing was factorized."""
    shown = [(m, {x.name: x.error for x in m.layers if x.error is not None}) for m in models if not m.tuned]
    shown = [(model, errors) for model, errors in shown if errors]
    if not shown:
        return None
    names = list(dict.fromkeys(name for _, errors in shown for name in errors))
    figure, (axis,) = new_figure(8.5, 1.2 + 0.21 * len(names))
    for model, errors in shown:
        axis.scatter(list(errors.values()), [names.index(name) for name in errors], s=26, label=model.label, zorder=3)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.set_xlabel("relative kernel error |W - W~| / |W| before fine-tuning")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return to_png(figure)


def sensitivity_map(rows: Sequence[Mapping[str, Any]], shares: Sequence[str], joints: Sequence[str]) -> bytes:
    """OKS loss of each layer by rank and by joint, as PNG.

    Parameters
    ----------
    rows : sequence of mapping
        As `compress.compression.keypoint_sensitivity` records them.
    shares : sequence of str
        Shares of full rank: columns of the left panel; white cells are ranks that were not measured.
    joints : sequence of str
        Columns of the right panel, at the smallest rank of each layer.
    """
    names = list(dict.fromkeys(row["name"] for row in rows))
    by_rank = np.full((len(names), len(shares)), np.nan)
    by_joint = np.full((len(names), len(joints)), np.nan)
    for row in rows:  # the smallest rank of a layer comes last
        line = names.index(row["name"])
        by_rank[line, shares.index(row["share"])] = row["loss"]
        by_joint[line] = [np.nan if (loss := row["joints"][x]["loss"]) is None else loss for x in joints]
    figure, axes = new_figure(12.0, 1.8 + 0.21 * len(names), 2)
    largest = max(float(np.nanmax(by_rank)), float(np.nanmax(by_joint)), 1e-6)
    titles = ("by share of full rank", "by joint, at the smallest rank")
    for axis, values, columns, title in zip(axes, (by_rank, by_joint), (shares, joints), titles, strict=True):
        # The root makes small losses distinguishable; theirs are the layers to factorize.
        shown = axis.imshow(np.sqrt(values / largest), cmap="YlOrRd", vmin=0, vmax=1, aspect="auto")
        axis.set_xticks(range(len(columns)), columns, fontsize=7, rotation=90 if len(columns) > 6 else 0)
        axis.set_yticks(range(len(names)), names if axis is axes[0] else [], fontsize=7)
        axis.set_title(f"OKS loss {title}", fontsize=9)
    for (line, column), value in np.ndenumerate(by_rank):
        if np.isfinite(value):
            axes[0].text(column, line, f"{value:.3f}", ha="center", va="center", fontsize=6)
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels([f"{largest * tick**2:.3f}" for tick in (0, 0.25, 0.5, 0.75, 1)], fontsize=7)
    return to_png(figure)


def receptive_field_map(shade: NDArray[np.float64], image: NDArray[np.float64] | None, title: str) -> bytes:
    """The influence of each pixel in green, over the image if there is one, as PNG.

    Parameters
    ----------
    shade : array, shape (H, W)
        Saturation from 0 to 1.
    image : array, shape (H, W), or None
        Grey values from 0 to 1.
    title : str
        Above the picture.
    """
    height, width = shade.shape
    figure, (axis,) = new_figure(5.2, 0.9 + 4.4 * height / width)
    ground = np.ones_like(shade) if image is None else image
    cover, green = shade[..., None], np.array([0.0, 0.55, 0.2])
    axis.imshow((1 - cover) * ground[..., None] + cover * green, vmin=0, vmax=1)
    axis.set_title(title, fontsize=9)
    axis.tick_params(labelsize=7)
    return to_png(figure)


def search_front(points: Sequence[Mapping[str, Any]], unit: str, metric: str | None) -> bytes:
    """Cost against output error, and against accuracy where it was measured, of all points of a search, as PNG.

    Parameters
    ----------
    points : sequence of mapping
        With ``cost``, ``map_error``, ``score``, ``front`` and ``tuned``.
    unit : str
        Of the cost.
    metric : str or None
        Name of the score.
    """
    panels = [("map_error", "relative squared error of the final outputs")]
    panels += [] if metric is None else [("score", "AP (OKS)" if metric == "AP" else metric)]
    figure, axes = new_figure(4.8 * len(panels), 4.0, len(panels))
    for axis, (key, name) in zip(axes, panels, strict=True):
        for tuned, marker in ((False, "o"), (True, "^")):
            for chosen, colour in ((True, "C0"), (False, "#bbbbbb")):
                group = [x for x in points if (x["tuned"], x["front"]) == (tuned, chosen)]
                label = f"{'tuned' if tuned else 'as fitted'}, {'on the front' if chosen else 'dominated'}"
                if group:
                    costs, values = ([x[k] for x in group] for k in ("cost", key))
                    axis.scatter(costs, values, s=34, marker=marker, color=colour, label=label, zorder=3)
        axis.set_xlabel(unit)
        axis.set_ylabel(name)
        axis.grid(alpha=0.25)
    axes[0].legend(fontsize=7)
    return to_png(figure)


def side_by_side(pictures: Sequence[Image], labels: Sequence[str], height: int = 280) -> bytes:
    """Pictures of one scene in a row under their labels, as PNG."""
    tiles = []
    for picture, label in zip(pictures, labels, strict=True):
        width = max(1, round(picture.shape[1] * height / picture.shape[0]))
        tile = np.full((height + 24, width, 3), 255, np.uint8)
        tile[24:] = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        cv2.putText(
            tile, label[: max(4, width // 8)], (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (30, 30, 30), 1, cv2.LINE_AA
        )
        tiles += [tile, np.full((height + 24, 6, 3), 255, np.uint8)]
    encoded, buffer = cv2.imencode(".png", np.hstack(tiles[:-1]))
    if not encoded:
        raise ValueError("the picture can't be encoded as PNG")
    return buffer.tobytes()
