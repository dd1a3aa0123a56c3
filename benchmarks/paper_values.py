"""Networks that are timed for each paper, and the latencies that the papers report.

Only two of the five papers report latencies. The networks of the others are timed beside their baselines, at the
papers' sizes, without a reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: Height and width.
Size = tuple[int, int]


@dataclass(frozen=True)
class Printed:
    """A latency in a paper.

    Attributes
    ----------
    network : str
        Name of the network in the table.
    size : (int, int) or None
        Height and width as we time them; None if the paper does not say.
    kind : str
        ``"cpu"`` or ``"gpu"``: it is shown beside rows on such a device.
    ms : float
        Milliseconds; computed from frames per second where the paper reports these.
    where : str
        Device, and where in the paper.
    """

    network: str
    size: Size | None
    kind: str
    ms: float
    where: str


@dataclass(frozen=True)
class Table:
    """Networks that are timed side by side.

    Attributes
    ----------
    name : str
        For ``--networks``.
    title : str
        Paper and tables.
    networks : mapping
        Name in the table to (name in the registry, options); the first is the baseline.
    sizes : tuple of (int, int)
        Height and width.
    printed : tuple of Printed
        The paper's latencies.
    note : str
        Shown above the table.
    """

    name: str
    title: str
    networks: Mapping[str, tuple[str, Mapping[str, Any]]]
    sizes: tuple[Size, ...]
    printed: tuple[Printed, ...] = field(default=())
    note: str = ""


def rounded(width: int, height: int, stride: int = 8) -> Size:
    """Height and width at the nearest multiples of the stride, rounding half down."""
    return (-(-(2 * height - stride) // (2 * stride)) * stride, -(-(2 * width - stride) // (2 * stride)) * stride)


NO_TIMES = "The paper reports no latencies."

#: Width and height in the paper on the attention CPM.
ATTENTION_SIZES = ((328, 193), (656, 368), (984, 579), (1312, 772))

_RTX = "RTX 2060, Table I"
_GPU_MS = ((55.08, 45.0), (120.224, 51.26), (174.75, 80.72), (320.18, 112.0))

TABLES = (
    Table(
        "attention-cpm",
        "Attention and tensor-decomposed CPM against OpenPose, Tables I and II",
        {
            "OpenPose VGG-19": ("openpose-vgg19", {}),
            "attention CPM": ("attention-cpm", {}),
            "attention CPM 1/3": ("attention-cpm", {"ratio": "1/3"}),
            "attention CPM 1/4": ("attention-cpm", {"ratio": "1/4"}),
        },
        tuple(rounded(*size) for size in ATTENTION_SIZES),
        (
            *(
                Printed(network, rounded(*size), "gpu", ms, _RTX)
                for size, both in zip(ATTENTION_SIZES, _GPU_MS, strict=True)
                for network, ms in zip(("OpenPose VGG-19", "attention CPM 1/3"), both, strict=True)
            ),
            Printed("attention CPM", rounded(656, 368), "gpu", 1000 / 12, "RTX 2060, text: almost 12 fps"),
            Printed("OpenPose VGG-19", rounded(656, 368), "cpu", 1000 / 0.3, "Ryzen 7 1700, Table II"),
            Printed("attention CPM 1/3", rounded(656, 368), "cpu", 1000 / 13, "Ryzen 7 1700, Table II"),
            Printed("OpenPose VGG-19", rounded(656, 368), "cpu", 1000 / 0.1, "Mac Pro i7 2.7 GHz, Table II"),
            Printed("attention CPM 1/3", rounded(656, 368), "cpu", 1000 / 6, "Mac Pro i7 2.7 GHz, Table II"),
        ),
        "Sizes are the paper's 328x193, 656x368, 984x579 and 1312x772 (width x height) at the nearest multiples of the "
        "networks' stride of 8. The paper settles on ranks of 1/3 or 1/4 of the channels and does not say which its "
        "tables use; its values are shown beside 1/3. It gives no size for Table II, which is shown beside 656x368.",
    ),
    Table(
        "context-cpm",
        "Global context CPM, Tables 4 and 5 and section 5.4",
        {
            "6 stages": ("context-cpm", {"stages": 6}),
            "2 stages": ("context-cpm", {"stages": 2}),
            "6 stages, maps at stride 4": ("context-cpm-mpii", {}),
        },
        ((256, 256),),
        (
            Printed("6 stages", (256, 256), "gpu", 18, "GTX 1080 Ti, Table 4"),
            Printed("2 stages", (256, 256), "gpu", 6, "GTX 1080 Ti, Table 4"),
            Printed("6 stages, maps at stride 4", (256, 256), "gpu", 24.5, "GTX 1080 Ti, Table 5"),
            Printed("2 stages", (256, 256), "cpu", 1000 / 19.5, "i7-6850K, OpenVINO, section 5.4"),
        ),
        "The paper's GPU latencies were measured in PyTorch 1.0.",
    ),
    Table(
        "esa",
        "Efficient spatial attention against SimpleBaseline, Tables 1 and 2",
        {
            "SimpleBaseline R50": ("simple-baseline", {"depth": 50}),
            "ESA R50": ("esa", {"depth": 50}),
            "SimpleBaseline R101": ("simple-baseline", {"depth": 101}),
            "ESA R101": ("esa", {"depth": 101}),
        },
        ((256, 192),),
        note=NO_TIMES,
    ),
    Table(
        "cbam-lite-hrnet",
        "CBAM-Lite-HRNet against Lite-HRNet, Table 1",
        {
            "Lite-HRNet-18": ("lite-hrnet", {"depth": 18}),
            "CBAM-Lite-HRNet-18": ("cbam-lite-hrnet", {"depth": 18}),
            "Lite-HRNet-30": ("lite-hrnet", {"depth": 30}),
            "CBAM-Lite-HRNet-30": ("cbam-lite-hrnet", {"depth": 30}),
        },
        ((256, 192), (384, 288)),
        note=NO_TIMES,
    ),
    Table("repose", "RePose, Table 7", {"RePose": ("repose", {})}, ((128, 128),), note=NO_TIMES),
    Table("repose-256", "RePose, Table 7", {"RePose": ("repose-256", {})}, ((256, 256),), note=NO_TIMES),
)


def printed_beside(table: Table, network: str, size: Size, device: str) -> list[Printed]:
    """The paper's latencies of a network at a size on that kind of device."""
    kind = "cpu" if device == "cpu" else "gpu"
    return [x for x in table.printed if (x.network, x.kind) == (network, kind) and x.size in (None, size)]


def printed_ratio(table: Table, reference: str, beside: Printed) -> float | None:
    """The paper's speed-up of a network over the reference, both from the same place in the paper."""
    found = [x.ms for x in table.printed if (x.network, x.size, x.where) == (reference, beside.size, beside.where)]
    return found[0] / beside.ms if found and beside.network != reference else None
