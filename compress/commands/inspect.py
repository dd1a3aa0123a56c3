"""Print every layer of a network: shape, cost, VBMF ranks, obstacles to factorization, worth in keypoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from compress.commands.base import StageResult, option
from compress.commands.options import DataOptions, ModelOptions, SizeOptions, counting_size, load_model, open_dataset
from compress.commands.registry import Stage
from compress.compression.keypoint_sensitivity import IMAGES, look, sensitivity
from compress.decomposition.evbmf import evbmf_kernel
from compress.errors import UsageError
from compress.files import atomic_path, refuse_existing
from compress.model import Model
from compress.network.cost import cost
from compress.network.layers import LayerInfo, list_layers
from compress.planning.plan import REASONS
from compress.planning.policies import Vbmf, make_plan, read_share
from compress.planning.selection import Selection
from compress.progress import Progress
from compress.reporting.figures import sensitivity_map


class InspectOptions(ModelOptions, SizeOptions, DataOptions):
    """Options of `compress inspect`."""

    sensitivity: bool = option(
        False, "Factorize each layer alone and measure how far keypoints move on --data (12 images, or --limit)"
    )
    share: tuple[str, ...] = option(
        ("3/4", "1/2", "1/3", "1/4"), "With --sensitivity: shares of full rank; repeat for more"
    )
    height: int | None = option(
        None, "With --sensitivity: height that images are scaled to (default: the network's own)"
    )
    include: tuple[str, ...] = option((), "With --sensitivity: only layers of this name or pattern; repeat for more")
    exclude: tuple[str, ...] = option((), "With --sensitivity: not layers of this name or pattern; repeat for more")
    plot: Path | None = option(None, "With --sensitivity: write a figure (.png)", output=True)
    force: bool = option(False, "Replace an existing figure")


def _check(options: InspectOptions) -> None:
    """Refuse options that do not go together, before any work."""
    asked = {"--data": options.has_data, "--plot": options.plot is not None, "--include": options.include}
    if not options.sensitivity:
        given = [name for name, value in asked.items() if value]
        if given:
            raise UsageError(f"{given[0]} belongs to --sensitivity", found="no --sensitivity")
        return
    for share in options.share:
        read_share(share)
    if not options.has_data:
        raise UsageError(
            "keypoints move on images, and none are named",
            hint="Give --data; images:DIR without annotations will do",
        )
    if options.plot is not None:
        if options.plot.suffix.lower() != ".png":
            raise UsageError("the figure is a .png file", found=str(options.plot))
        refuse_existing(options.plot, options.force)


def _measure(
    options: InspectOptions,
    checkpoint: Model,
    module: nn.Module,
    layers: tuple[LayerInfo, ...],
    progress: Progress,
) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """The record of `compress.compression.keypoint_sensitivity`, and its figure."""
    limit = IMAGES if options.limit is None else options.limit
    dataset = open_dataset(options.model_copy(update={"limit": limit}))
    with progress.bar("looking at images", None):
        scene = look(module, checkpoint.pose, dataset, options.height or checkpoint.pose.height)
    selection = Selection(options.include, options.exclude, pointwise=True)
    record = {"data": dataset.name, **sensitivity(module, layers, scene, selection, options.share, progress)}
    if options.plot is None:
        return record, ()
    with atomic_path(options.plot, force=options.force) as temporary:
        temporary.write_bytes(sensitivity_map(record["rows"], record["shares"], record["joint_names"]))
    return record, (options.plot,)


def inspect(options: InspectOptions, progress: Progress) -> StageResult:
    """Layers with their costs and what VBMF says of their kernels."""
    _check(options)
    checkpoint = load_model(options)
    module = checkpoint.module
    size = counting_size(checkpoint, options.input)
    layers = list_layers(module, size)
    plan = make_plan(module, Vbmf(), Selection(), network=checkpoint.source.name, input_size=size)
    reasons = {layer.name: layer for layer in plan.layers}
    total = cost(module, size)
    rows: list[dict[str, Any]] = []
    with progress.bar("VBMF", len(layers)) as advance:
        for layer in layers:
            planned = reasons[layer.name]
            ranks = None
            if layer.plain and layer.kind == "conv" and layer.groups == 1:
                kernel = module.get_parameter(f"{layer.name}.weight").detach()
                ranks = [found.rank for found in evbmf_kernel(kernel)]
            rows.append(
                {
                    "name": layer.name,
                    "aliases": list(layer.aliases),
                    "kind": layer.kind,
                    "shape": list(layer.weight_shape),
                    "stride": list(layer.stride),
                    "dilation": list(layer.dilation),
                    "groups": layer.groups,
                    "params": layer.params,
                    "macs": layer.macs,
                    "share": layer.macs / total.macs if total.macs else 0.0,
                    "vbmf_ranks": ranks,
                    "reason": planned.reason if planned.method == "keep" else None,
                    "why": REASONS[planned.reason] if planned.method == "keep" else None,
                }
            )
            advance(1)
    record: dict[str, Any] = {
        "network": checkpoint.source.name,
        "options": dict(checkpoint.source.options),
        "input": list(size),
        "params": total.params,
        "macs": total.macs,
        "size_bytes": total.size_bytes,
        "edits": [edit.to_dict()["kind"] for edit in checkpoint.edits],
        "history": list(checkpoint.history),
        "layers": rows,
    }
    files: tuple[Path, ...] = ()
    if options.sensitivity:
        record["sensitivity"], files = _measure(options, checkpoint, module, layers, progress)
    return StageResult(record, files)


STAGE = Stage(InspectOptions, inspect, "compress inspect model.pt")
