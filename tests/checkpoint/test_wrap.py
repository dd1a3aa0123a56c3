"""Any module as a model: what its forward may return, which wrappers are taken off, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm
from torch.optim.swa_utils import AveragedModel

from compress.checkpoint.load import create, load
from compress.checkpoint.save import save
from compress.checkpoint.wrap import wrap
from compress.errors import CheckpointError, CompressError, NetworkError
from compress.model import cost
from compress.network.inputs import InputSpec
from compress.pose.spec import PoseSpec
from compress.surgery.edits import FactorizeEdit, apply_edits


class Maps(nn.Module):
    """Heatmaps and fields at stride 8, returned as ``give`` puts them."""

    def __init__(
        self, give: Callable[[Tensor, Tensor], Any] = lambda heat, paf: (heat, paf), channels: int = 3
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 16, 3, 8, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.mid = nn.Conv2d(16, 16, 3, 1, 1)
        self.heat, self.paf = nn.Conv2d(16, 19, 1), nn.Conv2d(16, 38, 1)
        self.give = give

    def forward(self, x: Tensor) -> Any:
        features = self.mid(self.stem(x))
        return self.give(self.heat(features), self.paf(features))


@dataclass
class Named:
    heatmaps: Tensor
    pafs: Tensor


Pair = namedtuple("Pair", ["heatmaps", "pafs"])

FORMS = {
    "tuple": lambda h, p: (h, p),
    "list": lambda h, p: [p, h],
    "dict": lambda h, p: {"pafs": p, "heatmaps": h},
    "other names": lambda h, p: {"a": p, "b": h},
    "stages": lambda h, p: [{"heatmaps": h + 1, "pafs": p}, {"heatmaps": h, "pafs": p}],
    "flat stages": lambda h, p: [h + 1, p, h, p],
    "nested": lambda h, p: {"out": (h, {"field": p}), "loss": None},
    "dataclass": lambda h, p: Named(h, p),
    "namedtuple": lambda h, p: Pair(h, p),
}


@pytest.mark.parametrize("form", FORMS)
def test_whatever_a_forward_returns_the_outputs_of_a_pose_network_are_found(form: str) -> None:
    net = Maps(FORMS[form]).eval()
    model = wrap(net, (1, 3, 64, 48), PoseSpec())
    image = torch.rand(2, 3, 64, 48)
    with torch.no_grad():
        found = model.run(image)
        features = net.mid(net.stem(image))
        wanted = {"heatmaps": net.heat(features), "pafs": net.paf(features)}
    assert list(found) == ["heatmaps", "pafs"]
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize(
    ("give", "names"),
    [
        (lambda h, p: h, ["output"]),
        (lambda h, p: (h, p), ["output_0", "output_1"]),
        (lambda h, p: {"a": h, "b": [p]}, ["a", "b.0"]),
        (lambda h, p: [{"x": h}, {"x": p}], ["x"]),
        (lambda h, p: (h.mean(), h.argmax(1)), ["output_0", "output_1"]),
    ],
)
def test_a_network_without_keypoints_has_all_its_outputs(give: Any, names: list[str]) -> None:
    model = wrap(Maps(give, channels=1), (1, 1, 32, 32))
    assert model.pose is None
    assert list(model.run(torch.rand(1, 1, 32, 32))) == names
    assert model.cost.macs > 0


def test_the_network_stays_as_it_was_and_the_model_has_its_own_copy() -> None:
    net = Maps().train()
    net.mid.requires_grad_(False)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    model = wrap(net, (1, 3, 32, 32))
    assert net.training
    assert not any(part.training for part in model.module.modules())
    assert not net.mid.weight.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    with torch.no_grad():
        net.mid.weight.zero_()
    assert model.module.get_parameter("mid.weight").abs().sum() > 0


def test_costs_are_counted_for_a_batch_of_one_at_any_size() -> None:
    model = wrap(Maps(), torch.rand(4, 3, 32, 48))
    assert model.inputs == (InputSpec((1, 3, 32, 48)),)
    assert model.size == (32, 48)
    assert cost(model) == wrap(Maps(), (1, 3, 32, 48)).cost
    assert cost(model, (64, 96)).macs == 4 * cost(model).macs


def test_several_inputs_are_positional() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.embed = nn.Conv2d(3, 4, 1), nn.Embedding(5, 4)

        def forward(self, x: Tensor, index: Tensor) -> Tensor:
            return self.conv(x) + self.embed(index)[:, :, None, None]

    model = wrap(Two(), ((2, 3, 8, 8), torch.tensor([1, 2])))
    assert model.inputs == (InputSpec((1, 3, 8, 8)), InputSpec((1,), "int64"))
    assert model.run((torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 4])))["output"].shape == (3, 4, 8, 8)


class Holder(nn.Module):
    """Keeps an averaged network and can't be called."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def compiled_part(net: Maps) -> nn.Module:
    net.mid = torch.compile(net.mid)  # type: ignore[assignment]
    return net


