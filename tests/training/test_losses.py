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
