"""A network that is being compressed, and all that is known of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from compress.network.statistics import Calibration
from compress.planning.budgeted import Budgeted, Curves, Price, plan_within
from compress.progress import Progress
from compress.surgery.data_aware import factorize_with_data
from compress.surgery.factorize import Factorized, factorize


@dataclass(frozen=True)
class Work:
    """A network that is being compressed, and all that is known of it.

    Attributes
    ----------
    module : nn.Module
        The original.
    network : str
        Its name.
    input_size : (int, int)
        H and W at which MACs are counted.
    curves : Curves
        What its layers could become.
    calibration : Calibration or None
        None where there are no images: factors then come from weights alone.
    rounds : int
        As of `factorize_with_data`.
    """

    module: nn.Module
    network: str
    input_size: tuple[int, int]
    curves: Curves
    calibration: Calibration | None
    rounds: int

    def plan(self, bound: float, price: Price, fixed: float) -> Budgeted | float:
        """`plan_within` for this network."""
        return plan_within(self.curves, bound, price, fixed=fixed, network=self.network, input_size=self.input_size)

    def make(self, planned: Budgeted, progress: Progress, rounds: int | None = None) -> Factorized:
        """The network that a plan stands for."""
        if self.calibration is None:
            return factorize(self.module, planned.plan)
        with progress.bar("fitting layers", len(planned.plan.changed)) as advance:
            return factorize_with_data(
                self.module,
                planned.plan,
                self.calibration,
                rounds=self.rounds if rounds is None else rounds,
                progress=lambda *_: advance(1),
            )
