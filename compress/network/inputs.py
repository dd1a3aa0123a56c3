"""What a network reads: one image batch or several named tensors, and how its forward is called with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import NetworkError

#: What a network is called with: one tensor, or a tuple of positional tensors.
Inputs = Tensor | tuple[Tensor, ...]


#: Values in one input; 4 GiB in float32.
_MOST_VALUES = 2**30


@dataclass(frozen=True)
class InputSpec:
    """Shape and type of one input.

    Attributes
    ----------
    shape : tuple of int
        Batch first; ``(1, 3, 256, 192)`` for a colour image. Costs are counted at this shape.
    dtype : str
        Name of a torch type: ``"float32"``.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not self.shape or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in self.shape):
            raise NetworkError("the shape of an input must be positive whole numbers", found=self.shape)
        if math.prod(self.shape) > _MOST_VALUES:
            raise NetworkError(f"an input holds at most {_MOST_VALUES} values", found=str(self.shape)[:80])
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise NetworkError("unknown type of an input", found=self.dtype, hint="Known: float32, int64, ...")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The torch type."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def zeros(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        """An input of zeros; ``dtype`` replaces a floating type."""
        own = self.torch_dtype
        return torch.zeros(self.shape, device=device, dtype=dtype if dtype and own.is_floating_point else own)


def image_input(size: tuple[int, int], channels: int = 3) -> tuple[InputSpec, ...]:
    """The inputs of a network that reads one image of H x W pixels."""
    return (InputSpec((1, channels, *size)),)


def read_example(example: Any) -> tuple[InputSpec, ...]:
    """Input specifications of an example: a shape, a tensor, or a sequence of shapes and tensors.

    Raises
    ------
    NetworkError
        If it is anything else.
    """
    if isinstance(example, Tensor):
        return (InputSpec(tuple(example.shape), str(example.dtype).removeprefix("torch.")),)
    if isinstance(example, Sequence) and not isinstance(example, str) and example:
        if all(isinstance(n, int) for n in example):
            return (InputSpec(tuple(example)),)
        if all(isinstance(item, (Tensor, Sequence)) for item in example):
            return tuple(spec for item in example for spec in read_example(item))
    raise NetworkError(
        "an example is the shape of the input, a tensor, or a sequence of these for several inputs",
        found=type(example).__name__ if not isinstance(example, (list, tuple, str, int)) else example,
        hint="For example example=(1, 3, 256, 192)",
    )


def call(module: nn.Module, inputs: Inputs) -> Any:
    """Run a network on its inputs."""
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)


def zero_inputs(
    specs: Sequence[InputSpec], device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Inputs:
    """Inputs of zeros, as `call` takes them."""
    made = tuple(spec.zeros(device, dtype) for spec in specs)
    return made[0] if len(made) == 1 else made


def with_size(specs: Sequence[InputSpec], size: tuple[int, int]) -> tuple[InputSpec, ...]:
    """The specifications with the first input, the image, at another height and width."""
    first, *others = specs
    if len(first.shape) != 4:
        raise NetworkError("only an image (N, C, H, W) has another size", found=first.shape)
    return (InputSpec((*first.shape[:2], *size), first.dtype), *others)


def batched(inputs: Inputs) -> Tensor:
    """The first input, which is the image."""
    return inputs[0] if isinstance(inputs, tuple) else inputs


def tracked(inputs: Inputs) -> Inputs:
    """A copy of the inputs whose floating tensors ask for gradients, so that every layer's output does."""

    def one(value: Tensor) -> Tensor:
        return value.clone().requires_grad_() if value.is_floating_point() else value

    return tuple(one(value) for value in inputs) if isinstance(inputs, tuple) else one(inputs)


def flatten(raw: Any) -> dict[str, Tensor]:
    """Every tensor inside a return value by its path, in order: ``"0"``, ``"1.heatmaps"``; a bare tensor is ``""``."""
    if isinstance(raw, Tensor):
        return {"": raw}
    if isinstance(raw, Mapping):
        items = [(str(key), value) for key, value in raw.items()]
    elif isinstance(raw, tuple) and hasattr(raw, "_fields"):
        items = list(zip(raw._fields, raw, strict=True))
    elif is_dataclass(raw) and not isinstance(raw, type):
        items = [(field.name, getattr(raw, field.name)) for field in fields(raw)]
    elif isinstance(raw, (list, tuple)):
        items = [(str(index), value) for index, value in enumerate(raw)]
    else:
        return {}
    return {
        path if not inner else f"{path}.{inner}": tensor
        for path, value in items
        for inner, tensor in flatten(value).items()
    }
