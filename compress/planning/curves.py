"""What each layer could become, what that costs, and how much the network's outputs would lose.

The error of a candidate is predicted from spectra, in the metrics of `compress.network.statistics`: all ranks of a form
together cost a few eigendecompositions. The prediction treats errors at different positions as independent, which they
are not, so each layer's curve is scaled by what `directional_errors` measures at a few of its points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from compress.decomposition.metric import Metric
from compress.decomposition.problems import Problems
from compress.forms.registry import forms_for, get_form
from compress.network.kernels import layer_kernel
from compress.network.layers import LayerInfo
from compress.network.statistics import Change
from compress.planning.pareto import pareto_front
from compress.planning.plan import KEEP

#: Where on a layer's curve its error is measured: shares of its MACs.
MEASURED_AT = (0.6, 0.3)

#: Largest factor, either way, by which measured errors correct predicted ones: probes are few.
MAX_CORRECTION = 30.0


@dataclass(frozen=True)
class Candidate:
    """One thing that a layer could become.

    Attributes
    ----------
    method : str
        As in a plan.
    ranks : tuple of int
        As in a plan.
    params, macs : int
        Of the layer then.
    error : float
        Predicted relative squared error of the network's outputs if this layer alone is replaced.
    """

    method: str
    ranks: tuple[int, ...]
    params: int
    macs: int
    error: float


def keep(layer: LayerInfo) -> Candidate:
    """The layer as it is."""
    return Candidate(KEEP, (), layer.params, layer.macs, 0.0)


def candidates(
    layer: LayerInfo, problems: Problems, *, methods: Collection[str] | None = None, align: int = 1
) -> tuple[Candidate, ...]:
    """Everything a layer could become that costs fewer MACs and parameters than the layer.

    Parameters
    ----------
    layer : LayerInfo
        An ungrouped convolution or a linear layer.
    problems : Problems
        Of its weight.
    methods : collection of str, optional
        Names of the forms to consider; without it all that the layer can have.
    align : int
        Ranks are multiples of it (or full).

    Returns
    -------
    tuple of Candidate
        The layer itself first.
    """
    shape = layer_kernel(layer)
    listed = [keep(layer)]
    forms = [form for form in forms_for(layer) if methods is None or form.name in methods]
    names = {form.name for form in forms}
    for form in forms:
        if problems.wide and form.stand_in in names:
            continue
        for ranks, error in form.curve(problems, align):
            if form.clip(shape, ranks) == ranks:
                params, macs = form.cost(layer, ranks)
                if macs < layer.macs and params < layer.params:
                    listed.append(Candidate(form.name, ranks, params, macs, error * problems.scale))
    return tuple(listed)


def pareto(listed: Sequence[Candidate], price: Callable[[Candidate], float]) -> tuple[Candidate, ...]:
    """The Pareto front of candidates by price and error, cheapest first."""
    return tuple(listed[index] for index in pareto_front([(price(x), x.error) for x in listed]))


def reference_changes(listed: Sequence[Candidate], mean: Tensor, problems: Problems) -> list[tuple[Candidate, Change]]:
    """Points of a layer's curve with the change of weight and bias that each stands for."""
    kernel = problems.weight.double().flatten(1)
    dense = listed[0].macs
    points = pareto(listed[1:], lambda x: x.macs)
    result: list[tuple[Candidate, Change]] = []
    for share in MEASURED_AT if points else ():
        point = min(points, key=lambda x: abs(math.log(x.macs / (share * dense))))
        if all(point is not other for other, _ in result):
            change = get_form(point.method).fit(problems, point.ranks, sweeps=0).kernel - kernel
            result.append((point, Change(change.float(), -(change @ mean).float())))
    return result


def corrected(
    listed: Sequence[Candidate], points: Sequence[Candidate], measured: Sequence[float]
) -> tuple[Candidate, ...]:
    """A layer's candidates with errors scaled by the mean ratio (geometric) of measured to predicted ones."""
    ratios = [
        math.log(min(MAX_CORRECTION, max(1 / MAX_CORRECTION, true / point.error)))
        for point, true in zip(points, measured, strict=True)
        if point.error > 0 and true > 0
    ]
    factor = math.exp(sum(ratios) / len(ratios)) if ratios else 1.0
    return tuple(replace(candidate, error=candidate.error * factor) for candidate in listed)


def weight_only(
    layer: LayerInfo, weight: Tensor, *, methods: Collection[str] | None = None, align: int = 1
) -> tuple[Candidate, ...]:
    """`candidates` without data: errors are relative squared ones of the kernel, and all layers count alike."""
    energy = float(weight.double().square().sum())
    problems = Problems(weight, Metric.plain(len(weight)), 1 / max(energy, 1e-300))
    return candidates(layer, problems, methods=methods, align=align)


def bounded(listed: Sequence[Candidate], r3: int, r4: int) -> tuple[Candidate, ...]:
    """The candidates whose ranks are not below those of the input (r3) and output mode (r4), and the layer itself.

    A form with one rank is held against the mode that it reduces: 1x1 - kxk against r3, kxk - 1x1 against r4, a
    matrix against the larger of both; forms that reduce no mode are not bounded.
    """

    def allowed(candidate: Candidate) -> bool:
        if candidate.method == KEEP:
            return True
        least = get_form(candidate.method).least_ranks(r3, r4)
        return all(rank >= bound for rank, bound in zip(candidate.ranks, least, strict=False))

    return tuple(candidate for candidate in listed if allowed(candidate))
