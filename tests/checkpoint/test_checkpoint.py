"""Checkpoints: round trips, building, starting weights, and state dicts from elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from compress.checkpoint.load import create, load
from compress.checkpoint.reading import FORMAT
from compress.checkpoint.save import save
from compress.errors import CheckpointError, NetworkError
from compress.model import Model
from compress.network.duplicate import duplicate
from compress.network.source import NetworkSpec
from compress.pose.spec import PoseSpec
from compress.surgery.edits import FactorizeEdit, apply_edits
from compress.zoo.registry import NetworkEntry, build, get_entry

SMALL = {"refinements": 1, "width": 8, "backbone_scale": 0.125, "blocks": 1, "head_width": 8}

RESNET = """
import torch
from torch import nn
from torch.nn import functional

class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.more = stride, outputs - inputs

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + functional.pad(x[..., ::self.stride, ::self.stride], [0] * 5 + [self.more]))

class ResNet(nn.Module):
    def __init__(self, width=16, blocks=3):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        sizes = [width, width, 2 * width, 4 * width]
        for index in range(3):
            first = Block(sizes[index], sizes[index + 1], 2 if index else 1)
            more = (Block(sizes[index + 1], sizes[index + 1], 1) for _ in range(blocks - 1))
            setattr(self, f"layer{index + 1}", nn.Sequential(first, *more))
        self.linear = nn.Linear(4 * width, 10)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))

def resnet20(width=16):
    return ResNet(width)

class Tied(nn.Module):
    example = (1, 3)

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("grid", torch.arange(3.0), persistent=False)

    def forward(self, x):
        return self.second(self.first(x + self.grid))
