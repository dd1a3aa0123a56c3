"""Scores of networks that were made from a model, for budgets of accuracy and for searches."""

from __future__ import annotations

from typing import Any

from torch import nn

from compress.evaluation.score import EvaluationOptions, evaluate_dataset
from compress.model import Model
from compress.pose.views import View
from compress.progress import Progress
from compress.runtime.torch_runner import TorchRunner


def metric_of(model: Model, module: nn.Module, data: Any, progress: Progress) -> tuple[str, float]:
    """Name and value of the headline metric of a network.

    Parameters
    ----------
    model : Model
        Whose pose specification, outputs and size the network shares.
    module : nn.Module
        The network.
    data : Dataset
        Annotated images.
    progress : Progress
        Receives every image.
    """
    with progress.bar("scoring", len(data)) as advance:
        runner = TorchRunner(module, model.pose, outputs=model.outputs)
        options = EvaluationOptions(view=View(model.size[0]))
        done = evaluate_dataset(data, runner, options, progress=lambda *_: advance(1))
    return done.score.headline
