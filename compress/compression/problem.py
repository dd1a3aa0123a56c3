"""The allocation problem of one model: what its layers could become, and the images that factors are fitted to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from compress.errors import Infeasible
from compress.model import Model
from compress.network.statistics import Calibration
from compress.planning.budgeted import Budgeted, Curves, Price, plan_within
from compress.progress import Progress
from compress.surgery.data_aware import factorize_with_data
from compress.surgery.factorize import Factorized, factorize


@dataclass(frozen=True)
class BudgetProblem:
    """A model to compress under a budget.

    Attributes
    ----------
    model : Model
        The original.
    curves : Curves
        What its layers could become.
    calibration : Calibration or None
        None without images: factors then come from weights alone.
    rounds : int
        As of `compress.surgery.data_aware.factorize_with_data`.
    """

    model: Model
    curves: Curves
    calibration: Calibration | None
    rounds: int

    @property
    def module(self) -> nn.Module:
        """The original network."""
        return self.model.module

    def plan(self, bound: float, price: Price, fixed: float) -> Budgeted:
        """`compress.planning.budgeted.plan_within` for this model; see `cheapest_price` where it is infeasible."""
        return plan_within(self.curves, bound, price, fixed=fixed, network=self.model.name, input_size=self.model.size)

    def build(self, planned: Budgeted, progress: Progress) -> Factorized:
        """The network that a plan describes."""
        if self.calibration is None:
            return factorize(self.module, planned.plan, self.model.inputs, layers=self.model.layers)
        with progress.bar("fitting layers", len(planned.plan.changed)) as advance:
            return factorize_with_data(
                self.module,
                planned.plan,
                self.calibration,
                rounds=self.rounds,
                inputs=self.model.inputs,
                layers=self.model.layers,
                progress=lambda *_: advance(1),
            )


def cheapest_price(error: Infeasible) -> float:
    """The price of the cheapest plan, from the error of `BudgetProblem.plan`."""
    return float(error.nearest)
