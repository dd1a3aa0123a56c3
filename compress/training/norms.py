"""Batch normalisation over several processes, and its running statistics computed anew.

Statistics that were gathered while weights still moved, or of a network before it was factorized, are those of another
network; a few dozen batches through the final one mend that (Wu and Johnson, "Rethinking Batch in BatchNorm", 2021,
section 3: PreciseBN).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.autograd import Function

NORMS = (nn.modules.batchnorm._BatchNorm,)


class _Sum(Function):
    """The sum over all processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total


class _Shared(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation that in training mode normalises with the moments of the batches of all processes.

    Torch has one for CUDA alone (``nn.SyncBatchNorm``); this one runs wherever processes can add up tensors. All of
    them must hold batches of the same shape.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """The plain layer that this one was has checked its input already, in tracing or inference."""

    def forward(self, input: Tensor) -> Tensor:
        """Features (N, C, ...) to the same shape."""
        if not self.training:
            return super().forward(input)
        values = input.float()
        axes = [axis for axis in range(values.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(values.ndim)]
        count = values.numel() // values.shape[1] * torch.distributed.get_world_size()
        mean = _Sum.apply(values.sum(axes)) / count
        centred = values - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(axes)) / count
        self._follow(mean.detach(), variance.detach() * (count / max(count - 1, 1)))
        output = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            output = output * self.weight.float().view(shape) + self.bias.float().view(shape)
        return output.to(input.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, as the plain layer does."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def share_norms(module: nn.Module) -> None:
    """Let all batch normalisation of a network normalise over all processes; names and tensors stay as they are."""
    for part in module.modules():
        if type(part) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            part.__class__ = _Shared


@torch.no_grad()
def recalibrate(module: nn.Module, batches: Iterable[Tensor], frozen: Iterable[nn.Module] = ()) -> int:
    """Replace the running statistics of batch normalisation by plain means over batches; the network is changed.

    Everything else of the network runs as in use (no dropout), and every part is in the mode it was in afterwards.

    Parameters
    ----------
    module : Module
        The network.
    batches : iterable of Tensor, shape (N, 3, H, W)
        What it is shown, normalised.
    frozen : iterable of Module
        Layers whose statistics stay as they are.

    Returns
    -------
    int
        Layers that got new statistics; without any no batch is drawn.
    """
    kept = set(frozen)
    norms = [
        part
        for part in module.modules()
        if isinstance(part, NORMS) and part.track_running_stats and part not in kept and part.running_mean is not None
    ]
    if not norms:
        return 0
    modes = [(part, part.training) for part in module.modules()]
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
    for images in batches:
        module(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for part, training in modes:
        part.training = training
    return len(norms)
