"""Public checkpoints: which registered network they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.checkpoint.load import load
from compress.network.source import NetworkSpec
from compress.zoo.foreign import identify, translated
from compress.zoo.registry import build


def state_of(name: str, **options: Any) -> dict[str, Tensor]:
    return dict(build(NetworkSpec(name, options)).state_dict())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lightweight-openpose", {"refinements": 0}),
        ("lightweight-openpose", {"refinements": 1}),
        ("lightweight-openpose", {"refinements": 3}),
        ("human-pose-estimation-0001", {}),
        ("default", {"refinements": 2}),
    ],
)
def test_known_layouts_are_recognised_with_their_stages(name: str, options: dict[str, int]) -> None:
    state = state_of(name, **options)
    spec = identify(state)
    assert spec == NetworkSpec(name, options)
    translation = translated(state, name)
    assert list(translation) == list(state)
    assert all(torch.equal(translation[key], state[key]) for key in state)


def test_single_human_pose_estimation_0001_loads_by_its_name(tmp_path: Path) -> None:
    """Its release has the names and shapes of the network for LIP: 17 maps are 17 joints, or 16 and a background."""
    state = state_of("context-cpm-coco")
    assert {key: value.shape for key, value in state.items()} == {
        key: value.shape for key, value in state_of("context-cpm", stages=5).items()
    }
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "pose.pth")
    model = load(tmp_path / "pose.pth", network="context-cpm-coco")
    assert model.source.options["stages"] == 5
    assert model.pose is not None
    assert (model.pose.skeleton, model.pose.background) == ("coco17", False)
    loaded = model.module.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_other_networks_are_not_recognised() -> None:
    assert identify(nn.Sequential(nn.Conv2d(3, 8, 3)).state_dict()) is None
