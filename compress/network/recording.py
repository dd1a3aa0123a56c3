"""Looking at layers while a network runs: what they read, what they give, and the patches under their kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Enough(Exception):
    """The last layer that is asked for has run."""


@dataclass
class Call:
    """Input and output of one call of a layer; empty where not asked for."""

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
    """Calls of layers during the block, by name in the order of first calls; ``until`` so many the network may run."""
    calls: dict[str, list[Call]] = {}
    nothing = torch.empty(0)

    def remember(name: str, given: Any, output: Tensor) -> Tensor:
        calls.setdefault(name, []).append(Call(given[0] if inputs else nothing, output if outputs else nothing))
        if until is not None and all(len(calls.get(x, ())) == count for x, count in until.items()):
            raise _Enough
        # A later in-place activation must not reach what was recorded.
        return output.clone() if outputs else output

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        return lambda layer, given, output: remember(name, given, output)

    handles = [module.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def run(module: nn.Module, image: Tensor) -> None:
    """Run a network as far as `recorded` lets it."""
    try:
        module(image)
    except _Enough:
        return


def columns(output: Tensor, layer: nn.Module) -> Tensor:
    """Outputs as columns (T, positions)."""
    return output.flatten(0, -2).T if isinstance(layer, nn.Linear) else output[0].flatten(1)


def patches(given: Tensor, layer: nn.Module, index: Tensor) -> Tensor:
    """What a layer reads at output positions, (D, n), each column flattened as its kernel is."""
    index = index.to(given.device).long()
    if not isinstance(layer, nn.Conv2d):
        return given.flatten(0, -2)[index].T
    (kh, kw), (sy, sx), (dy, dx) = layer.kernel_size, layer.stride, layer.dilation
    top, left = _padding(layer)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = functional.pad(given, (left[0], left[1], top[0], top[1]), mode=mode)[0]
    width = padded.shape[2]
    columns = (width - dx * (kw - 1) - 1) // sx + 1
    corner = index // columns * sy * width + index % columns * sx
    taps = [i * dy * width + j * dx for i in range(kh) for j in range(kw)]
    cells = torch.cat([corner + tap for tap in taps])
    return padded.flatten(1).index_select(1, cells).view(-1, len(index))


def _padding(layer: nn.Conv2d) -> tuple[tuple[int, int], tuple[int, int]]:
    """Padding before and after, of rows and of columns."""
    if layer.padding == "valid":
        return (0, 0), (0, 0)
    if layer.padding == "same":
        totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return (totals[0] // 2, totals[0] - totals[0] // 2), (totals[1] // 2, totals[1] - totals[1] // 2)
    rows, columns = (int(n) for n in layer.padding)
    return (rows, rows), (columns, columns)
