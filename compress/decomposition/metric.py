"""The metric in which a layer's error is measured: covariance of its inputs, sensitivity to its outputs.

With the covariance G = E[x x'] of patches x and a positive definite output metric H, the error of a kernel change E is
tr(H E G E'), the mean of ``|E x|^2`` measured in H.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from compress.errors import RankError

#: Share of the mean variance that is added to each variance, so that directions absent from calibration still count.
RIDGE = 1e-4

#: Share of its mean added to the diagonal of the output metric.
OUTPUT_RIDGE = 1e-2

#: Rows and columns of a matrix that are mirrored together.
BLOCK = 512


def is_finite(matrix: Tensor) -> bool:
    """Whether all values are finite. Makes no mask, which would be as large as the covariance of long patches."""
    return all(math.isfinite(end) for end in torch.aminmax(matrix)) if matrix.numel() else True


@dataclass(frozen=True)
class Metric:
    """What a layer's error is measured in.

    Attributes
    ----------
    inputs : Tensor, shape (D, D), float64, or None
        Covariance of patches, channels first and kernel places within them; None for the identity, which would take
        gigabytes for long patches.
    outputs : Tensor, shape (T, T), float64
        Symmetric and positive definite; its mean diagonal is 1.
    """

    inputs: Tensor | None
    outputs: Tensor

    @classmethod
    def plain(cls, outputs: int, device: torch.device | None = None) -> Metric:
        """The metric in which errors are those of the kernel: all inputs and outputs have the same weight."""
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
            Mean of g g' for gradients g of the objective by the layer's output; without it all outputs have the same
            weight.
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


def _ridged(matrix: Tensor, ridge: Tensor | float) -> Tensor:
    """The symmetric part in float64 plus a ridge, in blocks: transposing the whole matrix would miss every cache."""
    result = matrix.to(torch.float64, copy=True)
    for row in range(0, len(result), BLOCK):
        for column in range(row, len(result), BLOCK):
            upper, lower = (result[i : i + BLOCK, j : j + BLOCK] for i, j in ((row, column), (column, row)))
            mean = (upper + lower.T) / 2
            upper.copy_(mean)
            lower.copy_(mean.T)
    result.diagonal().add_(ridge)
    return result
