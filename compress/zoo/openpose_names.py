"""Names of OpenPose's tensors in the Caffe release and in its conversions to PyTorch.

Three layouts are known: the Caffe names alone (``conv1_1.weight``, ``Mconv1_stage2_L1.weight``), the same inside the
parts of a PyTorch module (``model0.conv1_1.weight``, ``model2_1.Mconv1_stage2_L1.weight``), and parts that count their
layers, activations included (``model0.0.weight``, ``model2_1.0.weight``). ``L1`` and ``_1`` are the fields, ``L2`` and
``_2`` the heatmaps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from compress.zoo.vgg import VGG

#: Branches by their number.
_BRANCHES = {"1": "pafs", "2": "heatmaps"}

#: The layers of a branch; the last two are its head.
_FIRST = ("trunk.0.0", "trunk.1.0", "trunk.2.0", "head.0.0", "head.1.0")
_LATER = ("trunk.0.0", "trunk.1.0", "trunk.2.0", "trunk.3.0", "trunk.4.0", "head.0.0", "head.1.0")

_CAFFE_STAGE = re.compile(r"Mconv([1-7])_stage([2-9]|1[0-6])_L([12])$")
_CAFFE_FIRST = re.compile(r"conv5_([1-5])_CPM_L([12])$")
_COUNTED = re.compile(r"model([1-9]|1[0-6])_([12])\.([0-9]{1,2})$")


def own_name(name: str) -> str:
    """The name here of a tensor of the release or a conversion; other names stay as they are."""
    layer, _, tensor = name.rpartition(".")
    own = _own_layer(layer)
    return name if own is None else f"{own}.{tensor}"


def count_stages(names: Iterable[str]) -> int:
    """How many stages the names here belong to."""
    found = (re.match(r"stages\.([0-9]{1,2})\.", name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _own_layer(layer: str) -> str | None:
    counted = _COUNTED.match(layer)
    if counted:
        stage, branch, index = int(counted[1]), _BRANCHES[counted[2]], int(counted[3])
        layers = _FIRST if stage == 1 else _LATER
        convolution = index % 2 == 0 and index // 2 < len(layers)
        return f"stages.{stage - 1}.{branch}.{layers[index // 2]}" if convolution else None
    caffe = layer.rpartition(".")[2] if layer.startswith("model") else layer
    if own := _FEATURES.get(layer) or _FEATURES.get(caffe):
        return own
    if match := _CAFFE_FIRST.match(caffe):
        return f"stages.0.{_BRANCHES[match[2]]}.{_FIRST[int(match[1]) - 1]}"
    if match := _CAFFE_STAGE.match(caffe):
        return f"stages.{int(match[2]) - 1}.{_BRANCHES[match[3]]}.{_LATER[int(match[1]) - 1]}"
    return None


def _features() -> Iterator[tuple[str, str]]:
    """The shared features: VGG-19's convolutions are counted within the groups that poolings divide."""
    group, number, counted = 1, 0, 0
    for layer, channels in enumerate(VGG):
        if channels is None:
            group, number, counted = group + 1, 0, counted + 1
            continue
        number += 1
        yield f"conv{group}_{number}", f"backbone.{layer}.0"
        yield f"model0.{counted}", f"backbone.{layer}.0"
        counted += 2
    for layer in range(2):
        yield f"conv4_{layer + 3}_CPM", f"reduce.{layer}.0"
        yield f"model0.{counted + 2 * layer}", f"reduce.{layer}.0"


_FEATURES = dict(_features())
