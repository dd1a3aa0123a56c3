"""Conventions shared by the top-down networks: their input, output and registration."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from compress.pose.spec import PoseSpec
from compress.zoo.registry import NetworkEntry, register

#: Number of joints to the skeleton of the data set with so many, and height and width of its crops.
DATA_SETS = {17: ("coco17", (256, 192)), 16: ("mpii16", (256, 256))}


def top_down_pose(joints: int) -> PoseSpec:
    """Heatmaps at stride 4 without a background map, from RGB crops normalised by the statistics of ImageNet.

    Parameters
    ----------
    joints : int
        17 for COCO with crops of 256 x 192, 16 for MPII with crops of 256 x 256.
    """
    skeleton, (height, width) = DATA_SETS[joints]
    return PoseSpec(
        skeleton=skeleton,
        decoder="heatmap",
        outputs=("heatmaps",),
        height=height,
        width=width,
        stride=4,
        color="rgb",
        mean=(123.675, 116.28, 103.53),
        scale=(1 / 58.395, 1 / 57.12, 1 / 57.375),
        background=False,
        grid="corner",
        flip_shift=True,
        fill=(0.0, 0.0, 0.0),
        joint_threshold=0.2,
        decoder_options={"refine": "quarter"},
    )


def register_top_down(name: str, build: Callable[..., nn.Module], joints: int, summary: str, source: str) -> None:
    """Register a network for that number of joints (`DATA_SETS`); costs are counted at its crop size."""
    register(NetworkEntry(name, build, top_down_pose(joints), DATA_SETS[joints][1], summary, source))
