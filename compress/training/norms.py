"""Batch normalisation synchronised over processes, and recalibration of its running statistics.

Running statistics that were gathered while the weights still changed, or before the network was factorized, do not
match the final network; a few dozen batches through it correct them (Wu and Johnson, "Rethinking Batch in BatchNorm",
2021, section 3: PreciseBN).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.autograd import Function

from compress.network.inputs import Inputs, call

NORMS = (nn.modules.batchnorm._BatchNorm,)


class _SumOverProcesses(Function):
    """The sum over all processes; its gradient is the sum of their gradients."""

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


class _SynchronisedNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation that in training mode normalises with the moments of the batches of all processes.

    Torch's ``nn.SyncBatchNorm`` needs CUDA; this one needs only an all-reduce. All processes must hold batches of the
    same shape.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Nothing to check: the number of dimensions was checked when this was still a plain layer."""

    def forward(self, input: Tensor) -> Tensor:
        """Features (N, C, ...) to the same shape."""
        if not self.training:
            return super().forward(input)
        values = input.float()
        axes = [axis for axis in range(values.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(values.ndim)]
        count = values.numel() // values.shape[1] * torch.distributed.get_world_size()
        mean = _SumOverProcesses.apply(values.sum(axes)) / count
        centred = values - mean.view(shape)
        variance = _SumOverProcesses.apply(centred.square().sum(axes)) / count
        self._update_statistics(mean.detach(), variance.detach() * (count / max(count - 1, 1)))
        output = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            output = output * self.weight.float().view(shape) + self.bias.float().view(shape)
        return output.to(input.dtype)

    def _update_statistics(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics as the plain layer does."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def synchronise_norms(module: nn.Module) -> None:
    """Make all batch normalisation of a network normalise over all processes; names and tensors do not change."""
    for part in module.modules():
        if type(part) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            part.__class__ = _SynchronisedNorm


@torch.no_grad()
def recalibrate(module: nn.Module, batches: Iterable[Inputs], frozen: Iterable[nn.Module] = ()) -> int:
    """Replace the running statistics of batch normalisation by plain means over batches, in place.

    Everything else runs in eval mode (no dropout); afterwards every submodule is back in its earlier mode.

    Parameters
    ----------
    module : Module
        The network.
    batches : iterable of Inputs
        Normalised network inputs, such as images of shape (N, C, H, W).
    frozen : iterable of Module
        Layers that keep their statistics.

    Returns
    -------
    int
        Number of layers with new statistics; if it is 0, no batch is drawn.
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
    for batch in batches:
        call(module, batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for part, training in modes:
        part.training = training
    return len(norms)
