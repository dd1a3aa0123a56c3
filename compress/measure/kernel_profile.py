"""Where a network's time goes by the size of its kernels.

Osokin ("Global Context for Convolutional Pose Machines", 2019, section 5.5) finds 1x1 convolutions to be the bottleneck
of hourglass networks: they move much memory for little arithmetic, so their share of the time is larger than that of
the operations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from compress.measure.latency_table import LatencyTable
from compress.network.layers import LayerInfo

#: Label of everything outside the layers: normalisation, activations, upsampling, concatenation.
REST = "other operations"


@dataclass(frozen=True)
class KernelShare:
    """The layers with kernels of one size.

    Attributes
    ----------
    kernel : str
        Such as ``"3x3"``, ``"3x3 depthwise"``, ``"linear"`` or `REST`.
    layers : int
        How many there are.
    macs : int
        Their multiply-adds.
    latency_ms : float
        Their time in the running network.
    macs_share, latency_share : float
        Shares of the whole network, 0 to 1.
    """

    kernel: str
    layers: int
    macs: int
    latency_ms: float
    macs_share: float
    latency_share: float


def kernel_profile(layers: Iterable[LayerInfo], table: LatencyTable, within: str = "") -> tuple[KernelShare, ...]:
    """Time and multiply-adds by kernel size, the longest time first and everything outside the layers last.

    Parameters
    ----------
    layers : iterable of LayerInfo
        All layers of the network.
    table : LatencyTable
        Their times, such as `compress.measure.layer_latency.measure_variants` without variants gives.
    within : str, optional
        Name of a submodule, such as a context module: only its layers. Shares are then of these layers.
    """
    chosen = [layer for layer in layers if not within or layer.name.startswith(f"{within}.")]
    groups: dict[str, list[LayerInfo]] = {}
    for layer in chosen:
        groups.setdefault(_kernel(layer), []).append(layer)
    timed = {kernel: sum(table.layers_ms[layer.name] for layer in members) for kernel, members in groups.items()}
    rest = 0.0 if within else table.rest_ms
    macs = max(sum(layer.macs for layer in chosen), 1)
    total = (sum(timed.values()) + rest) or 1.0

    def row(kernel: str, members: list[LayerInfo], milliseconds: float) -> KernelShare:
        own = sum(layer.macs for layer in members)
        return KernelShare(kernel, len(members), own, milliseconds, own / macs, milliseconds / total)

    rows = [row(kernel, groups[kernel], timed[kernel]) for kernel in sorted(timed, key=timed.__getitem__, reverse=True)]
    return (*rows, *(() if within else (row(REST, [], rest),)))


def _kernel(layer: LayerInfo) -> str:
    if len(layer.weight_shape) == 2:
        return "linear"
    size = "x".join(map(str, layer.weight_shape[2:]))
    return f"{size} depthwise" if layer.groups > 1 and layer.weight_shape[1] == 1 else size
