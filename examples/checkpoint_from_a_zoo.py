"""Compress a public checkpoint: its layout is recognised, and the compressed network is scored and exported.

``python examples/checkpoint_from_a_zoo.py FILE.pth FOLDER`` takes lightweight OpenPose, SimpleBaseline, HRNet,
Lite-HRNet and others as their authors publish them (``compress networks`` lists all); without a file it uses the
network that ships with the package.
"""

from __future__ import annotations

import sys
from pathlib import Path

import compress


def main(folder: Path, checkpoint: Path | None = None) -> None:
    """Load, factorize at a ratio with data, compare, export."""
    model = compress.load(checkpoint) if checkpoint else compress.create("default")
    people = compress.images("synthetic:7:12")  # or a folder of photographs: labels are not needed

    small = compress.factorize(model, ratio="1/2", images=people)
    print(small.plan)
    for name, one in (("original", model), ("compressed", small)):
        score = compress.evaluate(one, "synthetic:1000:4")
        print(f"{name}: {one.cost.params / 1e6:.2f} M parameters, {one.cost.macs / 1e9:.2f} GMAC, {score.headline}")
    compress.save(small, folder / "half.pt")
    exported = compress.export(small, folder, onnx=True)
    print("written:", *exported.files)


if __name__ == "__main__":
    main(Path(sys.argv[2] if len(sys.argv) > 2 else "."), Path(sys.argv[1]) if len(sys.argv) > 1 else None)
