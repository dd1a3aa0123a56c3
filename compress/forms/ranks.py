"""Which ranks of a form are tried: enough points for a curve, few enough to fit or to time."""

from __future__ import annotations

#: Ranks tried along one mode, about.
RANKS = 16

#: Largest ranks tried for long patches, as a share of those at which the factors cost as much as the layer.
LARGEST = 0.6

#: Shares of a layer's MACs at which forms with one rank are timed, and of its channels for forms with two.
TIMED_SHARES = (0.25, 0.5, 0.8)


def rank_steps(full: int, align: int, *, finer: int = 1, last: bool = False) -> list[int]:
    """Ranks below ``full``, about `RANKS` of them (times ``finer``), and ``full`` itself if asked for.

    Parameters
    ----------
    full : int
        The largest rank.
    align : int
        Ranks are multiples of it.
    finer : int
        How many times as many ranks.
    last : bool
        Whether ``full`` is one of them.
    """
    step = max(1, round(full / (RANKS * finer)))
    step = max(align, step // align * align)
    return [*range(step, full, step), *([full] if last else [])]


def aligned(rank: float, most: int, align: int) -> int:
    """The nearest multiple of ``align``, or in a layer narrower than that the nearest rank; at most ``most``."""
    snapped = max(1, round(rank / align)) * align
    return min(snapped if snapped < most else max(1, round(rank)), most)
