"""CP decomposition of a convolution kernel: a sum of r products of an output, an input and a spatial pattern.

Letters: T outputs, S inputs, P kernel places, D = S P; a kernel W (T, S, P) becomes
``W~[t, s, p] = sum_r A[r, t] B[r, s] C[r, p]``, which is 1x1 (S to r), depthwise kxk, 1x1 (r to T): Lebedev et al.,
"Speeding-up convolutional neural networks using fine-tuned CP-decomposition" (2015, arXiv:1412.6553), section 3, with
both spatial axes in one pattern.

Errors are those of `compress.decomposition.metric`. The start is nested, its first r terms serve any rank r: the
smallest mode of the kernel is turned to its principal axes, and the singular triples of all slices along it are put in
falling order. Alternating least squares (ALS) improves on that, first in a metric in which it is cheap, where the
covariance of patches is a product of one of channels and one of places, then in the true one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from compress.decomposition.conjugate import conjugate_gradients
from compress.decomposition.fitting import WIDE, Fit, refuse_other_metric
from compress.decomposition.gram import cholesky, oriented, power, refuse_rank
from compress.decomposition.problems import Problems

#: ALS sweeps of a quick start, as curves are made of, and of a careful one.
QUICK = 8
CAREFUL = 14

#: ALS ends early once a sweep lowers the error by no more than this share of it, or to this share of the energy.
TOLERANCE = 1e-3
NOTHING = 1e-12

#: ALS steps beyond each new factor, as a share of its change: at first, at most, and its growth with each success.
STRIDE = 1.0
LONGEST = 2.0
GROWTH = 1.1

#: Pull of each ALS update towards the factor before, as a share of the mean curvature: it keeps terms from diverging
#: while they cancel each other, the known degeneracy of CP (de Silva and Lim 2008, arXiv:math/0607647).
PROXIMAL = 1e-4

#: Conjugate-gradient steps in one update of B or C in the true metric.
STEPS = 4

#: A, B and C with one row for each term: (r, T), (r, S), (r, P).
Terms = tuple[Tensor, Tensor, Tensor]


def full_rank(shape: Sequence[int]) -> int:
    """A rank at which any tensor (T, S, P) is reproduced: the product of its two smallest sizes."""
    return math.prod(sorted(shape)[:2])


def nested_terms(tensor: Tensor, rank: int) -> Terms:
    """The leading terms of the nested start; all of them reproduce the tensor.

    Parameters
    ----------
    tensor : Tensor, shape (T, S, P), float64
        The kernel.
    rank : int
        Number of terms, at most `full_rank`.

    Returns
    -------
    tuple of Tensor
        A (rank, T), B (rank, S), C (rank, P), in falling order of what they explain.
    """
    smallest = min(range(3), key=lambda mode: tensor.shape[mode])
    rows = tensor.movedim(smallest, 0)  # [n, x, y]
    axes = oriented(torch.linalg.eigh(rows.flatten(1) @ rows.flatten(1).T)[1].flip(-1)).T  # [n, n]
    slices = torch.einsum("nxy,mn->mxy", rows, axes)
    wide = slices.shape[1] <= slices.shape[2]
    short = slices if wide else slices.transpose(1, 2)
    # Singular vectors of the short side, and the long side projected on them: exact however small the singular value.
    vectors = torch.linalg.eigh(short @ short.transpose(1, 2))[1].transpose(1, 2)  # [n, terms, short]
    images = vectors @ short  # [n, terms, long]
    order = images.square().sum(-1).flatten().argsort(descending=True)[:rank]
    pair = [part.flatten(0, 1)[order] for part in ((vectors, images) if wide else (images, vectors))]
    pair.insert(smallest, axes.repeat_interleave(vectors.shape[1], dim=0)[order])
    return pair[0], pair[1], pair[2]


def als(tensor: Tensor, terms: Terms, sweeps: int) -> Terms:
    """Better terms by alternating least squares for the Frobenius norm; the error never rises.

    Sweeps start some way beyond the last factors; one that overshoots is dropped (Mitchell, Ye and De Sterck 2020,
    arXiv:1810.05846).

    Parameters
    ----------
    tensor : Tensor, shape (T, S, P)
        The kernel.
    terms : tuple of Tensor
        To start from.
    sweeps : int
        Sweeps at most.
    """
    total = float(tensor.square().sum())
    best, error = terms, squared_error(tensor, terms)
    start, stride = terms, STRIDE
    for _ in range(sweeps):
        if error <= NOTHING * total:
            break
        swept, after = _sweep(tensor, start, total)
        gain = error - after
        if gain > TOLERANCE * error:
            start, best, error = _beyond(swept, best, stride), swept, after
            stride = min(LONGEST, stride * GROWTH)
        elif start is best:
            break
        else:  # that was too far
            start, stride = best, stride / 2
    return best


def squared_error(tensor: Tensor, terms: Terms) -> float:
    """Squared Frobenius error of a kernel (T, S, P) in terms."""
    a, b, c = terms
    return float((a.T @ _patterns(b, c) - tensor.flatten(1)).square().sum())


class CpProblem:
    """A kernel to be decomposed in one metric; what does not depend on the rank is computed once.

    Parameters
    ----------
    problems : Problems
        The kernel (T, S, *k) and the metric.

    Attributes
    ----------
    energy : float
        ``tr(H W G W')``: the squared error of a layer that is left out altogether.

    Raises
    ------
    RankError
        If the metric does not fit the kernel.
    """

    def __init__(self, problems: Problems) -> None:
        kernel, metric = problems.weight, problems.metric
        refuse_other_metric(kernel, metric)
        self._shape = (kernel.shape[0], kernel.shape[1], kernel[0, 0].numel())
        self._kernel = kernel.detach().double().flatten(1)
        self._inputs, self._outputs = metric.inputs, metric.outputs
        self._root = metric.roots[0]
        self._cross = self._with_covariance(self._kernel)
        self.energy = float(((self._outputs @ self._kernel) * self._cross).sum())

    def errors(self, ranks: Sequence[int]) -> list[float]:
        """Squared errors of the nested start at rising ranks, with the best A for each.

        One product with the covariance and one Cholesky factor serve all ranks.
        """
        if self._inputs is None:  # terms of the nested start are orthogonal
            norms = torch.stack([part[: ranks[-1]].square().sum(1) for part in self._nested])
            explained = self.energy * norms.prod(dim=0).cumsum(0)
            return [max(0.0, self.energy - float(explained[rank - 1])) for rank in ranks]
        b, c = self._start(ranks[-1])
        patterns = _patterns(b, c)
        half = torch.linalg.solve_triangular(
            cholesky(self._with_covariance(patterns) @ patterns.T), patterns @ self._cross.T @ self._root, upper=False
        )
        explained = half.square().sum(dim=1).cumsum(0)
        return [max(0.0, self.energy - float(explained[rank - 1])) for rank in ranks]

    def fit(self, rank: int, sweeps: int = 2) -> Fit:
        """Terms of the given rank.

        Parameters
        ----------
        rank : int
            Number of terms.
        sweeps : int
            Rounds of alternating least squares in the true metric after a start of `CAREFUL` sweeps in the cheap one;
            0 takes a start of `QUICK` sweeps. The error never rises with them. Patches above `WIDE` get at most one.

        Raises
        ------
        RankError
            If the rank is out of its range.
        """
        refuse_rank(rank, full_rank(self._shape), "the rank of a CP decomposition")
        b, c = self._start(rank, CAREFUL if sweeps else QUICK)
        a, error = self._outer(b, c)
        # Without a covariance the cheap metric is the true one.
        rounds = 0 if self._inputs is None else min(sweeps, 1 if self._kernel.shape[1] > WIDE else sweeps)
        for _ in range(rounds):
            moved = self._moved(a, b, c)
            tried = self._outer(*moved)
            if tried[1] >= error:
                break
            (b, c), (a, error) = moved, tried
        a, b, c = _balanced(a, b, c)
        relative = max(0.0, error) / self.energy if self.energy else 0.0
        return Fit({"reduce": b, "core": c, "expand": a.T}, a.T @ _patterns(b, c), relative)

    @cached_property
    def _roots(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Square roots of the covariances of channels (S, S) and of places (P, P), and their inverses."""
        _, inputs, places = self._shape
        if self._inputs is None:
            channels, spots = (torch.eye(n, dtype=torch.float64, device=self._kernel.device) for n in (inputs, places))
            return channels, spots, channels, spots
        blocks = self._inputs.view(inputs, places, inputs, places)
        channels = torch.einsum("ipjp->ij", blocks) / places
        spots = torch.einsum("ipiq->pq", blocks) / channels.diagonal().sum()
        return power(channels, 0.5), power(spots, 0.5), power(channels, -0.5), power(spots, -0.5)

    @cached_property
    def _cheap(self) -> Tensor:
        """The kernel (T, S, P) in coordinates where the cheap metric is the Frobenius norm, and its norm is 1."""
        channels, spots, *_ = self._roots
        tensor = torch.einsum("tsp,si,pj->tij", (self._root @ self._kernel).view(self._shape), channels, spots)
        return tensor / tensor.norm().clamp_min(1e-300)

    @cached_property
    def _nested(self) -> Terms:
        return nested_terms(self._cheap, full_rank(self._shape))

    def _start(self, rank: int, sweeps: int = 0) -> tuple[Tensor, Tensor]:
        """B (r, S) and C (r, P) of the nested start after some sweeps of ALS in the cheap metric."""
        a, b, c = (part[:rank] for part in self._nested)
        if sweeps and squared_error(self._cheap, (a, b, c)) > NOTHING:
            # Steering needs no float64, and float32 takes half the time.
            _, b, c = als(self._cheap.float(), (a.float(), b.float(), c.float()), sweeps)
        _, _, channels, spots = self._roots
        return _unit(b.double() @ channels), _unit(c.double() @ spots)

    def _with_covariance(self, rows: Tensor) -> Tensor:
        return rows if self._inputs is None else rows @ self._inputs

    def _outer(self, b: Tensor, c: Tensor) -> tuple[Tensor, float]:
        """The best A (r, T) beside B and C, by regression, and the squared error."""
        patterns = _patterns(b, c)
        gram, cross = self._with_covariance(patterns) @ patterns.T, patterns @ self._cross.T
        a = torch.cholesky_solve(cross, cholesky(gram))
        weighted = a @ self._outputs
        return a, float(self.energy - 2 * (weighted * cross).sum() + (weighted * (gram @ a)).sum())

    def _moved(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """B, then C, that are better beside the others."""
        weighted = a @ self._outputs
        mixed, target = weighted @ a.T, (weighted @ self._cross).view(-1, *self._shape[1:])
        channels, spots, *_ = self._roots

        def image(patterns: Tensor) -> Tensor:
            return (mixed @ self._with_covariance(patterns)).view(target.shape)

        # In the cheap metric the equations of B are (mixed * C G C') B G = ..., and those of C are alike.
        b = conjugate_gradients(
            b,
            torch.einsum("rsp,rp->rs", target, c),
            lambda x: torch.einsum("rsp,rp->rs", image(_patterns(x, c)), c),
            (power(mixed * ((c @ spots) @ (c @ spots).T), -1.0), power(channels @ channels, -1.0)),
            STEPS,
        )
        c = conjugate_gradients(
            c,
            torch.einsum("rsp,rs->rp", target, b),
            lambda x: torch.einsum("rsp,rs->rp", image(_patterns(b, x)), b),
            (power(mixed * ((b @ channels) @ (b @ channels).T), -1.0), power(spots @ spots, -1.0)),
            STEPS,
        )
        return _unit(b), _unit(c)


def _patterns(b: Tensor, c: Tensor) -> Tensor:
    """The pattern over patches of each term: (r, D)."""
    return (b[:, :, None] * c[:, None, :]).flatten(1)


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)


def _sweep(tensor: Tensor, terms: Terms, total: float) -> tuple[Terms, float]:
    """Terms after one update of each factor, and their squared error."""
    a, b, c = terms
    projected = (a @ tensor.flatten(1)).view(len(a), *tensor.shape[1:])  # [r, S, P]
    b = _unit(_updated(b, (a @ a.T) * (c @ c.T), torch.einsum("rsp,rp->rs", projected, c)))
    c = _unit(_updated(c, (a @ a.T) * (b @ b.T), torch.einsum("rsp,rs->rp", projected, b)))
    gram, cross = (b @ b.T) * (c @ c.T), _patterns(b, c) @ tensor.flatten(1).T
    a = _updated(a, gram, cross)
    return (a, b, c), float(total - 2 * (a * cross).sum() + (a * (gram @ a)).sum())


def _updated(old: Tensor, gram: Tensor, cross: Tensor) -> Tensor:
    """The factor (r, n) of least squares with these normal equations, pulled towards the old one."""
    pull = PROXIMAL * gram.diagonal().mean().clamp_min(1e-30)
    ridged = gram.clone()
    ridged.diagonal().add_(pull)
    return torch.cholesky_solve(cross + pull * old, torch.linalg.cholesky(ridged))


def _beyond(new: Terms, old: Terms, stride: float) -> Terms:
    a, b, c = (x + stride * (x - before) for x, before in zip(new, old, strict=True))
    return a, b, c


def _balanced(a: Tensor, b: Tensor, c: Tensor) -> Terms:
    """The same norm in all three factors of each term, so that an optimiser sees them at one scale."""
    norms = [part.norm(dim=1, keepdim=True).clamp_min(1e-30) for part in (a, b, c)]
    level = (norms[0] * norms[1] * norms[2]) ** (1 / 3)
    a, b, c = (part / norm * level for part, norm in zip((a, b, c), norms, strict=True))
    return a, b, c
