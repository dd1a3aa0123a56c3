"""The empirical receptive field of a model, on random inputs or images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from compress.data.sample import Dataset
from compress.errors import NetworkError, similar
from compress.evaluation.inputs import calibration_inputs
from compress.model import Model
from compress.network.receptive_field import ReceptiveField, gradient_field, occlusion_field, random_inputs
from compress.progress import Progress

#: Ways to measure a field.
Method = Literal["gradient", "occlusion"]

#: Output that has a map for each joint.
_HEATMAPS = "heatmaps"


@dataclass(frozen=True)
class MeasuredField:
    """A field, and the first image that it was measured on, (H, W) from 0 to 1; None for random inputs."""

    field: ReceptiveField
    image: NDArray[np.float64] | None


def measure_receptive_field(
    model: Model,
    images: Dataset | None = None,
    *,
    method: Method = "gradient",
    joint: str | None = None,
    count: int = 4,
    progress: Progress | None = None,
) -> MeasuredField:
    """Measure which pixels the outputs of a model depend on (`compress.network.receptive_field`).

    Parameters
    ----------
    model : Model
        A network of one image.
    images : Dataset, optional
        Images; without them random inputs of the model's size. All inputs must have the size of the first.
    method : str
        ``"gradient"`` of the centre cell, or ``"occlusion"`` by windows of random values.
    joint : str, optional
        The joint whose heatmap is looked at; all maps of the first output by default.
    count : int
        Number of inputs, at least 1.
    progress : Progress, optional
        Told of images that can't be read.

    Raises
    ------
    NetworkError
        If the network has several inputs, no output maps or no such joint.
    """
    if len(model.inputs) != 1:
        raise NetworkError("a receptive field needs a network of one image", found=f"{len(model.inputs)} inputs")
    output, channel = _choose(model, joint)
    if images is None:
        inputs: Sequence[Tensor] = random_inputs(model.inputs[0].shape, count)
    else:
        given = calibration_inputs(images, model, count, progress=progress)
        whole = [x for x in given if isinstance(x, Tensor)]
        inputs = [x for x in whole if x.shape == whole[0].shape]
    measure = gradient_field if method == "gradient" else occlusion_field
    field = measure(model.module, inputs, outputs=model.outputs, output=output, channel=channel)
    return MeasuredField(field, None if images is None else _grey(inputs[0]))


def _choose(model: Model, joint: str | None) -> tuple[str | None, int | None]:
    if joint is None:
        return None, None
    joints = () if model.pose is None or _HEATMAPS not in model.pose.outputs else model.pose.joints.joints
    if joint not in joints:
        raise NetworkError(
            f"the network has no heatmap of this joint{similar(joint, joints)}",
            found=joint,
            hint=f"Joints: {', '.join(joints) or 'none'}",
        )
    return _HEATMAPS, joints.index(joint)


def _grey(x: Tensor) -> NDArray[np.float64]:
    image = x[0].mean(0).double()
    spread = float(image.max() - image.min())
    return ((image - image.min()) / (spread or 1.0)).cpu().numpy()
