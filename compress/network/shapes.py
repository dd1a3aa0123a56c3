"""Building and running networks without values, to get the shapes of their tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional, init
from torch.overrides import TorchFunctionMode

#: Functions that fill a tensor and leave its shape unchanged.
_FILLING: tuple[Callable[..., Any], ...] = (
    init.kaiming_normal_,
    init.kaiming_uniform_,
    init.normal_,
    init.uniform_,
    Tensor.normal_,
    Tensor.uniform_,
    Tensor.fill_,
    Tensor.zero_,
)

#: Functions whose result has the shape of their first argument.
_SAME: tuple[Callable[..., Any], ...] = (
    functional.batch_norm,
    functional.relu,
    torch.relu,
    torch.sigmoid,
    functional.leaky_relu,
    functional.elu,
    functional.hardswish,
)

_UNTOUCHED = frozenset((*_FILLING, *_SAME))

#: Functions of two tensors whose result has their shape if both have the same.
_PAIRS = frozenset((torch.add, torch.mul, Tensor.add, Tensor.mul, Tensor.__add__, Tensor.__mul__))


class ShapesOnly(TorchFunctionMode):
    """A context in which networks are built without values, and run several times faster than on the meta device.

    The meta device alone computes all shapes too, but decomposes normalisations and convolutions in Python; here these
    steps are skipped. Tensors inside have the right shape and no values.
    """

    def __enter__(self) -> ShapesOnly:
        """Create new tensors on the meta device."""
        self._device = torch.device("meta")
        self._device.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        """Restore the previous device and mode."""
        super().__exit__(*exception)
        self._device.__exit__(*exception)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Skip functions that do not change shapes, and return the output of a convolution directly."""
        kwargs = kwargs or {}
        given = args[0] if args else kwargs.get("input", kwargs.get("tensor"))
        if func in (torch.cat, torch.stack) and isinstance(given, list | tuple) and all(x.is_meta for x in given):
            return _joined(func, given, kwargs.get("dim", args[1] if len(args) > 1 else 0))
        if not isinstance(given, Tensor) or not given.is_meta:
            return func(*args, **kwargs)
        if func in _UNTOUCHED:
            return given
        if func in _PAIRS and len(args) == 2 and isinstance(args[1], Tensor) and given.shape == args[1].shape:
            return given
        if func is torch.empty_like and len(args) == 1 and kwargs.keys() <= {"device", "requires_grad"}:
            return torch.empty(given.shape, dtype=given.dtype, **{"device": given.device, **kwargs})
        if func is functional.conv2d and len(args) == 7 and not isinstance(args[4], str):
            return _convolved(*args)
        if func is functional.interpolate and isinstance(factor := kwargs.get("scale_factor"), float):
            sides = [int(side * factor) for side in given.shape[2:]]
            return given.new_empty((*given.shape[:2], *sides))
        return func(*args, **kwargs)


def _joined(func: Callable[..., Any], tensors: Sequence[Tensor], dim: int) -> Tensor:
    """An empty tensor of the shape that `torch.cat` or `torch.stack` returns."""
    shape = list(tensors[0].shape)
    if func is torch.stack:
        shape.insert(dim if dim >= 0 else dim + len(shape) + 1, len(tensors))
    else:
        shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    return tensors[0].new_empty(shape)


def _convolved(x: Tensor, weight: Tensor, _bias: Any, stride: Any, padding: Any, dilation: Any, _groups: int) -> Tensor:
    """An empty tensor of the shape that `torch.nn.functional.conv2d` returns."""
    pairs = (nn.modules.utils._pair(value) for value in (stride, padding, dilation))
    sides = [
        (side + 2 * pad - wide * (kernel - 1) - 1) // step + 1
        for side, kernel, step, pad, wide in zip(x.shape[-2:], weight.shape[2:], *pairs, strict=True)
    ]
    return x.new_empty((*x.shape[:-3], weight.shape[0], *sides))
