"""Forms of two steps and one rank, a split of the patch: the first factor reduces one part, the second the rest."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator

from compress.decomposition.fitting import WIDE, Fit, Split
from compress.decomposition.problems import Problems
from compress.forms.base import Form, Point, Ranks, Shape
from compress.forms.ranks import LARGEST, rank_steps


class TwoStepForm(Form):
    """A kernel as a matrix of rank r between a reduced part of the patch and everything else."""

    @abstractmethod
    def split(self, shape: Shape) -> Split:
        """What the first step reduces in a kernel (T, S, *k)."""

    def applies(self, shape: Shape, kind: str, groups: int) -> bool:
        """Ungrouped convolutions with a kernel of more than one place."""
        return kind == "conv" and groups == 1 and math.prod(shape[2:]) > 1

    def max_ranks(self, shape: Shape) -> Ranks:
        """The smaller side of that matrix."""
        a, b = self.split(shape).sizes(shape)
        return (min(a, shape[0] * b),)

    def fit(self, problems: Problems, ranks: Ranks, sweeps: int = 2) -> Fit:
        """Alternating least squares between both factors."""
        return problems.split(self.split(problems.weight.shape)).fit(ranks[0], sweeps=sweeps)

    def curve(self, problems: Problems, align: int) -> Iterator[Point]:
        """One set of leading subspaces, or of singular values, serves all ranks."""
        problem = problems.split(self.split(problems.weight.shape))
        outputs = len(problems.weight)
        if problem.b == 1:
            tails = problem.matrix_tails()
            for rank in rank_steps(min(outputs, problem.a), align, finer=2):
                yield Point((rank,), float(tails[rank]))
            return
        # Beyond this the factors cost more than the layer.
        most = outputs * problem.a * problem.b * (LARGEST if problem.a * problem.b > WIDE else 1.0)
        ranks = [r for r in rank_steps(problem.a, align) if r * (problem.a + outputs * problem.b) < most]
        if ranks:
            for rank, total in zip(ranks, problem.totals(problem.start, ranks).tolist(), strict=True):
                yield Point((rank,), total)