def checkpointed_part(net: Maps) -> nn.Module:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    net.mid = checkpoint_wrapper(net.mid)
    return net


def compiled_in_place(net: Maps) -> nn.Module:
    net.compile()
    return net


@pytest.mark.parametrize(
    "put_around",
    [nn.DataParallel, torch.compile, AveragedModel, Holder, compiled_part, checkpointed_part, compiled_in_place,
     lambda net: nn.DataParallel(torch.compile(net))],
)  # fmt: skip
def test_wrappers_are_taken_off(put_around: Callable[[Maps], nn.Module]) -> None:
    net = Maps()
    names = list(net.state_dict())
    model = wrap(put_around(net), (1, 3, 32, 32))
    assert type(model.module) is Maps
    assert list(model.module.state_dict()) == names
    assert model.source.name == f"{__name__}:Maps"
    assert len(model.layers) == 4


@pytest.mark.parametrize(
    "derive", [weight_norm, parametrizations.weight_norm, parametrizations.spectral_norm,
               lambda conv: prune.l1_unstructured(conv, "weight", 0.3)],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_layers_with_derived_weights_are_wrapped_saved_and_loaded(derive: Any, tmp_path: Path) -> None:
    def make() -> nn.Module:
        net = Maps(lambda h, p: h)
        net.mid = derive(net.mid)
        return net

    model = wrap(make(), (1, 3, 32, 32))
    assert not model.layers.by_name["mid"].plain
    save(model, tmp_path / "m.pt")
    image = torch.rand(1, 3, 32, 32)
    loaded = load(tmp_path / "m.pt", network=make)
    torch.testing.assert_close(loaded.run(image)["output"], model.run(image)["output"])


# Files


def test_a_wrapped_network_comes_back_with_its_class_and_its_edits(tmp_path: Path) -> None:
    model = wrap(Maps(), (1, 3, 64, 48), PoseSpec(height=64), name="mine")
    assert (model.label, model.source.name) == ("mine", f"{__name__}:Maps")
    edit = FactorizeEdit({"mid": ("tucker2", (4, 4))})
    small = model.derive(apply_edits(model.module, (edit,)), edits=(edit,), command="factorize")
    save(small, tmp_path / "small.pt")
    image = torch.rand(1, 3, 64, 48)
    for network in (Maps, Maps(), lambda: nn.DataParallel(Maps())):
        loaded = load(tmp_path / "small.pt", network=network)
        assert (loaded.source, loaded.pose, loaded.inputs, loaded.edits) == (
            small.source, small.pose, small.inputs, small.edits,
        )  # fmt: skip
        for name, value in small.run(image).items():
            torch.testing.assert_close(loaded.run(image)[name], value)
    with pytest.raises(CheckpointError, match=r"network outside the package.*network= in Python"):
        load(tmp_path / "small.pt")
    with pytest.raises(CheckpointError, match="names a layer that the network does not have"):
        load(tmp_path / "small.pt", network=lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)))


NOTEBOOK = """
import sys, torch, compress
class Net(torch.nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, width, 3, 2, 1)
    def forward(self, x):
        return self.conv(x)
model = compress.wrap(Net(), example=(1, 1, 32, 32))
compress.save(model, sys.argv[1])
loaded = compress.load(sys.argv[1], network=Net)
assert torch.equal(loaded.module.conv.weight, model.module.conv.weight)
print(loaded.source.name)
"""


