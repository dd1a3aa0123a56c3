"""The processes that train one network together: started by ``accelerate launch`` or ``torchrun``, or a single one.

accelerate starts them, places them on devices and connects them; the rest of the program sees only a number, a count
and what is gathered.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from compress.errors import CompressError, RuntimeAbsent

T = TypeVar("T")


class ProcessGroup:
    """A group of one process, which has nothing to exchange.

    Attributes
    ----------
    device : device
        Where this process computes.
    number, count : int
        Rank of this process, from 0, and size of the group.
    """

    def __init__(self, device: torch.device, number: int = 0, count: int = 1) -> None:
        self.device, self.number, self.count = device, number, count

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes files."""
        return self.number == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, element by element; bitwise the same in each."""
        return values

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace the gradients of parameters by their means over all processes."""

    def gather(self, value: T) -> list[T]:
        """The value of each process, in the order of their numbers; plain data."""
        return [value]

    def from_main(self, compute: Callable[[], T]) -> T:
        """What the main process computes, or the error that it raises; plain data."""
        return compute()

    def wait(self) -> None:
        """Block until all processes have arrived here."""


class _DistributedGroup(ProcessGroup):
    """A group of several processes, connected by ``torch.distributed``."""

    def mean(self, values: Tensor) -> Tensor:
        total = values.detach().clone()
        torch.distributed.all_reduce(total)
        return total / self.count

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        # One message in place of hundreds: their number costs more than their size.
        for kind in {(g.dtype, g.device): None for g in gradients}:
            same_kind = [g for g in gradients if (g.dtype, g.device) == kind]
            means = self.mean(torch.cat([g.reshape(-1) for g in same_kind]))
            for gradient, mean in zip(same_kind, means.split([g.numel() for g in same_kind]), strict=True):
                gradient.copy_(mean.view(gradient.shape))

    def gather(self, value: T) -> list[T]:
        from accelerate.utils import gather_object

        return list(gather_object([value]))

    def from_main(self, compute: Callable[[], T]) -> T:
        from accelerate.utils import broadcast_object_list

        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = compute()
            except CompressError as error:
                # Sent on, because the others would wait for ever for a value that never comes.
                outcome[1] = error
        value, failure = broadcast_object_list(outcome)
        if failure is not None:
            raise failure
        result: T = value
        return result

    def wait(self) -> None:
        torch.distributed.barrier()


def launched() -> int:
    """How many processes ``accelerate launch`` or ``torchrun`` launched together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the main process of those launched together; works before they are connected."""
    return int(os.environ.get("RANK", "0")) == 0


def join(device: str | torch.device) -> ProcessGroup:
    """Connect to the other processes, if several were launched.

    Parameters
    ----------
    device : str or device
        ``"cpu"`` or ``"cuda"``; with several processes on CUDA each gets the GPU of its local rank.

    Raises
    ------
    RuntimeAbsent
        If several processes were launched and accelerate is not installed, or there is no such device.
    """
    wanted = torch.device(device)
    if wanted.type not in ("cpu", "cuda"):
        raise RuntimeAbsent("training runs on the CPU or on CUDA", found=str(device))
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeAbsent("there is no CUDA device", found=str(device), hint="Use --device cpu")
    if launched() == 1:
        return ProcessGroup(wanted)
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise RuntimeAbsent(
            "several processes were launched, and accelerate is not installed",
            found=f"WORLD_SIZE={launched()}",
            hint="pip install 'pose-compress[scale]', or start one process",
        ) from error
    state = PartialState(cpu=wanted.type == "cpu")
    atexit.register(state.destroy_process_group)
    return _DistributedGroup(state.device, state.process_index, state.num_processes)
