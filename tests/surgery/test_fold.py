from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm

from compress.checkpoint.load import create, load
from compress.checkpoint.save import save
from compress.commands.factorize import FactorizeOptions, run
from compress.errors import CheckpointError
from compress.network.cost import cost
from compress.progress import Silent
from compress.surgery.edits import edit_from_dict
from compress.surgery.fold import FoldEdit, fold

SIZE = (32, 48)


class Between(nn.Module):
    """A normalisation that can be folded, one whose input is read elsewhere too, and a pair of 1x1 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, stride=2)
        self.shared = nn.BatchNorm2d(8)
        self.narrow = nn.Conv2d(8, 8, 1)
        self.wide = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        y = self.second(x)
        return self.wide(self.narrow(torch.relu(self.shared(y)) + y))


@pytest.fixture
def network() -> Between:
    torch.manual_seed(0)
    module = Between()
    module(torch.randn(8, 3, *SIZE))  # running statistics that are not 0 and 1
    for layer in (module.norm, module.shared):
        nn.init.uniform_(layer.weight, 0.5, 2)
        nn.init.normal_(layer.bias)
    return module.eval()


def test_folding_keeps_the_output_and_leaves_alone_what_others_read(network: Between) -> None:
    done = fold(network, SIZE)
    assert done.edit.pairs == (("first", "norm"), ("narrow", "wide"))
    x = torch.randn(2, 3, *SIZE)
    torch.testing.assert_close(done.module(x), network(x), rtol=1e-4, atol=1e-5)
    assert isinstance(network.norm, nn.BatchNorm2d)
    assert cost(done.module, SIZE).macs < cost(network, SIZE).macs


def test_a_pair_whose_product_is_dearer_stays(network: Between) -> None:
    network.narrow, network.wide = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
    assert ("narrow", "wide") not in fold(network.eval(), SIZE).edit.pairs


@pytest.mark.parametrize("name", ["default", "lightweight-openpose"])
def test_networks_with_normalisation_are_folded_and_replayed(name: str, tmp_path: Path) -> None:
    checkpoint = create(name, {}, seed=0, trained=False)
    module = checkpoint.module
    done = fold(module, (64, 64))
    assert len(done.edit.pairs) == sum(isinstance(x, nn.BatchNorm2d) for x in module.modules()) > 20
    x = torch.rand(1, 3, 64, 64) - 0.5
    folded = checkpoint.derive(done.module, edits=(done.edit,), command="fold")
    save(folded, tmp_path / "folded.pt")
    again = load(tmp_path / "folded.pt").module
    with torch.no_grad():
        for mine, loaded, first in zip(done.module(x), again(x), module(x), strict=True):
            for kind in mine:
                torch.testing.assert_close(loaded[kind], mine[kind], rtol=0, atol=0)
                torch.testing.assert_close(mine[kind], first[kind], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "fold"},
        {"kind": "fold", "pairs": [["a"]]},
        {"kind": "fold", "pairs": [["a", 1]]},
        {"kind": "fold", "pairs": 3},
    ],
)
def test_a_damaged_record_is_refused(record: dict[str, object]) -> None:
    with pytest.raises(CheckpointError):
        edit_from_dict(record)


@pytest.mark.parametrize("pair", [("first", "absent"), ("norm", "second"), ("first", "second")])
def test_an_edit_that_does_not_fit_is_refused(network: Between, pair: tuple[str, str]) -> None:
    with pytest.raises(CheckpointError):
        FoldEdit((pair,)).apply(network)


def test_the_command_folds_before_it_factorizes(tmp_path: Path) -> None:
    checkpoint = create("default", {}, seed=0, trained=True)
    save(checkpoint, tmp_path / "m.pt")
    options = FactorizeOptions(
        model=tmp_path / "m.pt", ratio="1/2", fold=True, output=tmp_path / "s.pt", input=(64, 64)
    )
    record = run(options, Silent()).record
    smaller = load(tmp_path / "s.pt")
    assert [edit.kind for edit in smaller.edits] == ["fold", "factorize"]
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in smaller.module.modules())
    assert record["macs"][1] < record["macs"][0] == cost(checkpoint.module, (64, 64)).macs


DERIVED = {
    "weight_norm": parametrizations.weight_norm,
    "old weight_norm": weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "pruned": lambda conv: prune.l1_unstructured(conv, "weight", 0.3),
}


@pytest.mark.parametrize("kind", DERIVED)
@pytest.mark.filterwarnings("ignore")
def test_layers_with_derived_weights_are_skipped_and_named(kind: str) -> None:
    net = nn.Sequential(
        DERIVED[kind](nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
    ).eval()
    folded = fold(net, (16, 16))
    assert folded.skipped == (("0", "1"),)
    assert folded.edit.pairs == (("3", "4"),)
    image = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(folded.module.eval()(image), net(image))


def test_the_floating_type_of_the_network_is_kept() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double().eval()
    folded = fold(net, (16, 16))
    assert folded.edit.pairs == (("0", "1"),)
    assert {p.dtype for p in folded.module.parameters()} == {torch.float64}
