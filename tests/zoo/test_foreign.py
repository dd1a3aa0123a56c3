"""Public checkpoints: which registered network they belong to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

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


def test_other_networks_are_not_recognised() -> None:
    assert identify(nn.Sequential(nn.Conv2d(3, 8, 3)).state_dict()) is None
