"""Other ways to make a pose network smaller, which `benchmarks/quality.py` compares with this project's.

Packages of the extra ``benchmarks`` are imported where they are used.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import NetworkError, RankError
from compress.exporters.to_onnx import export_onnx
from compress.exporters.to_openvino import write_ir
from compress.forms.tucker2 import TuckerConv2d
from compress.model import Model
from compress.network.cost import cost
from compress.network.output_error import output_scales, probe
from compress.network.outputs import BY_STRUCTURE, run
from compress.planning.plan import Plan
from compress.planning.policies import Ratio, make_plan
from compress.runtime.openvino_runner import OpenVinoRunner, shared_core

#: Largest relative difference between the MACs of a method with few settings and the budget.
NEAR = 0.02

#: Common shares, tried before finer ones.
COMMON = (Fraction(2, 3), Fraction(1, 2), Fraction(1, 3), Fraction(1, 4))

#: Steps in which channels are pruned, each of that share of them.
PRUNING_STEPS = 100

#: Images that gradients of the pruned network are taken on in each step.
GRADIENT_IMAGES = 8


def uniform_plan(module: nn.Module, network: str, size: tuple[int, int], macs: float) -> tuple[Fraction, Plan]:
    """Tucker-2 of the kxk convolutions at the one share of all channels that comes nearest to this number of MACs.

    Raises
    ------
    RankError
        If no share comes near it.
    """
    whole = cost(module, size).macs

    def planned(share: Fraction) -> tuple[float, Plan]:
        plan = make_plan(module, Ratio(share), network=network, input_size=size)
        return whole - plan.macs[0] + plan.macs[1], plan

    tried = {share: planned(share) for share in COMMON}
    low, high = 0, 128
    while high - low > 1:
        middle = (low + high) // 2
        share = Fraction(middle, 128)
        tried[share] = planned(share)
        low, high = (middle, high) if tried[share][0] <= macs else (low, middle)
    # Of shares that come about equally near, the common one, which was tried first, is taken.
    share = min(tried, key=lambda share: round(abs(tried[share][0] - macs) / macs, 3))
    reached, plan = tried[share]
    if abs(reached - macs) > NEAR * macs:
        least = min(found for found, _ in tried.values())
        raise RankError(f"no share of all kxk convolutions comes near these MACs; the least is {least / 1e9:.2f} GMAC")
    return share, plan


def by_tensorly(module: nn.Module, plan: Plan) -> nn.Module:
    """The planned layers in Tucker-2 form by `tensorly.decomposition.partial_tucker` of their weights."""
    from tensorly import set_backend
    from tensorly.decomposition import partial_tucker

    set_backend("pytorch")
    network = copy.deepcopy(module)
    for entry in plan.changed:
        layer: Any = network.get_submodule(entry.name)
        r3, r4 = entry.ranks
        (core, (last, first)), _ = partial_tucker(layer.weight.detach(), rank=[r4, r3], modes=[0, 1], init="svd")
        new: Any = TuckerConv2d(layer, (r3, r4))
        with torch.no_grad():
            new.reduce.weight.copy_(first.T[:, :, None, None])
            new.core.weight.copy_(core)
            new.expand.weight.copy_(last[:, :, None, None])
            if layer.bias is not None:
                new.expand.bias.copy_(layer.bias)
        parent, _, child = entry.name.rpartition(".")
        setattr(network.get_submodule(parent), child, new)
    return network


class Pruning:
    """A network that loses channels by torch-pruning, in small steps, each with everything that depends on it.

    By norm the same share of each group of layers goes, the channels of the least L2 norm. By Taylor importance the
    least important ones of the whole network go, by the first-order expansion (Molchanov et al. 2019,
    arXiv:1906.10771) of random sums of the final maps; there are no labels, and a loss against the network's own maps
    would have no gradient.

    Parameters
    ----------
    module : nn.Module
        The network; it stays as it was.
    size : (int, int)
        Input size at which MACs are counted.
    images : sequence of Tensor, shape (1, 3, H, W)
        For the gradients.
    taylor : bool
        By Taylor importance, not by norm.
    """

    def __init__(
        self, module: nn.Module, size: tuple[int, int], images: Sequence[Tensor], *, taylor: bool = False
    ) -> None:
        from torch_pruning import importance, pruner  # type: ignore[import-untyped]

        self._network = copy.deepcopy(module).eval().requires_grad_(True)
        self._size, self._taylor, self._left = size, taylor, PRUNING_STEPS
        self._images = images[:: max(1, len(images) // GRADIENT_IMAGES)][:GRADIENT_IMAGES]
        self._scales = output_scales(module, images)
        self._generator = torch.Generator().manual_seed(0)
        self._pruner = pruner.BasePruner(
            self._network,
            torch.zeros(1, 3, *size),
            importance=importance.GroupTaylorImportance() if taylor else importance.GroupMagnitudeImportance(p=2),
            global_pruning=taylor,
            pruning_ratio=1.0,
            max_pruning_ratio=0.9,
            iterative_steps=PRUNING_STEPS,
            ignored_layers=map_layers(self._network, size),
            output_transform=_added,
        )

    def to(self, macs: float) -> nn.Module:
        """A copy of the network pruned to this number of MACs; a later call continues from there.

        Raises
        ------
        RankError
            If pruning ends above it.
        """
        while (now := cost(self._network, self._size).macs) > macs:
            if not self._left:
                raise RankError(f"pruning ends at {now / 1e9:.2f} GMAC")
            if self._taylor:
                self._network.zero_grad()
                for image in self._images:
                    probe(run(self._network, image), self._scales, self._generator).backward()
            self._pruner.step()
            self._left -= 1
        self._network.zero_grad()
        return copy.deepcopy(self._network)


def _added(raw: Any) -> Tensor:
    """The sum of all maps, from which torch-pruning follows the graph backwards."""
    return torch.stack([value.sum() for stage in BY_STRUCTURE.read(raw) for value in stage.values()]).sum()


def map_layers(module: nn.Module, size: tuple[int, int]) -> list[nn.Module]:
    """The layers whose outputs are maps: their channels are joints and limbs, so all must stay."""
    outputs: dict[nn.Module, Tensor] = {}
    hooks = [
        part.register_forward_hook(lambda part, _, output: outputs.__setitem__(part, output))
        for part in module.modules()
        if not list(part.children())
    ]
    try:
        with torch.no_grad():
            stages = BY_STRUCTURE.read(module(torch.zeros(1, 3, *size)))
    finally:
        for hook in hooks:
            hook.remove()
    maps = [value for stage in stages for value in stage.values()]
    return [part for part, output in outputs.items() if any(output is value for value in maps)]


def quantised(model: Model, images: Sequence[Tensor], folder: Path) -> OpenVinoRunner:
    """The network in INT8 by NNCF's post-training quantization, on OpenVINO."""
    import nncf
    import openvino

    write_ir(export_onnx(model, folder / "model.onnx"), folder / "model.xml")
    result = nncf.quantize(
        shared_core().read_model(folder / "model.xml"),
        nncf.Dataset([image.numpy() for image in images]),
        subset_size=len(images),
    )
    openvino.save_model(result, folder / "int8.xml", compress_to_fp16=False)
    return OpenVinoRunner(folder / "int8.xml")


def stage_fewer(module: nn.Module) -> nn.Module:
    """The network without its last stage: the maps of the stage before are the output.

    Raises
    ------
    NetworkError
        If it has only one stage.
    """
    traced = torch.fx.symbolic_trace(module)
    output = next(node for node in traced.graph.nodes if node.op == "output")
    (stages,) = output.args
    if not isinstance(stages, (list, tuple)) or len(stages) < 2:
        raise NetworkError("the network has a single stage")
    output.args = (list(stages)[:-1],)
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.eval()
