"""Which images factors are fitted to, which outputs are compared on, and warnings about them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import compress
from compress.checkpoint.load import create
from compress.compression.calibration import COMPARED_IMAGES, HOLD_OUT_FROM, doubts, read_images
from compress.model import Model
from compress.network.inputs import Inputs, batched


@pytest.fixture(scope="module")
def model() -> Model:
    return compress.wrap(nn.Conv2d(2, 3, 3), (1, 2, 8, 8))


def numbered(count: int) -> list[Tensor]:
    return [torch.full((2, 8, 8), float(number)) for number in range(count)]


def numbers(images: tuple[Inputs, ...]) -> list[int]:
    return [int(batched(image)[0, 0, 0, 0]) for image in images]


@pytest.mark.parametrize("count", [2, 5, 64])
def test_outputs_are_compared_on_images_beyond_those_of_the_fit(model: Model, count: int) -> None:
    images = read_images(numbered(count + 40), model, count)
    assert numbers(images.fitted) == list(range(count))
    assert numbers(images.compared) == list(range(count, count + COMPARED_IMAGES))
    assert images.held_out


@pytest.mark.parametrize(("total", "held"), [(HOLD_OUT_FROM, 2), (HOLD_OUT_FROM + 7, 2), (64, 8), (65, 8)])
def test_without_further_images_the_last_eighth_is_held_out(model: Model, total: int, held: int) -> None:
    images = read_images(numbered(total), model, 64)
    assert numbers(images.fitted) == list(range(total - held))
    assert numbers(images.compared) == list(range(total - held, total))
    assert images.held_out
    assert len(images.fitted) <= 64


@pytest.mark.parametrize("total", [1, 3, HOLD_OUT_FROM - 1])
def test_few_images_serve_for_both(model: Model, total: int) -> None:
    images = read_images(numbered(total), model, 64)
    assert numbers(images.fitted) == numbers(images.compared) == list(range(total))
    assert not images.held_out


def test_few_images_and_images_without_people_are_doubted() -> None:
    trained = create("default").at_size((64, 96))
    grey = [torch.full((1, 3, 64, 96), value) for value in (0.0, 0.5)]
    few, nobody = doubts(trained, grey)
    assert "only 2 images" in few
    assert "detects nobody" in nobody
    people = read_images("synthetic:0:12", trained, 8).fitted
    assert doubts(trained, people) == []


def test_networks_without_pose_are_only_asked_for_enough_images(model: Model) -> None:
    assert doubts(model, [torch.zeros(1, 2, 8, 8)] * 8) == []
    assert len(doubts(model, [torch.zeros(1, 2, 8, 8)] * 7)) == 1
