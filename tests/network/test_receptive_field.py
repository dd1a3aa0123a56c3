"""Empirical receptive fields against those that arithmetic gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compress.errors import NetworkError
from compress.network.receptive_field import gradient_field, occlusion_field, random_inputs


def stack(*layers: tuple[int, int, int]) -> nn.Sequential:
    """Convolutions of (kernel, stride, dilation) with positive weights, so that nothing cancels."""
    convs = [
        nn.Conv2d(2 if index else 3, 2, size, stride, dilation * (size - 1) // 2, dilation)
        for index, (size, stride, dilation) in enumerate(layers)
    ]
    for conv in convs:
        nn.init.uniform_(conv.weight, 0.5, 1.0)
    return nn.Sequential(*convs).eval()


CASES = [((3, 1, 1),), ((3, 1, 1), (3, 1, 1)), ((7, 2, 1), (3, 1, 2)), ((3, 2, 1), (3, 2, 1), (5, 1, 1)), ((1, 1, 1),)]


def theory(layers: tuple[tuple[int, int, int], ...]) -> int:
    """Side of the receptive field: each kernel adds its extent, in steps of the strides before it."""
    side, step = 1, 1
    for size, stride, dilation in layers:
        side += (size - 1) * dilation * step
        step *= stride
    return side


@pytest.mark.parametrize("layers", CASES)
def test_a_stack_of_convolutions_has_exactly_the_theoretical_support(layers: tuple[tuple[int, int, int], ...]) -> None:
    side = theory(layers)
    field = gradient_field(stack(*layers), random_inputs((1, 3, 64, 96), 1))
    assert field.size.support == (side, side)
    assert field.strength.shape == (64, 96)
    assert field.strength.max() == 1
    rows = torch.as_tensor(field.strength).amax(1).nonzero().flatten()
    stride = 1
    for _, step, _ in layers:
        stride *= step
    # The cell in the centre: its kernel's middle lies on the pixel of that number.
    assert field.size.cell == (32 // stride, 48 // stride)
    assert int(rows[0]) + side // 2 == 32


def test_holes_of_a_dilated_kernel_have_no_influence() -> None:
    field = gradient_field(stack((3, 1, 4)), random_inputs((1, 3, 32, 32), 2))
    assert field.size.support == (9, 9)
    assert int((field.strength > 0).sum()) == 9


def test_one_map_and_cell_can_be_chosen() -> None:
    class Two(nn.Module):
        """The first map copies the image, the second its mean."""

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            near = x[:, :1]
            return {"maps": torch.cat([near, x.mean((2, 3), keepdim=True)[:, :1].expand_as(near)], dim=1)}

    inputs = random_inputs((1, 3, 20, 30), 2)
    near = gradient_field(Two(), inputs, channel=0, cell=(3, 7))
    assert near.size.support == (1, 1)
    assert near.strength[3, 7] == 1
    far = gradient_field(Two(), inputs, output="maps", channel=1)
    assert far.size.support == (20, 30)
    assert far.size.share == 1
    assert far.size.effective == pytest.approx(600**0.5)


def test_occlusion_marks_the_windows_that_a_map_looks_at() -> None:
    class Corner(nn.Module):
        """Looks at one corner of the image only."""

        def forward(self, x: Tensor) -> Tensor:
            return x[:, :, :5, :7].mean((1, 2, 3))[:, None, None, None].expand(-1, 1, 4, 4)

    field = occlusion_field(Corner(), random_inputs((1, 3, 33, 30), 2))
    assert field.size.support == (11, 11)
    assert (field.strength[:11, :11] == 1).all()
    assert field.strength.sum() == 121
    assert field.size.cell is None
    smaller = occlusion_field(Corner(), random_inputs((1, 3, 33, 30), 1), window=3)
    assert smaller.size.support == (6, 9)


def test_what_has_no_field_is_refused() -> None:
    inputs = random_inputs((1, 3, 16, 16), 1)

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones_like(x)

    for measure in (gradient_field, occlusion_field):
        with pytest.raises(NetworkError, match="does not depend"):
            measure(Constant(), inputs)
        with pytest.raises(NetworkError, match="no such output map"):
            measure(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), inputs)
        with pytest.raises(NetworkError, match="3 maps"):
            measure(nn.Identity(), inputs, channel=3)
    with pytest.raises(NetworkError, match="no such cell"):
        gradient_field(nn.Identity(), inputs, cell=(16, 0))
