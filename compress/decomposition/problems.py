"""Everything that fits of one kernel in one metric have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from compress.decomposition.fitting import WIDE, Problem, Split
from compress.decomposition.metric import Metric

Solver = TypeVar("Solver")


class Problems:
    """All that is known of one kernel in one metric; the problem of each split is made once.

    Parameters
    ----------
    weight : Tensor, shape (T, S, *k)
        The kernel.
    metric : Metric
        What errors are measured in.
    scale : float
        Factor from an error in the metric to one of the network's outputs.
    """

    def __init__(self, weight: Tensor, metric: Metric, scale: float = 1.0) -> None:
        self.weight, self.metric, self.scale = weight, metric, scale
        self._splits: dict[Split, Problem] = {}
        self._solvers: dict[Callable[[Problems], Any], Any] = {}

    @classmethod
    def of(cls, weight: Tensor, covariance: Tensor, sensitivity: Tensor) -> Problems:
        """In the metric of a covariance (D, D) of patches and an output sensitivity (T, T)."""
        return cls(weight, Metric.of(covariance, sensitivity), float(sensitivity.diagonal().mean()))

    def once(self, solver: Callable[[Problems], Solver]) -> Solver:
        """What a function makes of these problems; made when it is first asked for, and kept."""
        if solver not in self._solvers:
            self._solvers[solver] = solver(self)
        result: Solver = self._solvers[solver]
        return result

    def split(self, split: Split) -> Problem:
        """The problem of a split.

        Raises
        ------
        RankError
            If the metric or the split does not fit the kernel.
        """
        if split not in self._splits:
            self._splits[split] = Problem(self.weight, self.metric, split)
        return self._splits[split]

    @property
    def wide(self) -> bool:
        """Whether fits take long: the covariance is given, and of patches longer than `WIDE`."""
        return self.metric.inputs is not None and self.weight[0].numel() > WIDE
