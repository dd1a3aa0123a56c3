"""Recording layers while a network runs: their inputs, their outputs, and the patches under their kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.network.inputs import Inputs, call


class _AllRecorded(Exception):
    """Stops the forward pass: every requested call was recorded."""


@dataclass
class Call:
    """Input and output of one call of a layer; empty where not requested."""

    input: Tensor
    output: Tensor


@contextmanager
def recorded(
    module: nn.Module,
    names: Sequence[str],
    *,
    inputs: bool = False,
    outputs: bool = False,
    until: Mapping[str, int] | None = None,
) -> Iterator[dict[str, list[Call]]]:
    """Record the calls of layers during the block.

    Parameters
    ----------
    module : nn.Module
        The network.
    names : sequence of str
        Layers to record.
    inputs, outputs : bool
        What to keep of each call.
    until : mapping of str to int, optional
        Number of calls of each layer after which `run_recorded` stops the forward pass.

    Yields
    ------
    dict
        Calls by layer, in the order of first calls; filled while the network runs.
    """
    calls: dict[str, list[Call]] = {}
    nothing = torch.empty(0)

    def hook(name: str) -> Callable[..., Tensor]:
        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            given = args[0] if args else kwargs["input"]
            if outputs and torch.is_grad_enabled() and not output.requires_grad:
                output = output.detach().requires_grad_()
            calls.setdefault(name, []).append(Call(given if inputs else nothing, output if outputs else nothing))
            if until is not None and all(len(calls.get(x, ())) == count for x, count in until.items()):
                raise _AllRecorded
            # A later in-place activation must not change what was recorded.
            return output.clone() if outputs else output

        return record

    handles = [module.get_submodule(name).register_forward_hook(hook(name), with_kwargs=True) for name in names]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def run_recorded(module: nn.Module, inputs: Inputs) -> None:
    """Run a network inside `recorded`, as far as ``until`` says."""
    try:
        call(module, inputs)
    except _AllRecorded:
        return


def columns(output: Tensor, layer: nn.Module) -> Tensor:
    """Outputs as columns, (T, positions); positions run over the batch first."""
    if isinstance(layer, nn.Linear):
        return output.flatten(0, -2).T
    return (output if output.dim() == 4 else output[None]).transpose(0, 1).flatten(1)


def patches(given: Tensor, layer: nn.Module, index: Tensor) -> Tensor:
    """The patches that a layer reads at output positions, (D, n), each column flattened as its kernel is.

    Parameters
    ----------
    given : Tensor, shape (N, S, H, W), (S, H, W) or (..., S)
        Input of a convolution or linear layer.
    layer : nn.Module
        An ungrouped convolution or a linear layer.
    index : Tensor, shape (n,)
        Positions in the order of `columns`.
    """
    index = index.to(given.device).long()
    if not isinstance(layer, nn.Conv2d):
        return given.flatten(0, -2)[index].T
    (kh, kw), (sy, sx), (dy, dx) = layer.kernel_size, layer.stride, layer.dilation
    top, left = _padding(layer)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    batch = given if given.dim() == 4 else given[None]
    padded = functional.pad(batch, (left[0], left[1], top[0], top[1]), mode=mode)
    height, width = padded.shape[2:]
    rows, row_length = (height - dy * (kh - 1) - 1) // sy + 1, (width - dx * (kw - 1) - 1) // sx + 1
    row, column = index // row_length, index % row_length
    corner = row // rows * height * width + row % rows * sy * width + column * sx
    taps = [i * dy * width + j * dx for i in range(kh) for j in range(kw)]
    cells = torch.cat([corner + tap for tap in taps])
    return padded.transpose(0, 1).flatten(1).index_select(1, cells).view(-1, len(index))


def _padding(layer: nn.Conv2d) -> tuple[tuple[int, int], tuple[int, int]]:
    """Padding before and after, of rows and of columns."""
    if layer.padding == "valid":
        return (0, 0), (0, 0)
    if layer.padding == "same":
        totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return (totals[0] // 2, totals[0] - totals[0] // 2), (totals[1] // 2, totals[1] - totals[1] // 2)
    vertical, horizontal = (int(n) for n in layer.padding)
    return (vertical, vertical), (horizontal, horizontal)
