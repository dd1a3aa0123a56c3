"""Two- and three-step factors of a kernel, optimal for the layer's inputs and for the network's use of its outputs.

Letters: T outputs, S inputs, P kernel places, D = S P the length of a patch x, all flattened as a kernel (T, S, *k) is.
In the metric of a covariance G of patches and an output metric H, factors W~ are chosen to minimise

    tr(H (W - W~) G (W - W~)').

G for channels alone is the whitening of Zhang et al., "Accelerating very deep convolutional networks for classification
and detection" (2015, arXiv:1505.06798); over whole patches it is the Sigma-norm of distribution-aware Tucker
decomposition (2025, arXiv:2511.04494).

A patch is split into a part a that the first factor A (r, a) reduces, and a part b that it leaves to the second,
B (T, r b): ``W~ = B (A x I_b)``. For 1x1 - kxk and 1x1 - kxk - 1x1, a are the channels and b the places, where Tucker-2
bounds the rank of B by r4; for kx1 - 1xk, a are channels and rows; for kxk - 1x1, a is everything. B given A is a
(reduced-rank) regression in closed form; A given B solves linear equations. Alternating between them never raises the
error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from compress.decomposition.conjugate import conjugate_gradients
from compress.decomposition.gram import cholesky, oriented, power, refuse_rank, symmetric
from compress.decomposition.metric import Metric
from compress.errors import RankError

#: Patches longer than this take minutes: they get one sweep, and fewer forms and ranks are tried.
WIDE = 4096

#: Conjugate-gradient steps in one update of the first factor.
STEPS = 8


@dataclass(frozen=True)
class Split:
    """Which axes of a kernel (T, S, *k) the first factor reduces, and which it leaves to the second.

    Attributes
    ----------
    reduced, left : tuple of int
        Together all axes from 1 on, each once; axis 1 are the input channels.
    """

    reduced: tuple[int, ...]
    left: tuple[int, ...] = ()

    def sizes(self, shape: Sequence[int]) -> tuple[int, int]:
        """Lengths a and b of both parts of a patch.

        Raises
        ------
        RankError
            If the kernel has other axes.
        """
        if sorted(self.reduced + self.left) != list(range(1, len(shape))):
            raise RankError("a kernel of this shape can't be split so", found=(tuple(shape), self.reduced, self.left))
        return math.prod(shape[axis] for axis in self.reduced), math.prod(shape[axis] for axis in self.left)

    def order(self, shape: Sequence[int]) -> Tensor | None:
        """Indices of a flattened patch in the order (a, b); None where it has that order already."""
        axes = [axis - 1 for axis in self.reduced + self.left]
        if axes == sorted(axes):
            return None
        return torch.arange(math.prod(shape[1:])).view(tuple(shape[1:])).permute(axes).flatten()


@dataclass(frozen=True)
class Fit:
    """A kernel in factors, in float64.

    Attributes
    ----------
    parts : mapping of str to Tensor
        The factors by name, in the order in which they run. Of a `Problem` ``reduce`` (r, a), ``core`` (r4, r3, b) if
        the rank of the second factor is bounded, and ``expand``: (T, r b), or (T, r4) after a core.
    kernel : Tensor, shape (T, D)
        Their product, in the order of the kernel.
    error : float
        ``tr(H E G E') / tr(H W G W')`` with ``E = W - W~``: the relative squared error of the output in the metric.
    """

    parts: Mapping[str, Tensor]
    kernel: Tensor
    error: float


class Problem:
    """A kernel to be factorized by one split in one metric; what does not depend on ranks is computed once.

    Parameters
    ----------
    kernel : Tensor, shape (T, S, *k)
        The weights, or a matrix (T, S).
    metric : Metric
        What errors are measured in.
    split : Split
        What the first factor reduces.

    Attributes
    ----------
    a, b : int
        Length of the part of a patch that the first factor reduces, and of the part it leaves.
    energy : float
        ``tr(H W G W')``: the squared error of a layer that is left out altogether.

    Raises
    ------
    RankError
        If the metric or the split does not fit the kernel.
    """

    def __init__(self, kernel: Tensor, metric: Metric, split: Split) -> None:
        refuse_other_metric(kernel, metric)
        self.a, self.b = split.sizes(kernel.shape)
        self._order = split.order(kernel.shape)
        self._kernel = self._reordered(kernel.detach().double().flatten(1))
        self._inputs = metric.inputs
        if self._order is not None and metric.inputs is not None:
            self._inputs = metric.inputs[self._order][:, self._order]
        self._outputs = metric.outputs
        self._root, self._inverse_root = metric.roots
        self._cross = self._kernel if self._inputs is None else self._kernel @ self._inputs
        self.energy = float(((metric.outputs @ self._kernel) * self._cross).sum())
        self._kept: tuple[Tensor, Tensor] | None = None

    def _reordered(self, rows: Tensor) -> Tensor:
        return rows if self._order is None else rows[:, self._order]

    def _restored(self, rows: Tensor) -> Tensor:
        """Rows (T, D) in the order (a, b) back in the order of the kernel."""
        if self._order is None:
            return rows
        result = torch.empty_like(rows)
        result[:, self._order] = rows
        return result

    @cached_property
    def start(self) -> Tensor:
        """All rows (a, a) of the first factor in falling order of what they explain: any number of the first will do.

        They are the leading subspaces of the kernel whitened by the covariance of the reduced part alone.
        """
        whitened = (self._root @ self._kernel).unflatten(1, (self.a, self.b)).transpose(0, 1).flatten(1)
        if self._inputs is None:
            return oriented(torch.linalg.eigh(whitened @ whitened.T)[1].flip(-1)).T
        variance = self._variance()
        root = power(variance, 0.5)
        _, basis = torch.linalg.eigh(root @ (whitened @ whitened.T) @ root)
        return oriented(basis.flip(-1)).T @ power(variance, -0.5)

    def tails(self, first: Tensor, ranks: Sequence[int]) -> list[Tensor]:
        """Squared errors (T + 1,) beside the first r rows of a first factor, if the second has rank 0, 1, ... T.

        One for each r of ``ranks``, which rise. One Cholesky factor serves them all: that of leading rows is the
        leading block of that of all rows.
        """
        half = self._explained(first, ranks[-1])
        errors, done = [], 0
        explained = half.new_zeros(half.shape[1], half.shape[1])
        for rank in ranks:
            some = half[done * self.b : rank * self.b]
            explained, done = explained + some.T @ some, rank
            errors.append(self._tails(explained))
        return errors

    def totals(self, first: Tensor, ranks: Sequence[int]) -> Tensor:
        """The last of each of `tails`: squared errors where the rank of the second factor is not bounded."""
        explained = self._explained(first, ranks[-1]).square().sum(dim=1).cumsum(0)
        return (self.energy - explained[torch.tensor(ranks, device=explained.device) * self.b - 1]).clamp_min(0)

    def _explained(self, first: Tensor, rank: int) -> Tensor:
        """`_whitened` of the first ``rank`` rows; kept, because several forms ask for leading rows of the same."""
        if self._kept is None or self._kept[0] is not first or len(self._kept[1]) < rank * self.b:
            self._kept = first, self._whitened(first[:rank])
        return self._kept[1][: rank * self.b]

    def _whitened(self, first: Tensor) -> Tensor:
        """Outputs explained by the reduced patches, which are decorrelated one after the other: (r b, T)."""
        gram, cross = self._moments(first)
        if self._inputs is not None:
            return torch.linalg.solve_triangular(cholesky(gram), (self._root @ cross).T, upper=False)
        rows = (self._root @ cross).T.unflatten(0, (len(first), self.b)).flatten(1)
        half = torch.linalg.solve_triangular(cholesky(gram), rows, upper=False)
        return half.unflatten(1, (self.b, -1)).flatten(0, 1)

    def matrix_tails(self) -> Tensor:
        """Squared errors (T + 1,) of the kernel as a matrix (T, D) of rank 0, 1, ... T."""
        return self._tails((self._root @ self._cross) @ (self._root @ self._kernel).T)

    def _tails(self, explained: Tensor) -> Tensor:
        values = torch.linalg.eigvalsh(symmetric(explained)).flip(0).clamp_min(0)
        return (self.energy - torch.cat([values.new_zeros(1), values.cumsum(0)])).clamp_min(0)

    def fit(self, rank: int, bound: int | None = None, sweeps: int = 2) -> Fit:
        """Factors of the given rank.

        Parameters
        ----------
        rank : int
            Rows of the first factor.
        bound : int, optional
            Rank of the second factor, which then comes as two; without it that rank is not bounded.
        sweeps : int
            Rounds of alternating least squares after the start; the error never rises with them. Patches above `WIDE`
            get at most one.

        Raises
        ------
        RankError
            If a rank is out of its range.
        """
        outputs = len(self._kernel)
        refuse_rank(rank, self.a, "the rank of the first factor")
        if bound is not None:
            refuse_rank(bound, outputs, "r4, the rank of the output channels,")
        if self.b == 1 and bound is None:
            refuse_rank(rank, outputs, "the rank of a matrix")
            return self._matrix(rank)
        first = self.start[:rank]
        second, core, last, error = self._second(first, bound)
        most = 1 if self.a * self.b > WIDE else sweeps
        for _ in range(0 if rank == self.a else min(sweeps, most)):
            moved = self._first(first, second)
            moved = moved / moved.norm(dim=1, keepdim=True).clamp_min(1e-300)
            tried = self._second(moved, bound)
            if tried[3] >= error:
                break
            first, (second, core, last, error) = moved, tried
        product = torch.einsum("trb,ra->tab", second.unflatten(1, (len(first), self.b)), first)
        kernel = self._restored(product.flatten(1))
        relative = max(0.0, error) / self.energy if self.energy else 0.0
        if core is None:
            reduce, expand = _balance_two(first, second, self.b)
            return Fit({"reduce": reduce, "expand": expand}, kernel, relative)
        assert last is not None
        reduce, middle, expand = _balance_three(first, core.unflatten(1, (len(first), self.b)), last)
        return Fit({"reduce": reduce, "core": middle, "expand": expand}, kernel, relative)

    def _matrix(self, rank: int) -> Fit:
        """The optimum of a matrix, by reduced-rank regression."""
        basis = torch.linalg.eigh(symmetric((self._root @ self._cross) @ (self._root @ self._kernel).T))[1]
        basis = oriented(basis[:, -rank:].flip(-1))
        last, first = self._inverse_root @ basis, basis.T @ self._root @ self._kernel
        kernel = last @ first
        left_out = self._kernel - kernel
        weighted = left_out if self._inputs is None else left_out @ self._inputs
        error = float(((self._outputs @ left_out) * weighted).sum())
        reduce, expand = _balance_two(first, last, 1)
        return Fit({"reduce": reduce, "expand": expand}, kernel, max(0.0, error) / self.energy if self.energy else 0.0)

    def _variance(self) -> Tensor:
        """Covariance (a, a) of the reduced part, averaged over what is left to the second factor."""
        if self._inputs is None:
            return torch.eye(self.a, dtype=torch.float64, device=self._kernel.device)
        blocks = self._inputs.view(self.a, self.b, self.a, self.b)
        return torch.einsum("ibjb->ij", blocks) / self.b

    def _moments(self, first: Tensor) -> tuple[Tensor, Tensor]:
        """Covariance (r b, r b) of reduced patches, and the cross moment (T, r b) of outputs with them.

        Without a covariance of patches that of reduced ones is the same at each of the b: (r, r).
        """
        rank = len(first)
        cross = torch.einsum("tab,ra->trb", self._cross.view(-1, self.a, self.b), first).flatten(1)
        if self._inputs is None:
            return first @ first.T, cross
        half = (first @ self._inputs.view(self.a, -1)).view(rank * self.b, self.a, self.b)
        # One product for each row makes no copies, which pays where rows are wide.
        gram = first @ half if self.b > 16 else torch.einsum("xab,ra->xrb", half, first)
        return gram.reshape(rank * self.b, -1), cross

    def _second(self, first: Tensor, bound: int | None) -> tuple[Tensor, Tensor | None, Tensor | None, float]:
        """The best second factor (T, r b) beside the first, its core and last factor if its rank is bounded, error."""
        gram, cross = self._moments(first)
        second = self._applied(cross, lambda rows: torch.cholesky_solve(rows.T, cholesky(gram)).T)
        if bound is None:
            return second, None, None, self._error(second, gram, cross)
        _, basis = torch.linalg.eigh(symmetric((self._root @ second) @ (self._root @ cross).T))
        basis = oriented(basis[:, -bound:].flip(-1))
        last, core = self._inverse_root @ basis, basis.T @ self._root @ second
        second = last @ core
        return second, core, last, self._error(second, gram, cross)

    def _error(self, second: Tensor, gram: Tensor, cross: Tensor) -> float:
        weighted = self._outputs @ second
        through = self._applied(second, lambda rows: rows @ gram)
        return float(self.energy - 2 * (weighted * cross).sum() + (weighted * through).sum())

    def _applied(self, second: Tensor, apply: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply a matrix like the one of `_moments` to the rows of (T, r b)."""
        if self._inputs is not None:
            return apply(second)
        blocks = second.unflatten(1, (-1, self.b)).transpose(1, 2)  # (T, b, r)
        return apply(blocks.flatten(0, 1)).view(blocks.shape).transpose(1, 2).flatten(1)

    def _first(self, first: Tensor, second: Tensor) -> Tensor:
        """A first factor that is better beside the second, by preconditioned conjugate gradients."""
        rank, a, b = len(first), self.a, self.b
        weighted = self._outputs @ second
        outer = (second.T @ weighted).view(rank, b, rank, b)
        target = torch.einsum("trb,tab->ra", weighted.view(-1, rank, b), self._cross.view(-1, a, b))
        shared = torch.einsum("rbqb->rq", outer)
        if self._inputs is not None:
            # Laid out so that each application is two products without copies.
            mixed = outer.permute(0, 3, 1, 2).reshape(-1, rank)
            covariance = self._inputs.view(a, b, a, b).permute(1, 3, 0, 2).reshape(-1, a)

        def apply(x: Tensor) -> Tensor:
            if self._inputs is None:
                return shared @ x
            return (mixed @ x).view(rank, -1) @ covariance

        preconditioner = power(shared, -1.0), power(self._variance(), -1.0)
        return conjugate_gradients(first, target, apply, preconditioner, STEPS)


def refuse_other_metric(kernel: Tensor, metric: Metric) -> None:
    """Raise `RankError` unless a metric has the inputs and outputs of a kernel (T, S, *k)."""
    wanted = kernel[0].numel(), len(kernel)
    given = wanted[0] if metric.inputs is None else len(metric.inputs), len(metric.outputs)
    if given != wanted:
        raise RankError("the metric is of another layer", found=(tuple(kernel.shape), given[::-1]))


def _balance_two(first: Tensor, second: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """Each channel between the factors gets the same norm in both, so that an optimiser sees them at one scale."""
    blocks = second.unflatten(1, (len(first), b))
    levels = (blocks.norm(dim=(0, 2)) / first.norm(dim=1).clamp_min(1e-300)).clamp_min(1e-300).sqrt()
    return first * levels[:, None], (blocks / levels[:, None]).flatten(1)


def _balance_three(first: Tensor, core: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows and columns outside, then the same mean square row norm in all three factors."""
    rows, columns = first.norm(dim=1).clamp_min(1e-300), last.norm(dim=0).clamp_min(1e-300)
    core = core * columns[:, None, None] * rows[None, :, None]
    norm = core.norm().clamp_min(1e-300)
    level = (norm * math.sqrt(core.shape[0] * core.shape[1])) ** (1 / 3)
    outer, inner = (level / math.sqrt(core.shape[1]), level / math.sqrt(core.shape[0]))
    return first / rows[:, None] * outer, core * (level / norm), last / columns * inner
