"""What a network is trained on: annotated or plain images, or ready network inputs, as a source of batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compress.data.arrays import Tensors
from compress.data.sample import Dataset
from compress.errors import UsageError
from compress.evaluation.inputs import plain_image_spec
from compress.model import Model
from compress.network.inputs import InputSpec
from compress.training.batches import BatchSource
from compress.training.examples import ExampleOptions, Examples
from compress.training.options import FineTuneOptions
from compress.training.ready import ReadyInputs


@dataclass(frozen=True)
class TrainingSet:
    """A source of batches.

    Attributes
    ----------
    source : BatchSource
        Where batches come from.
    inputs : tuple of InputSpec
        What the network reads in training, for a batch of one.
    conditions : dict
        What identifies the data when a run is resumed.
    """

    source: BatchSource
    inputs: tuple[InputSpec, ...]
    conditions: dict[str, Any]


def training_set(
    model: Model, data: Dataset | Tensors, options: FineTuneOptions, teacher: Model | None = None
) -> TrainingSet:
    """The batches that a network is trained on.

    Parameters
    ----------
    model : Model
        The network. Without a pose specification it reads images as the teacher does, or else as
        `plain_image_spec` says.
    data : Dataset or Tensors
        Samples, or ready network inputs.
    options : FineTuneOptions
        Size, augmentation, seed, and the weight of labels.
    teacher : Model, optional
        The network to learn from.

    Raises
    ------
    UsageError
        If there is nothing to learn from, the size does not fit the stride, or the loss not the network.
    DataError
        If the data are empty, or not what the network reads.
    """
    conditions = {"data": data.name, "images": len(data)}
    if isinstance(data, Tensors):
        if teacher is None:
            raise UsageError("network inputs have no labels to learn from", hint="Give a teacher")
        items = data.for_network(model.inputs)
        first = items[0] if isinstance(items[0], tuple) else (items[0],)
        specs = tuple(
            InputSpec(tuple(tensor.shape), spec.dtype) for tensor, spec in zip(first, model.inputs, strict=True)
        )
        return TrainingSet(ReadyInputs(items, options.seed), specs, conditions)
    pose = model.pose or (teacher.pose if teacher else None) or plain_image_spec(model)
    size = options.size or (model.size if model.pose is None else pose.size)
    if any(n % pose.stride for n in size):
        raise UsageError(f"the training crop must be a multiple of the stride {pose.stride}", found=size)
    labels = model.pose is not None and options.label_weight > 0 and (data.annotated or teacher is None)
    if not labels and teacher is None:
        cause = "annotations have weight 0" if model.pose else "the network has no pose specification"
        raise UsageError(
            f"there is nothing to learn from: {cause} and there is no teacher",
            hint="Give a teacher, or a label_weight above 0" if model.pose else "Give a teacher",
        )
    examples = Examples(
        data,
        pose,
        ExampleOptions(
            size,
            options.augmentation,
            options.seed,
            labels,
            sigma=options.sigma,
            joint_weights=options.joint_weights,
            overlap=options.overlap,
        ),
    )
    shape = (1, *size, pose.channels) if pose.layout == "nhwc" else (1, pose.channels, *size)
    return TrainingSet(examples, (InputSpec(shape),), {**conditions, "size": size})
