"""What a pose network expects and gives: the record that travels inside checkpoints and exported files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from compress.errors import CheckpointError
from compress.pose.skeleton import Skeleton, get_skeleton

DECODERS = ("paf", "heatmap")
COLORS = ("bgr", "rgb")


@dataclass(frozen=True)
class PoseSpec:
    """Everything that must be known to go from an image to people with a network's maps.

    Attributes
    ----------
    skeleton : str
        Name of the skeleton of the maps (`compress.pose.skeleton`).
    decoder : str
        How maps become people: ``"paf"`` groups peaks by part-affinity fields, ``"heatmap"`` takes the highest place of
        each map of a crop that shows one person.
    outputs : tuple of str
        Names of the final maps in the order in which exported files give them.
    height : int
        Height in pixels to which images are scaled unless told otherwise.
    width : int or None
        Width in pixels of crops that show one person; None where images keep their aspect ratio.
    stride : int
        Input pixels per map cell.
    color : str
        Channel order of the input, ``"bgr"`` or ``"rgb"``.
    mean, scale : tuple of float
        An input channel is ``(pixel - mean) * scale`` with pixels in 0 to 255.
    background : bool
        Whether a background map follows the joints' heatmaps.
    """

    skeleton: str = "openpose18"
    decoder: str = "paf"
    outputs: tuple[str, ...] = ("heatmaps", "pafs")
    height: int = 368
    width: int | None = None
    stride: int = 8
    color: str = "bgr"
    mean: tuple[float, float, float] = (128.0, 128.0, 128.0)
    scale: tuple[float, float, float] = (1 / 256, 1 / 256, 1 / 256)
    background: bool = True

    def __post_init__(self) -> None:
        get_skeleton(self.skeleton)
        for name, known in (("decoder", DECODERS), ("color", COLORS)):
            if getattr(self, name) not in known:
                raise CheckpointError(
                    f"unknown {name} in a pose specification",
                    found=getattr(self, name),
                    hint=f"Known: {', '.join(known)}",
                )
        for name in ("height", "width", "stride"):
            value = getattr(self, name)
            if name == "width" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise CheckpointError(
                    f"the {name} of a pose specification must be a whole number from 1 on", found=value
                )
        for name in ("mean", "scale"):
            values = getattr(self, name)
            if len(values) != 3 or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in values):
                raise CheckpointError(f"the {name} of a pose specification must be three numbers", found=values)
        if not self.outputs or not all(isinstance(name, str) and name for name in self.outputs):
            raise CheckpointError("the outputs of a pose specification must be names", found=self.outputs)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of the network's own input; a square where the width is free."""
        return self.height, self.height if self.width is None else self.width

    @property
    def corner_grid(self) -> bool:
        """Whether a map's cell c stands for input pixel ``stride * c`` and not for the centre of the cell's pixels.

        So it is in the public code of the top-down networks (SimpleBaseline, HRNet), whose maps have no background.
        The networks of the OpenPose family count from the centres, ``stride * c + (stride - 1) / 2``.
        """
        return self.decoder == "heatmap" and not self.background and self.stride > 1

    @property
    def first_cell(self) -> float:
        """Input pixel, along either axis, that the first cell of a map stands for."""
        return 0.0 if self.corner_grid else (self.stride - 1) / 2

    @property
    def joints(self) -> Skeleton:
        """The skeleton of the maps."""
        return get_skeleton(self.skeleton)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, fit for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> PoseSpec:
        """Read what `to_dict` wrote.

        Raises
        ------
        CheckpointError
            If a key is unknown or a value is of another kind.
        """
        known = {field.name for field in fields(cls)}
        unknown = set(record) - known
        if unknown:
            raise CheckpointError(
                "unknown key in a pose specification",
                found=sorted(unknown),
                hint=f"Known: {', '.join(sorted(known))}",
            )
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
            return cls(**values)
        except TypeError as error:
            raise CheckpointError(f"a pose specification can't be read: {error}") from error
