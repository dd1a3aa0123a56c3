"""Singular values and leading singular subspaces from the smaller Gram matrix, and other small helpers.

An unfolded kernel is short and very wide. The full SVD of a 512x4608 one takes seconds and forms a 170 MB matrix that
is not needed; the eigenvectors of its 512x512 Gram matrix take a few hundredths of a second. In exchange, singular
values below about 1e-7 of the largest are lost to rounding, even in float64, because they are squared.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compress.errors import RankError


def normalised(weights: Tensor, what: str) -> tuple[Tensor, float]:
    """The weights in float64, divided by their largest magnitude, and that magnitude.

    Without the division the squares of very small or very large weights would leave the range of float64.

    Parameters
    ----------
    weights : Tensor, shape (T, S, *k)
        Real floating-point numbers.
    what : str
        Names the tensor in an error.

    Returns
    -------
    Tensor, shape (T, S, *k)
        Without gradient; entries from -1 to 1.
    float
        The divisor; 1 if all weights are zero.

    Raises
    ------
    RankError
        If it is not a matrix or kernel, is empty, has another type of number, or holds a NaN or infinity.
    """
    if weights.ndim < 2 or weights.numel() == 0:
        raise RankError(f"{what} has two or more dimensions, none of them empty", found=tuple(weights.shape))
    if not weights.dtype.is_floating_point:
        raise RankError(f"{what} holds real floating-point numbers", found=str(weights.dtype))
    weights = weights.detach()
    largest = weights.abs().amax().item()
    if not math.isfinite(largest):
        raise RankError(f"{what} has a NaN or infinity in it", hint="Its training diverged or its file is damaged")
    largest = largest or 1.0
    return weights.to(torch.float64) / largest, largest


def refuse_rank(rank: int, full: int, what: str) -> None:
    """Raise `RankError` unless ``rank`` is a whole number from 1 to ``full``."""
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= full:
        raise RankError(f"{what} must be a whole number from 1 to {full}", found=rank)


def rounding(size: int) -> float:
    """Share of the largest eigenvalue of a ``size`` x ``size`` Gram matrix below which eigenvalues are rounding."""
    return size * torch.finfo(torch.float64).eps


def spectrum(matrix: Tensor) -> Tensor:
    """All singular values, descending; those below the precision of the Gram matrix are exact zeros.

    Parameters
    ----------
    matrix : Tensor, shape (rows, cols), float64
        Entries of moderate size, see `normalised`.

    Returns
    -------
    Tensor, shape (min(rows, cols),)
    """
    small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    energies = torch.linalg.eigvalsh(small @ small.T).flip(0)
    null = energies <= rounding(len(energies)) * energies[0]
    return energies.masked_fill(null, 0.0).sqrt()


def leading(gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The ``rank`` largest eigenvalues, descending, with orthonormal eigenvectors.

    Parameters
    ----------
    gram : Tensor, shape (n, n)
        Symmetric and positive semi-definite.
    rank : int
        From 1 to n.

    Returns
    -------
    Tensor, shape (rank,)
        Eigenvalues.
    Tensor, shape (n, rank)
        Eigenvectors as columns.
    """
    values, vectors = torch.linalg.eigh(gram)
    return values[-rank:].flip(0), vectors[:, -rank:].flip(1)


def oriented(vectors: Tensor) -> Tensor:
    """Columns with signs such that the largest entry of each is positive, whatever LAPACK returns."""
    peaks = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return torch.where(peaks < 0, -vectors, vectors)


def symmetric(matrix: Tensor) -> Tensor:
    """The symmetric part of a square matrix."""
    return (matrix + matrix.T) / 2


def cholesky(gram: Tensor) -> Tensor:
    """Lower Cholesky factor of a positive semi-definite matrix, with a tiny ridge for rows that explain nothing.

    The ridge is far below the precision of a float32 weight. Only the lower triangle is read, so a matrix that is not
    quite symmetric after rounding will do.
    """
    ridged = gram.clone()
    ridged.diagonal().add_((1e-10 * gram.diagonal().mean()).clamp_min(1e-300))
    return torch.linalg.cholesky(ridged)


def power(matrix: Tensor, exponent: float) -> Tensor:
    """A power of a symmetric positive semi-definite matrix; null directions get a tiny eigenvalue."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min((1e-10 * values[-1]).clamp_min(1e-300)) ** exponent) @ vectors.T
