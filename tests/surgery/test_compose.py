"""Factors multiplied back into kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compress.checkpoint.load import create, load
from compress.checkpoint.save import save
from compress.commands.factorize import FactorizeOptions, run
from compress.errors import CheckpointError
from compress.forms.registry import applicable, form_of, get_form
from compress.network.kernels import kernel_shape
from compress.network.layers import kind_of
from compress.progress import Silent
from compress.surgery.compose import ComposeEdit, compose
from compress.surgery.edits import apply_edits, edit_from_dict
from compress.surgery.substitute import factorize_in_place


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, str, tuple[int, ...]]:
    """A layer with a form and ranks that it can have."""
    which = draw(st.sampled_from(["conv", "transposed", "linear"]))
    bias, seed = draw(st.booleans()), draw(st.integers(0, 99))
    torch.manual_seed(seed)
    layer: Any
    if which == "linear":
        layer = nn.Linear(draw(st.integers(2, 9)), draw(st.integers(2, 9)), bias=bias)
    else:
        groups = draw(st.integers(1, 2))
        channels = [groups * draw(st.integers(2, 5)) for _ in range(2)]
        kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
        options: dict[str, Any] = {"groups": groups, "bias": bias, "dilation": draw(st.integers(1, 2))}
        if which == "transposed":
            options |= {"stride": 2, "output_padding": 1, "padding": 1}
            layer = nn.ConvTranspose2d(*channels, (2, 3), **options | {"dilation": 2})
        else:
            options["padding"] = draw(st.sampled_from(["same", "valid", (0, 1), 2]))
            options["stride"] = 1 if options["padding"] == "same" else (draw(st.integers(1, 2)), 2)
            options["padding_mode"] = draw(st.sampled_from(["zeros", "replicate"]))
            layer = nn.Conv2d(*channels, kernel, **options)
    kind = str(kind_of(layer))
    shape = kernel_shape(kind, layer.weight.shape, getattr(layer, "groups", 1))
    methods = [form.name for form in applicable(shape, kind, getattr(layer, "groups", 1))]
    method = draw(st.sampled_from(methods)) if methods else "keep"
    ranks = tuple(draw(st.integers(1, top)) for top in get_form(method).max_ranks(shape)) if methods else ()
    return layer, method, get_form(method).clip(shape, ranks) if methods else ()


@settings(max_examples=150, deadline=None)
@given(layers())
def test_the_product_gives_what_the_factors_give(drawn: tuple[nn.Module, str, tuple[int, ...]]) -> None:
    layer, method, ranks = drawn
    if method == "keep":
        return
    factors = get_form(method).build(layer, ranks).double()
    form = form_of(factors)
    assert form is get_form(method)
    whole = form.compose(factors)
    assert type(whole) is type(layer)
    assert whole.get_parameter("weight").shape == layer.get_parameter("weight").shape
    shape = (2, layer.in_features) if isinstance(layer, nn.Linear) else (2, layer.in_channels, 13, 16)  # type: ignore[union-attr]
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(whole(x), factors(x), rtol=1e-9, atol=1e-9)


class Tied(nn.Module):
    """Two layers with one weight, and one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.left, self.right = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.right.weight = self.left.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.left(x) + self.right(torch.relu(x))


def test_what_was_tied_stays_tied_and_a_bias_that_came_stays() -> None:
    torch.manual_seed(0)
    network = factorize_in_place(
        Tied(), dict.fromkeys(("first", "left", "right"), ("tucker2", (2, 3))), biases=["first"]
    ).eval()
    seen: list[int] = []
    network.first.register_forward_hook(lambda *_: seen.append(1))  # type: ignore[union-attr]
    done = compose(network)
    x = torch.randn(2, 3, 8, 9)
    torch.testing.assert_close(done.module(x), network(x), rtol=1e-4, atol=1e-5)
    assert done.edit == ComposeEdit(("first", "left", "right"))
    assert done.module.left.weight is done.module.right.weight  # type: ignore[union-attr]
    assert isinstance(done.module.first, nn.Conv2d)
    assert done.module.first.bias is not None
    assert len(seen) == 2
    assert "core" in dict(network.first.named_children())  # type: ignore[union-attr]


def test_a_network_factorized_again_has_the_smaller_ranks_and_is_read_back(tmp_path: Path) -> None:
    save(create("default"), tmp_path / "model.pt")
    half = FactorizeOptions(model=tmp_path / "model.pt", ratio="1/2", output=tmp_path / "half.pt", input=(64, 64))
    run(half, Silent())
    options = FactorizeOptions(
        model=tmp_path / "half.pt", ratio="1/3", again=True, output=tmp_path / "third.pt", input=(64, 64)
    )
    record = run(options, Silent()).record
    straight = half.model_copy(update={"ratio": "1/3", "output": tmp_path / "straight.pt"})
    wanted = run(straight, Silent()).record
    assert record["macs"][1] == wanted["macs"][1] < record["macs"][0]
    assert "factorized layers multiplied out first" in record["notices"][0]
    checkpoint = load(tmp_path / "third.pt")
    assert [edit.kind for edit in checkpoint.edits] == ["factorize", "compose", "factorize"]
    # Cutting ranks twice is not cutting them once, but nearly: it is the same kernel's largest part.
    x = torch.randn(1, 3, 64, 64)
    twice, once = (load(tmp_path / name).module(x)[-1]["heatmaps"] for name in ("third.pt", "straight.pt"))
    assert 0 < torch.linalg.vector_norm(twice - once) < torch.linalg.vector_norm(once)


def test_edits_that_do_not_fit_are_refused() -> None:
    edit = ComposeEdit(("first",))
    assert edit_from_dict(edit.to_dict()) == edit
    with pytest.raises(CheckpointError, match=r"first is not factorized.*Conv2d"):
        apply_edits(Tied(), [edit])
    with pytest.raises(CheckpointError, match=r"does not have.*nowhere"):
        apply_edits(Tied(), [ComposeEdit(("nowhere",))])
    for record in ({}, {"layers": [3]}, {"layers": "first"}, {"layers": [], "more": 1}):
        with pytest.raises(CheckpointError, match="compose edit"):
            edit_from_dict({"kind": "compose", **record})
