"""Folding linear operations that follow each other into one: batch normalisation into convolutions, 1x1 into 1x1.

Both leave the output as it is and the network faster. A network with folded normalisation trains less well, so it is
for networks that are done with training, or whose layers shall be fitted to data as they will run.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from compress.errors import CheckpointError
from compress.network.duplicate import duplicate
from compress.network.inputs import Inputs, InputSpec, call, flatten, image_input
from compress.network.layers import is_plain
from compress.surgery.edits import register_edit

#: Largest difference of a folded network's outputs, as a share of the largest value of each.
TOLERANCE = 1e-4

#: (first, second): dotted names of two modules, the second reading nothing but the first's output.
Pair = tuple[str, str]


@register_edit
@dataclass(frozen=True)
class FoldEdit:
    """Modules folded into the convolution before them; an identity stays in their place.

    Attributes
    ----------
    pairs : tuple of (str, str)
        Convolution, and the batch normalisation or 1x1 convolution that is folded into it, in order.
    """

    pairs: tuple[Pair, ...]

    kind: ClassVar[str] = "fold"

    def apply(self, module: nn.Module) -> nn.Module:
        """Fold weights and structure."""
        for first, second in self.pairs:
            try:
                conv, following = module.get_submodule(first), module.get_submodule(second)
            except AttributeError:
                raise CheckpointError("an edit names a module that is not there", found=(first, second)) from None
            if not isinstance(conv, nn.Conv2d) or _fault(conv, following) or _is_derived(module, (first, second)):
                raise CheckpointError("these modules can't be folded into each other", found=(first, second))
            _replace(module, second, nn.Identity())
            _replace(module, first, _folded(conv, following))
        return module

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, fit for JSON."""
        return {"kind": self.kind, "pairs": [list(pair) for pair in self.pairs]}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> FoldEdit:
        """Read what `to_dict` wrote; `CheckpointError` if it is anything else."""
        pairs = record.get("pairs")
        good = set(record) == {"pairs"} and isinstance(pairs, (list, tuple))
        if not good or not all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(x, str) for x in pair)
            for pair in pairs or ()
        ):
            raise CheckpointError("a fold edit has the one key pairs, of two names each", found=record)
        return cls(tuple((str(a), str(b)) for a, b in pairs or ()))


@dataclass(frozen=True)
class Folded:
    """A network after folding.

    Attributes
    ----------
    module : nn.Module
        The network, in its own floating type.
    edit : FoldEdit
        What was folded.
    skipped : tuple of (str, str)
        Pairs that were left because a weight of one is derived from other tensors (parametrization, weight or spectral
        norm, pruning): folding would cut that tie.
    """

    module: nn.Module
    edit: FoldEdit
    skipped: tuple[Pair, ...] = ()


def fold(
    module: nn.Module,
    input_size: tuple[int, int],
    channels: int = 3,
    inputs: Sequence[InputSpec] | None = None,
) -> Folded:
    """Fold whatever can be folded without a change of the output.

    Candidates are found by watching one forward pass: a normalisation or a 1x1 convolution that reads the very tensor
    that a convolution gave. Whether something else reads that tensor too shows in the output, so every fold is tried.

    Parameters
    ----------
    module : nn.Module
        The network; it stays as it was.
    input_size : (int, int)
        H and W of the image that it is tried on.
    channels : int
        Of that image.
    inputs : sequence of InputSpec, optional
        What the network reads, where that is not one image.
    """
    plain = duplicate(module).eval()
    some = next((p for p in plain.parameters() if p.is_floating_point()), torch.empty(0))
    image = _random_inputs(image_input(input_size, channels) if inputs is None else inputs, some.dtype)
    with torch.no_grad():
        wanted = _outputs(plain, image)
        found = _candidates(plain, image)
        skipped = tuple(pair for pair in found if _is_derived(plain, pair))
        pairs = [pair for pair in found if pair not in skipped]
        if pairs and not _agrees(plain, pairs, image, wanted):
            # Something reads what lies between two of them.
            pairs = [pair for pair in pairs if _agrees(plain, [pair], image, wanted)]
    edit = FoldEdit(tuple(pairs))
    result = edit.apply(duplicate(module))
    return Folded(result, edit, skipped)


