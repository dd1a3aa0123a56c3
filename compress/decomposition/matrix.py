"""Low-rank factors of a matrix: the truncated SVD, for 1x1 convolutions and linear layers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.decomposition.gram import normalised, oriented, refuse_rank
from compress.errors import RankError


@dataclass(frozen=True)
class LowRank:
    """A matrix as two factors, ``W ~ last @ first``.

    Attributes
    ----------
    first : Tensor, shape (r, S)
        Inputs to r.
    last : Tensor, shape (T, r)
        r to outputs. Each row of ``first`` is as long as its column of ``last``.
    error : float
        ``|W - W~| / |W|`` in the Frobenius norm; 0 for a matrix of zeros.
    """

    first: Tensor
    last: Tensor
    error: float


def low_rank(matrix: Tensor, rank: int) -> LowRank:
    """The best approximation of a matrix by one of lower rank (Eckart and Young 1936).

    Parameters
    ----------
    matrix : Tensor, shape (T, S)
        Weights of a linear layer or a 1x1 convolution.
    rank : int
        From 1 to min(T, S).

    Returns
    -------
    LowRank
        Factors in the matrix's dtype and on its device, computed in float64.

    Raises
    ------
    RankError
        If the rank is out of range, or the matrix is empty, not finite or not of real numbers.
    """
    if matrix.ndim != 2:
        raise RankError("low-rank factors need a matrix", found=tuple(matrix.shape))
    exact, scale = normalised(matrix, "a matrix")
    refuse_rank(rank, min(exact.shape), "the rank")
    left, values, right = torch.linalg.svd(exact, full_matrices=False)
    turned = oriented(left[:, :rank])
    signs = (turned * left[:, :rank]).sum(0).sign()
    root = values[:rank].sqrt() * math.sqrt(scale)
    total = values.square().sum().item()
    lost = values[rank:].square().sum().item()
    return LowRank(
        (root[:, None] * right[:rank] * signs[:, None]).to(matrix.dtype),
        (turned * root).to(matrix.dtype),
        math.sqrt(lost / total) if total else 0.0,
    )
