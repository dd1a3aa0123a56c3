"""What a pose network expects and returns: the record that travels inside checkpoints and exported files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from compress.errors import CheckpointError, similar
from compress.pose.decoders.names import DECODERS, is_custom, usual_outputs
from compress.pose.skeleton import Skeleton, get_skeleton

COLORS = ("bgr", "rgb", "gray")
GRIDS = ("corner", "centre")
LAYOUTS = ("nchw", "nhwc")

#: Most channels of an input that ``mean`` and ``scale`` describe.
MAX_CHANNELS = 4


@dataclass(frozen=True)
class PoseSpec:
    """Everything that must be known to go from an image to people with a network's outputs.

    Attributes
    ----------
    skeleton : str or Skeleton
        The joints: the name of a registered skeleton (`compress.pose.skeleton`), or one of your own.
    decoder : str
        How outputs become people: ``"paf"`` groups peaks by part-affinity fields, ``"heatmap"`` takes the maximum of
        each joint's map, ``"simcc"`` that of two vectors, ``"points"`` takes coordinates as they are, ``"yolo"`` takes
        boxes with keypoints; or a decoder of your own as ``package.module:NAME``.
    outputs : tuple of str
        Names of the final outputs in the order in which exported files give them; the decoder's usual ones by default.
    height : int
        Height in pixels that images are scaled to by default.
    width : int or None
        Width in pixels of inputs of fixed size; None where images keep their aspect ratio.
    stride : int
        Input pixels per map cell; height and width of inputs are multiples of it.
    color : str
        Channel order of the input: ``"bgr"``, ``"rgb"`` or ``"gray"``.
    mean, scale : tuple of 1 to 4 floats
        An input channel is ``(pixel - mean) * scale`` with pixels in 0 to 255.
    background : bool
        Whether a background map follows the joints' heatmaps.
    grid : str
        The input pixel that cell c of a map stands for: ``"centre"``, the middle of the cell's pixels
        ``stride * c + (stride - 1) / 2``, as in the OpenPose family; or ``"corner"``, ``stride * c``, as in the public
        top-down code (SimpleBaseline, HRNet).
    flip_shift : bool
        Whether the flip test moves the maps of the mirrored input by one cell (``SHIFT_HEATMAP``).
    fill : tuple of 3 floats
        Blue, green and red of what an input shows beyond the image.
    joint_threshold : float
        Joints with a score up to this neither count for a person's score nor are they drawn.
    layout : str
        Axes of the input: ``"nchw"`` or ``"nhwc"``.
    decoder_options : mapping
        Options of the decoder, the fields of its class.
    """

    skeleton: str | Skeleton = "openpose18"
    decoder: str = "paf"
    outputs: tuple[str, ...] = ()
    height: int = 368
    width: int | None = None
    stride: int = 8
    color: str = "bgr"
    mean: tuple[float, ...] = (128.0, 128.0, 128.0)
    scale: tuple[float, ...] = (1 / 256, 1 / 256, 1 / 256)
    background: bool = True
    grid: str = "centre"
    flip_shift: bool = False
    fill: tuple[float, ...] = (128.0, 128.0, 128.0)
    joint_threshold: float = 0.0
    layout: str = "nchw"
    decoder_options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("outputs", "mean", "scale", "fill"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        get_skeleton(self.skeleton)
        for name, known in (("color", COLORS), ("grid", GRIDS), ("layout", LAYOUTS)):
            _check_choice(name, getattr(self, name), known)
        if not (isinstance(self.decoder, str) and is_custom(self.decoder)):
            _check_choice("decoder", self.decoder, DECODERS, ", or your own as package.module:NAME")
        for name in ("height", "width", "stride"):
            value = getattr(self, name)
            if name == "width" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise CheckpointError(
                    f"the {name} of a pose specification must be a whole number from 1 on", found=value
                )
        for name in ("mean", "scale", "fill", "joint_threshold"):
            values = getattr(self, name)
            if not all(_is_number(v) for v in (values if isinstance(values, tuple) else (values,))):
                raise CheckpointError(f"the {name} of a pose specification must be finite", found=values)
        if len(self.mean) != len(self.scale) or not 1 <= len(self.mean) <= MAX_CHANNELS:
            raise CheckpointError(
                f"mean and scale of a pose specification must be as many numbers as the input has channels, 1 to "
                f"{MAX_CHANNELS}",
                found=(self.mean, self.scale),
            )
        if len(self.fill) != 3:
            raise CheckpointError("the fill of a pose specification must be blue, green and red", found=self.fill)
        for name in ("background", "flip_shift"):
            if not isinstance(getattr(self, name), bool):
                raise CheckpointError(
                    f"the {name} of a pose specification must be true or false", found=getattr(self, name)
                )
        if not isinstance(self.decoder_options, Mapping) or not all(isinstance(k, str) for k in self.decoder_options):
            raise CheckpointError(
                "the decoder_options of a pose specification must map names to values", found=self.decoder_options
            )
        if not self.outputs and self.decoder in DECODERS:
            object.__setattr__(self, "outputs", usual_outputs(self.decoder))
        if not self.outputs or not all(isinstance(name, str) and name for name in self.outputs):
            raise CheckpointError("the outputs of a pose specification must be names", found=self.outputs)
        if len(set(self.outputs)) < len(self.outputs):
            raise CheckpointError("the outputs of a pose specification must have different names", found=self.outputs)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of the network's own input; a square where the width is free."""
        return self.height, self.height if self.width is None else self.width

    @property
    def channels(self) -> int:
        """Number of channels of the input."""
        return len(self.mean)

    @property
    def corner_grid(self) -> bool:
        """Whether cell c of a map stands for input pixel ``stride * c``: `grid` is ``"corner"``."""
        return self.grid == "corner"

    @property
    def first_cell(self) -> float:
        """Input pixel, along either axis, that the first cell of a map stands for."""
        return 0.0 if self.corner_grid else (self.stride - 1) / 2

    @property
    def joints(self) -> Skeleton:
        """The skeleton of the outputs."""
        return get_skeleton(self.skeleton)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, fit for JSON."""
        record: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        record = {name: list(value) if isinstance(value, tuple) else value for name, value in record.items()}
        if isinstance(self.skeleton, Skeleton):
            record["skeleton"] = self.skeleton.to_dict()
        record["decoder_options"] = {
            name: list(value) if isinstance(value, tuple) else value for name, value in self.decoder_options.items()
        }
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> PoseSpec:
        """Read what `to_dict` wrote, now or in version 1.

        Raises
        ------
        CheckpointError
            If a key is unknown or a value is of another kind.
        DataError
            If the skeleton is unknown or not valid.
        """
        known = [item.name for item in fields(cls)]
        unknown = sorted(set(record) - set(known))
        if unknown:
            raise CheckpointError(
                f"unknown key in a pose specification{similar(str(unknown[0]), known)}",
                found=unknown,
                hint=f"Known: {', '.join(sorted(known))}",
            )
        if "outputs" in record and not record["outputs"]:
            raise CheckpointError("the outputs of a pose specification must be names", found=record["outputs"])
        try:
            values: dict[str, Any] = complete_version1(record)
            values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
            if isinstance(values.get("skeleton"), Mapping):
                values["skeleton"] = Skeleton.from_dict(values["skeleton"])
            return cls(**values)
        except TypeError as error:
            raise CheckpointError(f"a pose specification can't be read: {error}") from error


#: Keys that version 1 did not store.
_ADDED = ("grid", "flip_shift", "fill", "joint_threshold", "layout", "decoder_options")


def complete_version1(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the values that version 1 inferred instead of storing them.

    Heatmaps of single people had a corner grid and a black border if there was neither a background map nor a stride
    of 1; a border was otherwise the mean. A record with any of the new keys is returned as it is.
    """
    if any(name in record for name in _ADDED):
        return dict(record)
    single = record.get("decoder") == "heatmap"
    background = record.get("background", True)
    corner = single and not background and record.get("stride", 8) > 1
    mean = list(record.get("mean", (128.0, 128.0, 128.0)))
    return {
        **record,
        "grid": "corner" if corner else "centre",
        "flip_shift": corner,
        "fill": [0.0, 0.0, 0.0] if single and not background else mean[:: -1 if record.get("color") == "rgb" else 1],
        "joint_threshold": 0.2 if single else 0.0,
        "decoder_options": {"refine": "cubic" if background else "quarter"} if single else {},
    }


def _check_choice(name: str, value: object, known: tuple[str, ...], more: str = "") -> None:
    if value not in known:
        raise CheckpointError(
            f"unknown {name} in a pose specification{similar(str(value), known)}",
            found=value,
            hint=f"Known: {', '.join(known)}{more}",
        )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
