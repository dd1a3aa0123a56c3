"""Attention blocks swapped and inserted: outputs kept, weights carried over, edits replayed in any order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compress.checkpoint.load import create, load
from compress.checkpoint.save import save
from compress.checkpoint.wrap import wrap
from compress.commands.attention import AttentionOptions as CommandOptions
from compress.commands.registry import get_command
from compress.compression.attention import swap_attention
from compress.errors import CheckpointError, CompressError, FileError, NetworkError, UsageError
from compress.model import Model
from compress.network.inputs import image_input
from compress.planning.plan import Plan
from compress.planning.policies import Ratio, make_plan
from compress.planning.selection import Selection
from compress.progress import Silent
from compress.surgery.attention import AttentionEdit, AttentionOptions, BlockSpec, Swapped, swap_blocks
from compress.surgery.edits import Edit, FactorizeEdit, apply_edits, edit_from_dict
from compress.surgery.factorize import factorize
from compress.zoo.attention import KINDS, Attention, SpatialOptions, build_attention

SIZE = (32, 40)


def swap(
    module: nn.Module,
    kind: str,
    at: Sequence[str] = (),
    after: Sequence[str] = (),
    size: tuple[int, int] = SIZE,
    **options: Any,
) -> Swapped:
    return swap_blocks(module, kind, image_input(size), at=at, after=after, options=AttentionOptions(**options))


#: Kinds whose channel gates have the same form, so that their weights can be kept.
FAMILIES = ({"se", "se_spatial", "cbam"}, {"esa_seq", "esa_par", "esa_7"}, {"coord"})


class Toy(nn.Module):
    """Convolutions with two attention blocks, one called twice, and a layer whose attributes are read."""

    def __init__(self, kind: str = "se") -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, stride=2, padding=1)
        self.body = nn.Sequential(nn.Conv2d(24, 24, 3, padding=1), build_attention(kind, 24, 4), nn.BatchNorm2d(24))
        self.again = self.body
        self.last = build_attention(kind, 24, 4)
        self.out = nn.Conv2d(24, 5, 3, padding=1)
        self.distill_points = ("stem", "body.0")

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        if self.stem.stride != (2, 2):
            raise AssertionError
        x = self.again(self.body(self.stem(x)))
        return [{"maps": self.out(self.last(x))}]


def toy(kind: str = "se", seed: int = 0) -> Toy:
    torch.manual_seed(seed)
    network = Toy(kind)
    for name, parameter in network.named_parameters():
        if "last" in name or "body.1" in name:
            parameter.data.add_(torch.randn_like(parameter))
    network(torch.randn(2, 3, *SIZE))
    return network.eval()


def maps(module: nn.Module, seed: int = 1) -> Tensor:
    x = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return torch.cat([y.flatten() for y in module(x)[-1].values()])


def third(module: nn.Module, *include: str) -> Plan:
    return make_plan(module, Ratio("1/3"), Selection(include), network="toy", input_size=SIZE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after", [("stem",), ("body",), ("body.0", "body.2"), ("body.?",), ("last", "s*m")])
def test_inserted_blocks_change_no_output(kind: str, after: tuple[str, ...]) -> None:
    network = toy()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    done = swap(network, kind, after=after)
    assert torch.equal(maps(done.module), maps(network))
    assert not done.edit.swaps
    assert not done.carried
    added = [part for part in done.module.modules() if isinstance(part, Attention)]
    assert len(added) == 2 + len(done.edit.inserts)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("old", KINDS)
@pytest.mark.parametrize("new", KINDS)
def test_a_swapped_block_acts_only_by_the_weights_it_keeps(old: str, new: str) -> None:
    network = toy(old)
    done = swap(network, new, reduction=4)
    empty = swap(network, "none").module
    assert set(done.edit.swaps) == {"body.1", "last"}
    family = any({old, new} <= kinds for kinds in FAMILIES)
    assert {bool(names) for names in done.carried.values()} == {family}
    for name, tensors in done.carried.items():
        for tensor in tensors:
            path = f"{name}.{tensor}"
            assert torch.equal(done.module.state_dict()[path], network.state_dict()[path])
    if old == new or (old, new) == ("se", "se_spatial"):
        assert torch.allclose(maps(done.module), maps(network), atol=1e-5)
    if not family or (new.startswith("esa") and old != new):
        assert torch.equal(maps(done.module), maps(empty))
    elif old != "none":
        assert not torch.allclose(maps(done.module), maps(empty), atol=1e-3)


def test_another_reduction_keeps_no_channel_gate_and_the_default_keeps_the_reduction() -> None:
    network = toy("se_spatial")
    done = swap(network, "cbam", reduction=8)
    assert done.carried == {"body.1": (), "last": ()}
    kept = swap(network, "cbam")
    assert {spec.reduction for spec in kept.edit.swaps.values()} == {4}
    assert all("channel.reduce.weight" in names for names in kept.carried.values())
    assert {spec.reduction for spec in swap(network, "coord").edit.swaps.values()} == {32}


def test_the_activation_of_a_spatial_gate_is_recorded_and_kept() -> None:
    network = toy("esa_seq")
    plain = swap(network, "esa_seq")
    assert all("spatial" not in spec for spec in plain.edit.to_dict()["swaps"].values())  # as in earlier files
    done = swap(network, "esa_seq", spatial=SpatialOptions("relu"))
    assert done.carried == {"body.1": ("channel.reduce.weight", "channel.expand.weight"),
                            "last": ("channel.reduce.weight", "channel.expand.weight")}  # fmt: skip
    record = json.loads(json.dumps(done.edit.to_dict()))
    assert record["swaps"]["last"]["spatial"] == {"between": "relu", "width": 1}
    assert edit_from_dict(record) == done.edit
    replayed = apply_edits(toy("esa_seq"), [edit_from_dict(record)])
    replayed.load_state_dict(done.module.state_dict())
    assert torch.equal(maps(replayed), maps(done.module))
    again = swap(done.module, "esa_par")
    assert {spec.spatial for spec in again.edit.swaps.values()} == {SpatialOptions("relu")}
    assert {spec.spatial for spec in swap(done.module, "esa_7").edit.swaps.values()} == {SpatialOptions()}
    assert torch.allclose(maps(swap(done.module, "esa_seq").module), maps(done.module), atol=1e-6)


@pytest.mark.parametrize("spatial", [{"between": "tanh"}, {"width": 5}, {"other": 1}, "relu", {"width": 10**9}, None])
def test_an_edit_with_other_spatial_options_is_refused(spatial: Any) -> None:
    record = json.loads(json.dumps(swap(toy("esa_seq"), "esa_seq").edit.to_dict()))
    record["swaps"]["last"]["spatial"] = spatial
    with pytest.raises(CheckpointError, match="can't be read at last"):
        edit_from_dict(record)


def test_a_trained_blend_is_kept() -> None:
    network = swap(toy("none"), "se").module
    with torch.no_grad():
        network.get_parameter("last.channel.blend").fill_(0.25)
    done = swap(network, "se_spatial")
    assert done.module.get_parameter("last.channel.blend").item() == 0.25
    assert done.module.get_parameter("last.place.blend").item() == 0
    assert torch.equal(maps(done.module), maps(network))
    plain = swap(network, "se", identity=False)
    assert plain.carried == {"body.1": (), "last": ()}  # a plain gate can't be partly open


def test_only_what_is_named_is_swapped() -> None:
    network = toy("se")
    done = swap(network, "cbam", at=("body.*",), after=("stem",))
    kinds = {name: part.kind for name, part in done.module.named_modules() if isinstance(part, Attention)}
    assert kinds == {"stem.attention": "cbam", "body.1": "cbam", "last": "se"}
    assert done.module.get_submodule("again") is done.module.get_submodule("body")
    both = swap(network, "cbam", at=("last",), after=("last",))
    kinds = {name: part.kind for name, part in both.module.named_modules() if isinstance(part, Attention)}
    assert kinds == {"body.1": "se", "last.layer": "cbam", "last.attention": "cbam"}


def test_a_wrapped_module_keeps_its_attributes_and_names() -> None:
    network = swap(toy(), "se", after=("body.0", "stem")).module
    assert network.get_submodule("stem").stride == (2, 2)
    assert network.get_parameter("body.0.weight") is network.get_parameter("body.0.layer.weight")
    assert all(network.get_submodule(point) is not None for point in network.distill_points)
    with pytest.raises(AttributeError):
        network.get_submodule("stem").nothing  # noqa: B018


@settings(max_examples=25, deadline=None)
@given(
    old=st.sampled_from(KINDS),
    new=st.sampled_from(KINDS),
    after=st.sets(st.sampled_from(["stem", "body.0", "out", "last"])),
    factorized=st.sets(st.sampled_from(["body.0", "out"]), min_size=1),
    first=st.booleans(),
    identity=st.booleans(),
)
def test_swaps_and_factorization_compose_in_either_order_and_replay(
    old: str, new: str, after: set[str], factorized: set[str], first: bool, identity: bool
) -> None:
    network = toy(old)
    edits: list[Edit] = []

    def swapped(module: nn.Module) -> nn.Module:
        done = swap(module, new, at=("last", "body.1"), after=sorted(after), identity=identity)
        edits.append(done.edit)
        return done.module

    def shrink(module: nn.Module) -> nn.Module:
        names = dict(module.named_modules())
        plan = third(module, *(f"{name}.layer" if f"{name}.layer" in names else name for name in sorted(factorized)))
        edits.append(FactorizeEdit.from_plan(plan))
        return factorize(module, plan).module

    steps = (shrink, swapped) if first else (swapped, shrink)
    found = steps[1](steps[0](network))
    stored = [edit_from_dict(json.loads(json.dumps(edit.to_dict()))) for edit in edits]
    assert stored == edits
    with torch.device("meta"):
        bare = apply_edits(Toy(old), stored)
    assert list(bare.state_dict()) == list(found.state_dict())
    replayed = apply_edits(network, stored)
    replayed.load_state_dict(found.state_dict())
    assert torch.equal(maps(replayed), maps(found))
    other = steps[0](steps[1](network))
    shapes = {key: value.shape for key, value in found.state_dict().items()}
    assert {key: value.shape for key, value in other.state_dict().items()} == shapes


def test_full_ranks_after_a_swap_give_the_swapped_network() -> None:
    network = swap(toy("se"), "cbam", after=("body.0",)).module
    plan = third(network, "body.0.layer", "out")
    layers = tuple(
        replace(x, ranks=(24, 24 if x.name != "out" else 5)) if x.name in ("body.0.layer", "out") else x
        for x in plan.layers
    )
    done = factorize(network, replace(plan, layers=layers))
    assert len(done.plan.changed) == 2
    assert torch.allclose(maps(done.module), maps(network), atol=1e-4)


def test_a_fresh_block_learns() -> None:
    network = toy("none")
    done = swap(network, "cbam").module
    torch.manual_seed(3)
    x = torch.randn(2, 3, *SIZE)
    goal = network(x)[0]["maps"].detach() * 0.5
    parameters = [p for name, p in done.named_parameters() if "channel" in name or "place" in name]
    optimizer = torch.optim.Adam(parameters, 0.1)
    losses = []
    for _ in range(10):
        loss = (done(x)[0]["maps"] - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    assert all(p.grad is not None and bool(p.grad.any()) for p in parameters)


def test_fresh_weights_depend_on_the_seed_alone() -> None:
    network = toy("none")
    state = torch.random.get_rng_state()
    first, same, other = (swap(network, "coord", seed=seed).module.state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["last.coordinate.reduce.weight"], other["last.coordinate.reduce.weight"])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_training_mode_and_precision_are_kept() -> None:
    network = toy("se").double().train()
    done = swap(network, "cbam", after=("stem",)).module
    assert all(part.training for part in done.modules())
    assert {p.dtype for p in done.parameters()} == {torch.float64}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"at": ("foo",)}, UsageError, "no attention block matches.*foo.*Blocks: body.1, last"),
        ({"at": ("stem",)}, UsageError, "no attention block matches.*Blocks: body.1, last"),
        ({"after": ("sten",)}, UsageError, "no module matches.*similar: stem.*Convolutions: stem, body.0, out"),
        ({"after": ("last.channel",)}, UsageError, "no module matches"),
        ({"kind": "sea"}, NetworkError, "unknown kind of attention.*Known: none, se"),
        ({"reduction": 0}, NetworkError, "reduction must be an integer"),
    ],
)
def test_a_pattern_without_match_lists_what_could_match(
    options: dict[str, Any], error: type[CompressError], message: str
) -> None:
    arguments = {"kind": "cbam", **options}
    with pytest.raises(error, match=message):
        swap(toy(), **arguments)


def test_a_network_without_blocks_gets_a_hint_where_to_insert_some() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten())
    with pytest.raises(UsageError, match=r"no attention blocks to swap.*--after LAYER"):
        swap(network, "se")
    with pytest.raises(UsageError, match="The network has none; insert some"):
        swap(network, "se", at=("0",))
    with pytest.raises(NetworkError, match="1 returns no feature map"):
        swap(network, "se", after=("1",))
    unused = nn.Sequential(nn.Conv2d(3, 8, 3))
    unused[0].register_module("spare", nn.Conv2d(8, 8, 1))
    with pytest.raises(NetworkError, match=r"0\.spare is never called"):
        swap(unused, "se", after=("0.spare",))


def test_an_input_that_the_network_does_not_read_is_an_error() -> None:
    with pytest.raises(NetworkError, match=r"can't be run on inputs of shape \(1, 4, 32, 40\)"):
        swap_blocks(toy(), "cbam", image_input(SIZE, channels=4), after=("stem",))


class Reader(nn.Module):
    """Code that depends on the type of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(self.conv, nn.Conv2d):
            raise TypeError("no convolution")
        return self.conv(x)


