"""What the torch runner does to a module, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.errors import NetworkError, RuntimeAbsent
from compress.pose.spec import PoseSpec
from compress.runtime.torch_runner import TorchRunner

IMAGES = np.random.default_rng(0).normal(size=(1, 3, 32, 48)).astype(np.float32)


def test_the_module_stays_as_it_was(one_convolution: nn.Module) -> None:
    one_convolution.train()
    one_convolution.dropout.eval()  # type: ignore[union-attr]
    state = {key: value.clone() for key, value in one_convolution.state_dict().items()}
    runner = TorchRunner(one_convolution, PoseSpec(), precision="bf16")
    runner.run(IMAGES)
    runner.close()
    assert one_convolution.training
    assert not one_convolution.dropout.training  # type: ignore[union-attr]
    assert all(torch.equal(value, state[key]) for key, value in one_convolution.state_dict().items())
    assert all(p.requires_grad and p.is_contiguous() for p in one_convolution.parameters())


def test_it_runs_in_evaluation_mode_and_without_gradients(one_convolution: nn.Module) -> None:
    runner = TorchRunner(one_convolution.train(), PoseSpec())
    first, second = runner.run(IMAGES), runner.run(IMAGES)
    assert all(np.array_equal(first[name], second[name]) for name in first)  # dropout would differ


def test_it_keeps_the_weights_of_its_making(one_convolution: nn.Module) -> None:
    runner = TorchRunner(one_convolution, PoseSpec())
    before = runner.run(IMAGES)
    with torch.no_grad():
        one_convolution.conv.weight.zero_()  # type: ignore[union-attr, operator]
    assert np.array_equal(runner.run(IMAGES)["pafs"], before["pafs"])


def test_bf16_is_less_exact_and_still_gives_float32(one_convolution: nn.Module) -> None:
    exact = TorchRunner(one_convolution, PoseSpec()).run(IMAGES)
    rounded = TorchRunner(one_convolution, PoseSpec(), precision="bf16").run(IMAGES)
    for name, value in exact.items():
        assert rounded[name].dtype == np.float32
        assert 1e-3 < np.abs(rounded[name] - value).max() < 0.3


def test_fp16_on_the_cpu_is_refused(one_convolution: nn.Module) -> None:
    with pytest.raises(RuntimeAbsent, match=r"no fp16 arithmetic on CPUs.*bf16"):
        TorchRunner(one_convolution, PoseSpec(), precision="fp16")


class Spy(nn.Module):
    """Notes the threads and the autograd mode that it runs under."""

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        self.__class__.seen = (torch.get_num_threads(), torch.is_inference_mode_enabled())
        return [{"heatmaps": images[:, :1], "pafs": images[:, 1:]}]

    seen = (0, False)


def test_threads_hold_while_it_runs_and_no_longer() -> None:
    before = torch.get_num_threads()
    TorchRunner(Spy(), PoseSpec(), threads=before + 2).run(IMAGES)
    assert Spy.seen == (before + 2, True)
    assert torch.get_num_threads() == before
    TorchRunner(Spy(), PoseSpec()).run(IMAGES)
    assert Spy.seen == (before, True)


def test_a_map_that_the_network_lacks_is_named() -> None:
    with pytest.raises(NetworkError, match=r"no edges.*heatmaps.*pafs"):
        TorchRunner(Spy(), PoseSpec(outputs=("heatmaps", "edges"))).run(IMAGES)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_a_gpu_computes_in_true_float32(one_convolution: nn.Module) -> None:
    exact = TorchRunner(one_convolution, PoseSpec()).run(IMAGES)
    found = TorchRunner(one_convolution, PoseSpec(), device="cuda").run(IMAGES)
    assert all(np.abs(found[name] - value).max() < 2e-5 for name, value in exact.items())
    half = TorchRunner(one_convolution, PoseSpec(), device="cuda", precision="fp16").run(IMAGES)
    assert all(np.abs(half[name] - value).max() < 0.05 for name, value in exact.items())
