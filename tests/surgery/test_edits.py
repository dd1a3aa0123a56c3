from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from compress.errors import CheckpointError
from compress.forms.tucker2 import TuckerConv2d
from compress.planning.policies import Ratio, make_plan
from compress.planning.selection import Selection
from compress.surgery.edits import FactorizeEdit, apply_edits, edit_from_dict, register_edit
from compress.surgery.factorize import factorize

SIZE = (16, 16)


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, stride=2))
        self.body[2].weight = self.body[0].weight
        self.head = nn.Conv2d(16, 12, 1)
        self.same_head = self.head
        self.grouped = nn.Conv2d(12, 12, 3, groups=2)
        self.linear = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.grouped(self.head(self.body(self.stem(x)))).mean((2, 3)))


def test_replaying_edits_and_loading_the_weights_gives_the_same_network() -> None:
    torch.manual_seed(0)
    module = Toy().train()
    module(torch.randn(4, 3, *SIZE))  # so that the normalisation has statistics
    module.eval()
    everything = Selection(include=("stem", "body.*", "head", "linear"), pointwise=True)
    first = make_plan(module, Ratio(Fraction(1, 2)), everything, network="toy", input_size=SIZE)
    once = factorize(module, first)
    second = make_plan(
        once.module, Ratio(Fraction(1, 2)), Selection(include=("stem.core",)), network="toy", input_size=SIZE
    )
    twice = factorize(once.module, second)
    assert len(first.changed) == 5
    assert len(second.changed) == 1
    edits = [edit_from_dict(json.loads(json.dumps(FactorizeEdit.from_plan(p).to_dict()))) for p in (first, second)]
    assert edits == [FactorizeEdit.from_plan(first), FactorizeEdit.from_plan(second)]

    fresh = Toy().eval()
    replayed = apply_edits(fresh, edits)
    assert isinstance(fresh.stem, nn.Conv2d)
    replayed.load_state_dict(twice.module.state_dict(), strict=True)
    x = torch.randn(2, 3, *SIZE)
    assert torch.equal(replayed(x), twice.module(x))
    assert replayed.head is replayed.same_head
    assert replayed.body[0].core.weight is replayed.body[2].core.weight
    assert list(replayed.state_dict()) == list(twice.module.state_dict())
    assert sum(p.numel() for p in replayed.parameters()) == sum(p.numel() for p in twice.module.parameters())


def test_new_layers_have_fresh_weights_where_the_old_ones_were() -> None:
    fresh = Toy().double().eval()
    replayed = apply_edits(fresh, [FactorizeEdit({"stem": ("tucker2", (2, 4))})])
    assert isinstance(replayed.stem, TuckerConv2d)
    for parameter in replayed.parameters():
        assert parameter.dtype == torch.float64
        assert parameter.device == fresh.linear.weight.device
        assert parameter.isfinite().all()
        assert parameter.std() > 0 or parameter.numel() == 16
    assert not replayed.stem.core.training


def test_edits_leave_the_network_alone_even_if_they_fail() -> None:
    fresh = Toy()
    edit = FactorizeEdit({"stem": ("tucker2", (2, 4)), "absent": ("svd", (2,))})
    with pytest.raises(CheckpointError, match="absent"):
        apply_edits(fresh, [edit])
    assert isinstance(fresh.stem, nn.Conv2d)


@pytest.mark.parametrize(
    ("name", "method", "ranks"),
    [
        ("absent", "svd", (2,)),
        ("body", "svd", (2,)),
        ("grouped", "tucker2", (7, 7)),
        ("body.1", "svd", (2,)),
        ("stem", "svd", (2,)),
        ("stem", "tucker2", (4, 4)),
        ("head", "tucker2", (2, 2)),
        ("linear", "svd", (10**12,)),
        ("linear", "keep", (2,)),
    ],
)
def test_an_edit_that_does_not_fit_the_network_is_refused(name: str, method: str, ranks: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError):
        apply_edits(Toy(), [FactorizeEdit({name: (method, ranks)})])


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "unheard-of", "layers": {}},
        {"layers": {}},
        {"kind": ["factorize"]},
        ["factorize"],
        {"kind": "factorize"},
        {"kind": "factorize", "layers": []},
        {"kind": "factorize", "layers": {}, "extra": 1},
        {"kind": "factorize", "layers": {3: {"method": "svd", "ranks": [1]}}},
        {"kind": "factorize", "layers": {"a": {"method": "svd"}}},
        {"kind": "factorize", "layers": {"a": {"method": "svd", "ranks": [1, 2]}}},
        {"kind": "factorize", "layers": {"a": {"method": "svd", "ranks": [0]}}},
        {"kind": "factorize", "layers": {"a": {"method": "svd", "ranks": [1.0]}}},
        {"kind": "factorize", "layers": {"a": {"method": "svd", "ranks": 1}}},
        {"kind": "factorize", "layers": {"a": {"method": "keep", "ranks": []}}},
        {"kind": "factorize", "layers": {"a": {"method": ["svd"], "ranks": [1]}}},
        {"kind": "factorize", "layers": {"a": None}},
    ],
)
def test_records_that_are_no_edits_are_refused(record: Any) -> None:
    with pytest.raises(CheckpointError):
        edit_from_dict(record)


def test_a_further_kind_can_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.surgery.edits._KINDS", {})

    @register_edit
    @dataclass(frozen=True)
    class DropHead:
        name: str
        kind: ClassVar[str] = "drop-head"

        def apply(self, module: nn.Module) -> nn.Module:
            module.set_submodule(self.name, nn.Identity())
            return module

        def to_dict(self) -> dict[str, Any]:
            return {"kind": self.kind, "name": self.name}

        @classmethod
        def from_dict(cls, record: Mapping[str, Any]) -> DropHead:
            return cls(**record)

    edit = edit_from_dict(DropHead("linear").to_dict())
    assert isinstance(apply_edits(Toy(), [edit]).linear, nn.Identity)
    with pytest.raises(ValueError, match="already"):
        register_edit(DropHead)
