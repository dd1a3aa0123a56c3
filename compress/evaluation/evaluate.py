"""Scores of a model on annotated data, or how far its outputs are from those of another model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from torch import Tensor

from compress.data.arrays import Tensors
from compress.data.sample import Dataset
from compress.data.source import images as read_images
from compress.data.source import open_data
from compress.data.spec import DataSpec
from compress.errors import NetworkError, UsageError
from compress.evaluation.inputs import calibration_inputs
from compress.evaluation.score import EvaluationOptions, Score, evaluate_dataset
from compress.model import Model
from compress.network.inputs import Inputs
from compress.progress import Progress, Silent
from compress.runtime.opening import open_runner
from compress.runtime.runner import Runner
from compress.runtime.torch_runner import TorchRunner

#: A model, or an exported file or checkpoint.
ModelOrPath = Model | str | Path

#: Most inputs on which outputs are compared.
MAX_COMPARED = 100


@dataclass(frozen=True)
class OutputDifference:
    """How far the outputs of a model are from those of a reference.

    Attributes
    ----------
    errors : mapping of str to float
        For each output ``sum |y~ - y|^2 / sum |y|^2`` over all inputs, y being the reference's; 0 where both are 0.
    inputs : int
        Number of network inputs: images, crops of people, or tensors.
    data : str
        Name of the images.
    """

    errors: Mapping[str, float]
    inputs: int
    data: str

    @property
    def largest(self) -> float:
        """The error of the output that differs most."""
        return max(self.errors.values())


@overload
def evaluate(
    model: ModelOrPath,
    data: str | DataSpec | Dataset,
    *,
    difference: None = None,
    options: EvaluationOptions | None = None,
    progress: Progress | None = None,
) -> Score: ...


@overload
def evaluate(
    model: ModelOrPath,
    data: Any,
    *,
    difference: Model,
    options: EvaluationOptions | None = None,
    progress: Progress | None = None,
) -> OutputDifference: ...


def evaluate(
    model: ModelOrPath,
    data: Any,
    *,
    difference: Model | None = None,
    options: EvaluationOptions | None = None,
    progress: Progress | None = None,
) -> Score | OutputDifference:
    """Score a model in keypoints, or compare its outputs with those of another model.

    Parameters
    ----------
    model : Model, str or Path
        A model, or the path of an ONNX file, an OpenVINO IR or a checkpoint.
    data : str, DataSpec, Dataset or anything that `compress.images` takes
        Annotated data such as ``"coco:DIR"``. With ``difference`` any images or network inputs; labels are not read.
    difference : Model, optional
        The reference whose outputs the model should have; no annotations and no pose specification are needed.
    options : EvaluationOptions, optional
        Decoder, height, flip test, boxes. With ``difference`` only the height is used.
    progress : Progress, optional
        Shows how far the work is.

    Returns
    -------
    Score or OutputDifference
        The second with ``difference``.

    Raises
    ------
    DataError
        If the data can't be read, or has no annotations to score against, or a network without a pose specification
        reads something else than one image.
    NetworkError
        If the outputs of the two models have other names or shapes.
    """
    options, progress = options or EvaluationOptions(), progress or Silent()
    with closing(open_model(model)) as runner:
        if difference is not None:
            return _compare(runner, difference, read_images(data), options, progress)
        dataset = open_data(data) if isinstance(data, (str, DataSpec)) else data
        if isinstance(dataset, Tensors) or not hasattr(dataset, "annotated"):
            raise UsageError(
                "scores need annotated data",
                found=type(data).__name__,
                hint='Give a data set such as "coco:DIR", or compare outputs by difference=',
            )
        with progress.bar("evaluate", len(dataset)) as advance:
            return evaluate_dataset(dataset, runner, options, progress=lambda done, total: advance(1)).score


def open_model(model: ModelOrPath) -> Runner:
    """A runner on this machine's CPU for a model, an exported file or a checkpoint."""
    return TorchRunner.of(model) if isinstance(model, Model) else open_runner(Path(model).expanduser())


def _compare(
    runner: Runner, reference: Model, images: Dataset | Tensors, options: EvaluationOptions, progress: Progress
) -> OutputDifference:
    inputs = calibration_inputs(images, reference, MAX_COMPARED, options.view.height)
    with closing(TorchRunner.of(reference)) as original, progress.bar("compare outputs", len(inputs)) as advance:
        errors = output_differences(original.run, runner.run, inputs, lambda: advance(1))
    return OutputDifference(errors, len(inputs), images.name)


def output_differences(
    original: Callable[[Any], Mapping[str, np.ndarray]],
    changed: Callable[[Any], Mapping[str, np.ndarray]],
    inputs: Sequence[Inputs],
    step: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Relative squared error of each floating output of any shape: ``sum |y~ - y|^2 / sum |y|^2``.

    Parameters
    ----------
    original, changed : callable
        From arrays, one or a tuple, to outputs by name.
    inputs : sequence of Inputs
        What both read.
    step : callable, optional
        Called after each input.

    Raises
    ------
    NetworkError
        If an output is missing or has another shape.
    """
    lost: dict[str, float] = {}
    total: dict[str, float] = {}
    for one in inputs:
        arrays = _arrays(one)
        expected, given = original(arrays), changed(arrays)
        for name, value in expected.items():
            if not np.issubdtype(value.dtype, np.floating):
                continue
            other = given.get(name)
            if other is None or other.shape != value.shape:
                raise NetworkError(
                    f"the models do not have the same output {name}",
                    found=f"{value.shape} and {'none' if other is None else other.shape}",
                    hint="Compare a model with one that it was made from",
                )
            exact = value.astype(np.float64)
            lost[name] = lost.get(name, 0.0) + float(np.square(other - exact).sum())
            total[name] = total.get(name, 0.0) + float(np.square(exact).sum())
        step()
    return {name: lost[name] / total[name] if total[name] else float(lost[name] > 0) for name in total}


def _arrays(inputs: Inputs) -> np.ndarray | tuple[np.ndarray, ...]:
    return inputs.numpy() if isinstance(inputs, Tensor) else tuple(tensor.numpy() for tensor in inputs)
