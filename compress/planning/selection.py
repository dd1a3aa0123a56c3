"""Which layers of a network may be replaced, and the reason why each of the others is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from compress.errors import UsageError, similar
from compress.forms.registry import forms_for
from compress.network.kernels import layer_kernel
from compress.network.layers import LayerInfo

#: A convolution with at most this many input channels reads the image (with a depth map or a mask) itself.
STEM_CHANNELS = 4


@dataclass(frozen=True)
class Selection:
    """Which layers may be replaced.

    Attributes
    ----------
    include : tuple of str
        Layer names, or patterns with ``*``, ``?`` and ``[...]``; empty means every layer. A layer named exactly is
        taken even if it is a stem or pointwise; a pattern only narrows the choice.
    exclude : tuple of str
        Names or patterns of layers to keep; overrides ``include``.
    pointwise : bool
        Whether 1x1 convolutions and linear layers are factorized too.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    pointwise: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As it is written into a plan."""
        return {"include": list(self.include), "exclude": list(self.exclude), "pointwise": self.pointwise}


def obstacle(layer: LayerInfo) -> str | None:
    """The reason code why no plan can replace a layer, or None if one can."""
    if layer.calls == 0:
        return "unused"
    if not layer.plain or len(layer.kernel_size) not in (0, 2):
        return "unsupported"
    if not forms_for(layer):
        return "grouped" if min(layer_kernel(layer)[:2]) > 1 else "depthwise"
    return None


def kept_by_selection(layers: Sequence[LayerInfo], selection: Selection) -> dict[str, str | None]:
    """For each layer the reason code to keep it whatever its ranks, or None.

    Raises
    ------
    UsageError
        If a name or pattern of the selection matches no layer.
    """
    every = [name for layer in layers for name in (layer.name, *layer.aliases)]
    for pattern in (*selection.include, *selection.exclude):
        if not any(fnmatchcase(name, pattern) for name in every):
            inside = any(name.startswith(f"{pattern}.") for name in every)
            hint = f"For all layers inside write {pattern}.*" if inside else "compress inspect lists all names"
            raise UsageError(
                f"no layer matches this name or pattern{similar(pattern, every)}", found=pattern, hint=hint
            )
    reasons: dict[str, str | None] = {}
    for layer in layers:
        names = (layer.name, *layer.aliases)
        named = any(name in selection.include for name in names)
        included = not selection.include or _matches(names, selection.include)
        stem = layer.kind == "conv" and layer_kernel(layer)[1] * layer.groups <= STEM_CHANNELS
        reason = obstacle(layer)
        if not included or _matches(names, selection.exclude):
            reason = "excluded"
        elif reason is None and layer.pointwise and not (selection.pointwise or named):
            reason = "pointwise"
        elif reason is None and stem and not named:
            reason = "stem"
        reasons[layer.name] = reason
    return reasons


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
