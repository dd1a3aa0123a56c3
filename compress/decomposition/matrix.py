"""Truncated SVD of a matrix as two factors: for linear layers and 1x1 convolutions.

Letters: T outputs, S inputs, r the rank. By Eckart and Young (1936) no two factors of that rank are closer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.decomposition.gram import leading, normalised, oriented, refuse_rank
from compress.errors import RankError


@dataclass(frozen=True)
class LowRank:
    """A matrix as two factors, ``W ~ last @ first``.

    The singular values are split evenly: ``first @ first.T`` and ``last.T @ last`` are the same diagonal matrix.

    Attributes
    ----------
    first : Tensor, shape (r, S)
        Inputs to r.
    last : Tensor, shape (T, r)
        r to outputs.
    error : float
        ``|W - W~| / |W|`` in the Frobenius norm, of the factors as they are stored; 0 for a matrix of zeros.
    """

    first: Tensor
    last: Tensor
    error: float


def low_rank(matrix: Tensor, rank: int) -> LowRank:
    """The best approximation of a matrix by two factors of the given rank, computed in float64.

    Parameters
    ----------
    matrix : Tensor, shape (T, S)
        Weights.
    rank : int
        From 1 to min(T, S).

    Returns
    -------
    LowRank
        Factors in the matrix's dtype and on its device.

    Raises
    ------
    RankError
        If the rank is out of range, or the tensor is not a matrix, empty, not finite or not of real numbers.
    """
    exact, scale = normalised(matrix, "a matrix")
    if exact.ndim != 2:
        raise RankError("a matrix has two dimensions", found=tuple(matrix.shape))
    refuse_rank(rank, min(exact.shape), "the rank")
    small = exact if exact.shape[0] <= exact.shape[1] else exact.T  # [n, m], n <= m

    _, basis = leading(small @ small.T, rank)  # [n, r]
    # Squaring hides singular values below 1e-8 of the largest; one step with the matrix itself recovers them.
    wide = torch.linalg.qr(small.T @ basis).Q  # [m, r]
    image = small @ wide
    wide = oriented(wide @ leading(image.T @ image, rank)[1])
    image = small @ wide  # [n, r], orthogonal columns as long as the singular values
    roots = image.norm(dim=0).sqrt()
    left = image / roots.where(roots > 0, torch.ones_like(roots))
    right = wide * roots

    last, first = (left, right.T) if small is exact else (right, left.T)
    first, last = ((factor * scale**0.5).to(matrix.dtype) for factor in (first, last))
    norm = exact.norm().item()
    residual = exact - last.double() @ first.double() / scale
    return LowRank(first, last, residual.norm().item() / norm if norm else 0.0)