def test_code_that_fails_with_the_block_is_an_error() -> None:
    with pytest.raises(NetworkError, match="TypeError: no convolution"):
        swap(Reader(), "se", after=("conv",))


SPEC = {"attention": "se", "channels": 24, "reduction": 4, "identity": True}


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"swaps": {}},
        {"swaps": {}, "inserts": []},
        {"swaps": {}, "inserts": {}, "more": 1},
        {"swaps": {"last": 3}, "inserts": {}},
        {"swaps": {"last": {**SPEC, "attention": "sea"}}, "inserts": {}},
        {"swaps": {"last": {**SPEC, "attention": ["se"]}}, "inserts": {}},
        {"swaps": {"last": {**SPEC, "channels": 10**9}}, "inserts": {}},
        {"swaps": {"last": {**SPEC, "channels": True}}, "inserts": {}},
        {"swaps": {"last": {**SPEC, "reduction": 0}}, "inserts": {}},
        {"swaps": {"last": {**SPEC, "identity": 1}}, "inserts": {}},
        {"swaps": {"last": {**SPEC, "more": 1}}, "inserts": {}},
        {"swaps": {}, "inserts": {3: SPEC}},
    ],
)
def test_damaged_records_are_refused(record: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError):
        edit_from_dict({"kind": "attention", **record})


