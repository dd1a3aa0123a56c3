"""Networks on torch, on the CPU or a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from compress.errors import NetworkError, RuntimeAbsent
from compress.model.duplicate import duplicate
from compress.pose.spec import PoseSpec
from compress.runtime.runner import Array, check_input

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchRunner:
    """A network as torch runs it.

    Parameters
    ----------
    module : nn.Module
        A network as the registry builds it. A copy is run, in evaluation mode and as it is now: later changes of the
        module do not reach the runner, and the runner changes nothing of the module.
    pose : PoseSpec
        What the network expects and gives.
    device : str
        A device that torch knows, for example ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    precision : {"fp32", "bf16", "fp16"}
        Type of the weights and of all arithmetic; fp32 is true float32, not the shortened TF32 of GPUs.
    threads : int, optional
        CPU threads while it runs; torch's own number by default.

    Raises
    ------
    RuntimeAbsent
        If this machine lacks the device, or the device the precision.
    """

    name = "torch"

    def __init__(
        self,
        module: nn.Module,
        pose: PoseSpec,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        threads: int | None = None,
    ) -> None:
        self.device = device
        self.precision = precision
        self.pose = pose
        self.threads = torch.get_num_threads() if threads is None else threads
        self._device = _find_device(device)
        if self._device.type == "cpu" and precision == "fp16":
            # It would run, tens of times slower than float32.
            raise RuntimeAbsent(
                "torch has no fp16 arithmetic on CPUs", found=device, way_out="Use --precision bf16, or --device cuda"
            )
        module = duplicate(module).to(self._device, _DTYPES[precision]).eval().requires_grad_(False)
        # Convolutions read channels that lie side by side faster than whole planes, on CPUs and GPUs alike.
        self._module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(self, images: Array) -> dict[str, Array]:
        """Final maps of images; see `compress.runtime.runner.Runner.run`."""
        check_input(images, self.pose)
        batch = torch.from_numpy(np.require(images, requirements=("C", "W"))).to(
            self._device, _DTYPES[self.precision], memory_format=torch.channels_last
        )
        with torch.inference_mode(), _threads(self.threads), _exact(self._device):
            maps = self._module(batch)[-1]
            missing = [name for name in self.pose.outputs if name not in maps]
            if missing:
                raise NetworkError(f"the network's last stage has no {', '.join(missing)}", found=sorted(maps))
            return {name: maps[name].float().cpu().contiguous().numpy() for name in self.pose.outputs}

    def close(self) -> None:
        """Drop the network."""
        del self._module


def _find_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RuntimeAbsent(
            f"torch has no device {name} on this machine ({reason})", found=name, way_out="Use --device cpu"
        ) from error
    return device


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Run with that many CPU threads; torch has one number for the whole process."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Keep a GPU from rounding float32 to the ten bits of TF32, which it does in convolutions by default."""
    if device.type != "cuda":
        yield
        return
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products