def test_a_class_of_a_notebook_is_saved_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    done = subprocess.run([sys.executable, "-c", NOTEBOOK, str(path)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "__main__:Net", done.stderr
    (tmp_path / "net.py").write_text(NOTEBOOK.partition("model = ")[0])
    assert load(path, network=f"{tmp_path / 'net.py'}:Net").cost.params == 80


def test_bare_weights_load_into_a_class(tmp_path: Path) -> None:
    net = Maps()
    torch.save({"net": net.state_dict(), "epoch": 3}, tmp_path / "w.pth")
    model = load(tmp_path / "w.pth", network=Maps)
    assert torch.equal(model.module.get_parameter("mid.weight"), net.mid.weight)
    assert model.pose == PoseSpec(), "its outputs are those of the default pose specification"
    assert model.history[-1]["command"] == "import"


OWN = """
import torch
from torch import nn
class Pose(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 8, 1)
        self.heat, self.paf = nn.Conv2d(16, 19, 1), nn.Conv2d(16, 38, 1)
    def forward(self, x):
        x = self.conv(x)
        return self.heat(x), self.paf(x)
class Heat(Pose):
    def forward(self, x):
        return super().forward(x)[0]
class Crop(Heat):
    pose = {"decoder": "heatmap", "outputs": ["heatmaps"], "height": 64, "width": 48}
class Wrong(Heat):
    pose = {"decoder": "paf"}
class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * 8 * 8, 4)
    def forward(self, x):
        return self.linear(x.flatten(1))
class Sized(Fixed):
    example = (2, 3, 8, 8)
def wrapped():
    return nn.DataParallel(Pose())
def lazy():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyConv2d(5, 3))
class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = Pose()
    def forward(self, x):
        return self.module(x)
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return str(path)


def test_a_new_network_has_the_default_pose_specification_only_if_it_fits(own: str) -> None:
    assert create(f"{own}:Pose").pose == PoseSpec()
    assert create(f"{own}:Heat").pose is None
    crop = create(f"{own}:Crop").pose
    assert crop is not None
    assert (crop.decoder, crop.size) == ("heatmap", (64, 48))
    with pytest.raises(NetworkError, match=r"expects heatmaps with 19.*pafs with 38.*output \(1, 19, 46, 46\)"):
        create(f"{own}:Wrong")


def test_the_example_of_a_factory_is_the_shape_of_its_input(own: str) -> None:
    assert create(f"{own}:Sized").inputs == (InputSpec((1, 3, 8, 8)),)
    with pytest.raises(NetworkError, match=r"forward fails on inputs of shape.*make\.example"):
        create(f"{own}:Fixed")


@pytest.mark.parametrize("name", ["Pose", "wrapped", "Inner"])
def test_a_new_network_is_loaded_again_whatever_is_around_it(own: str, name: str, tmp_path: Path) -> None:
    start = create(f"{own}:{name}")
    save(start, tmp_path / "m.pt")
    loaded = load(tmp_path / "m.pt", f"{own}:{name}")
    assert list(loaded.module.state_dict()) == list(start.module.state_dict())
    assert (loaded.pose, loaded.outputs, loaded.history) == (start.pose, start.outputs, start.history)


# Refusals


@pytest.mark.parametrize(
    ("net", "example", "pose", "message"),
    [
        (Maps(), (1, 1, 32, 32), None, r"forward fails on inputs of shape \(1, 1, 32, 32\): RuntimeError.*example="),
        (Maps(), "(1, 3, 32, 32)", None, r"an example is the shape of the input.*example=\(1, 3, 256, 192\)"),
        (Maps(), (1, 3, 0, 32), None, r"positive whole numbers"),
        (Maps(lambda h, p: None), (1, 3, 32, 32), None, r"returns no tensor.*NoneType.*Return a tensor"),
        (Maps(lambda h, p: h.detach().numpy()), (1, 3, 32, 32), None, r"returns no tensor.*ndarray"),
        (Maps(lambda h, p: h), (1, 3, 32, 32), PoseSpec(), r"heatmaps with 19 channels.*output \(1, 19, 4, 4\)"),
        (Maps(lambda h, p: (h[:, 1:], p)), (1, 3, 32, 32), PoseSpec(), r"0 \(1, 18, 4, 4\), 1 \(1, 38, 4, 4\)"),
        (Maps(), (1, 3, 32, 32), PoseSpec(stride=4), r"stride of 4.*heatmaps.*32x32.*heatmaps \(1, 19, 4, 4\)"),
        (Maps(channels=1), (1, 1, 32, 32), PoseSpec(), r"images of 3 channel.*\(1, 1, 32, 32\)"),
        (Maps(), (1, 3, 32, 32), {"strid": 8}, r"unknown key in a pose specification"),
        (nn.Sequential(nn.LazyConv2d(3, 3)), (1, 3, 32, 32), None, r"lazy layers without weights.*Run it once"),
        (torch.jit.script(nn.Conv2d(3, 3, 1)), (1, 3, 8, 8), None, r"TorchScript module.*Wrap the module it came from"),
        (Maps().to("meta"), (1, 3, 32, 32), None, r"without values|can't be copied"),
        ("net", (1, 3, 32, 32), None, r"only a torch\.nn\.Module can be wrapped.*str"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_what_can_not_be_wrapped_is_one_clear_error(net: Any, example: Any, pose: Any, message: str) -> None:
    with pytest.raises(CompressError, match=message) as caught:
        wrap(net, example, pose)
    assert "\n" not in str(caught.value)


def test_an_ema_holder_that_is_no_module_is_named(own: str) -> None:
    class Ema:
        ema = Maps()

    with pytest.raises(NetworkError, match=r"Ema.*Wrap its attribute ema"):
        wrap(Ema(), (1, 3, 32, 32))  # type: ignore[arg-type]


def test_lazy_layers_are_refused_where_a_network_starts(own: str) -> None:
    with pytest.raises(NetworkError, match=r"lazy layers without weights.*1\.weight"):
        create(f"{own}:lazy")


def test_a_layer_that_is_reached_by_its_attributes_is_one_clear_error() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.conv.weight, self.conv.bias, padding=1)

    model = wrap(Reads(), (1, 8, 16, 16))
    edit = FactorizeEdit({"conv": ("tucker2", (2, 2))})
    small = model.derive(apply_edits(model.module, (edit,)), edits=(edit,))
    with pytest.raises(NetworkError, match=r"reads an attribute of a layer that was replaced.*weight.*exclude"):
        _ = small.cost
