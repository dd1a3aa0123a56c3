"""Public checkpoints: which registered network a state dict belongs to, and what its tensors are called there."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from compress.network.source import NetworkSpec
from compress.zoo.openpose_names import count_stages, own_name


@dataclass(frozen=True)
class Layout:
    """How the weights of a registered network are recognised.

    Attributes
    ----------
    name : str
        Name of the network in the registry.
    keys : tuple of str
        Tensors that it has, and that together no other known network has.
    options : callable
        Reads the network's options off the state dict.
    joints : int or None
        How many maps the last layer gives, where that alone tells two networks apart.
    rename : callable or None
        From the name that another toolkit gives a tensor to the network's own, or None for tensors it does not have;
        the network's own names stay as they are.
    """

    name: str
    keys: tuple[str, ...]
    options: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    joints: int | None = None
    rename: Callable[[str], str | None] | None = None

    def translate(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The state dict with the network's own names."""
        if self.rename is None:
            return state
        names = ((self.rename(key), value) for key, value in state.items())
        return {name: value for name, value in names if name is not None}

    def matches(self, state: Mapping[str, Tensor]) -> bool:
        """Whether a state dict with the network's own names is of this network."""
        if not all(key in state for key in self.keys):
            return False
        ends = ("final_layer.weight", "score.0.weight")
        last = next((value for key, value in state.items() if key.endswith(ends)), None)
        return self.joints is None or (last is not None and last.shape[:1] == (self.joints,))


def _stacks(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"stacks": _blocks(state, "hg")}


def _no_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {}


def _refinements(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Public files hold one to three refinement stages, so their number is read off the names."""
    found = (re.match(r"refinement_stages\.([0-9]{1,3})\.", key) for key in state)
    return {"refinements": max((int(match[1]) + 1 for match in found if match), default=0)}


def _context(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Stages of a global context CPM, and the context module, which tells itself by its names."""
    refinements = _refinements(state)["refinements"]
    signs = {"encoder1.0.0.weight": "u_shaped", "branches.0.0.0.weight": "aspp", "levels.0.0.weight": "pyramid"}
    for sign, name in signs.items():
        if f"context.0.{sign}" in state:
            return {"stages": refinements + 1, "context": name, "context_at": "features"}
    if not refinements:
        return {"stages": 1}
    context = next((name for sign, name in signs.items() if f"refinement_stages.0.trunk.0.{sign}" in state), "none")
    return {"stages": refinements + 1, "context": context}


def _blocks(state: Mapping[str, Tensor], stage: str) -> int:
    """How many children of a stage have tensors."""
    found = (re.match(rf"{re.escape(stage)}\.([0-9]{{1,3}})\.", key) for key in state)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _openpose_stages(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"stages": count_stages(state)}


def _residual_depth(state: Mapping[str, Tensor]) -> dict[str, Any]:
    depths = {6: 50, 23: 101, 36: 152}
    return {"depth": depths.get(_blocks(state, "layer3"), 50)}


def _width(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"width": state["transition1.0.0.weight"].shape[0]}


def _lite_width(state: Mapping[str, Tensor]) -> int:
    return state["backbone.stage0.0.fuse_layers.0.1.0.weight"].shape[0]


def _lite_depth(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Depth, and the channels of the first branch where they are not the published ones."""
    options = {"depth": 30 if _blocks(state, "backbone.stage1") == 8 else 18}
    return options if _lite_width(state) not in (32, 48) else {**options, "channels": _lite_width(state)}


def _lite(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Depth and channels, and the kind of the blocks, which tells itself by their names and width."""
    options = _lite_depth(state)
    if "backbone.stage0.0.layers.0.cross_resolution_weighting.conv1.conv.weight" not in state:
        options["blocks"] = "naive" if _lite_width(state) == 30 else "naive_wide"
    return options


def _without_parts(name: str) -> str | None:
    """MMPose's names of networks that are trunk and head in one here."""
    if name.startswith("data_preprocessor."):
        return None
    return re.sub(r"^(backbone|keypoint_head|head)\.", "", name)


def _with_old_head(name: str) -> str | None:
    """MMPose 1's names of networks that have MMPose 0's here."""
    return None if name.startswith("data_preprocessor.") else re.sub(r"^head\.", "keypoint_head.", name)


_BASELINE = ("layer4.0.conv1.weight", "deconv_layers.0.weight", "final_layer.weight")
_HRNET = ("transition1.0.0.weight", "stage4.0.fuse_layers.0.1.0.weight", "final_layer.weight")
_HOURGLASS = ("hg.0.hg.0.3.0.bn1.weight", "fc.0.0.weight", "score.0.weight")
_MOBILENET = ("backbone.conv2.conv.weight", "keypoint_head.deconv_layers.0.weight", "keypoint_head.final_layer.weight")
_LITE = (
    "backbone.stem.expand_conv.conv.weight",
    "backbone.stage0.0.fuse_layers.0.1.0.weight",
    "keypoint_head.final_layer.weight",
)
_CBAM = (*_LITE, "keypoint_head.attention.0.channel.reduce.weight")

#: Known layouts; where two match, the first one counts. The default network differs from the public one by its
#: normalised stages.
LAYOUTS = (
    Layout("lightweight-openpose", ("cpm.align.0.weight", "cpm.trunk.0.2.weight"), _refinements),
    Layout("default", ("cpm.align.0.weight", "cpm.align.1.weight"), _refinements),
    Layout("human-pose-estimation-0001", ("align.0.weight", "cpm_conv.0.weight", "ref_trunk.0.initial.0.weight"),
           _no_options),
    Layout("openpose-vgg19", ("backbone.12.0.weight", "reduce.1.0.weight", "stages.0.pafs.head.1.0.weight"),
           _openpose_stages, rename=own_name),
    Layout("context-cpm", ("cpm.0.0.weight", "cpm.1.0.weight", "initial_stage.heatmaps.1.0.weight"), _context),
    Layout("hourglass-mpii", _HOURGLASS, _stacks, 16),
    Layout("hourglass", _HOURGLASS, _stacks),
    Layout("mobilenet-v2-mpii", _MOBILENET, _no_options, 16, _with_old_head),
    Layout("mobilenet-v2", _MOBILENET, _no_options, None, _with_old_head),
    Layout("simple-baseline-mpii", _BASELINE, _residual_depth, 16, _without_parts),
    Layout("simple-baseline", _BASELINE, _residual_depth, None, _without_parts),
    Layout("hrnet-mpii", _HRNET, _width, 16, _without_parts),
    Layout("hrnet", _HRNET, _width, None, _without_parts),
    Layout("cbam-lite-hrnet-mpii", _CBAM, _lite_depth, 16, _with_old_head),
    Layout("cbam-lite-hrnet", _CBAM, _lite_depth, None, _with_old_head),
    Layout("lite-hrnet-mpii", _LITE, _lite, 16, _with_old_head),
    Layout("lite-hrnet", _LITE, _lite, None, _with_old_head),
)  # fmt: skip


def identify(state: Mapping[str, Tensor]) -> NetworkSpec | None:
    """The registered network that a state dict belongs to, with its options, or None.

    Only signature keys are looked at, not whether everything fits.
    """
    for layout in LAYOUTS:
        named = layout.translate(state)
        if layout.matches(named):
            return NetworkSpec(layout.name, layout.options(named))
    return None


def translated(state: Mapping[str, Tensor], name: str) -> Mapping[str, Tensor]:
    """A state dict with the names that the registered network of that name has, where toolkits use others."""
    layout = next((layout for layout in LAYOUTS if layout.name == name), None)
    return state if layout is None else layout.translate(state)
