"""Compress a network of your own: any `nn.Module`, here one that returns a plain tensor and is no pose network.

Run it with ``python examples/own_network.py``; it takes a few seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

import compress


class Counter(nn.Module):
    """A small network that maps one-channel images to a density map."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.density = nn.Conv2d(64, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Images (N, 1, H, W) to density maps (N, 1, H / 2, W / 2)."""
        density: torch.Tensor = self.density(self.features(image))
        return density


def main(folder: Path) -> None:
    """Wrap, factorize under a budget with data, recover, save, load."""
    torch.manual_seed(0)
    net = Counter()
    images = [torch.rand(1, 1, 64, 64) for _ in range(24)]

    model = compress.wrap(net, example=(1, 1, 64, 64))
    small = compress.factorize(model, budget="macs=0.6", images=images)
    small = compress.finetune(small, teacher=model, images=images, steps=20)
    print(small.plan)
    print(f"{model.cost.macs / 1e6:.1f} -> {small.cost.macs / 1e6:.1f} million multiply-adds")
    print(compress.evaluate(small, images, difference=model))

    compress.save(small, folder / "small.pt")
    again = compress.load(folder / "small.pt", network=Counter)
    with torch.no_grad():
        assert torch.equal(again.module(images[0]), small.module(images[0]))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
