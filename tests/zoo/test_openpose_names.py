"""OpenPose's published weights: Caffe names and those of the PyTorch conversions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress.checkpoint.load import load
from compress.network.source import NetworkSpec
from compress.zoo.foreign import identify
from compress.zoo.openpose_names import own_name

#: The release's prototxt, in its order: name, output and input channels, kernel.
VGG = [
    ("conv1_1", 64, 3), ("conv1_2", 64, 64), ("conv2_1", 128, 64), ("conv2_2", 128, 128), ("conv3_1", 256, 128),
    ("conv3_2", 256, 256), ("conv3_3", 256, 256), ("conv3_4", 256, 256), ("conv4_1", 512, 256), ("conv4_2", 512, 512),
    ("conv4_3_CPM", 256, 512), ("conv4_4_CPM", 128, 256),
]  # fmt: skip

#: Where the same convolutions are in a sequence with activations and poolings.
COUNTED = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25]

MAPS = {1: 38, 2: 19}


def branches(stages: int) -> Iterator[tuple[str, str, str, tuple[int, int, int]]]:
    """Caffe name, part of the module, place in the part, and output, input channels and kernel of each layer."""
    for branch, maps in MAPS.items():
        first = [(128, 128, 3)] * 3 + [(512, 128, 1), (maps, 512, 1)]
        for index, shape in enumerate(first):
            yield f"conv5_{index + 1}_CPM_L{branch}", f"model1_{branch}", str(2 * index), shape
        for stage in range(2, stages + 1):
            later = [(128, 185, 7)] + [(128, 128, 7)] * 4 + [(128, 128, 1), (maps, 128, 1)]
            for index, shape in enumerate(later):
                name = f"Mconv{index + 1}_stage{stage}_L{branch}"
                yield name, f"model{stage}_{branch}", str(2 * index), shape


def public(layout: str, stages: int) -> dict[str, Tensor]:
    """A file in that layout; every bias holds a number of its own."""
    state: dict[str, Tensor] = {}
    layers = [
        (name, "model0", str(index), (outputs, inputs, 3 if index < 23 or "4_3" in name or "4_4" in name else 1))
        for (name, outputs, inputs), index in zip(VGG, COUNTED, strict=True)
    ]
    for number, (name, part, place, (outputs, inputs, size)) in enumerate([*layers, *branches(stages)]):
        layer = {"caffe": name, "named": f"{part}.{name}", "counted": f"{part}.{place}"}[layout]
        state[f"{layer}.weight"] = torch.zeros(outputs, inputs, size, size)
        state[f"{layer}.bias"] = torch.full((outputs,), float(number))
    return state


@pytest.mark.parametrize("layout", ["caffe", "named", "counted"])
def test_published_files_load(tmp_path: Path, layout: str) -> None:
    prefix = "module." if layout == "counted" else ""
    state = {prefix + name: value for name, value in public(layout, 2).items()}
    torch.save(state, tmp_path / "pose.pth")
    model = load(tmp_path / "pose.pth")
    assert model.source == NetworkSpec("openpose-vgg19", {"stages": 2})
    own = model.module.state_dict()
    assert len(own) == len(state)
    # The order of the prototxt: features, then all fields of the branch L1, then the heatmaps of L2.
    expected = [f"backbone.{n}.0" for n in (0, 1, 3, 4, 6, 7, 8, 9, 11, 12)] + ["reduce.0.0", "reduce.1.0"]
    for kind in ("pafs", "heatmaps"):
        for stage, hidden in ((0, 3), (1, 5)):
            expected += [f"stages.{stage}.{kind}.trunk.{n}.0" for n in range(hidden)]
            expected += [f"stages.{stage}.{kind}.head.{n}.0" for n in range(2)]
    assert [int(own[f"{name}.bias"][0]) for name in expected] == list(range(len(expected)))


def test_the_full_release_has_six_stages() -> None:
    with torch.device("meta"):
        assert identify(public("caffe", 6)) == NetworkSpec("openpose-vgg19", {"stages": 6})


@pytest.mark.parametrize("name", ["model0.1.weight", "model1_1.3.weight", "model1_1.10.weight", "Mconv8_stage2_L1.bias",
                                  "fc6.weight", "stages.0.pafs.head.0.0.weight"])  # fmt: skip
def test_other_names_stay(name: str) -> None:
    assert own_name(name) == name
