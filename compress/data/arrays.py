"""Images and network inputs that are already in memory, or that an iterator yields."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from compress.data.sample import Dataset, Image, Sample, unannotated
from compress.errors import DataError
from compress.network.inputs import Inputs, InputSpec

#: At most this many items are read from an iterator, which need not end.
MAX_ITEMS = 1024

#: Reading from an iterator stops at this many bytes.
MAX_BYTES = 2**30


class ArrayImages:
    """Images in memory as samples without annotations; image ids are the index plus one.

    Parameters
    ----------
    images : sequence of array, shape (H, W, 3), uint8
        Pixels in BGR order.
    name : str
        Name of the data set.
    """

    annotated = False

    def __init__(self, images: Sequence[Image], name: str = "arrays") -> None:
        self.name = name
        self._images = tuple(images)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return unannotated(self._images[index], index, f"array {index}")

    def ground_truth(self) -> dict[str, Any]:
        """Always a `DataError`: arrays have no annotations."""
        raise DataError(
            "arrays have no annotations to score against", found=self.name, hint='Use a data set such as "coco:DIR"'
        )


class Tensors(Sequence[Inputs]):
    """Network inputs in memory, as they were given: a tensor each, or a tuple for a network with several inputs.

    Whether they have a batch axis depends on the network that reads them: `for_network`.

    Parameters
    ----------
    items : sequence of Tensor or tuple of Tensor
        At least one.
    name : str
        What they are called in messages.
    """

    def __init__(self, items: Sequence[Inputs], name: str = "tensors") -> None:
        self.name = name
        self._items = tuple(items)

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Inputs: ...

    @overload
    def __getitem__(self, index: slice) -> Tensors: ...

    def __getitem__(self, index: int | slice) -> Inputs | Tensors:
        return Tensors(self._items[index], self.name) if isinstance(index, slice) else self._items[index]

    def for_network(self, specs: Sequence[InputSpec], count: int | None = None) -> list[Inputs]:
        """The inputs one by one, each with a batch axis of length 1.

        Parameters
        ----------
        specs : sequence of InputSpec
            What the network reads. Heights, widths and other lengths may differ from them.
        count : int, optional
            Maximum number of inputs; all by default.

        Raises
        ------
        DataError
            If an item has another number of tensors, of axes or of channels than the network reads, or another kind of
            type.
        """
        inputs: list[Inputs] = []
        for number, item in enumerate(self._items):
            parts = item if isinstance(item, tuple) else (item,)
            if len(parts) != len(specs):
                raise DataError(
                    f"item {number} of {self.name} has another number of tensors than the network has inputs",
                    found=f"{len(parts)} instead of {len(specs)}",
                    hint="Give tuples in the order of the inputs, without labels: (x for x, _ in loader)",
                )
            batches = [_with_batch(part, spec, number, self.name) for part, spec in zip(parts, specs, strict=True)]
            lengths = {len(batch) for batch in batches}
            if len(lengths) > 1:
                raise DataError(
                    f"the tensors of item {number} of {self.name} have different batch sizes", found=sorted(lengths)
                )
            for at in range(lengths.pop()):
                single = tuple(batch[at : at + 1] for batch in batches)
                inputs.append(single if len(single) > 1 else single[0])
                if len(inputs) == count:
                    return inputs
        return inputs


def _with_batch(tensor: Tensor, spec: InputSpec, number: int, name: str) -> Tensor:
    """The tensor with a batch axis and the network's type."""
    given = tuple(tensor.shape)
    batch = tensor[None] if tensor.ndim == len(spec.shape) - 1 else tensor
    # Images may have their channels last.
    channel = 1 if len(spec.shape) != 4 or spec.shape[1] <= spec.shape[-1] else -1
    fits = batch.ndim == len(spec.shape)
    if not fits or (batch.ndim == 4 and batch.shape[channel] != spec.shape[channel]):
        raise DataError(
            f"item {number} of {name} does not have the shape that the network reads",
            found=given,
            hint=f"It reads {spec.shape}; without the batch axis: {spec.shape[1:]}",
        )
    if batch.is_floating_point() != spec.torch_dtype.is_floating_point:
        raise DataError(
            f"item {number} of {name} does not have the type that the network reads",
            found=str(tensor.dtype).removeprefix("torch."),
            hint=f"It reads {spec.dtype}; images as arrays (H, W, 3) of uint8 are prepared by themselves",
        )
    return batch.to(spec.torch_dtype)


