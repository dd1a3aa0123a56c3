"""The convolution and linear layers of a network, with shapes, calls and costs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from compress.errors import NetworkError
from compress.network.duplicate import duplicate
from compress.network.inputs import InputSpec, call, image_input, zero_inputs

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Reads the weights of its linear layers directly on torch's fused path.
_FUSED = nn.TransformerEncoderLayer
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class LayerInfo:
    """One convolution or linear layer.

    Positions are places at which a whole kernel column is applied: pixels of a convolution, rows of a linear layer;
    batch size 1.

    Attributes
    ----------
    name : str
        Dotted module name; the first one of a module that is reached under several.
    aliases : tuple of str
        Its other names.
    kind : str
        ``"conv"``, ``"conv_transpose"`` or ``"linear"``.
    weight_shape : tuple of int
        (T, S / groups, *k) of a convolution, (S, T / groups, *k) of a transposed one, (T, S) of a linear layer,
        with S input and T output channels.
    stride, padding, dilation : tuple of int
        For each spatial axis, () for a linear layer; padding may be ``"same"`` or ``"valid"``.
    groups : int
        Groups of channels.
    bias : bool
        Whether it has a bias.
    params : int
        Its parameters that no earlier layer counts: summed over all layers, tied ones count once.
    macs : int
        Multiply-adds of all its calls in one forward pass.
    input_size, output_size : tuple of int or None
        Spatial sizes at its first call; None for linear layers and layers that are never called.
    calls : int
        How often one forward pass calls it.
    input_positions, output_positions : int
        Summed over all calls.
    tied_to : str or None
        The first layer with the very same weight, where this one is a later one.
    plain : bool
        Whether it is torch's own layer with nothing but a weight and a bias that are ordinary parameters: no
        parametrization, no derived weight, no other forward, no weight shared with or read by a module of another kind.
        Only such a layer can be replaced by another one.
    """

    name: str
    aliases: tuple[str, ...]
    kind: str
    weight_shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    bias: bool
    params: int
    macs: int
    input_size: tuple[int, ...] | None
    output_size: tuple[int, ...] | None
    calls: int
    input_positions: int
    output_positions: int
    tied_to: str | None = None
    plain: bool = True

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Spatial kernel size, () for a linear layer."""
        return self.weight_shape[2:]

    @property
    def pointwise(self) -> bool:
        """Whether the layer is a matrix at each position: linear, or a convolution with a kernel of one pixel."""
        return self.kind != "conv_transpose" and math.prod(self.kernel_size) == 1


def count_flops(macs: int) -> int:
    """Floating-point operations: two for each multiply-add, wherever this project counts any."""
    return 2 * macs


@dataclass(frozen=True)
class Cost:
    """Size and computational cost of a network.

    Attributes
    ----------
    params : int
        All parameters, shared ones once.
    macs : int
        Multiply-adds of the convolution and linear layers that one forward pass executes, batch size 1.
    size_bytes : int
        Bytes of all parameters and buffers.
    """

    params: int
    macs: int
    size_bytes: int

    @property
    def flops(self) -> int:
        """Floating-point operations by the convention of `count_flops`."""
        return count_flops(self.macs)


@dataclass
class _Use:
    """What one forward pass does with one layer."""

    calls: int = 0
    input_positions: int = 0
    output_positions: int = 0
    input_size: tuple[int, ...] | None = None
    output_size: tuple[int, ...] | None = None


def kind_of(module: nn.Module) -> str | None:
    """``"conv"``, ``"conv_transpose"``, ``"linear"``, or None for any other module."""
    if isinstance(module, _TRANSPOSED):
        return "conv_transpose"
    if isinstance(module, _CONVS):
        return "conv"
    return "linear" if isinstance(module, nn.Linear) else None


def is_plain(module: nn.Module) -> bool:
    """Whether a layer computes nothing but torch's own formula from an ordinary weight and bias.

    False for parametrized, pruned and weight-normalised layers, and for subclasses with a forward of their own.
    """
    base: Any = next((b for b in (*_CONVS, *_TRANSPOSED, nn.Linear) if isinstance(module, b)), None)
    if base is None or "forward" in vars(module) or type(module).forward is not base.forward:
        return False
    if getattr(type(module), "_conv_forward", None) is not getattr(base, "_conv_forward", None):
        return False
    own = {name for name, _ in module.named_parameters()} | {name for name, _ in module.named_buffers()}
    return "weight" in own and own <= {"weight", "bias"} and not any(module.children())


class LayerIndex(tuple[LayerInfo, ...]):
    """All convolution and linear layers of a network, in the order of its modules, from one run of it.

    Attributes
    ----------
    input_size : (int, int) or None
        H and W of the image at which MACs were counted; None for networks that read no image.
    cost : Cost
        Of the whole network.
    by_name : dict of str to LayerInfo
        Under all names of each layer.
    """

    input_size: tuple[int, int] | None
    cost: Cost
    by_name: dict[str, LayerInfo]

    @classmethod
    def of(cls, module: nn.Module, inputs: Sequence[InputSpec]) -> LayerIndex:
        """Run a network once and list its layers.

        One forward pass in evaluation mode runs on a copy without values (torch's meta device), or, where the network
        can't do that, on a copy with zeros as input. The network itself, its training mode and the random state stay
        as they were.

        Parameters
        ----------
        module : nn.Module
            Any network; its outputs may be of any type.
        inputs : sequence of InputSpec
            What it reads.

        Raises
        ------
        NetworkError
            If the network can't be run on such inputs, or has lazy layers without weights.
        """
        refuse_lazy(module)
        try:
            network, uses = _run(module, inputs, "meta")
        except Exception:  # whatever the network's code raises; the second attempt reports it
            try:
                network, uses = _run(module, inputs, None)
            except Exception as error:
                raise _cannot_run(error, inputs) from error
        index = cls(_describe(network, uses))
        image = inputs[0].shape
        index.input_size = (image[2], image[3]) if len(image) == 4 else None
        params = tuple(module.parameters())
        index.cost = Cost(
            params=sum(p.numel() for p in params),
            macs=sum(layer.macs for layer in index),
            size_bytes=sum(t.numel() * t.element_size() for t in (*params, *module.buffers())),
        )
        index.by_name = {name: layer for layer in index for name in (layer.name, *layer.aliases)}
        return index


