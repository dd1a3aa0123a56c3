"""Print every layer of a network: shape, cost, VBMF ranks, and why it can't be factorized."""

from __future__ import annotations

from typing import Any

from compress.decomposition.evbmf import evbmf_kernel
from compress.model.cost import cost
from compress.model.layers import list_layers
from compress.plan import REASONS
from compress.ranks.fixed import Selection, Vbmf, make_plan
from compress.stages.base import Progress, StageResult
from compress.stages.models import ModelOptions, SizeOptions, counting_size, load
from compress.stages.registry import Stage


class InspectOptions(ModelOptions, SizeOptions):
    """Options of `compress inspect`."""


def inspect(options: InspectOptions, progress: Progress) -> StageResult:
    """Layers with their costs and what VBMF says of their kernels."""
    checkpoint = load(options)
    module = checkpoint.build()
    size = counting_size(checkpoint, options.input)
    layers = list_layers(module, size)
    plan = make_plan(module, Vbmf(), Selection(), network=checkpoint.network.name, input_size=size)
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
    record = {
        "network": checkpoint.network.name,
        "options": dict(checkpoint.network.options),
        "input": list(size),
        "params": total.params,
        "macs": total.macs,
        "size_bytes": total.size_bytes,
        "edits": [edit.to_dict()["kind"] for edit in checkpoint.edits],
        "history": list(checkpoint.history),
        "layers": rows,
    }
    return StageResult(record)


STAGE = Stage(InspectOptions, inspect, "compress inspect model.pt")
