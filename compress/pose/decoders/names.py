"""Names of decoders: those of this package, and ``package.module:NAME`` for a decoder of your own."""

from __future__ import annotations

import importlib
from typing import Any

from compress.errors import NetworkError, similar

#: Where the decoder of each name is defined: loaded on first use, as users' own are.
_PLACES = {
    "paf": "compress.pose.decoders.paf:PafDecoder",
    "heatmap": "compress.pose.decoders.heatmap:HeatmapDecoder",
    "simcc": "compress.pose.decoders.simcc:SimccDecoder",
    "points": "compress.pose.decoders.points:PointsDecoder",
    "yolo": "compress.pose.decoders.yolo:YoloDecoder",
}
DECODERS = tuple(_PLACES)


def is_custom(name: str) -> bool:
    """Whether a decoder's name has the form ``package.module:NAME``."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


def usual_outputs(name: str) -> tuple[str, ...]:
    """Names of the outputs that one of the `DECODERS` reads."""
    return tuple(import_decoder(name).roles)


def import_decoder(name: str) -> Any:
    """Whatever a decoder's name stands for; nothing is called.

    Raises
    ------
    NetworkError
        If the name is unknown, or can't be imported.
    """
    place = _PLACES.get(name, name)
    if not is_custom(place):
        raise NetworkError(
            f"unknown decoder{similar(name, DECODERS)}",
            found=name,
            hint=f"Known: {', '.join(DECODERS)}, or your own as package.module:NAME",
        )
    module_name, _, attribute = place.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise NetworkError(
            f"the decoder can't be imported ({error})",
            found=name,
            hint="Is its package installed, or its folder on PYTHONPATH?",
        ) from error
