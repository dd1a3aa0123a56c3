"""The registry of networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.errors import NetworkError
from compress.network.source import NetworkSpec
from compress.zoo.registry import build, entries, get_entry, pose_spec, register, resolve


def test_every_entry_builds_and_says_what_it_is() -> None:
    assert next(entry.name for entry in entries()) == "default"
    for entry in entries():
        with torch.device("meta"):
            assert isinstance(build(NetworkSpec(entry.name)), nn.Module)
        assert get_entry(entry.name) is entry
        assert entry.summary
        assert entry.source
        assert entry.weights is None or entry.weights.is_file()
        assert pose_spec(entry.name) == entry.pose
        # Pixels of 0 to 255 become numbers around 0, whatever the convention.
        black, white = (
            [(pixel - m) * s for m, s in zip(entry.pose.mean, entry.pose.scale, strict=True)] for pixel in (0, 255)
        )
        assert all(-3 < low < 0 < high < 3 for low, high in zip(black, white, strict=True))
        assert entry.pose.size[0] % entry.pose.stride == 0


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="registered already"):
        register(get_entry("default"))


def test_unknown_network_lists_the_known_ones() -> None:
    with pytest.raises(
        NetworkError, match=r"default, lightweight-openpose, human-pose-estimation-0001.*package\.module"
    ):
        build(NetworkSpec("openpose"))


def test_resolve_writes_every_option_out() -> None:
    assert resolve(NetworkSpec("lightweight-openpose")).options == {"refinements": 1}
    assert resolve(NetworkSpec("default", {"width": 32})).options["width"] == 32
    assert resolve(NetworkSpec("default", {"width": 32})).options["blocks"] == 3
    assert resolve(NetworkSpec("a.b:c", {"x": 1})) == NetworkSpec("a.b:c", {"x": 1})
