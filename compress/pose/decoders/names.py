"""Names of decoders: those of this package, and ``package.module:NAME`` for a decoder of your own.

A pose specification can come from a file, and no file makes code run: the module of your own decoder is never imported
by its name. Your program has imported it, or ``--network`` names the code that defines it.
"""

from __future__ import annotations

import importlib
import sys
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
        If the name is unknown, or its module has not been imported.
    """
    place = _PLACES.get(name, name)
    if not is_custom(place):
        raise NetworkError(
            f"unknown decoder{similar(name, DECODERS)}",
            found=name,
            hint=f"Known: {', '.join(DECODERS)}, or your own as package.module:NAME",
        )
    module_name, _, attribute = place.partition(":")
    module = importlib.import_module(module_name) if name in _PLACES else sys.modules.get(module_name)
    if module is None or not hasattr(module, attribute):
        raise NetworkError(
            "the decoder is code of your own that has not been imported, and no file is trusted to import code",
            found=name,
            hint=f"Import {module_name} first, or name the code of your network by --network",
        )
    return getattr(module, attribute)
