"""RePose: a small network for one person that passes messages along the body (Isack et al., 2020).

An encoder downsamples the image to a coarse map. There every joint has its own features, which are updated from those
of its neighbours in an order along the body, and in reverse. A decoder upsamples to the size of the image. Every
prediction is upsampled to that size and supervised.

A block ``(K, S, F)`` is a convolution, a ReLU and batch normalisation; ``(K, S, F)_u`` lacks only the latter, so that
heatmaps pass a ReLU. (Checkpoints from before the option ``heads`` have linear heatmaps, and keep them.)

The paper leaves details open. This reading reproduces its printed counts: four more convolutions per joint before the
messages, a 3x3 projection of all joints' features, and one 1x1 and one 3x3 convolution per decoder level. The text
upsamples all joints' features and projects them together with the encoder's (``projection="after"``), which the counts
support less (`compress.zoo.published`). The neighbourhood of joints and the connection of stacks are choices made here:
each further stack reads the features and heatmaps of the previous one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from compress.pose.skeleton import LSP14
from compress.zoo.layers import Maps, initialise
from compress.zoo.limits import check_choice, check_counts
from compress.zoo.registry import NetworkEntry, register
from compress.zoo.topdown import top_down_pose

#: Channels of the encoder and decoder, and of one joint's features.
WIDTH, JOINT_WIDTH = 64, 32

#: Number of convolutions in an encoder level, in a joint's features before the messages, and in a head.
DEPTH = 4

#: Side lengths of the coarse map, and ways in which a message updates features.
COARSE, UPDATES = (8, 16, 32), ("trainable", "add", "replace")

#: Orders in which joints are updated: from the most reliably detected ones, or from the head.
ORDERS = {
    "bottom_up": ("hip", "shoulder", "knee", "elbow", "ankle", "wrist", "neck", "head_top"),
    "top_down": ("head_top", "neck", "shoulder", "elbow", "wrist", "hip", "knee", "ankle"),
}

#: How an encoder level downsamples. Both compute the same in eval mode; the published counts are of the second.
DOWNS = ("stride2", "stride1_subsample")

#: Where all joints' features are projected: by a 3x3 block on the coarse map, or in the first decoder level after
#: upsampling and concatenation, as the text says, by a block of that kernel size.
PROJECTIONS = {"before": 1, "after": 1, "after_3x3": 3}

#: What heatmaps pass: a ReLU, as in the paper's block without normalisation, or nothing.
HEADS = {"relu": nn.ReLU, "linear": nn.Identity}

#: Neighbours on each side of the body, and joints that are neighbours across it.
SAME_SIDE = (("neck", "shoulder"), ("shoulder", "elbow"), ("elbow", "wrist"), ("shoulder", "hip"), ("hip", "knee"),
             ("knee", "ankle"))  # fmt: skip
ACROSS = ("shoulder", "hip")

#: Bounds of the options.
LIMITS = {"blocks": (1, 8), "stacks": (1, 4)}


def neighbours() -> tuple[tuple[int, ...], ...]:
    """The neighbours of each joint of the LSP skeleton: 15 pairs, in both directions."""
    pairs = [("head_top", "neck"), *((f"right_{joint}", f"left_{joint}") for joint in ACROSS)]
    for side in ("right_", "left_"):
        pairs += [(a if a in LSP14.joints else side + a, side + b) for a, b in SAME_SIDE]
    both = pairs + [(b, a) for a, b in pairs]
    return tuple(tuple(LSP14.joints.index(b) for a, b in both if a == joint) for joint in LSP14.joints)


def joint_order(order: str) -> tuple[int, ...]:
    """Joints of the LSP skeleton in one of `ORDERS`, right before left."""
    names = (n for joint in ORDERS[order] for n in (joint, f"right_{joint}", f"left_{joint}"))
    return tuple(LSP14.joints.index(name) for name in names if name in LSP14.joints)


def block(inputs: int, outputs: int, size: int = 3, *, stride: int = 1) -> nn.Sequential:
    """The paper's block (size, stride, outputs): convolution, ReLU, then batch normalisation."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, stride, size // 2), nn.ReLU(), nn.BatchNorm2d(outputs))


