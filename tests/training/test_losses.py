"""The loss against explicit sums."""

from __future__ import annotations

import pytest
import torch

from compress.training.losses import Loss, add_losses, masked_squares, pose_loss


def maps(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {"heatmaps": torch.randn(2, 3, 4, 5), "pafs": torch.randn(2, 4, 4, 5)}


def by_hand(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> float:
    total = 0.0
    images, channels, rows, columns = prediction.shape
    for n in range(images):
        for c in range(channels):
            for y in range(rows):
                for x in range(columns):
                    total += float((prediction[n, c, y, x] - target[n, c, y, x]) ** 2 * mask[n, 0, y, x])
    return total / (2 * images)


def test_the_loss_is_the_sum_over_stages_maps_channels_and_unmasked_cells() -> None:
    stages, targets = [maps(0), maps(1)], maps(2)
    mask = torch.rand(2, 1, 4, 5).round()
    loss = pose_loss(stages, targets, mask)
    expected = {name: sum(by_hand(stage[name], targets[name], mask) for stage in stages) for name in targets}
    assert {name: float(part) for name, part in loss.parts.items()} == pytest.approx(expected, rel=1e-5)
    assert float(loss.total) == pytest.approx(sum(expected.values()), rel=1e-5)


def test_masked_cells_have_no_gradient() -> None:
    prediction = maps(0)["heatmaps"].requires_grad_()
    mask = torch.ones(2, 1, 4, 5)
    mask[:, :, 1:3] = 0
    masked_squares(prediction, maps(1)["heatmaps"], mask).backward()
    assert prediction.grad is not None
    assert (prediction.grad[:, :, 1:3] == 0).all()
    assert (prediction.grad[:, :, 0] != 0).all()


def test_half_precision_maps_are_summed_in_float32() -> None:
    # 4 * 10^4 is beyond float16's 65504 after squaring; the sum must not overflow.
    prediction = torch.full((1, 1, 2, 2), 200.0, dtype=torch.float16)
    assert float(masked_squares(prediction, torch.zeros(1, 1, 2, 2), None)) == pytest.approx(80000)


def test_terms_of_a_weighted_sum_add_up_and_their_gradients_are_weighted() -> None:
    value = torch.tensor(3.0, requires_grad=True)
    first, second = Loss(value * 2, {"a": torch.tensor(6.0)}), Loss(value**2, {"a": torch.tensor(9.0)})
    total = add_losses({"x": (0.5, first), "y": (2.0, second)})
    assert {name: float(part) for name, part in total.parts.items()} == {"x.a": 3.0, "y.a": 18.0}
    assert float(total.total.detach()) == pytest.approx(21)
    total.total.backward()
    assert float(value.grad) == pytest.approx(0.5 * 2 + 2 * 6)  # type: ignore[arg-type]


def test_the_gaussian_kernel_distance_is_that_of_equation_14_read_literally() -> None:
    # k(a, a) + k(b, b) - 2 k(a, b) = 2 - 2 exp(-d^2 / (2 s^2)), times s^2, halved and averaged like the squared error:
    # for d = 0.5 and 0, s = 0.5: 2 * 0.25 * (1 - exp(-0.5)) / 2 = 0.0983673 with one image.
    prediction, target = torch.tensor([[[[0.75, 0.2]]]]), torch.tensor([[[[0.25, 0.2]]]])
    assert float(masked_squares(prediction, target, None, 0.5)) == pytest.approx(0.25 * (1 - 0.60653066), rel=1e-5)
    # Wide kernels give the squared error, and far values no more than 2 s^2 each.
    far, zero = maps(0)["heatmaps"], torch.zeros(2, 3, 4, 5)
    assert float(masked_squares(far, zero, None, 1e3)) == pytest.approx(
        float(masked_squares(far, zero, None)), rel=1e-4
    )
    assert float(masked_squares(1e3 + far, zero, None, 0.5)) == pytest.approx(0.5 * 60 / 2, rel=1e-5)


def test_the_kernel_applies_to_every_output_stage_and_size_under_the_mask() -> None:
    stages, targets = [maps(0), maps(1)], maps(2)
    mask = torch.rand(2, 1, 4, 5).round()
    loss = pose_loss(stages, targets, mask, 0.7)
    for name, part in loss.parts.items():
        expected = sum(float(masked_squares(stage[name], targets[name], mask, 0.7)) for stage in stages)
        assert float(part) == pytest.approx(expected, rel=1e-5)
    small = {"heatmaps": torch.ones(2, 3, 2, 2)}
    resized = pose_loss([small], {"heatmaps": torch.zeros(2, 3, 4, 4)}, None, 0.7)
    same = pose_loss([{"heatmaps": torch.ones(2, 3, 4, 4)}], {"heatmaps": torch.zeros(2, 3, 4, 4)}, None, 0.7)
    assert float(resized.total) == pytest.approx(float(same.total), rel=1e-5)
