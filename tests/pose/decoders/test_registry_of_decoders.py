from __future__ import annotations

from dataclasses import fields

import own_decoder
import pytest
from own_decoder import Brightest

from compress.errors import NetworkError, UsageError
from compress.pose.decoders.base import Decoder
from compress.pose.decoders.names import DECODERS, import_decoder
from compress.pose.decoders.paf import PafDecoder
from compress.pose.decoders.registry import get_decoder, option_names
from compress.pose.spec import PoseSpec


@pytest.mark.parametrize("name", DECODERS)
def test_each_decoder_documents_its_options_and_names_its_outputs(name: str) -> None:
    cls = import_decoder(name)
    pose = PoseSpec(skeleton="coco17", decoder=name)
    assert issubclass(cls, Decoder)
    for option in fields(cls):
        assert f"{option.name} : " in (cls.__doc__ or "")
    decoder = get_decoder(pose)
    assert tuple(decoder.expected_outputs(pose)) == pose.outputs == cls.roles
    assert set(decoder.expected_outputs(pose).values()) <= {None, 17, 18, 38, 56}


def test_options_come_from_the_specification_and_overrides_replace_them() -> None:
    pose = PoseSpec(decoder_options={"upsample": 2, "merge": False})
    assert get_decoder(pose) == PafDecoder(upsample=2, merge=False)
    assert get_decoder(pose, upsample=3, mode=None) == PafDecoder(upsample=3, merge=False)
    assert "upsample" in option_names(pose)
    with pytest.raises(UsageError, match=r"no option upsampel.*similar: upsample"):
        get_decoder(pose, upsampel=3)
    with pytest.raises(UsageError, match="invalid upsample"):
        get_decoder(PoseSpec(decoder_options={"upsample": 99}))
    with pytest.raises(UsageError, match="invalid value"):
        get_decoder(PoseSpec(decoder_options={"peak_threshold": "high"}))


def test_outputs_are_found_by_name_then_by_order() -> None:
    decoder = PafDecoder()
    swapped = PoseSpec(outputs=("pafs", "heatmaps"))
    assert decoder.expected_outputs(swapped) == {"pafs": 38, "heatmaps": 19}
    renamed = PoseSpec(outputs=("a", "b"))
    assert decoder.expected_outputs(renamed) == {"a": 19, "b": 38}
    more = PoseSpec(outputs=("heatmaps", "pafs", "peaks"))
    assert decoder.expected_outputs(more) == {"heatmaps": 19, "pafs": 38, "peaks": None}
    with pytest.raises(Exception, match="reads heatmaps, pafs"):
        decoder.expected_outputs(PoseSpec(outputs=("a",)))


def test_a_custom_decoder_is_found_by_its_name() -> None:
    pose = PoseSpec(decoder="own_decoder:Brightest", outputs=("cells",), decoder_options={"gain": 2})
    assert get_decoder(pose) == Brightest(gain=2)
    assert get_decoder(PoseSpec(decoder="own_decoder:READY", outputs=("cells",))) == Brightest(gain=3.0)
    assert get_decoder(pose).expected_outputs(pose) == {"cells": None}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_decoder:Missing", "has not been imported"),
        ("no_such_module:Decoder", "has not been imported"),
        ("antigravity:Decoder", "has not been imported"),
        ("own_decoder:NeedsOption", "without options"),
        ("own_decoder:harmful", "no decoder"),
        ("os:system", "no decoder"),
    ],
)
def test_anything_but_a_decoder_is_refused_and_never_called(name: str, message: str) -> None:
    pose = PoseSpec(decoder=name, outputs=("cells",), decoder_options={"command": "exit 1"})
    with pytest.raises(NetworkError, match=message):
        get_decoder(pose)
    assert own_decoder.CALLED == []


def test_an_unknown_decoder_is_refused_with_similar_names() -> None:
    with pytest.raises(NetworkError, match="similar: heatmap"):
        import_decoder("heatmaps")
