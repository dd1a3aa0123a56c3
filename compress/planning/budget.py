"""Reading a budget such as ``macs=0.5``, ``params=2M``, ``drop=0.01`` or ``latency=0.6@openvino-cpu``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from compress.errors import RankError
from compress.target import Target, targets

#: What a budget can bound, and the unit of an absolute value.
KINDS = {
    "macs": "multiply-adds", "params": "parameters", "size": "bytes", "error": "", "drop": "", "latency": "ms",
}  # fmt: skip

_SUFFIXES = {"k": 1e3, "m": 1e6, "g": 1e9, "ms": 1.0}


@dataclass(frozen=True)
class Budget:
    """A bound for the compressed network.

    Attributes
    ----------
    kind : str
        A key of `KINDS`.
    value : float
        A share of the original (above 0, at most 1), or an absolute value; for ``error`` the relative squared error
        of the final maps, for ``drop`` the AP that may be lost.
    relative : bool
        Whether ``value`` is a share.
    target : Target or None
        Of a latency budget.
    """

    kind: str
    value: float
    relative: bool
    target: Target | None = None

    def bound(self, original: float) -> float:
        """The bound in units, given what the original has."""
        return self.value * original if self.relative else self.value

    def __str__(self) -> str:
        """As it is written."""
        return f"{self.kind}={self.value:g}" + (f"@{self.target}" if self.target else "")


def parse_budget(text: str) -> Budget:
    """Read a budget.

    Parameters
    ----------
    text : str
        ``KIND=VALUE``, for latency ``latency=VALUE@RUNTIME-DEVICE[-int8][-PRECISION]``. A value up to 1 is a share of
        the original; an absolute one has a suffix: ``macs=4G``, ``params=2.1M``, ``size=8M``, ``latency=30ms@...``.

    Raises
    ------
    RankError
        If the kind, value or target is none of those.
    """
    match = re.fullmatch(r"\s*(\w+)\s*=\s*([0-9.]+(?:e-?\d+)?)\s*([a-zA-Z]*)\s*(?:@\s*([\w-]+))?\s*", text)
    if not match or match[1] not in KINDS:
        raise RankError(
            "a budget is KIND=VALUE",
            found=text,
            hint=f"Known kinds: {', '.join(KINDS)}; for example macs=0.5 or latency=0.6@openvino-cpu",
        )
    kind, number, suffix, where = match.groups()
    try:
        value = float(number)
    except ValueError:
        raise RankError("the value of a budget is a number", found=number, hint="For example macs=0.5") from None
    if (kind == "latency") != (where is not None):
        raise RankError(
            "a latency budget, and no other, names where latency is measured",
            found=text,
            hint=f"For example latency=0.6@openvino-cpu; known: {', '.join(targets())}",
        )
    suffix = suffix.lower()
    if suffix and (suffix not in _SUFFIXES or kind in ("error", "drop") or (suffix == "ms") != (kind == "latency")):
        raise RankError("unknown unit of a budget", found=text, hint="For example macs=4G, params=2M, latency=30ms@…")
    relative = not suffix and kind not in ("error", "drop")
    if value <= 0 or (not suffix and value > 1):
        raise RankError(
            "the value of a budget must be above 0 and, without a unit, at most 1",
            found=text,
            hint="0.5 means half of the original; absolute values have a unit: 4G, 2M, 30ms",
        )
    value *= _SUFFIXES[suffix] if suffix else 1.0
    return Budget(kind, value, relative, Target.parse(where) if where else None)


def infeasible(budget: Budget, nearest: float, original: float) -> RankError:
    """The error for a budget that no plan meets, naming the nearest one that could be met."""
    share = f"{budget.kind}={rounded_up(nearest / original)}" + (f"@{budget.target}" if budget.target else "")
    return RankError(
        f"the budget can't be met: the smallest network that these layers allow has {nearest:.4g} "
        f"{KINDS[budget.kind]}, {nearest / original:.1%} of the original",
        found=str(budget),
        hint=f"The nearest feasible budget is {share}; --exclude fewer layers for a smaller one",
    )


def rounded_up(share: float) -> float:
    """A share rounded up to four digits, so that it is feasible as printed."""
    return -(-share * 10_000 // 1) / 10_000
