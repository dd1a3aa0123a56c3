"""Distillation between networks that differ inside the compared blocks: factors, ranks, attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from stickmen import model_of, train_network
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from compress.forms.registry import get_form
from compress.network.inputs import image_input
from compress.pose.spec import PoseSpec
from compress.surgery.attention import Attended, swap_blocks
from compress.training.distil import Distiller, DistilWeights, FeatureRecorder
from compress.training.options import FineTuneOptions
from compress.zoo.attention import build_attention

INPUTS = image_input((64, 64))


class Gated(nn.Module):
    """A convolution and a block with attention, both compared."""

    distill_points = ("stem", "block")

    def __init__(self, kind: str = "se") -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 8, 1)
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), build_attention(kind, 16, 4), nn.ReLU())
        self.heatmaps = nn.Conv2d(16, 19, 1)
        self.pafs = nn.Conv2d(16, 38, 1)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        y = self.block(self.stem(x))
        return [{"heatmaps": self.heatmaps(y), "pafs": self.pafs(y)}]


@pytest.fixture
def teacher() -> nn.Module:
    torch.manual_seed(0)
    return Gated()


def factorized() -> nn.Module:
    network = Gated()
    network.stem = get_form("tucker1_out").build(network.stem, (2,))
    network.block[0] = get_form("tucker2").build(network.block[0], (3, 4))
    return network


def attended_stem() -> nn.Module:
    network = swap_blocks(Gated(), "cbam", INPUTS, after=("stem",)).module
    assert isinstance(network.stem, Attended)
    return network


STUDENTS = {
    "a factorized layer instead of a compared one": factorized,
    "other attention": lambda: swap_blocks(Gated(), "esa_par", INPUTS).module,
    "no attention": lambda: swap_blocks(Gated(), "none", INPUTS).module,
    "attention after a compared layer": attended_stem,
    "another kind of attention from the start": lambda: Gated("coord"),
    "parametrized weights": lambda: _with_weight_norm(),
}


def _with_weight_norm() -> nn.Module:
    network = Gated()
    weight_norm(network.stem)
    return network


@pytest.mark.parametrize("make", STUDENTS.values(), ids=STUDENTS.keys())
def test_whole_blocks_are_compared_whatever_is_inside(teacher: nn.Module, make: Any) -> None:
    student = make()
    distiller = Distiller(model_of(student), model_of(teacher), DistilWeights(0.0, 1.0), INPUTS)
    assert distiller.points == ("stem", "block")
    images = torch.randn(2, 3, 64, 64)
    with FeatureRecorder(student, distiller.points) as taps:
        loss = distiller(images, student(images), taps.features)
    with torch.no_grad():
        goal = teacher.stem(images)
        error = float((student.stem(images) - goal).square().sum() / goal.square().sum())
    assert float(loss.parts["features.stem"]) == pytest.approx(error, rel=1e-3)
    loss.total.backward()
    for block in (student.stem, student.block):
        assert all(p.grad is not None for p in block.parameters())
        assert any(float(p.grad.abs().sum()) > 0 for p in block.parameters())


@pytest.mark.parametrize("name", ["a factorized layer instead of a compared one", "other attention"])
def test_students_that_differ_inside_learn_the_features(
    teacher: nn.Module, stickmen: Any, options: FineTuneOptions, name: str
) -> None:
    torch.manual_seed(1)
    asked = replace(options, steps=60, learning_rate=1e-2, distil=DistilWeights(0.0, 1.0), label_weight=0.0)
    done = train_network(STUDENTS[name](), stickmen(4), asked, pose=PoseSpec(), teacher=teacher)
    assert done.distilled == ("stem", "block")
    for part in ("teacher.features.stem", "teacher.features.block"):
        assert done.log[-1].parts[part] < 0.5 * done.log[0].parts[part], part
