"""Pose specifications that several tests use."""

from __future__ import annotations

from compress.pose.spec import PoseSpec

#: Of a top-down network in the conventions of the public code, on crops of 256 x 192 pixels.
TOP_DOWN = PoseSpec(
    skeleton="coco17",
    decoder="heatmap",
    height=256,
    width=192,
    stride=4,
    background=False,
    grid="corner",
    flip_shift=True,
    joint_threshold=0.2,
)