@pytest.mark.parametrize(
    ("swaps", "inserts", "message"),
    [
        ({"nowhere": {}}, {}, "does not have.*nowhere"),
        ({"stem": {}}, {}, "stem is not an attention block of 24 channels"),
        ({"last": {"channels": 16}}, {}, "last is not an attention block of 16 channels"),
        ({}, {"": {}}, "does not have"),
    ],
)
def test_edits_of_another_network_are_refused(swaps: dict[str, Any], inserts: dict[str, Any], message: str) -> None:
    edit = AttentionEdit(*({k: BlockSpec(**{**SPEC, **v}) for k, v in part.items()} for part in (swaps, inserts)))
    with pytest.raises(CheckpointError, match=message):
        apply_edits(toy(), [edit])


@pytest.fixture
def small() -> Model:
    return create("attention-cpm", {"stages": 1, "width": 16})


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_replays_swaps_and_factorization(small: Model, suffix: str, tmp_path: Path) -> None:
    module = small.module
    swapped = swap(module, "cbam", after=("reduce",))
    plan = third(swapped.module, "stages.*")
    done = factorize(swapped.module, plan)
    path = tmp_path / f"model{suffix}"
    save(small.derive(done.module, edits=(swapped.edit, FactorizeEdit.from_plan(plan))), path)
    loaded = load(path)
    assert [edit.kind for edit in loaded.edits] == ["attention", "factorize"]
    assert torch.equal(maps(loaded.module), maps(done.module.eval()))


