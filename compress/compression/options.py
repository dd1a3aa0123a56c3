"""Options of a factorization beside its policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from compress.errors import UsageError


@dataclass(frozen=True)
class FactorizeOptions:
    """How a network is factorized, whatever chooses its ranks.

    Attributes
    ----------
    include, exclude : tuple of str
        Layer names or patterns to replace, and to leave out; as of `compress.planning.selection.Selection`.
    pointwise : bool
        Whether 1x1 convolutions and linear layers are replaced too; under a budget they always may be.
    calibrate : int
        Number of images that factors are fitted to, at least 2.
    factors : {"data", "weights"}
        What ranks and factors are computed from, if there are images.
    rounds : int
        Groups of layers that are fitted one after the other; 0 fits all to the inputs of the original network.
    reconstruct : int
        Training steps for each block of layers after the factorization, to reproduce the original's outputs.
    again : bool
        Whether the factors of an earlier factorization are first multiplied back into kernels.
    fold : bool
        Whether batch normalisation, and 1x1 after 1x1, is first folded into the convolution before it.
    align : int, "auto" or None
        Under a budget: ranks are multiples of it; ``"auto"`` takes the vector width of this machine. None is
        ``"auto"`` for latency and 1 for any other budget.
    prior : "vbmf" or None
        Under a budget: no rank below the one that VBMF finds.
    size : (int, int) or None
        H and W at which costs are counted, and H to which images are scaled; the model's own by default.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    pointwise: bool = False
    calibrate: int = 64
    factors: Literal["data", "weights"] = "data"
    rounds: int = 12
    reconstruct: int = 0
    again: bool = False
    fold: bool = False
    align: int | str | None = None
    prior: Literal["vbmf"] | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if self.calibrate < 2:
            raise UsageError("calibrate must be at least 2", found=self.calibrate, hint="A few dozen images are best")
        if self.factors not in ("data", "weights"):
            raise UsageError("factors come from data or weights", found=self.factors)
        if self.rounds < 0 or self.reconstruct < 0:
            raise UsageError(
                "rounds and reconstruct are counts from 0 on", found=f"{self.rounds} and {self.reconstruct}"
            )
        if self.prior not in (None, "vbmf"):
            raise UsageError("the only prior is vbmf", found=self.prior)
        if self.align is not None and self.align != "auto":
            text = str(self.align)
            if not text.isdecimal() or int(text) < 1:
                raise UsageError("align takes auto or a whole number from 1 on", found=self.align)
            object.__setattr__(self, "align", int(text))
