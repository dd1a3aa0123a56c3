"""Preconditioned conjugate gradients for linear equations in a matrix."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def conjugate_gradients(
    x: Tensor, target: Tensor, apply: Callable[[Tensor], Tensor], preconditioner: tuple[Tensor, Tensor], steps: int
) -> Tensor:
    """A better solution of ``apply(x) = target``, by a few iterations from x.

    Parameters
    ----------
    x : Tensor, shape (m, n)
        Where to start; it stays as it is.
    target : Tensor, shape (m, n)
        Right-hand side.
    apply : callable
        A symmetric positive semi-definite linear map of such matrices.
    preconditioner : (Tensor, Tensor), shapes (m, m) and (n, n)
        Left and right: the residual R becomes ``left R right``.
    steps : int
        Number of iterations.
    """
    left, right = preconditioner
    residual = target - apply(x)
    direction = step = left @ residual @ right
    slope = (residual * step).sum()
    for _ in range(steps):
        if slope <= 0:
            break
        image = apply(direction)
        length = slope / (direction * image).sum()
        x, residual = x + length * direction, residual - length * image
        step = left @ residual @ right
        before, slope = slope, (residual * step).sum()
        direction = step + slope / before * direction
    return x
