"""Tucker-2 of a convolution kernel: 1x1 (S to r3), k x k (r3 to r4), 1x1 (r4 to T).

Letters: T output channels, S input channels, k the spatial extents and P their product; mode 3 belongs to the inputs
and mode 4 to the outputs, as in Kim et al., "Compression of deep convolutional neural networks for fast and low power
mobile applications" (2016, arXiv:1511.06530), section 3. The subspaces come from sequentially truncated HOSVD
(Vannieuwenhoven et al. 2012), improved by HOOI (De Lathauwer et al. 2000).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.decomposition.gram import leading, normalised, oriented, refuse_rank, spectrum
from compress.errors import RankError

#: Sweeps end once one lowers the error by no more than this share of it.
TOLERANCE = 1e-3
#: How far float32 sweeps step beyond each new factor, as a share of its change: HOOI is slow along flat directions.
STRIDE = 0.35
#: Share of the energy that the HOSVD has to miss for sweeps in float32, which can't tell smaller shares from rounding.
COARSE_SHARE = 1e-2
#: Sweeps in float32 at most; `TOLERANCE` ends them after two or three on trained kernels.
COARSE_SWEEPS = 10


@dataclass(frozen=True)
class Tucker2:
    """A kernel as three factors: ``W[t, s, k] ~ sum_ij last[t, j] core[j, i, k] first[i, s]``.

    The rows of ``first`` and the columns of ``last`` are orthogonal and of equal length within each factor, and the
    three factors have the same Frobenius norm, so that an optimiser sees them at the same scale.

    Attributes
    ----------
    first : Tensor, shape (r3, S)
        Input channels to r3.
    core : Tensor, shape (r4, r3, *k)
        The small kernel.
    last : Tensor, shape (T, r4)
        r4 to output channels.
    error : float
        ``|W - W~| / |W|`` in the Frobenius norm, of the factors as they are stored; 0 for a kernel of zeros.
    """

    first: Tensor
    core: Tensor
    last: Tensor
    error: float


def unfold(kernel: Tensor, mode: int) -> Tensor:
    """Unfold a kernel of shape (T, S, *k) along mode 3 to (S, T P) or along mode 4 to (T, S P).

    Raises
    ------
    RankError
        If the mode is neither 3 (input channels) nor 4 (output channels).
    """
    if mode not in (3, 4):
        raise RankError("a kernel is unfolded along mode 3 (input channels) or 4 (output channels)", found=mode)
    return kernel.flatten(1) if mode == 4 else kernel.transpose(0, 1).flatten(1)


def mode_spectra(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values of both unfoldings, descending, in float64.

    Parameters
    ----------
    kernel : Tensor, shape (T, S, *k)
        Convolution or linear weights.

    Returns
    -------
    Tensor, shape (min(S, T P),)
        Of mode 3. Values below about 1e-7 of the largest are exact zeros.
    Tensor, shape (min(T, S P),)
        Of mode 4.

    Raises
    ------
    RankError
        If the kernel is empty, not finite or not of real floating-point numbers.
    """
    exact, scale = normalised(kernel, "a kernel")
    return spectrum(unfold(exact, 3)) * scale, spectrum(unfold(exact, 4)) * scale


def tucker2(kernel: Tensor, ranks: tuple[int, int], sweeps: int = 10) -> Tucker2:
    """Approximate a kernel by three factors of the given ranks.

    HOSVD alone is within sqrt(2) of the best possible error; sweeps only lower it, on trained kernels by 1 to 2 %. It
    runs in float64, but where the error is large, cheap sweeps in float32 approach the subspaces first.

    Parameters
    ----------
    kernel : Tensor, shape (T, S, *k)
        Convolution weights; any number of spatial dimensions.
    ranks : (int, int)
        r3 and r4, at most S and T. Neither may exceed P times the other: the core could not use it.
    sweeps : int
        HOOI sweeps at most; 0 stops at the HOSVD. They end early once the error hardly falls.

    Returns
    -------
    Tucker2
        Factors in the kernel's dtype and on its device.

    Raises
    ------
    RankError
        If a rank is out of its range or unusable, or the kernel is empty, not finite or not of real numbers.
    """
    exact, scale = normalised(kernel, "a kernel")
    exact = exact.reshape(*kernel.shape[:2], -1)  # [T, S, P]
    _refuse_ranks(ranks, exact.shape)
    r3, r4 = ranks
    if not isinstance(sweeps, int) or sweeps < 0:
        raise RankError("the number of sweeps must be a whole number from 0 on", found=sweeps)

    first, last = (oriented(basis) for basis in _subspaces(exact, r3, r4, sweeps))  # [S, r3], [T, r4]
    core = torch.einsum("tj,tsp,si->jip", last, exact, first)  # [r4, r3, P]
    total = exact.square().sum().item()
    error = math.sqrt(max(0.0, 1 - core.square().sum().item() / total)) if total else 0.0

    core = core * scale
    norm = core.norm().item()
    # Each factor gets the cube root of the product of their norms: sqrt(r3), |core| and sqrt(r4).
    level = (norm * math.sqrt(r3 * r4)) ** (1 / 3) if norm else 1.0
    factors = (
        (first.T * (level / math.sqrt(r3))).to(kernel.dtype),
        (core * (level / norm if norm else 1.0)).reshape(r4, r3, *kernel.shape[2:]).to(kernel.dtype),
        (last * (level / math.sqrt(r4))).to(kernel.dtype),
    )
    # The difference of squares above misses small errors, and the rounding of the factors to a shorter type.
    if error < max(1e-3, 1e4 * torch.finfo(kernel.dtype).eps):
        error = _residual(exact, factors, scale)
    return Tucker2(*factors, error)


