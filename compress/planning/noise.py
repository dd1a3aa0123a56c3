"""The noise that VBMF sees in the kernels of a plan."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from compress.decomposition.evbmf import evbmf_kernel
from compress.network.kernels import group_kernels
from compress.network.layers import kind_of
from compress.planning.plan import KEEP, Plan


@dataclass(frozen=True)
class LayerNoise:
    """Standard deviation of the noise that VBMF estimates along both modes of a kernel.

    Attributes
    ----------
    mode3, mode4 : float
        Of the unfoldings along input and output channels.
    kernel : float
        Root mean square of the kernel itself.
    """

    mode3: float
    mode4: float
    kernel: float


def layer_noise(module: nn.Module, plan: Plan) -> dict[str, LayerNoise]:
    """Noise of each layer that a plan replaces, or keeps because of rank zero.

    Parameters
    ----------
    module : nn.Module
        The network before it was factorized.
    plan : Plan
        A plan for it.
    """
    found = {}
    for entry in plan.layers:
        if entry.method != KEEP or entry.reason == "rank_zero":
            layer = module.get_submodule(entry.name)
            weight = layer.get_parameter("weight").detach()
            kernel = group_kernels(weight, str(kind_of(layer)), int(getattr(layer, "groups", 1)))[0]
            first, last = evbmf_kernel(kernel.flatten(1) if kernel[0, 0].numel() == 1 else kernel)
            found[entry.name] = LayerNoise(
                first.noise_variance**0.5,
                last.noise_variance**0.5,
                float(kernel.double().square().mean().sqrt()),
            )
    return found
