"""Block-wise reconstruction of compressed networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compress.errors import DataError, UsageError
from compress.network.output_error import output_errors
from compress.planning.plan import Plan
from compress.planning.policies import Ratio, make_plan
from compress.planning.selection import Selection
from compress.surgery.factorize import factorize
from compress.training.reconstruct import MAX_LAYERS, ReconstructOptions, blocks_of, reconstruct


class Pair(nn.Module):
    """Reads two tensors, so that it can't be reconstructed as one block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + torch.relu_(self.conv(y))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.long = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(MAX_LAYERS + 1))
        )
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1)
        )
        self.pair = Pair()
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        x = self.long(self.stem(x).relu())
        x = self.pair(x, self.body(x))
        return [{"maps": self.head(self.twice(self.twice(x).relu()).relu())}]


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    original = Net().eval()
    for layer in original.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    selection = Selection(exclude=("stem", "twice"))
    plan: Plan = make_plan(original, Ratio("3/4"), selection, network="toy", input_size=(16, 16))
    return original, factorize(original, plan).module


def images(count: int = 9) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 3, 16, 16 + 4 * (number % 2), generator=generator) for number in range(count)]


def test_blocks_are_as_large_as_possible_and_in_running_order() -> None:
    original, small = networks()
    found = blocks_of(small, original, images(1)[0])
    # The pair reads two tensors: its layer is a block of its own.
    assert found == (*(f"long.{place}" for place in range(MAX_LAYERS + 1)), "body", "pair.conv")


def test_blocks_and_outputs_approach_the_original() -> None:
    original, small = networks()
    before = {name: value.clone() for name, value in small.state_dict().items()}
    calls: list[tuple[str, int, int]] = []
    found = reconstruct(
        small, original, images(), ReconstructOptions(steps=60), progress=lambda *call: calls.append(call)
    )
    assert [block.name for block in found.blocks] == [name for name, _, _ in calls]
    assert all(block.after <= block.before for block in found.blocks)
    assert sum(block.after for block in found.blocks) < 0.9 * sum(block.before for block in found.blocks)
    fresh = [torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(7)) for _ in range(4)]
    assert output_errors(original, found.module, fresh)["maps"] < output_errors(original, small, fresh)["maps"]
    # The given network, batch statistics and requires_grad are unchanged.
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    assert torch.equal(found.module.body[1].running_mean, small.body[1].running_mean)
    assert [p.requires_grad for p in found.module.parameters()] == [p.requires_grad for p in small.parameters()]
    assert not found.module.training
    assert not any(part._forward_hooks for part in (*found.module.modules(), *original.modules()))


def test_the_same_seed_gives_the_same_network() -> None:
    original, small = networks()
    first, second = (reconstruct(small, original, images(4), ReconstructOptions(steps=5)).module for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_network_without_factorized_layers_is_not_changed() -> None:
    original, _ = networks()
    found = reconstruct(original, original, images(4), ReconstructOptions(steps=3))
    assert found.blocks == ()
    assert output_errors(original, found.module, images(2)) == {"maps": 0.0}


def test_training_that_makes_a_block_worse_is_undone() -> None:
    original, small = networks()
    found = reconstruct(small, original, images(8), ReconstructOptions(steps=3, learning_rate=1e4))
    assert all(block.after == block.before for block in found.blocks)
    for name, value in small.state_dict().items():
        torch.testing.assert_close(found.module.state_dict()[name], value, rtol=0, atol=0)


def test_too_few_images_or_steps_are_refused() -> None:
    original, small = networks()
    with pytest.raises(DataError, match="at least two"):
        reconstruct(small, original, images(1))
    with pytest.raises(UsageError, match="positive"):
        reconstruct(small, original, images(2), ReconstructOptions(steps=0))
