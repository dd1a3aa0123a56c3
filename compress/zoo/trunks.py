"""Classification networks as pretrained trunks: what their public files call the tensors of the networks here.

The files are those of torchvision and timm, and the ImageNet weights that lightweight OpenPose's release starts from. A
file may hold more than a network's trunk: the classifier, and the layers after the one where the network cuts it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from compress.zoo.mobilenet import GROUPS, MOBILENET_V2
from compress.zoo.vgg import VGG

#: Names of a residual network's tensors, here and in all public files.
_RESNET = r"(conv1|bn1|layer[1-4]\.[0-9]+\.\w+(\.[01])?)\.\w+$"

#: A layout: from the name of a tensor in a file to the network's own, or None for tensors that are not of the trunk.
TrunkLayout = Callable[[str], str | None]


@dataclass(frozen=True)
class Trunk:
    """The part of a registered network that is a classification network.

    Attributes
    ----------
    kind : str
        The classification network.
    own : str
        Regular expression of the names of the trunk's tensors in the registered network.
    layouts : tuple of callable
        For each public layout the network's own name of a tensor, None for a tensor of no use.
    """

    kind: str
    own: str
    layouts: tuple[TrunkLayout, ...]

    def owns(self, name: str) -> bool:
        """Whether a tensor of the registered network belongs to the trunk."""
        return re.match(self.own, name) is not None

    def translate(self, names: Iterable[str]) -> dict[str, str]:
        """From a file's names to the network's own, by the layout that has most of them; other names are left out."""
        present = list(names)
        known = ({name: own for name in present if (own := layout(name)) is not None} for layout in self.layouts)
        return max(known, key=len)


def get_trunk(network: str) -> Trunk | None:
    """The trunk of a registered network for which public weights are known, or None."""
    return _TRUNKS.get(network)


def networks_with_trunks() -> tuple[str, ...]:
    """Names of the networks that have one."""
    return tuple(_TRUNKS)


def _resnet(name: str) -> str | None:
    """torchvision and timm; MMPretrain's files have a prefix."""
    own = name.removeprefix("backbone.")
    return own if re.match(_RESNET, own) else None


def _own_mobilenet_v1(name: str) -> str | None:
    """The public weights whose names lightweight OpenPose's release has kept; the classifier's last blocks are cut."""
    match = re.match(r"model\.([0-9]+)\.[0-9]\.", name)
    return name if match and int(match[1]) <= 11 else None


def _table(pairs: Iterable[tuple[str, str]]) -> TrunkLayout:
    """A layout from pairs of layers: their name in the file, and the network's own."""
    table = dict(pairs)

    def own(name: str) -> str | None:
        layer, _, tensor = name.rpartition(".")
        return f"{table[layer]}.{tensor}" if layer in table else None

    return own


def _timm_mobilenet_v1() -> Iterator[tuple[str, str]]:
    """Layers of ``mobilenetv1_100``, whose blocks are grouped by channels."""
    yield from (("conv_stem", "model.0.0"), ("bn1", "model.0.1"))
    index = 0
    for group, count in enumerate((1, 2, 2, 6)):
        for block in range(count):
            index += 1
            for name, child in (("conv_dw", 0), ("bn1", 1), ("conv_pw", 3), ("bn2", 4)):
                yield f"blocks.{group}.{block}.{name}", f"model.{index}.{child}"


def _torchvision_block(group: int, block: int, index: int, widens: bool) -> list[tuple[str, str]]:
    """Convolution and normalisation of each layer of a block of ``mobilenet_v2``."""
    activated = 2 if widens else 1
    name = f"features.{index}.conv"
    return [*((f"{name}.{n}.0", f"{name}.{n}.1") for n in range(activated)),
            (f"{name}.{activated}", f"{name}.{activated + 1}")]  # fmt: skip