"""


@pytest.fixture
def mynetworks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = "networks_of_another_user"
    (tmp_path / f"{name}.py").write_text(RESNET)
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def small() -> Model:
    return create("default", SMALL, seed=3, trained=False)


@pytest.fixture(scope="module")
def edited(small: Model) -> Model:
    edit = FactorizeEdit({"initial_stage.trunk.1.0": ("tucker2", (3, 2)), "cpm.align.0": ("svd", (4,))})
    module = apply_edits(small.module, (edit,))
    return small.derive(module, edits=(edit,), command="factorize", ratio="1/3", layers=[{"ranks": [3, 2]}])


def same_weights(a: Any, b: Any) -> bool:
    return list(a) == list(b) and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def assert_same(a: Model, b: Model) -> None:
    assert same_weights(a.module.state_dict(), b.module.state_dict())
    nothing = nn.Identity()
    assert replace(a, module=nothing, label="") == replace(b, module=nothing, label="")


def with_state(model: Model, state: dict[str, Tensor]) -> Model:
    """The model with the very tensors of a state dict as its parameters."""
    module = duplicate(model.module)
    module.load_state_dict(state, assign=True)
    return replace(model, module=module)


def module_prefixed(state: Any) -> dict[str, Any]:
    return {f"module.{key}": value for key, value in state.items()}


# Round trips


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("which", ["small", "edited"])
def test_a_checkpoint_comes_back_bit_for_bit(
    which: str, suffix: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    before: Model = request.getfixturevalue(which)
    path = tmp_path / f"model{suffix}"
    save(before, path)
    after = load(path)
    assert_same(after, before)
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected, found = before.module(image)[-1], after.module(image)[-1]
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_both_formats_hold_the_same_record_and_nothing_but_plain_values(edited: Model, tmp_path: Path) -> None:
    save(edited, tmp_path / "model.pt")
    save(edited, tmp_path / "model.safetensors")
    record = torch.load(tmp_path / "model.pt", weights_only=True)
    keys = "format version network inputs outputs edits pose history plan state_dict"
    assert set(record) == set(keys.split())
    assert (record.pop("format"), record["version"]) == ("compress-checkpoint", 2)
    assert same_weights(record.pop("state_dict"), edited.module.state_dict())
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        metadata = json.loads(file.metadata()[FORMAT])
    assert metadata.pop("format") == FORMAT
    assert metadata == record


def test_networks_outlive_a_change_of_their_defaults(tmp_path: Path) -> None:
    save(create("lightweight-openpose", {"refinements": 0}), tmp_path / "a.pt")
    assert torch.load(tmp_path / "a.pt", weights_only=True)["network"]["options"] == {"refinements": 0}
    assert create("default", {"width": 8}, trained=False).source.options["blocks"] == 3


def test_views_and_shared_tensors_are_saved_as_themselves(small: Model, tmp_path: Path) -> None:
    large = torch.zeros(10_000_000)
    state = dict(small.module.state_dict())
    keys = [key for key in state if key.startswith("initial_stage.trunk") and key.endswith("0.0.weight")]
    large[: state[keys[0]].numel()] = state[keys[0]].flatten()
    state[keys[0]] = large[: state[keys[0]].numel()].view_as(state[keys[0]])
    state["initial_stage.trunk.1.0.weight"] = state["initial_stage.trunk.2.0.weight"] = state[keys[0]]
    shared = with_state(small, state)
    for suffix in (".pt", ".safetensors"):
        path = tmp_path / f"model{suffix}"
        save(shared, path)
        assert path.stat().st_size < 1_000_000
        assert same_weights(load(path).module.state_dict(), state)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_half_precision_storage_gives_a_float32_network(small: Model, suffix: str, tmp_path: Path) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in small.module.state_dict().items()}
    path = tmp_path / f"model{suffix}"
    save(with_state(small, half), path)
    module = load(path).module
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert all(torch.equal(value, half[key].to(value.dtype)) for key, value in module.state_dict().items())
    assert all(p.requires_grad for p in module.parameters())


# Building


def test_each_load_gives_a_network_of_its_own_in_eval_mode(small: Model, tmp_path: Path) -> None:
    save(small, tmp_path / "model.pt")
    first, second = load(tmp_path / "model.pt").module, load(tmp_path / "model.pt").module
    assert not any(part.training for part in first.modules())
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    assert same_weights(second.state_dict(), small.module.state_dict())
    assert all(p.requires_grad and p.is_leaf and p.device.type == "cpu" for p in second.parameters())


def test_building_and_loading_leave_the_random_state_alone(small: Model, tmp_path: Path) -> None:
    save(small, tmp_path / "model.pt")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(tmp_path / "model.pt")
    create("default", SMALL, seed=9, trained=False)
    assert torch.equal(torch.rand(3), expected)


def test_weights_that_do_not_fit_are_refused(small: Model, tmp_path: Path) -> None:
    save(small, tmp_path / "model.pt")
    record = torch.load(tmp_path / "model.pt", weights_only=True)
    record["state_dict"].pop("cpm.conv.0.weight")
    torch.save(record, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"default: 1 missing: cpm\.conv\.0\.weight"):
        load(tmp_path / "model.pt")


def test_deriving_a_model_adds_to_its_history_and_keeps_the_rest(small: Model) -> None:
    later = small.derive(small.module, command="finetune", steps=5)
    assert later.history == (*small.history, {"command": "finetune", "steps": 5})
    assert small.derive(small.module).history == small.history
    assert (later.source, later.pose, later.edits) == (small.source, small.pose, small.edits)


# Starting


def test_a_seed_gives_the_same_random_weights() -> None:
    first, again, other = (create("default", SMALL, seed=seed, trained=False) for seed in (1, 1, 2))
    assert_same(first, again)
    assert not torch.equal(
        first.module.state_dict()["cpm.conv.0.weight"], other.module.state_dict()["cpm.conv.0.weight"]
    )
    assert first.history[-1]["trained"] is False
    assert first.pose == get_entry("default").pose


def test_shipped_weights_are_taken_where_there_are_any(
    small: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "default.pt"
    save(small, shipped)
    entry = replace(get_entry("default"), weights=shipped)
    assert isinstance(entry, NetworkEntry)
    for name in ("load", "record"):
        monkeypatch.setattr(f"compress.checkpoint.{name}.get_entry", lambda name: entry)
    for trained in (None, True):
        found = create("default", SMALL, trained=trained)
        assert same_weights(found.module.state_dict(), small.module.state_dict())
        assert found.history[-1]["trained"] is True
    assert create("default", SMALL, seed=4, trained=False).history[-1]["trained"] is False
    assert create("default", {**SMALL, "width": 16}).history[-1]["trained"] is False
    with pytest.raises(NetworkError, match="no trained weights of the network default with these options"):
        create("default", {**SMALL, "width": 16}, trained=True)


def test_networks_without_shipped_weights_start_random() -> None:
    assert create("human-pose-estimation-0001").history[-1]["trained"] is False
    with pytest.raises(NetworkError, match="no trained weights"):
        create("human-pose-estimation-0001", trained=True)
    with pytest.raises(NetworkError, match="unknown option"):
        create("human-pose-estimation-0001", {"width": 3})


# Foreign state dicts


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        module_prefixed,
        lambda state: {"state_dict": module_prefixed(state), "iter": 370000, "optimizer": {"lr": 4e-5}},
        lambda state: {"model": state, "epoch": 3},
    ],
)
@pytest.mark.parametrize("name", [None, "lightweight-openpose"])
@pytest.mark.parametrize("legacy", [False, True])
def test_public_files_load_by_detection_and_by_name(
    wrap: Callable[[Any], Any], name: str | None, legacy: bool, tmp_path: Path
) -> None:
    start = create("lightweight-openpose", {"refinements": 2})
    path = tmp_path / "checkpoint_iter_370000.pth"
    torch.save(wrap(start.module.state_dict()), path, _use_new_zipfile_serialization=not legacy)
    loaded = load(path, name)
    assert loaded.source == start.source
    assert loaded.pose == start.pose
    assert same_weights(loaded.module.state_dict(), start.module.state_dict())
    assert loaded.history == (
        {"command": "import", "file": "checkpoint_iter_370000.pth", "network": "lightweight-openpose"},
    )


def test_a_plain_safetensors_file_is_a_foreign_state_dict(tmp_path: Path) -> None:
    start = create("human-pose-estimation-0001")
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(dict(start.module.state_dict()), path, metadata={"format": "pt"})
    assert load(path).source == NetworkSpec("human-pose-estimation-0001")
    assert same_weights(load(path).module.state_dict(), start.module.state_dict())


def test_the_wrong_name_is_refused_with_what_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(dict(create("lightweight-openpose").module.state_dict()), path)
    with pytest.raises(CheckpointError, match=r"human-pose-estimation-0001: 11\d missing.*unexpected.*--network"):
        load(path, "human-pose-estimation-0001")
    with pytest.raises(NetworkError, match="unknown network"):
        load(path, "openpose")


@pytest.mark.real
def test_open_model_zoo_weights_load_by_detection_and_by_name(assets: Path) -> None:
    path = assets / "weights" / "human-pose-estimation-0001" / "human-pose-estimation-0001.pth"
    raw = torch.load(path, weights_only=True)["state_dict"]
    for name in (None, "human-pose-estimation-0001"):
        loaded = load(path, name)
        assert loaded.source == NetworkSpec("human-pose-estimation-0001")
        assert loaded.pose == PoseSpec(height=368)
        assert same_weights(loaded.module.state_dict(), raw)


@pytest.mark.real
def test_a_network_of_the_users_own_loads_by_its_factory(assets: Path, mynetworks: str, tmp_path: Path) -> None:
    path = assets / "weights" / "cifar10_resnet" / "resnet20-12fca82f.th"
    with pytest.raises(CheckpointError, match=r"no known network.*lightweight-openpose.*package\.module:factory"):
        load(path)
    loaded = load(path, f"{mynetworks}:resnet20")
    assert loaded.source == NetworkSpec(f"{mynetworks}:resnet20")
    raw = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    module = loaded.module
    # The file predates batch counters.
    assert all(torch.equal(module.state_dict()[key.removeprefix("module.")], raw[key]) for key in raw)
    assert module(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    save(loaded, tmp_path / "ours.pt")
    assert_same(load(tmp_path / "ours.pt", f"{mynetworks}:resnet20"), loaded)


def test_ties_and_unsaved_buffers_of_a_users_network_stay(mynetworks: str) -> None:
    start = create(f"{mynetworks}:Tied")
    module = start.module
    first, second = module.get_submodule("first"), module.get_submodule("second")
    assert first.weight is second.weight
    assert torch.equal(module.get_buffer("grid"), torch.arange(3.0))
    assert same_weights(module.state_dict(), start.module.state_dict())


def test_a_sibling_that_the_user_names_has_the_detected_depth(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = build(NetworkSpec("simple-baseline-mpii", {"depth": 101}))
    torch.save(module.state_dict(), tmp_path / "foreign.pt")
    found = load(tmp_path / "foreign.pt", network="simple-baseline-mpii")
    assert found.source == NetworkSpec("simple-baseline-mpii", {"depth": 101})
    with pytest.raises(CheckpointError, match="lite-hrnet"):
        load(tmp_path / "foreign.pt", network="lite-hrnet")
