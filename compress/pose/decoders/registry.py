"""The decoder of a network: that of its pose specification, with its options."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from compress.errors import NetworkError, UsageError, similar
from compress.pose.decoders.base import Decoder
from compress.pose.decoders.names import import_decoder
from compress.pose.spec import PoseSpec


def get_decoder(pose: PoseSpec, **overrides: Any) -> Decoder:
    """The decoder of a network, with the options of its pose specification.

    Parameters
    ----------
    pose : PoseSpec
        Names the decoder and its options.
    **overrides
        Options that replace those of the specification; None leaves an option as it is.

    Raises
    ------
    NetworkError
        If the decoder is unknown, its module has not been imported, or it is no decoder.
    UsageError
        If an option is unknown or its value is not valid.
    """
    decoder = _default_decoder(pose.decoder)
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
    return tuple(field.name for field in fields(_default_decoder(pose.decoder)))


def _default_decoder(name: str) -> Decoder:
    """A decoder with its default options.

    Files may name decoders, so only a subclass or an instance of `Decoder` is used, and nothing else is called.
    """
    value = import_decoder(name)
    if isinstance(value, Decoder):
        return value
    if not (isinstance(value, type) and issubclass(value, Decoder)):
        raise NetworkError(
            "this is no decoder",
            found=name,
            hint="Name a subclass of compress.pose.decoders.base.Decoder, or an instance",
        )
    try:
        return value()
    except TypeError as error:
        raise NetworkError(
            f"the decoder can't be made without options ({error})", found=name, hint="Give every option a default"
        ) from error