def _cannot_run(error: Exception, inputs: Sequence[InputSpec]) -> NetworkError:
    if isinstance(error, AttributeError):
        return NetworkError(
            f"the network's forward reads an attribute of a layer that was replaced, or that is missing: {error}",
            hint="Leave that layer out of factorizations (exclude= or --exclude)",
        )
    shapes = ", ".join(str(spec.shape) for spec in inputs)
    return NetworkError(
        f"the network can't be run on an input of shape {shapes}: {type(error).__name__}: {error}",
        hint="Choose another input size, or give the shape that it reads",
    )


def refuse_lazy(module: nn.Module) -> None:
    """Raise `NetworkError` for a network with lazy layers, whose weights do not exist yet."""
    lazy = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if is_lazy(tensor)]
    if lazy:
        raise NetworkError(
            "the network has lazy layers without weights", found=", ".join(lazy[:3]), hint="Run it once on an input"
        )


def list_layers(module: nn.Module, input_size: tuple[int, int], channels: int = 3) -> LayerIndex:
    """`LayerIndex.of` for a network that reads one image of that height and width."""
    return LayerIndex.of(module, image_input(input_size, channels))


def _run(module: nn.Module, inputs: Sequence[InputSpec], target: str | None) -> tuple[nn.Module, dict[nn.Module, _Use]]:
    """A copy of the network after one forward pass, and what each of its layers did."""
    network = duplicate(module, target).eval()
    some = next((p for p in (*network.parameters(), *network.buffers()) if p.is_floating_point()), torch.empty(0))
    device = torch.device(target) if target else some.device
    uses: dict[nn.Module, _Use] = {part: _Use() for part in network.modules() if kind_of(part)}

    def record(part: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        given: Tensor = args[0] if args else kwargs["input"]
        use = uses[part]
        use.calls += 1
        linear = isinstance(part, nn.Linear)
        # From the number of elements, so that networks that fold places into the batch are counted right.
        use.input_positions += given.numel() // int(part.in_features if linear else part.in_channels)
        use.output_positions += output.numel() // int(part.out_features if linear else part.out_channels)
        if linear:
            return
        axes = len(part.kernel_size)
        use.input_size = use.input_size or tuple(given.shape[-axes:])
        use.output_size = use.output_size or tuple(output.shape[-axes:])

    for part in uses:
        part.register_forward_hook(record, with_kwargs=True)
    with ExitStack() as stack:
        accelerators = [device] if device.type not in ("cpu", "meta") else []
        stack.enter_context(torch.random.fork_rng(accelerators, device_type=device.type if accelerators else "cuda"))
        stack.enter_context(torch.no_grad())
        # Tensors that the forward pass makes itself must be on the same device as its input.
        stack.enter_context(device)
        call(network, zero_inputs(inputs, device, some.dtype))
    return network, uses


def _describe(network: nn.Module, uses: dict[nn.Module, _Use]) -> tuple[LayerInfo, ...]:
    names: dict[nn.Module, list[str]] = defaultdict(list)
    owners: dict[Tensor, list[nn.Module]] = defaultdict(list)  # every module that uses a parameter
    for name, part in network.named_modules(remove_duplicate=False):
        if part not in names:
            for tensor in part.parameters(recurse=False):
                owners[tensor].append(part)
            for child in part.children() if isinstance(part, _FUSED) else ():
                for tensor in child.parameters(recurse=False):
                    owners[tensor].append(part)
        names[part].append(name)
    counted: set[Tensor] = set()
    return tuple(_layer(part, names, owners, use, counted) for part, use in uses.items())


def _layer(
    part: Any,
    names: dict[nn.Module, list[str]],
    owners: dict[Tensor, list[nn.Module]],
    use: _Use,
    counted: set[Tensor],
) -> LayerInfo:
    kind = kind_of(part) or ""
    weight_shape = tuple(part.weight.shape)
    holders = owners.get(part.weight, [part])
    first = next((holder for holder in holders if kind_of(holder)), part)
    new = [tensor for tensor in part.parameters() if tensor not in counted]
    counted.update(new)
    positions = use.input_positions if kind == "conv_transpose" else use.output_positions
    linear = kind == "linear"
    return LayerInfo(
        name=names[part][0],
        aliases=tuple(names[part][1:]),
        kind=kind,
        weight_shape=weight_shape,
        stride=() if linear else tuple(part.stride),
        padding=() if linear else part.padding if isinstance(part.padding, str) else tuple(part.padding),
        dilation=() if linear else tuple(part.dilation),
        groups=1 if linear else part.groups,
        bias=part.bias is not None,
        params=sum(tensor.numel() for tensor in new),
        macs=positions * math.prod(weight_shape),
        input_size=use.input_size,
        output_size=use.output_size,
        calls=use.calls,
        input_positions=use.input_positions,
        output_positions=use.output_positions,
        tied_to=None if first is part else names[first][0],
        plain=is_plain(part) and all(kind_of(holder) == kind for holder in holders),
    )
