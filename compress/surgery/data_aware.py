"""Factorizing a network by what its layers see: calibration images in, a network out that needs no training to work.

Each replaced layer is fitted to reproduce the *original* network's output from the input that the already compressed
layers before it give (asymmetric reconstruction: Zhang et al., "Accelerating very deep convolutional networks for
classification and detection", 2015, arXiv:1505.06798, section 3.3), in the metric of what the final maps feel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from compress.decomposition.fitting import BLOCK, Fit, Metric, Problem
from compress.network.duplicate import duplicate
from compress.network.inputs import InputSpec, image_input
from compress.network.layers import LayerIndex
from compress.network.moments import Moments, gather_moments, in_groups
from compress.network.statistics import Calibration
from compress.planning.check import check_plan
from compress.planning.plan import LayerPlan, Plan
from compress.surgery.factorize import Factorized, LayerFactors, decompose, finish, install

#: Ridge of the regression on compressed inputs, as a share of the mean variance: it pulls towards the old kernel.
#: Layers fitted together each make up for the errors before all of them, so a weak pull makes up for them twice.
PULL = 1.0


def factorize_with_data(
    module: nn.Module,
    plan: Plan,
    calibration: Calibration,
    *,
    rounds: int = 16,
    inputs: Sequence[InputSpec] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Factorized:
    """Factorize the layers of a network as planned, with factors and biases for the data.

    Layers without a sensitivity (grouped, transposed, tied or shared ones) are decomposed from their weights alone.

    Parameters
    ----------
    module : nn.Module
        The network in evaluation mode; it stays as it was and shares nothing with the new one.
    plan : Plan
        A plan for this network.
    calibration : Calibration
        From `compress.network.statistics.measure_sensitivity`.
    rounds : int
        In so many groups, in the order in which they run, layers are replaced; the moments of a group come from the
        network with all groups before it compressed. 0: all moments come from the original network.
    inputs : sequence of InputSpec, optional
        What the network reads; without it one colour image of the plan's size.

    Raises
    ------
    PlanError, RankError, NetworkError
        As of `compress.surgery.factorize.factorize`.
    """
    inputs = image_input(plan.input_size) if inputs is None else inputs
    plan = check_plan(plan, module, plan.network, plan.input_size, LayerIndex.of(module, inputs))
    entries = {entry.name: entry for entry in plan.changed}
    network = duplicate(module)
    aware = [name for name in calibration.sensitivities if name in entries]
    factors = {
        name: decompose(module.get_submodule(name), entry) for name, entry in entries.items() if name not in aware
    }
    # These are in place first: later moments come from the network as it will be.
    network = install(network, [entries[name] for name in factors], factors)
    done = len(factors)
    for names in in_groups(module, aware, math.ceil(len(aware) / rounds) if rounds else len(aware)):
        before = network if rounds else module
        for name, moment in gather_moments(module, before, calibration.images, calibration.sensitivities, names):
            sensitivity = calibration.sensitivities[name].outputs
            factors[name] = fit_layer(module.get_submodule(name), entries[name], moment, sensitivity)
            done += 1
            if progress is not None:
                progress(done, len(entries))
        network = install(network, [entries[name] for name in names], factors)
    biases = tuple(name for name in aware if module.get_submodule(name).bias is None)
    return finish(network, plan, factors, inputs, biases)


def fit_layer(
    layer: nn.Module, entry: LayerPlan, moments: Moments, sensitivity: Tensor, sweeps: int = 2
) -> LayerFactors:
    """Factors and bias of one layer.

    The kernel to be factorized is the regression of the wanted outputs on the inputs, pulled towards the old kernel;
    where both come from the original network it is the old kernel.

    Parameters
    ----------
    layer : nn.Module
        An ungrouped convolution or a linear layer.
    entry : LayerPlan
        Method and ranks.
    moments : Moments
        Of its patches and of the outputs aimed at.
    sensitivity : Tensor, shape (T, T)
        As of `Sensitivity`.
    sweeps : int
        Rounds of alternating least squares.
    """
    weight = layer.get_parameter("weight").detach().double()
    old = weight.flatten(1)
    target = old + _regression(moments.covariance, moments.cross - _through(old, moments.covariance))
    metric = Metric.of(moments.covariance, sensitivity)
    fit = Problem(target.view(weight.shape), metric, entry.method).fit(entry.ranks, sweeps)
    bias = moments.target_mean - fit.kernel @ moments.mean
    error = float((fit.kernel - old).norm() / old.norm().clamp_min(1e-300))
    return LayerFactors(factor_parts(fit), error, bias, fit.error)


def factor_parts(fit: Fit) -> dict[str, Tensor]:
    """The factors by the names of the children they become."""
    parts = {"reduce": fit.reduce, "expand": fit.expand}
    return parts if fit.core is None else {**parts, "core": fit.core}


def _regression(covariance: Tensor, cross: Tensor) -> Tensor:
    """The ridge regression whose cross moment (T, D) is given, solved as precisely as the covariance is known."""
    ridge = PULL * covariance.diagonal().mean()
    if float(cross.norm()) <= 1e-9 * float(covariance.norm()):
        return torch.zeros_like(cross)
    ridged = covariance.clone()
    ridged.diagonal().add_(ridge)
    return torch.cholesky_solve(cross.to(ridged).T, torch.linalg.cholesky(ridged)).T.to(cross)


def _through(kernel: Tensor, covariance: Tensor) -> Tensor:
    """Cross moments (T, D) of a kernel's outputs, in blocks: a long covariance is not copied for its precision."""
    blocks = covariance.split(BLOCK, dim=1)
    return torch.cat([kernel @ block.to(kernel) for block in blocks], dim=1)