def blocks_of(inputs: int, outputs: int, count: int) -> nn.Sequential:
    """A sequence of 3x3 blocks."""
    return nn.Sequential(*(block(outputs if index else inputs, outputs) for index in range(count)))


class Subsample(nn.Module):
    """Every second row and column."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, C, h/2, w/2)."""
        return x[..., ::2, ::2]


class Message(nn.Module):
    """The update of a joint's features from its own and its neighbours' features.

    Parameters
    ----------
    sources : int
        Number of neighbours.
    blocks : int
        Number of 3x3 blocks after the 1x1 block that combines the features.
    update : str
        One of `UPDATES`: the result is added after multiplication by a learnt factor that starts at 1, added, or
        replaces the features.
    """

    def __init__(self, sources: int, blocks: int, update: str) -> None:
        super().__init__()
        self.join = block((1 + sources) * JOINT_WIDTH, JOINT_WIDTH, 1)
        self.refine = blocks_of(JOINT_WIDTH, JOINT_WIDTH, blocks)
        self.replace = update == "replace"
        self.factor: nn.Parameter | None
        self.register_parameter("factor", nn.Parameter(torch.ones(())) if update == "trainable" else None)

    def forward(self, own: Tensor, others: Sequence[Tensor]) -> Tensor:
        """(N, 32, h, w) and one map of that shape per neighbour, to (N, 32, h, w)."""
        result: Tensor = self.refine(self.join(torch.cat([own, *others], dim=1)))
        if self.replace:
            return result
        return own + (result if self.factor is None else self.factor * result)


class JointHead(nn.Module):
    """Four 3x3 blocks, whose output is a joint's features, and the joint's heatmap, ``(3, 1, 1)_u``.

    Parameters
    ----------
    heads : str
        One of `HEADS`.
    """

    def __init__(self, heads: str) -> None:
        super().__init__()
        self.trunk = blocks_of(JOINT_WIDTH, JOINT_WIDTH, DEPTH)
        self.heatmap = nn.Conv2d(JOINT_WIDTH, 1, 3, padding=1)
        self.activation = HEADS[heads]()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 32, h, w) to features of the same shape and the heatmap (N, 1, h, w)."""
        features = self.trunk(x)
        return features, self.activation(self.heatmap(features))


@dataclass(frozen=True)
class BodyOptions:
    """How joints exchange messages.

    Attributes
    ----------
    blocks : int
        3x3 blocks of a message, 1 to 5 in the paper.
    update : str
        How a message changes features, one of `UPDATES`.
    joint_head : bool
        One head for all joints after the messages, instead of one each.
    graph : bool
        Whether joints have neighbours; otherwise the same convolutions run for each joint alone.
    order : str
        One of `ORDERS`.
    heads : str
        What heatmaps pass, those of the decoder too; one of `HEADS`.

    Raises
    ------
    NetworkError
        If an option is out of its bounds.
    """

    blocks: int
    update: str
    joint_head: bool
    graph: bool
    order: str
    heads: str = "relu"

    def __post_init__(self) -> None:
        check_counts(LIMITS, blocks=self.blocks)
        check_choice("update", self.update, UPDATES)
        check_choice("order", self.order, tuple(ORDERS))
        check_choice("heads", self.heads, tuple(HEADS))
        for name in ("joint_head", "graph"):
            check_choice(name, getattr(self, name), (False, True))


class BodyGraph(nn.Module):
    """Features and heatmaps of each joint, messages in order and in reverse, then heatmaps again."""

    def __init__(self, body: BodyOptions) -> None:
        super().__init__()
        joints = range(len(LSP14.joints))
        blocks, update, joint_head = body.blocks, body.update, body.joint_head
        self.order = joint_order(body.order)
        self.sources = neighbours() if body.graph else ((),) * len(joints)
        self.start = nn.ModuleList(
            nn.Sequential(block(WIDTH, JOINT_WIDTH, 1), blocks_of(JOINT_WIDTH, JOINT_WIDTH, DEPTH)) for _ in joints
        )
        self.before = nn.ModuleList(JointHead(body.heads) for _ in joints)
        self.onward = nn.ModuleList(Message(len(self.sources[joint]), blocks, update) for joint in joints)
        self.back = nn.ModuleList(Message(len(self.sources[joint]), blocks, update) for joint in joints)
        self.joint_head = joint_head
        if joint_head:
            self.together = nn.Sequential(
                block(len(joints) * JOINT_WIDTH, WIDTH, 1),
                nn.Conv2d(WIDTH, len(joints), 3, padding=1),
                HEADS[body.heads](),
            )
        else:
            self.after = nn.ModuleList(JointHead(body.heads) for _ in joints)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 64, h, w) to features (N, 448, h, w) and heatmaps (N, 14, h, w) before and after the messages."""
        features = [start(x) for start in self.start]
        _, before = _heads(self.before, features)
        for messages, order in ((self.onward, self.order), (self.back, self.order[::-1])):
            for joint in order:
                features[joint] = messages[joint](features[joint], [features[other] for other in self.sources[joint]])
        if self.joint_head:
            joined = torch.cat(features, dim=1)
            return joined, before, self.together(joined)
        joined, after = _heads(self.after, features)
        return joined, before, after


