"""The record of a budget: what was asked, predicted and reached."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from compress.measure.gate import Gate


@dataclass(frozen=True)
class Reached:
    """What came of a budget, all values in its unit.

    Attributes
    ----------
    budget : str
        As it is written.
    asked : float
        The bound.
    predicted : float
        What the plan predicts for the network.
    reached : float
        What the network was measured at.
    original : float
        The value of the original.
    predicted_error : float
        Predicted relative squared error of the final outputs.
    original_score : float or None
        Accuracy of the original, under a budget of accuracy.
    planned : float or None
        Latency measured for the plan before its factors were fitted, under a budget of latency.
    gate : Gate or None
        The comparison of result and original, under a budget of latency.
    """

    budget: str
    asked: float
    predicted: float
    reached: float
    original: float
    predicted_error: float
    original_score: float | None = None
    planned: float | None = None
    gate: Gate | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON, without the fields that this kind of budget does not have."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        found = {name: value for name, value in values.items() if value is not None}
        return found | ({} if self.gate is None else {"gate": self.gate.to_dict()})