def _is_derived(module: nn.Module, pair: Pair) -> bool:
    convolutions = [part for name in pair if isinstance(part := module.get_submodule(name), nn.Conv2d)]
    return not all(is_plain(part) for part in convolutions)


def _random_inputs(specs: Sequence[InputSpec], dtype: torch.dtype) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    made = tuple(
        (torch.rand(spec.shape, generator=generator) - 0.5).to(dtype)
        if spec.torch_dtype.is_floating_point
        else spec.zeros()
        for spec in specs
    )
    return made[0] if len(made) == 1 else made


def _candidates(module: nn.Module, image: Inputs) -> list[Pair]:
    names = {layer: name for name, layer in module.named_modules()}
    calls: dict[nn.Module, int] = {}
    given: list[tuple[Tensor, nn.Conv2d]] = []
    found: list[tuple[nn.Conv2d, nn.Module]] = []

    def after(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        calls[layer] = calls.get(layer, 0) + 1
        source = next((conv for tensor, conv in given if tensor is inputs[0]), None)
        if source is not None and not _fault(source, layer):
            found.append((source, layer))
        if isinstance(layer, nn.Conv2d):
            given.append((output, layer))

    layers = [x for x in module.modules() if isinstance(x, (nn.Conv2d, nn.BatchNorm2d))]
    handles = [layer.register_forward_hook(after) for layer in layers]
    try:
        call(module, image)
    finally:
        for handle in handles:
            handle.remove()
    once = [(a, b) for a, b in found if calls[a] == 1 == calls[b]]
    # A convolution that was folded away can take nothing more; a chain of three is left for another round.
    gone = {b for _, b in once if isinstance(b, nn.Conv2d)}
    return [(names[a], names[b]) for a, b in once if a not in gone]


def _fault(conv: nn.Conv2d, following: nn.Module) -> bool:
    """Whether the second can't be folded into the first at all, or not to advantage."""
    if isinstance(following, nn.BatchNorm2d):
        return following.running_mean is None or following.num_features != conv.out_channels
    if not isinstance(following, nn.Conv2d) or following.kernel_size != (1, 1) or conv.groups != 1:
        return True
    if following.groups != 1 or following.stride != (1, 1) or following.padding not in ((0, 0), "valid", "same"):
        return True
    separate = conv.weight.numel() + following.weight.numel()
    return conv.weight[0].numel() * following.out_channels > separate


def _folded(conv: nn.Conv2d, following: nn.Module) -> nn.Conv2d:
    """One convolution that gives what both give."""
    if isinstance(following, nn.BatchNorm2d):
        mean, variance = following.get_buffer("running_mean"), following.get_buffer("running_var")
        scale = torch.rsqrt(variance + following.eps)
        scale = scale if following.weight is None else scale * following.weight
        shift = -mean * scale
        shift = shift if following.bias is None else shift + following.bias
        weight = conv.weight * scale[:, None, None, None]
        bias = shift if conv.bias is None else shift + conv.bias * scale
    else:
        assert isinstance(following, nn.Conv2d)
        matrix = following.weight.flatten(1)
        weight = torch.einsum("ut,tsij->usij", matrix, conv.weight)
        bias = weight.new_zeros(len(weight)) if following.bias is None else following.bias
        bias = bias if conv.bias is None else bias + matrix @ conv.bias
    result = copy.copy(conv)
    result._parameters = dict(conv._parameters)
    result.out_channels = len(weight)
    result.weight = nn.Parameter(weight.detach().clone(), conv.weight.requires_grad)
    result.bias = nn.Parameter(bias.detach().clone(), conv.weight.requires_grad)
    return result


def _agrees(module: nn.Module, pairs: Iterable[Pair], image: Inputs, wanted: list[Tensor]) -> bool:
    found = _outputs(FoldEdit(tuple(pairs)).apply(duplicate(module)), image)
    return all(
        float((a - b).abs().max()) <= TOLERANCE * max(float(b.abs().max()), 1e-6)
        for a, b in zip(found, wanted, strict=True)
    )


def _outputs(module: nn.Module, inputs: Inputs) -> list[Tensor]:
    """All floating tensors that a network returns."""
    return [value for value in flatten(call(module, inputs)).values() if value.is_floating_point()]


def _replace(module: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, new)
