"""What each layer could become, what that costs, and how much the final maps would lose.

The error of a candidate is predicted from spectra, in the metrics of `compress.network.statistics`: all ranks of a form
together cost a few eigendecompositions. The prediction takes errors at different positions for independent, which they
are not, so each layer's curve is scaled by what `directional_errors` measures at a few of its points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from compress.decomposition.fitting import WIDE, Metric, Problem
from compress.network.factors import clip_ranks, factorized_cost, layer_kernel, methods_for
from compress.network.layers import LayerInfo
from compress.network.statistics import Change

#: Ranks tried along one mode at most.
RANKS = 16

#: Largest ranks tried of `WIDE` patches, as a share of those at which the factors cost as much as the layer.
LARGEST = 0.6

#: Where on a layer's curve its error is measured: shares of its MACs.
MEASURED_AT = (0.6, 0.3)

#: A measured error differs from the predicted one by at most this factor, either way: probes are few.
TRUST = 30.0


@dataclass(frozen=True)
class Candidate:
    """One thing that a layer could become.

    Attributes
    ----------
    method : str
        A key of `compress.planning.plan.METHODS`.
    ranks : tuple of int
        As in a plan.
    params, macs : int
        Of the layer then.
    error : float
        Predicted relative squared error of the final maps if this layer alone is replaced.
    """

    method: str
    ranks: tuple[int, ...]
    params: int
    macs: int
    error: float


class Problems(dict[str, Problem]):
    """The problems of one kernel in one metric by method; each is made when it is first asked for, and kept.

    Parameters
    ----------
    weight : Tensor, shape (T, S, *k)
        The kernel.
    metric : Metric
        What errors are measured in.
    scale : float
        What an error in the metric is multiplied by to be one of the final maps.
    """

    def __init__(self, weight: Tensor, metric: Metric, scale: float) -> None:
        super().__init__()
        self.weight, self.scale, self._metric = weight, scale, metric

    @classmethod
    def of(cls, weight: Tensor, covariance: Tensor, sensitivity: Tensor) -> Problems:
        """In the metric of a covariance (D, D) of patches and a sensitivity (T, T) as of `Sensitivity`."""
        return cls(weight, Metric.of(covariance, sensitivity), float(sensitivity.diagonal().mean()))

    def __missing__(self, method: str) -> Problem:
        self[method] = Problem(self.weight, self._metric, method)
        return self[method]

    @property
    def wide(self) -> bool:
        """Whether forms of these patches take long: the covariance is given, and of more than `WIDE` values."""
        return self._metric.inputs is not None and self.weight[0].numel() > WIDE


def keep(layer: LayerInfo) -> Candidate:
    """The layer as it is."""
    return Candidate("keep", (), layer.params, layer.macs, 0.0)


def candidates(
    layer: LayerInfo, problems: Problems, *, methods: Sequence[str] | None = None, align: int = 1
) -> tuple[Candidate, ...]:
    """Everything a layer could become that costs fewer MACs and parameters than the layer.

    Parameters
    ----------
    layer : LayerInfo
        An ungrouped convolution or a linear layer.
    problems : Problems
        Of its weight.
    methods : sequence of str, optional
        Forms to consider; without it all that the layer can have.
    align : int
        Ranks are multiples of it (or full).

    Returns
    -------
    tuple of Candidate
        The layer itself first.
    """
    shape = layer_kernel(layer)
    found = [keep(layer)]
    wanted = methods_for(shape, layer.kind, layer.groups) if methods is None else methods
    for first in wanted:
        if first == "tucker1_in" and "tucker2" in wanted:
            continue  # its errors come with those of Tucker-2
        if first == "spatial_hv" and "spatial_vh" in wanted and problems.wide:
            continue  # the other order costs the same and serves as well
        for method, ranks, error in _curve(problems[first], shape, wanted, align):
            if clip_ranks(shape, method, ranks) == ranks:
                params, macs = factorized_cost(layer, method, ranks)
                if macs < layer.macs and params < layer.params:
                    found.append(Candidate(method, ranks, params, macs, error * problems.scale))
    return tuple(found)


def _curve(
    problem: Problem, shape: Sequence[int], wanted: Sequence[str], align: int
) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """(method, ranks, squared error in the metric), ranks rising."""
    outputs, inputs, wide = shape[0], shape[1], problem.a * problem.b > WIDE
    if problem.b == 1:
        tails = problem.matrix_tails()
        for rank in _steps(min(outputs, problem.a), align, finer=2):
            yield problem.method, (rank,), float(tails[rank])
        return
    if problem.method == "tucker2":
        # All input channels are no Tucker-2 that kxk - 1x1 is not; where they are many kernel places they cost minutes.
        ranks = [r for r in _steps(inputs, align, last=not wide) if not wide or r <= LARGEST * inputs]
    else:
        # Beyond this the factors cost more than the layer.
        most = outputs * problem.a * problem.b * (LARGEST if wide else 1.0)
        ranks = [r for r in _steps(problem.a, align) if r * (problem.a + outputs * problem.b) < most]
    if not ranks:
        return
    if problem.method != "tucker2":
        for rank, total in zip(ranks, problem.totals(problem.start, ranks).tolist(), strict=True):
            yield problem.method, (rank,), total
        return
    for rank, tails in zip(ranks, problem.tails(problem.start, ranks), strict=True):
        for r4 in _steps(outputs, align):
            yield "tucker2", (rank, r4), float(tails[r4])
        if "tucker1_in" in wanted and rank < inputs:
            yield "tucker1_in", (rank,), float(tails[-1])


def _steps(full: int, align: int, *, finer: int = 1, last: bool = False) -> list[int]:
    """Ranks below ``full``, about `RANKS` of them (times ``finer``), and ``full`` itself if asked for."""
    step = max(1, round(full / (RANKS * finer)))
    step = max(align, step // align * align)
    return [*range(step, full, step), *([full] if last else [])]


def pareto(listed: Sequence[Candidate], price: Callable[[Candidate], float]) -> tuple[Candidate, ...]:
    """The candidates that nothing cheaper equals, cheapest first."""
    best, kept = math.inf, []
    for candidate in sorted(listed, key=lambda x: (price(x), x.error)):
        if candidate.error < best:
            kept.append(candidate)
            best = candidate.error
    return tuple(kept)


def reference_changes(listed: Sequence[Candidate], mean: Tensor, problems: Problems) -> list[tuple[Candidate, Change]]:
    """Points of a layer's curve with the change of weight and bias that each stands for."""
    kernel = problems.weight.double().flatten(1)
    dense = listed[0].macs
    points = pareto(listed[1:], lambda x: x.macs)
    result: list[tuple[Candidate, Change]] = []
    for share in MEASURED_AT if points else ():
        point = min(points, key=lambda x: abs(math.log(x.macs / (share * dense))))
        if all(point is not other for other, _ in result):
            change = problems[point.method].fit(point.ranks, sweeps=0).kernel - kernel
            result.append((point, Change(change.float(), -(change @ mean).float())))
    return result


