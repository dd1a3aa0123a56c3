"""What there is to know of each layer of a network before it is compressed."""

from __future__ import annotations

from dataclasses import dataclass

from compress.decomposition.evbmf import evbmf_kernel
from compress.model import Model
from compress.network.layers import LayerInfo
from compress.planning.plan import REASONS
from compress.planning.policies import Vbmf, make_plan
from compress.planning.selection import Selection
from compress.progress import Progress, Silent


@dataclass(frozen=True)
class LayerReport:
    """A layer: its shape, its cost, and whether it can be factorized.

    Attributes
    ----------
    name, aliases : str and tuple of str
        Module name, and the others by which the same module is reached.
    kind : str
        ``"conv"``, ``"conv_transpose"`` or ``"linear"``.
    shape : tuple of int
        Of the weight.
    stride, dilation : tuple of int
        For each spatial axis.
    groups : int
        Groups of channels.
    params, macs : int
        Parameters, and multiply-adds of one forward pass.
    share : float
        Of the network's MACs.
    vbmf_ranks : (int, int) or None
        Ranks that global analytic VBMF finds along mode 3 and mode 4, for an ordinary convolution without groups.
    reason, why : str or None
        Code and meaning of the reason why VBMF ranks would not factorize the layer: see
        `compress.planning.plan.REASONS`.
    """

    name: str
    aliases: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    params: int
    macs: int
    share: float
    vbmf_ranks: tuple[int, ...] | None
    reason: str | None
    why: str | None


def inspect_layers(model: Model, progress: Progress | None = None) -> tuple[LayerReport, ...]:
    """List the layers of a model with their costs and VBMF ranks.

    Raises
    ------
    RankError
        If a kernel has non-finite values.
    """
    layers = model.layers
    plan = make_plan(model.module, Vbmf(), Selection(), network=model.name, input_size=model.size, layers=layers)
    planned = {entry.name: entry for entry in plan.layers}
    reports = []
    with (progress or Silent()).bar("VBMF", len(layers)) as advance:
        for layer in layers:
            entry = planned[layer.name]
            reason = entry.reason if entry.method == "keep" else None
            reports.append(
                LayerReport(
                    name=layer.name,
                    aliases=layer.aliases,
                    kind=layer.kind,
                    shape=layer.weight_shape,
                    stride=layer.stride,
                    dilation=layer.dilation,
                    groups=layer.groups,
                    params=layer.params,
                    macs=layer.macs,
                    share=layer.macs / model.cost.macs if model.cost.macs else 0.0,
                    vbmf_ranks=_vbmf_ranks(model, layer),
                    reason=reason,
                    why=None if reason is None else REASONS[reason],
                )
            )
            advance(1)
    return tuple(reports)


def _vbmf_ranks(model: Model, layer: LayerInfo) -> tuple[int, ...] | None:
    if not (layer.plain and layer.kind == "conv" and layer.groups == 1):
        return None
    kernel = model.module.get_parameter(f"{layer.name}.weight").detach()
    return tuple(estimate.rank for estimate in evbmf_kernel(kernel))