class DecoderLevel(nn.Module):
    """Upsampling by 2, concatenation with the encoder's features of that size, features and heatmaps, ``(3, 1, 14)_u``.

    Parameters
    ----------
    inputs : int
        Channels of the coarser features.
    heads : str
        One of `HEADS`.
    size : int
        Kernel size of the block that projects the concatenated features to 64 channels.
    """

    def __init__(self, inputs: int, heads: str, size: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential(block(inputs + WIDTH, WIDTH, size), block(WIDTH, WIDTH))
        self.heatmaps = nn.Conv2d(WIDTH, len(LSP14.joints), 3, padding=1)
        self.activation = HEADS[heads]()

    def forward(self, x: Tensor, skipped: Tensor) -> tuple[Tensor, Tensor]:
        """(N, inputs, h, w) and (N, 64, 2h, 2w) to features (N, 64, 2h, 2w) and heatmaps (N, 14, 2h, 2w)."""
        features = self.features(torch.cat([enlarge(x, 2), skipped], dim=1))
        return features, self.activation(self.heatmaps(features))


class Stack(nn.Module):
    """Encoder, body graph and decoder.

    Parameters
    ----------
    inputs : int
        Channels of the input.
    levels : int
        Number of downsamplings from the input to the coarse map.
    body : BodyOptions
        Message passing on the coarse map, and heads.
    down : str
        One of `DOWNS`.
    projection : str
        One of `PROJECTIONS`.
    """

    def __init__(self, inputs: int, levels: int, body: BodyOptions, *, down: str, projection: str) -> None:
        super().__init__()
        joined = len(LSP14.joints) * JOINT_WIDTH
        self.encoder = nn.ModuleList(blocks_of(WIDTH if i else inputs, WIDTH, DEPTH) for i in range(levels + 1))
        self.downs = nn.ModuleList(_down(down) for _ in range(levels))
        self.graph = BodyGraph(body)
        self.project: nn.Module = nn.Identity()
        if projection == "before":
            self.project, joined = block(joined, WIDTH), WIDTH
        self.decoder = nn.ModuleList(
            DecoderLevel(WIDTH, body.heads) if level else DecoderLevel(joined, body.heads, PROJECTIONS[projection])
            for level in range(levels)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(N, inputs, H, W) to features (N, 64, H, W) and heatmaps (N, 14, H, W), from the coarsest to the finest."""
        skipped = [self.encoder[0](x)]
        for down, encode in zip(self.downs, self.encoder[1:], strict=True):
            skipped.append(encode(down(skipped[-1])))
        features, *heatmaps = self.graph(skipped.pop())
        features = self.project(features)
        for level in self.decoder:
            features, finer = level(features, skipped.pop())
            heatmaps.append(finer)
        levels = len(self.decoder)
        sizes = (levels, *range(levels, -1, -1))
        return features, [enlarge(maps, 2**size) for maps, size in zip(heatmaps, sizes, strict=True)]


class RePose(nn.Module):
    """The RePose network.

    Parameters
    ----------
    levels : int
        Number of downsamplings from the image to the coarse map.
    body : BodyOptions
        How joints exchange messages.
    stacks : int
        Number of encoder-decoder stacks.
    down : str
        One of `DOWNS`.
    projection : str
        One of `PROJECTIONS`.

    Attributes
    ----------
    distill_points : tuple of str
        Names of the modules whose outputs are the features of each stage.

    Raises
    ------
    NetworkError
        If an option is out of its bounds.
    """

    def __init__(self, levels: int, body: BodyOptions, *, stacks: int, down: str, projection: str) -> None:
        super().__init__()
        check_counts(LIMITS, stacks=stacks)
        check_choice("down", down, DOWNS)
        check_choice("projection", projection, tuple(PROJECTIONS))
        inputs = (3, *[WIDTH + len(LSP14.joints)] * (stacks - 1))
        self.stacks = nn.ModuleList(Stack(n, levels, body, down=down, projection=projection) for n in inputs)
        coarse = "project" if projection == "before" else "decoder.0.features"
        self.distill_points = tuple(
            f"stacks.{index}.{part}" for index in range(stacks) for part in (coarse, f"decoder.{levels - 1}.features")
        )
        last = [layer for layer in self.modules() if isinstance(layer, nn.Conv2d) and layer.out_channels in (1, 14)]
        initialise(self, tuple(nn.Sequential(layer) for layer in last))

    def forward(self, x: Tensor) -> list[Maps]:
        """Images (N, 3, H, W) to the heatmaps (N, 14, H, W) of each prediction; H and W are multiples of 2^levels."""
        stages: list[Maps] = []
        for stack in self.stacks:
            features, heatmaps = stack(x)
            stages += [{"heatmaps": maps} for maps in heatmaps]
            x = torch.cat([features, heatmaps[-1]], dim=1)
        return stages


def _builder(side: int) -> Callable[..., RePose]:
    def build(
        coarse: int = 16,
        blocks: int = 4,
        update: str = "trainable",
        stacks: int = 1,
        joint_head: bool = False,
        graph: bool = True,
        order: str = "bottom_up",
        down: str = "stride2",
        heads: str = "relu",
        projection: str = "before",
    ) -> RePose:
        body = BodyOptions(blocks, update, joint_head, graph, order, heads)
        return RePose(_levels(side, coarse), body, stacks=stacks, down=down, projection=projection)

    return build


#: The network for images of 128 x 128; ``coarse`` is the side length of the map that messages run on.
repose = _builder(128)

#: The network for images of 256 x 256.
repose_256 = _builder(256)


def enlarge(x: Tensor, factor: int) -> Tensor:
    """A map upsampled bilinearly."""
    return x if factor == 1 else interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)


def _heads(heads: nn.ModuleList, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Features and heatmaps of all joints."""
    pairs = [head(x) for head, x in zip(heads, features, strict=True)]
    return torch.cat([x for x, _ in pairs], dim=1), torch.cat([heatmap for _, heatmap in pairs], dim=1)


def _levels(side: int, coarse: int) -> int:
    check_choice("coarse", coarse, COARSE)
    return (side // coarse).bit_length() - 1


def _down(kind: str) -> nn.Sequential:
    """A 5x5 block that downsamples by 2."""
    if kind == "stride2":
        return block(WIDTH, WIDTH, 5, stride=2)
    return nn.Sequential(*block(WIDTH, WIDTH, 5), Subsample())


def _register(name: str, build: Callable[..., nn.Module], side: int) -> None:
    pose = replace(
        top_down_pose(17), skeleton=LSP14.name, height=side, width=side, stride=1, grid="centre", flip_shift=False
    )
    summary = f"message passing along the body of one person, {side} x {side}"
    register(NetworkEntry(name, build, pose, (side, side), summary, "RePose", former={"heads": "linear"}))


_register("repose", repose, 128)
_register("repose-256", repose_256, 256)