def corrected(
    listed: Sequence[Candidate], points: Sequence[Candidate], measured: Sequence[float]
) -> tuple[Candidate, ...]:
    """A layer's candidates with errors scaled by the mean ratio (geometric) of measured to predicted ones."""
    ratios = [
        math.log(min(TRUST, max(1 / TRUST, found / point.error)))
        for point, found in zip(points, measured, strict=True)
        if point.error > 0 and found > 0
    ]
    factor = math.exp(sum(ratios) / len(ratios)) if ratios else 1.0
    return tuple(replace(candidate, error=candidate.error * factor) for candidate in listed)


def weight_only(
    layer: LayerInfo, weight: Tensor, *, methods: Sequence[str] | None = None, align: int = 1
) -> tuple[Candidate, ...]:
    """`candidates` without data: the error is the relative squared one of the kernel, and all layers weigh alike."""
    energy = float(weight.double().square().sum())
    problems = Problems(weight, Metric.plain(len(weight)), 1 / max(energy, 1e-300))
    return candidates(layer, problems, methods=methods, align=align)


def bounded(listed: Sequence[Candidate], least: tuple[int, ...]) -> tuple[Candidate, ...]:
    """The candidates whose ranks are not below (r3, r4), and the layer itself.

    A form with one rank is held against the mode that it reduces: 1x1 - kxk against r3, kxk - 1x1 against r4, a
    matrix against the larger of both.
    """
    r3, r4 = least
    bounds = {"tucker2": (r3, r4), "tucker1_in": (r3,), "tucker1_out": (r4,), "svd": (max(r3, r4),)}
    return tuple(
        x for x in listed if all(rank >= bound for rank, bound in zip(x.ranks, bounds.get(x.method, ()), strict=False))
    )
