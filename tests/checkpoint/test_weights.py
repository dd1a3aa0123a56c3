"""State dicts: what they are wrapped in, names that tools change, and the fit that leaves nothing to chance."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from compress.checkpoint.weights import LISTED, Weights, find_state, variants
from compress.checkpoint.weights import fit as fit_weights
from compress.errors import CheckpointError
from compress.network.source import NetworkSpec
from compress.zoo.registry import build


def fit(state: dict[str, Tensor], module: nn.Module, name: str = "mine") -> dict[str, Tensor]:
    return fit_weights(Weights(state), module, name).state


def state_of(name: str, **options: Any) -> dict[str, Tensor]:
    return dict(build(NetworkSpec(name, options)).state_dict())


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


@settings(max_examples=40, deadline=None)
@given(
    wrappers=st.lists(st.sampled_from(["state_dict", "model_state_dict", "model"]), max_size=3),
    prefixes=st.lists(st.sampled_from(["module.", "_orig_mod."]), max_size=3),
    ordered=st.booleans(),
)
def test_wrappers_and_prefixes_come_off_in_any_combination(
    wrappers: list[str], prefixes: list[str], ordered: bool
) -> None:
    state = {"conv.weight": torch.ones(2), "model.bias": torch.zeros(1), "module": torch.ones(1)}
    raw: Any = {"".join(prefixes) + key: value for key, value in state.items()}
    raw = OrderedDict(raw) if ordered else raw
    for wrapper in wrappers:
        raw = {"epoch": 3, "best_prec1": 91.7, "optimizer": {"lr": [1e-3]}, wrapper: raw}
    assert any(equal(each.state, state) for each in variants(find_state(raw)))


def test_a_prefix_that_only_some_names_have_is_a_name() -> None:
    state = {"module.weight": torch.ones(1), "head.weight": torch.ones(1)}
    assert [list(each.state) for each in variants(Weights(state))] == [list(state)]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([torch.ones(1)], "holds no state dict.*list"),
        (torch.ones(1), "holds no state dict.*Tensor"),
        (None, "holds no state dict"),
        ({}, "state dict is empty"),
        ({"state_dict": {}}, "state dict is empty"),
        ({"weight": torch.ones(1), "epoch": 3}, "more than tensors: epoch"),
        ({3: torch.ones(1)}, "more than tensors: a key of type int"),
        ({"state_dict": 3}, "more than tensors: state_dict"),
        ({"weight": torch.eye(2).to_sparse()}, "quantised, sparse and empty"),
        ({"weight": torch.ones(2, device="meta")}, "quantised, sparse and empty"),
    ],
)
def test_what_is_no_state_dict_is_refused(raw: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        find_state(raw)


@pytest.mark.filterwarnings("ignore:.*quantized")
def test_quantised_weights_are_refused() -> None:
    with pytest.raises(CheckpointError, match="quantised, sparse and empty"):
        find_state({"weight": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)})


def test_a_wrapper_around_itself_ends() -> None:
    raw: dict[str, Any] = {}
    raw["model"] = raw
    with pytest.raises(CheckpointError, match="more than tensors"):
        find_state(raw)


def test_old_files_without_batch_counters_fit() -> None:
    state = state_of("lightweight-openpose")
    counters = [key for key in state if key.endswith("num_batches_tracked")]
    old = {key: value for key, value in reversed(state.items()) if key not in counters}
    fitted = fit(old, build(NetworkSpec("lightweight-openpose")), "lightweight-openpose")
    assert len(counters) == 33
    assert equal(fitted, state)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_missing_unexpected_and_misshapen_tensor_is_named(data: st.DataObject) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    state = dict(network.state_dict())
    keys = [key for key in state if not key.endswith("num_batches_tracked")]
    missing = data.draw(st.sets(st.sampled_from(keys)))
    misshapen = data.draw(st.sets(st.sampled_from(keys))) - missing
    unexpected = data.draw(st.sets(st.sampled_from(["extra", "head.weight", "0.running_mean"])))
    given_state = {key: value for key, value in state.items() if key not in missing}
    given_state |= {key: torch.zeros(5, 5) for key in misshapen} | {key: torch.zeros(1) for key in unexpected}
    if not missing | misshapen | unexpected:
        assert equal(fit(given_state, network, "mine"), state)
        return
    with pytest.raises(CheckpointError) as caught:
        fit(given_state, network, "mine")
    message = str(caught.value)
    assert "network mine" in message
    assert all(key in message for key in missing | misshapen | unexpected)
    for count, fault in (
        (len(missing), "missing"),
        (len(unexpected), "unexpected"),
        (len(misshapen), "of another shape or kind"),
    ):
        assert (f"{count} {fault}" in message) == (count > 0)


def test_a_long_list_is_cut_and_counted() -> None:
    with pytest.raises(CheckpointError) as caught:
        fit({"x" * 500: torch.ones(1)}, build(NetworkSpec("lightweight-openpose")), "lightweight-openpose")
    message = str(caught.value)
    assert "217 missing" in message
    assert f"and {217 - LISTED} more" in message
    assert message.count("model.") == LISTED
    assert "x" * 117 + "..." in message
    assert "x" * 118 not in message


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool, torch.float4_e2m1fn_x2])
def test_weights_of_another_kind_are_refused(dtype: torch.dtype) -> None:
    network = nn.Linear(2, 2)
    state = dict(network.state_dict(), weight=torch.empty(2, 2, dtype=dtype))
    with pytest.raises(CheckpointError, match=f"weight {str(dtype).removeprefix('torch.')} instead of float32"):
        fit(state, network, "mine")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    network = nn.Linear(2, 2)
    state = dict(network.state_dict(), bias=torch.tensor([0.0, value]))
    with pytest.raises(CheckpointError, match=r"not finite.*: bias"):
        fit(state, network, "mine")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_take_the_precision_of_the_network(dtype: torch.dtype) -> None:
    network = nn.Linear(2, 2)
    state = {key: value.to(dtype) for key, value in network.state_dict().items()}
    fitted = fit(state, network, "mine")
    assert {value.dtype for value in fitted.values()} == {torch.float32}
    assert all(torch.equal(fitted[key], state[key].float()) for key in state)


# Names that tools change


class Pose(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Conv2d(4, 2, 1)


@pytest.fixture
def pose_network() -> Pose:
    torch.manual_seed(0)
    return Pose()


def put_in(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace("head.", f"head.{name}."): value for key, value in state.items()}


@pytest.mark.parametrize(
    ("change", "notice"),
    [
        (lambda w: {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in w.items()}}, "left out n_averaged"),
        (lambda w: {**w, "total_ops": torch.zeros(1), "head.total_params": torch.zeros(1)}, "left out total_ops"),
        (lambda w: {f"model.{k}": v for k, v in w.items()}, "took the prefix model. off"),
        (lambda w: {f"ema.{k}": v for k, v in w.items()}, "took the prefix ema. off"),
        (lambda w: put_in("_orig_mod", w), "wrappers of parts"),
        (lambda w: put_in("_checkpoint_wrapped_module", w), "wrappers of parts"),
        (lambda w: {f"net.{k}": v for k, v in w.items()} | {"loss.weight": torch.ones(3)}, "read the part net"),
        (lambda w: {f"module.{k}": v for k, v in w.items()}, None),
        (dict, None),
    ],
)
def test_names_are_brought_in_line_and_it_is_said(pose_network: Pose, change: Any, notice: str | None) -> None:
    state = dict(pose_network.state_dict())
    fitted = fit_weights(Weights(change(state)), pose_network, "mine")
    assert equal(fitted.state, state)
    assert (notice is None and fitted.notices == ()) or any(notice in words for words in fitted.notices)


@pytest.mark.parametrize("key", ["net", "network", "model_ema", "weights"])
def test_the_only_state_dict_of_a_file_is_found_under_any_key(pose_network: Pose, key: str) -> None:
    state = dict(pose_network.state_dict())
    assert equal(find_state({"epoch": 1, key: state, "optimizer": {"param_groups": []}}).state, state)


def test_of_several_state_dicts_a_usual_one_is_read_and_others_are_refused(pose_network: Pose) -> None:
    state = dict(pose_network.state_dict())
    found = find_state({"model": state, "model_ema": {"x": torch.ones(1)}})
    assert equal(found.state, state)
    assert found.notices == ("read model, not model_ema",)
    with pytest.raises(CheckpointError, match="several state dicts: generator, critic"):
        find_state({"generator": state, "critic": state})


def test_pruned_weights_are_multiplied_by_their_masks(pose_network: Pose) -> None:
    pruned = Pose()
    pruned.load_state_dict(pose_network.state_dict())
    prune.l1_unstructured(pruned.head, "weight", amount=0.5)
    fitted = fit(dict(pruned.state_dict()), pose_network)
    assert torch.equal(fitted["head.weight"], pruned.head.weight)
    assert (fitted["head.weight"] == 0).sum() == 4


def test_a_wrapper_that_belongs_to_the_network_keeps_its_name() -> None:
    wrapper = nn.Module()
    wrapper.module = nn.Linear(2, 2)
    state = dict(wrapper.state_dict())
    assert equal(fit(state, wrapper), state)
    assert equal(fit(dict(wrapper.module.state_dict()), wrapper), state), "the prefix is put on where it is missing"


def test_two_networks_that_fit_are_refused_by_name(pose_network: Pose) -> None:
    state = {f"{part}.{k}": v for part in ("student", "teacher") for k, v in pose_network.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"several parts.*student.*teacher.*one that you want"):
        fit(state, pose_network)
