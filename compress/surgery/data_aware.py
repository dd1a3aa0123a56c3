"""Factorizing a network for the data it sees: with calibration images the result works without training.

Each replaced layer is fitted to reproduce the *original* network's output from the inputs that the already compressed
layers before it produce (asymmetric reconstruction: Zhang et al., "Accelerating very deep convolutional networks for
classification and detection", 2015, arXiv:1505.06798, section 3.3), with errors weighted by output sensitivity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from compress.decomposition.metric import BLOCK, Metric
from compress.decomposition.problems import Problems
from compress.forms.base import LayerFactors
from compress.forms.registry import get_form
from compress.network.duplicate import duplicate
from compress.network.inputs import InputSpec, image_input
from compress.network.layers import LayerIndex
from compress.network.moments import Moments, gather_moments, in_groups
from compress.network.statistics import Calibration
from compress.planning.check import check_plan
from compress.planning.plan import LayerPlan, Plan
from compress.surgery.factorize import Factorized, decompose, finish, install

#: Ridge of the regression on compressed inputs towards the old kernel, as a share of the mean variance. Layers that are
#: fitted together each correct the errors before all of them, so a small ridge would correct these errors twice.
REGRESSION_RIDGE = 1.0


def factorize_with_data(
    module: nn.Module,
    plan: Plan,
    calibration: Calibration,
    *,
    rounds: int = 16,
    inputs: Sequence[InputSpec] | None = None,
    layers: LayerIndex | None = None,
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
        Number of groups in which layers are replaced, in the order in which they run; the moments of a group come from
        the network with all groups before it compressed. 0: all moments come from the original network.
    inputs : sequence of InputSpec, optional
        What the network reads; without it one colour image of the plan's size.
    layers : LayerIndex, optional
        Of the network at these inputs, if it was made before; without it the network runs once more.

    Raises
    ------
    PlanError, RankError, NetworkError
        As of `compress.surgery.factorize.factorize`.
    """
    inputs = image_input(plan.input_size) if inputs is None else inputs
    layers = LayerIndex.of(module, inputs) if layers is None else layers
    plan = check_plan(plan, module, plan.network, plan.input_size, layers)
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

    The kernel to be factorized is the regression of the target outputs on the inputs, with a ridge towards the old
    kernel; where both come from the original network it is the old kernel.

    Parameters
    ----------
    layer : nn.Module
        An ungrouped convolution or a linear layer.
    entry : LayerPlan
        Method and ranks.
    moments : Moments
        Of its patches and of the target outputs.
    sensitivity : Tensor, shape (T, T)
        As of `Sensitivity`.
    sweeps : int
        Rounds of alternating least squares.
    """
    weight = layer.get_parameter("weight").detach().double()
    old = weight.flatten(1)
    target = old + _regression(moments.covariance, moments.cross - _through(old, moments.covariance))
    problems = Problems(target.view(weight.shape), Metric.of(moments.covariance, sensitivity))
    fit = get_form(entry.method).fit(problems, entry.ranks, sweeps)
    bias = moments.target_mean - fit.kernel @ moments.mean
    error = float((fit.kernel - old).norm() / old.norm().clamp_min(1e-300))
    return LayerFactors(fit.parts, error, bias, fit.error)


def _regression(covariance: Tensor, cross: Tensor) -> Tensor:
    """The ridge regression with this cross moment (T, D), solved in the precision of the covariance."""
    ridge = REGRESSION_RIDGE * covariance.diagonal().mean()
    if float(cross.norm()) <= 1e-9 * float(covariance.norm()):
        return torch.zeros_like(cross)
    ridged = covariance.clone()
    ridged.diagonal().add_(ridge)
    return torch.cholesky_solve(cross.to(ridged).T, torch.linalg.cholesky(ridged)).T.to(cross)


def _through(kernel: Tensor, covariance: Tensor) -> Tensor:
    """Cross moments (T, D) of a kernel's outputs, in blocks: a long covariance is not copied for its precision."""
    blocks = covariance.split(BLOCK, dim=1)
    return torch.cat([kernel @ block.to(kernel) for block in blocks], dim=1)
