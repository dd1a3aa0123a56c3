"""Options of a search beside its budget and images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compress.errors import UsageError


@dataclass(frozen=True)
class SearchOptions:
    """What a search tries, and for how long.

    Attributes
    ----------
    minutes : float
        No trial begins that is expected to end later than this.
    level : tuple of float
        Shares of the budget to try.
    recover : int
        Steps of distillation from the original after which points of the front are tried again; 0 for none.
    learning_rate : float
        Of the recovery: highest learning rate of Adam.
    batch_size : int
        Of the recovery: images in a step.
    freeze : tuple of str
        Of the recovery: modules that are not trained.
    workers : int
        Of the recovery: processes that load images.
    calibrate : int
        Number of images that factors are fitted to, at least 2.
    rounds : int
        Groups of layers that are fitted one after the other.
    include, exclude : tuple of str
        Layer names or patterns to replace, and to leave out.
    seed : int
        Of the order of trials and of the recovery.
    size : (int, int) or None
        H and W at which costs are counted; the model's own by default.
    resume : bool
        Whether to continue the search in the folder.
    force : bool
        Whether to start over where the folder has a search.
    digest : str or None
        What identifies the model in the conditions of the search; a hash of its weights by default.
    network : object
        As of `compress.load`, for models whose network is no one of the zoo.
    """

    minutes: float = 20.0
    level: tuple[float, ...] = (1.0, 0.85, 0.7)
    recover: int = 0
    learning_rate: float = 1e-4
    batch_size: int = 8
    freeze: tuple[str, ...] = ()
    workers: int = 2
    calibrate: int = 64
    rounds: int = 12
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    seed: int = 0
    size: tuple[int, int] | None = None
    resume: bool = False
    force: bool = False
    digest: str | None = None
    network: str | Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise UsageError("minutes must be above 0", found=self.minutes)
        if self.recover < 0:
            raise UsageError("recover must be 0 or a number of steps", found=self.recover)
        if self.calibrate < 2:
            raise UsageError("calibrate must be at least 2", found=self.calibrate, hint="A few dozen images are best")