def _refuse_ranks(ranks: tuple[int, int], shape: torch.Size) -> None:
    outputs, inputs, taps = shape
    if len(ranks) != 2:
        raise RankError("Tucker-2 takes two ranks, r3 for the input and r4 for the output channels", found=ranks)
    r3, r4 = ranks
    refuse_rank(r3, inputs, "r3, the rank of the input channels,")
    refuse_rank(r4, outputs, "r4, the rank of the output channels,")
    if r3 > r4 * taps or r4 > r3 * taps:
        raise RankError(
            f"neither rank may exceed {taps} times the other: a core of {taps} tap(s) can't use it",
            found=(r3, r4),
            hint=f"Take ranks such as {min(r3, r4 * taps), min(r4, r3 * taps)}",
        )


@dataclass(frozen=True)
class _Layouts:
    """A kernel laid out twice, so that each mode is projected by one matrix product and nothing is copied."""

    by_output: Tensor  # [T, P S]
    by_input: Tensor  # [S, P T]

    @classmethod
    def of(cls, kernel: Tensor) -> _Layouts:
        """Lay out a kernel of shape (T, S, P)."""
        return cls(kernel.transpose(1, 2).flatten(1), kernel.permute(1, 2, 0).flatten(1))

    def to(self, dtype: torch.dtype) -> _Layouts:
        """The same in another precision."""
        return _Layouts(self.by_output.to(dtype), self.by_input.to(dtype))

    def hosvd(self, r3: int, r4: int) -> tuple[float, Tensor, Tensor]:
        """Energy, input (S, r3) and output (T, r4) factor of the sequentially truncated HOSVD."""
        if r3 == len(self.by_input):
            first = torch.eye(r3, dtype=self.by_input.dtype, device=self.by_input.device)
        else:
            _, first = self.best_first(None, r3)
        energy, last = self.best_last(first, r4)
        return energy, first, last

    def best_first(self, last: Tensor | None, rank: int) -> tuple[float, Tensor]:
        """Energy and basis (S, rank) of the best input factor beside the output factor ``last``, or beside none."""
        return _best_factor(self.by_output, last, len(self.by_input), rank)

    def best_last(self, first: Tensor, rank: int) -> tuple[float, Tensor]:
        """Energy and basis (T, rank) of the best output factor beside the input factor ``first``."""
        return _best_factor(self.by_input, first, len(self.by_output), rank)


def _best_factor(unfolded: Tensor, other: Tensor | None, size: int, rank: int) -> tuple[float, Tensor]:
    projected = unfolded if other is None else other.T @ unfolded
    projected = projected.view(-1, size)
    energies, basis = leading(projected.T @ projected, rank)
    return energies.sum().item(), basis


def _subspaces(kernel: Tensor, r3: int, r4: int, sweeps: int) -> tuple[Tensor, Tensor]:
    """Orthonormal input (S, r3) and output (T, r4) factors of a kernel of shape (T, S, P)."""
    layouts = _Layouts.of(kernel)
    total = kernel.square().sum().item()
    if r3 == kernel.shape[1] or r4 == kernel.shape[0]:
        sweeps = 0  # beside a full factor the HOSVD is the optimum
    coarse = _coarse_subspaces(layouts, r3, r4, total) if sweeps else None
    if coarse is None:
        energy, first, last = layouts.hosvd(r3, r4)
    else:
        energy, first, last = coarse
    for _ in range(sweeps):
        before = energy
        _, first = layouts.best_first(last, r3)
        energy, last = layouts.best_last(first, r4)
        if _settled(before, energy, total):
            break
    return first, last


def _coarse_subspaces(layouts: _Layouts, r3: int, r4: int, total: float) -> tuple[float, Tensor, Tensor] | None:
    """Energy and factors after fast sweeps in float32, or None where float32 can't resolve the missing energy.

    Each sweep starts some way beyond the last factors; one that overshoots is dropped.
    """
    coarse = layouts.to(torch.float32)
    energy, first, last = coarse.hosvd(r3, r4)
    if total - energy < COARSE_SHARE * total:
        return None
    beside = last
    for _ in range(COARSE_SWEEPS):
        _, new_first = coarse.best_first(beside, r3)
        after, new_last = coarse.best_last(_beyond(new_first, first), r4)
        if after <= energy:
            break
        beside = _beyond(new_last, last)
        before, energy, first, last = energy, after, new_first, new_last
        if _settled(before, energy, total):
            break
    return energy, first.double(), last.double()


def _settled(before: float, after: float, total: float) -> bool:
    """Whether a sweep lowered the error, the root of the missing energy, by no more than a share `TOLERANCE`."""
    return after - before <= 2 * TOLERANCE * (total - after)


def _beyond(new: Tensor, old: Tensor) -> Tensor:
    """Orthonormal basis some way beyond ``new`` on the way from ``old``."""
    return torch.linalg.qr(new + STRIDE * (new - old @ (old.T @ new))).Q


def _residual(kernel: Tensor, factors: tuple[Tensor, Tensor, Tensor], scale: float) -> float:
    """Relative error of the factors themselves, entry by entry, for a kernel of shape (T, S, P)."""
    first, core, last = (factor.double() for factor in factors)
    rebuilt = torch.einsum("tj,jip,is->tsp", last, core.flatten(2), first)
    norm = kernel.norm().item()
    return (kernel - rebuilt / scale).norm().item() / norm if norm else 0.0
