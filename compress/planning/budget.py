"""Budgets for the compressed network: ``macs=0.5``, ``params=2M``, ``drop=0.01``, ``latency=0.6@openvino-cpu``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from compress.errors import Infeasible, RankError
from compress.target import Target, targets

#: Quantities that a budget can bound, and the unit of an absolute value.
KINDS = {
    "macs": "multiply-adds", "params": "parameters", "size": "bytes", "error": "", "drop": "", "latency": "ms",
}  # fmt: skip

#: Kinds whose value is never a share.
ABSOLUTE = ("error", "drop")

_UNITS = {"g": 1e9, "m": 1e6, "k": 1e3, "ms": 1.0}


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

    @classmethod
    def parse(cls, text: str | Budget) -> Budget:
        """Read a budget; a budget is returned as it is.

        Parameters
        ----------
        text : str or Budget
            ``KIND=VALUE``, for latency ``latency=VALUE@RUNTIME-DEVICE[-int8][-PRECISION]``. A value up to 1 is a share
            of the original; an absolute one has a unit: ``macs=4G``, ``params=2.1M``, ``size=8M``,
            ``latency=30ms@...``.

        Raises
        ------
        RankError
            If the kind, value or target is not one of those.
        """
        if isinstance(text, Budget):
            return text
        match = re.fullmatch(r"\s*(\w+)\s*=\s*([0-9.]+(?:e[+-]?\d+)?)\s*([a-zA-Z]*)\s*(?:@\s*([\w-]+))?\s*", text)
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
                "a latency budget, and only that, names the target on which latency is measured",
                found=text,
                hint=f"For example latency=0.6@openvino-cpu; known: {', '.join(targets())}",
            )
        suffix = suffix.lower()
        absolute_only = kind in ABSOLUTE
        if suffix and (suffix not in _UNITS or absolute_only or (suffix == "ms") != (kind == "latency")):
            raise RankError("unknown unit of a budget", found=text, hint="For example macs=4G, params=2M, size=8M")
        relative = not suffix and not absolute_only
        if value <= 0 or (not suffix and value > 1):
            raise RankError(
                "the value of a budget must be above 0 and, without a unit, at most 1",
                found=text,
                hint="0.5 means half of the original; absolute values have a unit: 4G, 2M, 30ms",
            )
        value *= _UNITS[suffix] if suffix else 1.0
        return cls(kind, value, relative, Target.parse(where) if where else None)

    def bound(self, original: float) -> float:
        """The bound in units, given the value of the original."""
        return self.value * original if self.relative else self.value

    def __str__(self) -> str:
        """As `parse` reads it."""
        return f"{self.kind}={self._value()}" + (f"@{self.target}" if self.target else "")

    def _value(self) -> str:
        if self.relative or self.kind in ABSOLUTE:
            return f"{self.value:g}"
        if self.kind == "latency":
            return f"{self.value:g}ms"
        suffix, unit = next(
            ((name, unit) for name, unit in _UNITS.items() if name != "ms" and self.value >= unit), ("k", 1e3)
        )
        return f"{self.value / unit:.12g}{suffix.upper() if suffix != 'k' else suffix}"


def infeasible(budget: Budget, nearest: float, original: float) -> Infeasible:
    """The error for a budget that no plan meets, which names the nearest one that can be met.

    Parameters
    ----------
    budget : Budget
        The budget.
    nearest, original : float
        What the smallest possible network and the original have, in the unit of the budget.
    """
    share = f"{budget.kind}={rounded_up(nearest / original)}" + (f"@{budget.target}" if budget.target else "")
    return Infeasible(
        f"the budget can't be met: the smallest network that these layers allow has {nearest:.4g} "
        f"{KINDS[budget.kind]}, {nearest / original:.1%} of the original",
        found=str(budget),
        hint=f"The nearest feasible budget is {share}; exclude fewer layers for a smaller one",
        nearest=share,
    )


def rounded_up(share: float) -> float:
    """A share rounded up to four digits, so that it is feasible as printed."""
    return -(-share * 10_000 // 1) / 10_000
