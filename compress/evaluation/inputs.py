"""Images as the inputs of a network: for calibration, distillation and comparisons."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.data.arrays import Tensors
from compress.data.sample import Dataset, Sample
from compress.data.tolerant import readable
from compress.errors import DataError, UsageError
from compress.evaluation.people import Place, find_places
from compress.model import Model
from compress.network.inputs import Inputs
from compress.pose.crop import crop_image, crop_size, image_region
from compress.pose.decoders.registry import get_decoder
from compress.pose.prepare import batch_inputs
from compress.pose.spec import PoseSpec
from compress.pose.views import View
from compress.progress import Progress

#: Said where images are given to a network that does not say how it reads them.
UNSPECIFIED = "the network has no pose specification: it is given images scaled to its input, RGB from 0 to 1"


def network_inputs(sample: Sample, pose: PoseSpec, view: View | None = None) -> list[NDArray[np.float32]]:
    """What a network is given of a sample, each (C, H, W) float32.

    Parameters
    ----------
    sample : Sample
        The image and its people.
    pose : PoseSpec
        What the network expects. One that sees one person at a time is given a crop of each annotated person, or the
        whole image if there are none; any other the whole image.
    view : View, optional
        Height that images or crops are scaled to; flip test and scales are not used.
    """
    height = None if view is None else view.height
    decoder = get_decoder(pose)
    if not decoder.top_down:
        return [decoder.whole_image(sample.image, pose, height).array]
    size = crop_size(pose, height)
    places = find_places(sample, None, size) or [Place(image_region(sample.image.shape, size))]
    return [crop_image(sample.image, place.region, pose, size).array for place in places]


def calibration_inputs(
    images: Dataset | Tensors, model: Model, count: int, height: int | None = None, progress: Progress | None = None
) -> list[Inputs]:
    """The first inputs that a network is given of some images.

    Parameters
    ----------
    images : Dataset or Tensors
        Samples, of which a network with a pose specification is given whole images or crops (`network_inputs`) and any
        other network whole images at its input size (`plain_image_spec`); or ready network inputs.
    model : Model
        The network.
    count : int
        At most this many inputs, at least 1.
    height : int, optional
        Height in pixels that images or crops are scaled to; the network's own by default.
    progress : Progress, optional
        Told of images that can't be read and are left out.

    Returns
    -------
    list of Inputs
        Each a tensor with a batch axis of 1, or a tuple of them, in the order of the images.

    Raises
    ------
    UsageError
        If the count is not positive.
    DataError
        If there are no images, or the network does not say how it reads them.
    """
    if count < 1:
        raise UsageError("the number of images must be at least 1", found=count)
    if isinstance(images, Tensors):
        return images.for_network(model.inputs, count)
    inputs: list[Inputs] = list(islice(_tensors(images, model, height, progress), count))
    if not inputs:
        raise DataError("there are no images", found=images.name)
    return inputs


def plain_image_spec(model: Model) -> PoseSpec:
    """How a network without a pose specification reads images: RGB, or grey for one channel, from 0 to 1.

    Raises
    ------
    DataError
        If it does not read one image of one or three channels.
    """
    shape = model.inputs[0].shape
    if len(model.inputs) != 1 or len(shape) != 4 or shape[1] not in (1, 3):
        raise DataError(
            "images can be given only to a network that reads one image of one or three channels",
            found=[spec.shape for spec in model.inputs],
            hint="Give ready network inputs: an iterable of tensors, or of tuples for several inputs",
        )
    channels = shape[1]
    return PoseSpec(
        height=shape[2],
        width=shape[3],
        stride=1,
        color="gray" if channels == 1 else "rgb",
        mean=(0.0,) * channels,
        scale=(1 / 255,) * channels,
    )


def _tensors(images: Dataset, model: Model, height: int | None, progress: Progress | None) -> Iterator[Tensor]:
    pose = model.pose
    if pose is None:
        pose = plain_image_spec(model)
        if progress is not None:
            progress.say(UNSPECIFIED)
        for sample in readable(images, progress):
            crop = crop_image(sample.image, image_region(sample.image.shape, pose.size), pose, pose.size)
            yield torch.from_numpy(batch_inputs([crop.array], pose))
        return
    for sample in readable(images, progress):
        for array in network_inputs(sample, pose, View(height)):
            yield torch.from_numpy(batch_inputs([array], pose))