def _timm_block(group: int, block: int, index: int, widens: bool) -> list[tuple[str, str]]:
    """The same of timm's ``mobilenetv2_100``."""
    layers = ("conv_pw", "conv_dw", "conv_pwl") if widens else ("conv_dw", "conv_pw")
    name = f"blocks.{group}.{block}"
    return [(f"{name}.{layer}", f"{name}.bn{n}") for n, layer in enumerate(layers, 1)]


@dataclass(frozen=True)
class _MobileNetV2Names:
    """Names of a MobileNet v2: stem and last layer, and those of the blocks."""

    stem: tuple[str, str]
    last: tuple[str, str]
    block: Callable[[int, int, int, bool], list[tuple[str, str]]]

    def layers(self, groups: int) -> Iterator[str]:
        """All convolutions and normalisations up to that many groups of blocks, in order; all groups end in a layer."""
        yield from self.stem
        index = 0
        for group, (expansion, _, count, *_) in enumerate(MOBILENET_V2[:groups]):
            for block in range(count):
                index += 1
                for layer in self.block(group, block, index, expansion > 1):
                    yield from layer
        if groups == len(MOBILENET_V2):
            yield from self.last


def _sequence_block(group: int, block: int, index: int, widens: bool) -> list[tuple[str, str]]:
    name = f"backbone.{index}.layers"
    return [(f"{name}.{layer}.0", f"{name}.{layer}.1") for layer in range(3 if widens else 2)]


def _mmpose_block(group: int, block: int, index: int, widens: bool) -> list[tuple[str, str]]:
    name = f"backbone.layer{group + 1}.{block}.conv"
    return [(f"{name}.{layer}.conv", f"{name}.{layer}.bn") for layer in range(3 if widens else 2)]


_TORCHVISION = _MobileNetV2Names(
    ("features.0.0", "features.0.1"), ("features.18.0", "features.18.1"), _torchvision_block
)
_TIMM = _MobileNetV2Names(("conv_stem", "bn1"), ("conv_head", "bn2"), _timm_block)
_SEQUENCE = _MobileNetV2Names(("backbone.0.0", "backbone.0.1"), ("", ""), _sequence_block)
_MMPOSE = _MobileNetV2Names(
    ("backbone.conv1.conv", "backbone.conv1.bn"), ("backbone.conv2.conv", "backbone.conv2.bn"), _mmpose_block
)


def _mobilenet_v2(own: _MobileNetV2Names, groups: int) -> tuple[TrunkLayout, ...]:
    return tuple(
        _table(zip(public.layers(groups), own.layers(groups), strict=True)) for public in (_TORCHVISION, _TIMM, own)
    )


def _vgg() -> Iterator[tuple[str, str]]:
    """Convolutions of VGG-19: torchvision and timm count activations and poolings as layers too."""
    index = 0
    for layer, channels in enumerate(VGG):
        if channels is not None:
            yield f"features.{index}", f"backbone.{layer}.0"
        index += 1 if channels is None else 2


_RESIDUAL = Trunk("ResNet", _RESNET, (_resnet,))
_V1 = Trunk("MobileNet v1", r"model\.", (_own_mobilenet_v1, _table(_timm_mobilenet_v1())))
_V2 = Trunk("MobileNet v2", r"backbone\.", _mobilenet_v2(_SEQUENCE, len(GROUPS)))

_TRUNKS = {
    **dict.fromkeys(("simple-baseline", "simple-baseline-mpii", "esa", "esa-prev"), _RESIDUAL),
    **dict.fromkeys(("lightweight-openpose", "context-cpm", "context-cpm-mpii", "context-cpm-coco"), _V1),
    **dict.fromkeys(("attention-cpm", "attention-cpm-background"), _V2),
    **dict.fromkeys(
        ("mobilenet-v2", "mobilenet-v2-mpii"),
        Trunk("MobileNet v2", r"backbone\.", _mobilenet_v2(_MMPOSE, len(MOBILENET_V2))),
    ),
    "openpose-vgg19": Trunk("VGG-19", r"backbone\.", (_table(_vgg()),)),
}
