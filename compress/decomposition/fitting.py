"""Factors of a kernel that are best for the activations it sees and for what the network makes of its output.

Letters: T outputs, S inputs, P kernel places, D = S P the length of a patch x, all flattened as a kernel (T, S, *k) is.
With the covariance G = E[x x'] of patches and a positive definite output metric H, factors W~ are chosen to minimise

    tr(H (W - W~) G (W - W~)'),

which is the mean of ``|W x - W~ x|^2`` measured in H. G for channels alone is the whitening of Zhang et al.,
"Accelerating very deep convolutional networks for classification and detection" (2015, arXiv:1505.06798); over whole
patches it is the Sigma-norm of distribution-aware Tucker decomposition (2025, arXiv:2511.04494).

All forms are one: a patch is split into a part a that the first factor A (r, a) reduces, and a part b that it leaves to
the second, B (T, r b): ``W~ = B (A x I_b)``. For 1x1 - kxk and 1x1 - kxk - 1x1 a are the channels and b the places,
where Tucker-2 bounds the rank of B by r4; for kx1 - 1xk a are channels and rows; for kxk - 1x1 a is everything. B given
A is a (reduced-rank) regression in closed form; A given B solves linear equations. Alternating between them never
raises the error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from compress.decomposition.gram import oriented, refuse_rank
from compress.errors import RankError

#: Share of the mean variance that is added to each variance, so that what calibration never saw is not free.
RIDGE = 1e-4

#: Share of its mean added to the diagonal of the output metric.
OUTPUT_RIDGE = 1e-2

#: Lengths of patches that take minutes: one sweep must do for them, and fewer forms and ranks are looked at.
WIDE = 4096

#: Rows and columns of a matrix that are mirrored together.
BLOCK = 512

#: Steps of conjugate gradients in one update of the first factor.
STEPS = 8


def is_finite(matrix: Tensor) -> bool:
    """Whether all values are finite, without a mask of them: of long patches that would be as long."""
    return all(math.isfinite(end) for end in torch.aminmax(matrix)) if matrix.numel() else True


@dataclass(frozen=True)
class Metric:
    """What a layer's error is measured in.

    Attributes
    ----------
    inputs : Tensor, shape (D, D), float64, or None
        Covariance of patches, channels first and kernel places within them; None for the identity, which of long
        patches would take gigabytes.
    outputs : Tensor, shape (T, T), float64
        Symmetric and positive definite; its mean diagonal is 1.
    """

    inputs: Tensor | None
    outputs: Tensor

    @classmethod
    def plain(cls, outputs: int, device: torch.device | None = None) -> Metric:
        """The metric in which errors are those of the kernel: all inputs and outputs weigh alike."""
        return cls(None, torch.eye(outputs, dtype=torch.float64, device=device))

    @cached_property
    def roots(self) -> tuple[Tensor, Tensor]:
        """Square root of the output metric, and its inverse; one decomposition for all problems of a layer."""
        values, vectors = torch.linalg.eigh(self.outputs)
        roots = values.clamp_min((1e-10 * values[-1]).clamp_min(1e-300)).sqrt()
        return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T

    @classmethod
    def of(cls, inputs: Tensor, outputs: Tensor | None = None, *, outputs_count: int = 0) -> Metric:
        """A metric from moments, made positive definite by `RIDGE` and `OUTPUT_RIDGE`.

        Parameters
        ----------
        inputs : Tensor, shape (D, D)
            Covariance of patches.
        outputs : Tensor, shape (T, T), optional
            Mean of g g' for gradients g of what matters by the layer's output; without it all outputs weigh alike.
        outputs_count : int
            T, where ``outputs`` is not given.

        Raises
        ------
        RankError
            If a matrix is not square or not finite, or the covariance is zero: then any factors would do.
        """
        for name, matrix in (("covariance", inputs), ("output metric", outputs)):
            if matrix is not None and (matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]):
                raise RankError(f"the {name} must be a square matrix", found=tuple(matrix.shape))
            if matrix is not None and not is_finite(matrix):
                raise RankError(f"the {name} has values that are not finite")
        level = inputs.diagonal().double().mean()
        if level <= 0:
            raise RankError("the covariance is zero: the layer's inputs never change", hint="Exclude the layer")
        if outputs is None or outputs.diagonal().mean() <= 0:
            size = outputs_count if outputs is None else len(outputs)
            return cls(_ridged(inputs, RIDGE * level), torch.eye(size, dtype=torch.float64, device=inputs.device))
        scaled = outputs.double() / outputs.diagonal().double().mean()
        return cls(_ridged(inputs, RIDGE * level), _ridged(scaled, OUTPUT_RIDGE))


@dataclass(frozen=True)
class Fit:
    """A kernel in factors, in float64.

    Attributes
    ----------
    reduce : Tensor, shape (r, a)
        The first factor; a is S, S times the rows or columns, or D.
    core : Tensor, shape (r4, r3, P), or None
        The middle of a Tucker-2.
    expand : Tensor, shape (T, r b), or (T, r4) after a core
        The last factor.
    kernel : Tensor, shape (T, D)
        Their product, in the order of the kernel.
    error : float
        ``tr(H E G E') / tr(H W G W')`` with ``E = W - W~``: the relative squared error of the output in the metric.
    """

    reduce: Tensor
    core: Tensor | None
    expand: Tensor
    kernel: Tensor
    error: float


class Problem:
    """A kernel to be factorized by one method in one metric; what does not depend on ranks is computed once.

    Parameters
    ----------
    kernel : Tensor, shape (T, S, *k)
        The weights, or a matrix (T, S).
    metric : Metric
        What errors are measured in.
    method : str
        ``"tucker2"``, ``"svd"``, ``"tucker1_in"``, ``"tucker1_out"``, ``"spatial_vh"`` or ``"spatial_hv"``.

    Attributes
    ----------
    a, b : int
        Length of the part of a patch that the first factor reduces, and of the part it leaves.
    energy : float
        ``tr(H W G W')``: the squared error of a layer that is left out altogether.

    Raises
    ------
    RankError
        If metric and kernel do not fit each other, or the method is unknown.
    """

    def __init__(self, kernel: Tensor, metric: Metric, method: str) -> None:
        outputs, inputs, *places = kernel.shape
        self.method = method
        self.a, self.b, self._order = _split(method, inputs, tuple(places))
        length = inputs * math.prod(places)
        seen = length if metric.inputs is None else len(metric.inputs)
        if (seen, len(metric.outputs)) != (length, outputs):
            raise RankError("the metric is of another layer", found=(tuple(kernel.shape), (len(metric.outputs), seen)))
        self._kernel = kernel.detach().double().flatten(1)[:, self._order]
        reordered = metric.inputs is not None and method not in _IN_ORDER
        self._inputs = metric.inputs[self._order][:, self._order] if reordered else metric.inputs  # type: ignore[index]
        self._outputs = metric.outputs
        self._root, self._inverse_root = metric.roots
        self._cross = self._kernel if self._inputs is None else self._kernel @ self._inputs
        self.energy = float(((metric.outputs @ self._kernel) * self._cross).sum())

    @cached_property
    def start(self) -> Tensor:
        """All rows (a, a) of the first factor in falling order of what they explain: any number of the first will do.

        They are the leading subspaces of the kernel whitened by the covariance of the reduced part alone.
        """
        whitened = (self._root @ self._kernel).unflatten(1, (self.a, self.b)).transpose(0, 1).flatten(1)
        if self._inputs is None:
            return oriented(torch.linalg.eigh(whitened @ whitened.T)[1].flip(-1)).T
        variance = self._variance()
        root = _power(variance, 0.5)
        _, basis = torch.linalg.eigh(root @ (whitened @ whitened.T) @ root)
        return oriented(basis.flip(-1)).T @ _power(variance, -0.5)

    def tails(self, first: Tensor, ranks: Sequence[int]) -> list[Tensor]:
        """Squared errors (T + 1,) beside the first r rows of a first factor, if the second has rank 0, 1, ... T.

        One for each r of ``ranks``, which rise. One Cholesky factor serves them all: that of leading rows is the
        leading block of that of all rows.
        """
        half = self._whitened(first[: ranks[-1]])
        found, done = [], 0
        explained = half.new_zeros(half.shape[1], half.shape[1])
        for rank in ranks:
            some = half[done * self.b : rank * self.b]
            explained, done = explained + some.T @ some, rank
            found.append(self._tails(explained))
        return found

    def totals(self, first: Tensor, ranks: Sequence[int]) -> Tensor:
        """The last of each of `tails`: squared errors where the rank of the second factor is not bounded."""
        explained = self._whitened(first[: ranks[-1]]).square().sum(dim=1).cumsum(0)
        return (self.energy - explained[torch.tensor(ranks, device=explained.device) * self.b - 1]).clamp_min(0)

    def _whitened(self, first: Tensor) -> Tensor:
        """What the reduced patches, made uncorrelated one after the other, explain of the outputs: (r b, T)."""
        gram, cross = self._moments(first)
        if self._inputs is not None:
            return torch.linalg.solve_triangular(_cholesky(gram), (self._root @ cross).T, upper=False)
        rows = (self._root @ cross).T.unflatten(0, (len(first), self.b)).flatten(1)
        half = torch.linalg.solve_triangular(_cholesky(gram), rows, upper=False)
        return half.unflatten(1, (self.b, -1)).flatten(0, 1)

    def matrix_tails(self) -> Tensor:
        """Squared errors (T + 1,) of the kernel as a matrix (T, D) of rank 0, 1, ... T."""
        return self._tails((self._root @ self._cross) @ (self._root @ self._kernel).T)

    def _tails(self, explained: Tensor) -> Tensor:
        values = torch.linalg.eigvalsh(_symmetric(explained)).flip(0).clamp_min(0)
        return (self.energy - torch.cat([values.new_zeros(1), values.cumsum(0)])).clamp_min(0)

    def fit(self, ranks: tuple[int, ...], sweeps: int = 2) -> Fit:
        """Factors of the given ranks.

        Parameters
        ----------
        ranks : tuple of int
            (r3, r4) for Tucker-2, else (r,).
        sweeps : int
            Rounds of alternating least squares after the start; the error never rises with them. Of `WIDE` patches at
            most one.

        Raises
        ------
        RankError
            If a rank is out of its range.
        """
        outputs = len(self._kernel)
        refuse_rank(ranks[0], self.a, "the rank of the first factor")
        bound = ranks[1] if self.method == "tucker2" else None
        if bound is not None:
            refuse_rank(bound, outputs, "r4, the rank of the output channels,")
        if self.b == 1 and bound is None:
            refuse_rank(ranks[0], outputs, "the rank of a matrix")
            return self._matrix(ranks[0])
        first = self.start[: ranks[0]]
        second, core, last, error = self._second(first, bound)
        most = 1 if self.a * self.b > WIDE else sweeps
        for _ in range(0 if ranks[0] == self.a else min(sweeps, most)):
            moved = self._first(first, second)
            moved = moved / moved.norm(dim=1, keepdim=True).clamp_min(1e-300)
            tried = self._second(moved, bound)
            if tried[3] >= error:
                break
            first, (second, core, last, error) = moved, tried
        kernel = torch.empty_like(self._kernel)
        product = torch.einsum("trb,ra->tab", second.unflatten(1, (len(first), self.b)), first)
        kernel[:, self._order] = product.flatten(1)
        relative = max(0.0, error) / self.energy if self.energy else 0.0
        if core is None:
            reduce, expand = _balance_two(first, second, self.b)
            return Fit(reduce, None, expand, kernel, relative)
        assert last is not None
        reduce, middle, expand = _balance_three(first, core.unflatten(1, (len(first), self.b)), last)
        return Fit(reduce, middle, expand, kernel, relative)

    def _matrix(self, rank: int) -> Fit:
        """The optimum of a matrix, by reduced-rank regression."""
        basis = torch.linalg.eigh(_symmetric((self._root @ self._cross) @ (self._root @ self._kernel).T))[1]
        basis = oriented(basis[:, -rank:].flip(-1))
        last, first = self._inverse_root @ basis, basis.T @ self._root @ self._kernel
        kernel = last @ first
        left_out = self._kernel - kernel
        seen = left_out if self._inputs is None else left_out @ self._inputs
        error = float(((self._outputs @ left_out) * seen).sum())
        reduce, expand = _balance_two(first, last, 1)
        return Fit(reduce, None, expand, kernel, max(0.0, error) / self.energy if self.energy else 0.0)

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
        # A product a row copies nothing, and pays where each is wide.
        seen = first @ half if self.b > 16 else torch.einsum("xab,ra->xrb", half, first)
        return seen.reshape(rank * self.b, -1), cross

    def _second(self, first: Tensor, bound: int | None) -> tuple[Tensor, Tensor | None, Tensor | None, float]:
        """The best second factor (T, r b) beside the first, its core and last factor if its rank is bounded, error."""
        gram, cross = self._moments(first)
        second = self._seen(cross, lambda rows: torch.cholesky_solve(rows.T, _cholesky(gram)).T)
        if bound is None:
            return second, None, None, self._error(second, gram, cross)
        _, basis = torch.linalg.eigh(_symmetric((self._root @ second) @ (self._root @ cross).T))
        basis = oriented(basis[:, -bound:].flip(-1))
        last, core = self._inverse_root @ basis, basis.T @ self._root @ second
        second = last @ core
        return second, core, last, self._error(second, gram, cross)

    def _error(self, second: Tensor, gram: Tensor, cross: Tensor) -> float:
        weighted = self._outputs @ second
        seen = self._seen(second, lambda rows: rows @ gram)
        return float(self.energy - 2 * (weighted * cross).sum() + (weighted * seen).sum())

    def _seen(self, second: Tensor, apply: Callable[[Tensor], Tensor]) -> Tensor:
        """What a matrix like the one of `_moments` makes of the rows of (T, r b)."""
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
            # Laid out so that each application is two products that copy nothing.
            mixed = outer.permute(0, 3, 1, 2).reshape(-1, rank)
            seen = self._inputs.view(a, b, a, b).permute(1, 3, 0, 2).reshape(-1, a)

        def apply(x: Tensor) -> Tensor:
            if self._inputs is None:
                return shared @ x
            return (mixed @ x).view(rank, -1) @ seen

        left = _power(shared, -1.0)
        right = _power(self._variance(), -1.0)
        x, residual = first.clone(), target - apply(first)
        direction = step = left @ residual @ right
        slope = (residual * step).sum()
        for _ in range(STEPS):
            if slope <= 0:
                break
            image = apply(direction)
            length = slope / (direction * image).sum()
            x, residual = x + length * direction, residual - length * image
            step = left @ residual @ right
            before, slope = slope, (residual * step).sum()
            direction = step + slope / before * direction
        return x


# Methods that take a patch in the order in which a kernel is flattened.
_IN_ORDER = ("svd", "tucker1_out", "tucker1_in", "tucker2", "spatial_vh")


def _split(method: str, inputs: int, places: tuple[int, ...]) -> tuple[int, int, Tensor]:
    """Sizes of the parts a and b of a patch, and its indices in the order (a, b)."""
    count = math.prod(places)
    order = torch.arange(inputs * count)
    if method in ("svd", "tucker1_out"):
        return inputs * count, 1, order
    if method in ("tucker1_in", "tucker2"):
        return inputs, count, order
    if method in ("spatial_vh", "spatial_hv") and len(places) == 2:
        rows, columns = places
        if method == "spatial_vh":
            return inputs * rows, columns, order
        return inputs * columns, rows, order.view(inputs, rows, columns).transpose(1, 2).flatten()
    raise RankError("unknown way to factorize a kernel of this shape", found=(method, places))


def _ridged(matrix: Tensor, ridge: Tensor | float) -> Tensor:
    """The symmetric part in float64 with a ridge on its diagonal, block by block: whole transposes miss every cache."""
    result = matrix.to(torch.float64, copy=True)
    for row in range(0, len(result), BLOCK):
        for column in range(row, len(result), BLOCK):
            upper, lower = (result[i : i + BLOCK, j : j + BLOCK] for i, j in ((row, column), (column, row)))
            mean = (upper + lower.T) / 2
            upper.copy_(mean)
            lower.copy_(mean.T)
    result.diagonal().add_(ridge)
    return result


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


def _cholesky(gram: Tensor) -> Tensor:
    # Rows that explain nothing make it singular; the ridge is far below what a float32 weight can hold. Only the lower
    # triangle is read, so rounding that makes the other one differ is no matter.
    ridged = gram.clone()
    ridged.diagonal().add_(1e-10 * gram.diagonal().mean())
    return torch.linalg.cholesky(ridged)


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """A power of a symmetric positive semi-definite matrix; null directions count as tiny ones."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min((1e-10 * values[-1]).clamp_min(1e-300)) ** exponent) @ vectors.T


def _balance_two(first: Tensor, second: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """Each channel between the factors gets the same norm in both, so that training moves both alike."""
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
