"""Batches of ready network inputs, for distillation of networks that read no images or have no pose specification."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from compress.errors import DataError
from compress.network.inputs import Inputs
from compress.training.batches import Batch, Span, Steps


class ReadyInputs:
    """Network inputs as they are, without labels and augmentation.

    Parameters
    ----------
    items : sequence of Inputs
        Each with a batch axis; a batch is composed of whole items.
    seed : int
        Seed of their order.

    Raises
    ------
    DataError
        If there are none.
    """

    def __init__(self, items: Sequence[Inputs], seed: int) -> None:
        if len(items) == 0:
            raise DataError("there are no inputs to train on")
        self.items, self.seed = items, seed

    def batches(self, span: Span) -> Iterator[Batch]:
        """See `compress.training.batches.BatchSource`."""
        for keys in Steps(len(self.items), span, self.seed):
            batch = Batch(_concatenate([self.items[index] for _, index in keys]), {}, torch.ones(1))
            yield batch.pin_memory() if span.pin else batch

    def network_inputs(self, batch: Batch) -> Inputs:
        """The batch itself."""
        return batch.inputs


def _concatenate(items: Sequence[Inputs]) -> Inputs:
    """One batch of several.

    Raises
    ------
    DataError
        If they differ in shape.
    """
    columns: list[Sequence[Tensor]] = [item if isinstance(item, tuple) else (item,) for item in items]
    try:
        joined = tuple(torch.cat(list(column)) for column in zip(*columns, strict=True))
    except (RuntimeError, ValueError) as error:
        shapes = sorted({str([tuple(tensor.shape) for tensor in column]) for column in columns})
        raise DataError(
            "inputs of different shapes can't form a batch",
            found=", ".join(shapes),
            hint="Give inputs of one shape, or batch_size=1",
        ) from error
    return joined if isinstance(items[0], tuple) else joined[0]