def test_the_command_writes_what_replays_and_lists_the_weights_kept(
    small: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(small, tmp_path / "model.pt")
    command = get_command("attention")
    options = CommandOptions(model=tmp_path / "model.pt", to="cbam", after=("reduce",), at=("*",), input=(64, 64))
    result = command.run(options, Silent())
    record = json.loads(json.dumps(result.record))
    assert record["output"] == str(tmp_path / "model-cbam.pt")
    rows = {row["name"]: row for row in record["blocks"]}
    assert rows["reduce"]["was"] is None
    assert rows["reduce"]["carried"] == []
    block = rows["stages.0.trunk.0.attention"]
    assert (block["was"], block["channels"], block["reduction"]) == ("se_spatial", 32, 16)
    assert block["carried"] == [f"channel.{x}.{y}" for x in ("reduce", "expand") for y in ("weight", "bias")]
    loaded = load(Path(record["output"]))
    assert sum(p.numel() for p in loaded.module.parameters()) == record["params"][1]
    assert loaded.history[-1]["to"] == "cbam"
    result.show()
    shown = capsys.readouterr().out
    assert "Attention blocks, now cbam" in shown
    assert "(inserted)" in shown
    assert "none: identity-initialised" in shown
    assert "channel.reduce.weight" in shown
    with pytest.raises(FileError, match="already exists"):
        command.run(options, Silent())


def test_the_command_offers_every_kind() -> None:
    assert get_args(CommandOptions.model_fields["to"].annotation) == KINDS


class Grey(nn.Module):
    """Reads one channel and a vector, and returns a bare tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.shift = nn.Linear(4, 16)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, image: Tensor, code: Tensor) -> Tensor:
        return self.head(self.stem(image) + self.shift(code)[:, :, None, None])


def test_any_model_gets_blocks_and_stays_as_it_was() -> None:
    network = Grey().eval()
    model = wrap(network, [(1, 1, 16, 12), (1, 4)])
    changed = swap_attention(model, "cbam", after="stem")
    inputs = (torch.randn(2, 1, 16, 12), torch.randn(2, 4))
    before, after = (m.run(inputs)["output"].detach() for m in (model, changed))
    assert torch.equal(before, after)
    assert changed.cost.params > model.cost.params
    assert model.edits == ()
    assert [edit.kind for edit in changed.edits] == ["attention"]
    assert changed.history[-1]["blocks"][0] == {
        "name": "stem", "was": None, "channels": 16, "reduction": 16, "carried": [],
    }  # fmt: skip
