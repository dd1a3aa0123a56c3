from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.errors import RuntimeAbsent
from compress.pose.spec import PoseSpec
from compress.runtime.torch_runner import TorchOptions, TorchRunner

SPEC = PoseSpec(stride=1)
IMAGES = np.random.default_rng(0).normal(size=(1, 3, 8, 12)).astype(np.float32)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 57, 3, padding=1)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        maps = self.conv(images).relu()
        return [{"heatmaps": maps[:, :19], "pafs": maps[:, 19:]}]


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("options", [TorchOptions(graphs=True), TorchOptions(compile=True, graphs=True)])
def test_graphs_are_refused_on_a_cpu(network: Network, options: TorchOptions) -> None:
    with pytest.raises(RuntimeAbsent, match="CUDA graphs need a CUDA device"):
        TorchRunner(network, SPEC, options=options)
    with pytest.raises(RuntimeAbsent, match="no device cuda"):
        TorchRunner(network, SPEC, device="cuda", options=options)


def test_compiling_without_a_compiler_is_refused(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RuntimeAbsent, match=r"torch\.compile needs a C\+\+ compiler"):
        TorchRunner(network, SPEC, options=TorchOptions(compile=True))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_network_gives_the_same_maps(network: Network) -> None:
    plain = TorchRunner(network, SPEC, threads=1).run(IMAGES)
    compiled = TorchRunner(network, SPEC, threads=1, options=TorchOptions(compile=True))
    for name, value in compiled.run(IMAGES).items():
        np.testing.assert_allclose(value, plain[name], atol=1e-5)
    assert compiled.device_ms is None


@pytest.mark.parametrize("last", [True, False])
def test_channels_lie_as_asked_and_maps_stay_the_same(network: Network, last: bool) -> None:
    seen: list[bool] = []

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    network.conv.register_forward_hook(watch)
    maps = TorchRunner(network, SPEC, options=TorchOptions(channels_last=last)).run(IMAGES)
    assert seen == [last]
    expected = network.conv(torch.from_numpy(IMAGES)).relu().detach().numpy()
    np.testing.assert_allclose(maps["pafs"], expected[:, 19:], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (TorchOptions(), "plain"),
        (TorchOptions(compile=True, channels_last=False), "compile, channels first"),
        (TorchOptions(graphs=True), "graphs"),
    ],
)
def test_options_are_named_in_tables(options: TorchOptions, text: str) -> None:
    assert str(options) == text
