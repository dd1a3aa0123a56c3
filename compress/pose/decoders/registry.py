"""Decoders by name; a decoder of your own is named by ``package.module:NAME``."""

from __future__ import annotations

import importlib
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from compress.errors import NetworkError, UsageError, similar

if TYPE_CHECKING:
    from compress.pose.decoders.base import Decoder
    from compress.pose.spec import PoseSpec

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


def decoder_class(name: str) -> type[Decoder]:
    """The class of a registered decoder, or of one of your own.

    Raises
    ------
    NetworkError
        If the name is unknown, can't be imported, or is no decoder.
    """
    return type(_load(name))


def get_decoder(pose: PoseSpec, **overrides: Any) -> Decoder:
    """The decoder of a network, with the options of its pose specification.

    Parameters
    ----------
    pose : PoseSpec
        Names the decoder and its options.
    **overrides
        Options that take the place of the specification's; those that are None do not.

    Raises
    ------
    NetworkError
        If the decoder is unknown, can't be imported, or is no decoder.
    UsageError
        If an option is unknown or has no valid value.
    """
    decoder = _load(pose.decoder)
    asked = dict(pose.decoder_options) | {name: value for name, value in overrides.items() if value is not None}
    known = option_names(pose)
    for name in asked:
        if name not in known:
            raise UsageError(
                f"the decoder {pose.decoder} has no option {name}{similar(name, known)}",
                hint=f"Known: {', '.join(known)}" if known else "It has no options",
            )
    try:
        return replace(decoder, **{name: tuple(v) if isinstance(v, list) else v for name, v in asked.items()})
    except TypeError as error:
        raise UsageError(f"an option of the decoder {pose.decoder} has an invalid value: {error}") from error


def option_names(pose: PoseSpec) -> tuple[str, ...]:
    """Names of the options that the decoder of a network has."""
    return tuple(field.name for field in fields(_load(pose.decoder)))


def _load(name: str) -> Decoder:
    """A decoder with its default options.

    Files may name decoders: nothing but a subclass or an instance of `Decoder` is ever called.
    """
    from compress.pose.decoders.base import Decoder

    place = _PLACES.get(name, name)
    if not is_custom(place):
        raise NetworkError(
            f"unknown decoder{similar(name, DECODERS)}",
            found=name,
            hint=f"Known: {', '.join(DECODERS)}, or your own as package.module:NAME",
        )
    module_name, _, attribute = place.partition(":")
    try:
        value = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise NetworkError(
            f"the decoder can't be imported ({error})",
            found=name,
            hint="Is its package installed, or its folder on PYTHONPATH?",
        ) from error
    if isinstance(value, Decoder):
        return value
    if isinstance(value, type) and issubclass(value, Decoder):
        try:
            return value()
        except TypeError as error:
            raise NetworkError(
                f"the decoder can't be made without options ({error})", found=name, hint="Give every option a default"
            ) from error
    raise NetworkError(
        "this is no decoder", found=name, hint="Name a subclass of compress.pose.decoders.base.Decoder, or an instance"
    )
