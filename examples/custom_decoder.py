"""A pose network with outputs of its own kind: your decoder lets it be scored, compressed and reported like any other.

The network here gives, for each joint, a row and a column of scores; the decoder takes the highest place of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import compress
from compress.pose.decoders.base import Arrays, CropDecoder
from compress.pose.spec import PoseSpec

JOINTS = 17
HEIGHT, WIDTH = 128, 96


@dataclass(frozen=True)
class RowsAndColumns(CropDecoder):
    """Rows (N, K, h) and columns (N, K, w) of scores to joints: the highest place of each."""

    def expected_outputs(self, pose: PoseSpec) -> dict[str, int | None]:
        """Names of the network's outputs with their numbers of channels."""
        return {"rows": JOINTS, "columns": JOINTS}

    def keypoints(self, outputs: Arrays, size: tuple[int, int], pose: PoseSpec) -> np.ndarray:
        """Outputs of N crops to (N, K, 3): x, y in pixels of the crop, and a score."""
        rows, columns = outputs["rows"], outputs["columns"]
        x = columns.argmax(axis=-1) * pose.stride
        y = rows.argmax(axis=-1) * pose.stride
        return np.stack([x, y, np.minimum(rows.max(axis=-1), columns.max(axis=-1))], axis=-1)


class RowColumnNet(nn.Module):
    """A backbone and a head that scores rows and columns."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Conv2d(64, JOINTS, 1)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Crops (N, 3, H, W) to scores of rows and columns, each as strong as its strongest cell."""
        maps = self.head(self.backbone(image)).sigmoid()
        return {"rows": maps.amax(dim=3), "columns": maps.amax(dim=2)}


def main(_: Path | None = None) -> None:
    """Describe the network, compress it, score both."""
    torch.manual_seed(0)
    pose = PoseSpec(
        skeleton="coco17",
        decoder=f"{__name__}:RowsAndColumns",  # the module must be imported wherever the model is used
        outputs=("rows", "columns"),
        height=HEIGHT,
        width=WIDTH,
        stride=4,
        grid="centre",
        background=False,
    )
    model = compress.wrap(RowColumnNet(), example=(1, 3, HEIGHT, WIDTH), pose=pose)
    small = compress.factorize(model, ratio="1/2")
    for one in (model, small):
        print(f"{one.cost.macs / 1e6:.0f} million multiply-adds, {compress.evaluate(one, 'synthetic:1000:3').headline}")


if __name__ == "__main__":
    main()