def read_items(source: Iterable[Any], color: Literal["bgr", "rgb"] = "bgr") -> Dataset | Tensors:
    """Images or network inputs of an iterable, read once into memory.

    Parameters
    ----------
    source : iterable
        Images as arrays (H, W, 3) or (H, W) of uint8, or a stack of them (N, H, W, 3); or network inputs as tensors or
        arrays of another type, with or without a batch axis, or as tuples of these. Of anything but lists, tuples,
        arrays and tensors at most `MAX_ITEMS` items, or `MAX_BYTES` bytes, are read.
    color : str
        Order of an image's channels: ``"bgr"`` as OpenCV reads them, or ``"rgb"``.

    Raises
    ------
    DataError
        If there are no items, or they are of another kind or of different kinds.
    """
    if isinstance(source, np.ndarray) and source.dtype == np.uint8 and _is_image(source):
        source = source[None]
    images: list[Image] = []
    tensors: list[Inputs] = []
    size, partial = 0, False
    in_memory = isinstance(source, (list, tuple, np.ndarray, Tensor))
    for number, item in enumerate(source if in_memory else islice(source, MAX_ITEMS + 1)):
        if not in_memory and (number == MAX_ITEMS or size >= MAX_BYTES):
            partial = True
            break
        image = _as_image(item, color)
        if image is not None:
            images.append(image)
            size += image.nbytes
        else:
            tensors.append(_as_inputs(item, number))
            size += sum(part.nbytes for part in (tensors[-1] if isinstance(tensors[-1], tuple) else (tensors[-1],)))
        if images and tensors:
            raise DataError(
                "images of uint8 and network inputs can't be mixed",
                found=f"item {number} is {_described(item)}",
                hint="Give either all as arrays (H, W, 3) of uint8, or all as tensors that the network reads",
            )
    if not images and not tensors:
        raise DataError("there are no images", found=_described(source), hint="A generator can be read only once")
    total = len(images) + len(tensors)
    name = f"the first {total} items" if partial else f"{total} {'arrays' if images else 'tensors'}"
    return ArrayImages(images, name) if images else Tensors(tensors, name)


def _is_image(array: np.ndarray[Any, Any]) -> bool:
    return array.size > 0 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3)))


def _as_image(item: Any, color: str) -> Image | None:
    """The item as BGR pixels, or None if it is no image."""
    if hasattr(item, "convert") and hasattr(item, "getbands"):  # an image of Pillow
        item, color = np.asarray(item.convert("RGB")), "rgb"
    if not isinstance(item, np.ndarray) or item.dtype != np.uint8:
        return None
    if not _is_image(item):
        raise DataError(
            "an image in memory is an array of height, width and three channels",
            found=_described(item),
            hint="Give (H, W, 3) of uint8; network inputs have the network's own type, usually float32",
        )
    if item.ndim == 2 or item.shape[2] == 1:
        return np.ascontiguousarray(np.repeat(item.reshape(*item.shape[:2], 1), 3, axis=2))
    return np.ascontiguousarray(item[..., ::-1] if color == "rgb" else item)


def _as_inputs(item: Any, number: int) -> Inputs:
    if isinstance(item, (tuple, list)) and item:
        parts = tuple(_as_tensor(part, number) for part in item)
        return parts if len(parts) > 1 else parts[0]
    return _as_tensor(item, number)


def _as_tensor(item: Any, number: int) -> Tensor:
    tensor: Tensor | None = None
    if isinstance(item, Tensor):
        tensor = item.detach()
    elif isinstance(item, np.ndarray) and item.dtype.kind in "fiub":
        tensor = torch.from_numpy(np.ascontiguousarray(item))
    if tensor is None or not tensor.numel() or not tensor.ndim:
        raise DataError(
            f"item {number} is neither an image nor a network input",
            found=_described(item),
            hint="Give arrays (H, W, 3) of uint8, or tensors, or tuples of tensors; of (image, label) pairs the images "
            "alone: (x for x, _ in loader)",
        )
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise DataError(f"item {number} holds NaN or infinite values", found=_described(item))
    return tensor


def _described(item: Any) -> str:
    shape = getattr(item, "shape", None)
    kind = type(item).__name__
    return kind if shape is None else f"{kind} of shape {tuple(shape)} and type {getattr(item, 'dtype', '?')}"
