"""Singular values and leading singular subspaces by way of the small Gram matrix.

An unfolded kernel is short and very wide. The full SVD of a 512x4608 one takes seconds and forms a 170 MB matrix that
nobody needs; the eigenvectors of its 512x512 Gram matrix take a few hundredths of a second. The price is that singular
values below about 1e-7 of the largest one drown in rounding, even in float64: they come out as exact zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.errors import RankError


def checked(values: Tensor, what: str, *, dims: int) -> Tensor:
    """The tensor in float64 without gradient, once it is known to be decomposable.

    Parameters
    ----------
    values : Tensor, shape (T, S, *k)
        Real floating-point weights.
    what : str
        Names the tensor in an error.
    dims : int
        The fewest dimensions it can have.

    Raises
    ------
    RankError
        If it has too few dimensions, no entries, another kind of number, or a NaN or infinity.
    """
    if values.ndim < dims or values.numel() == 0:
        raise RankError(
            f"{what} needs at least {dims} dimensions, none of them empty", found=tuple(values.shape)
        )
    if not values.dtype.is_floating_point:
        raise RankError(f"{what} must hold real floating-point numbers", found=str(values.dtype))
    if not bool(torch.isfinite(values).all()):
        raise RankError(
            f"{what} holds a NaN or an infinity", way_out="Its training diverged, or the file is damaged"
        )
    return values.detach().to(torch.float64)


def gram_null(size: int) -> float:
    """Share of the largest eigenvalue of a ``size`` x ``size`` Gram matrix that is no more than rounding."""
    return size * torch.finfo(torch.float64).eps


def singular_values(matrix: Tensor) -> Tensor:
    """All singular values, descending, in float64.

    Parameters
    ----------
    matrix : Tensor, shape (rows, cols), float64
        A finite matrix.

    Returns
    -------
    Tensor, shape (min(rows, cols),)
        Values below the accuracy of a Gram matrix, about 1e-7 of the largest, are exactly zero.
    """
    small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    scale = small.abs().amax()
    if scale == 0:
        return small.new_zeros(small.shape[0])
    small = small / scale  # squares of very small or large weights would leave the range of float64
    energies = torch.linalg.eigvalsh(small @ small.T).flip(0)
    energies[energies <= gram_null(len(energies)) * energies[0]] = 0
    return energies.sqrt() * scale


def leading(gram: Tensor, rank: int) -> Tensor:
    """Orthonormal eigenvectors of the ``rank`` largest eigenvalues, the largest first.

    Of the two signs of an eigenvector the one is taken whose largest entry is positive, so equal input gives equal
    factors whatever the LAPACK.

    Parameters
    ----------
    gram : Tensor, shape (n, n), float64
        A symmetric positive semi-definite matrix.
    rank : int
        From 1 to n.

    Returns
    -------
    Tensor, shape (n, rank)
        Eigenvectors as columns.
    """
    vectors = torch.linalg.eigh(gram).eigenvectors[:, -rank:].flip(1)  # [n, rank]
    peaks = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))  # [1, rank]
    return vectors * torch.where(peaks < 0, -1.0, 1.0)
