"""Validation: the score that a run reports on the way and selects its weights by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from compress.data.sample import Dataset
from compress.errors import UsageError
from compress.model import Model
from compress.pose.views import View
from compress.training.processes import ProcessGroup

if TYPE_CHECKING:
    from compress.pose.decoders.base import Decoder


@dataclass(frozen=True)
class Validation:
    """Annotated data, and how a network is scored on it.

    Attributes
    ----------
    data : Dataset
        Annotated.
    decoder : Decoder or None
        From outputs to people; None: the network's own with its default options.
    view : View
        Height of the input, mirrored and scaled copies.
    strict : bool
        Whether an unreadable image is an error, rather than left out.
    """

    data: Dataset
    decoder: Decoder | None = None
    view: View = field(default_factory=View)
    strict: bool = False


def scorer(model: Model, validation: Validation, group: ProcessGroup) -> Callable[[nn.Module], float]:
    """A function that gives a network with the outputs of ``model`` its headline metric.

    Raises
    ------
    UsageError
        If the model has no pose specification.
    """
    if model.pose is None:
        raise UsageError(
            "a network without a pose specification has no score", hint="Leave out the validation data, or add a pose"
        )
    pose = model.pose

    def score(module: nn.Module) -> float:
        from compress.evaluation.score import EvaluationOptions, evaluate_dataset
        from compress.runtime.torch_runner import TorchRunner

        runner = TorchRunner(module, pose, outputs=model.outputs, device=str(group.device))
        options = EvaluationOptions(validation.decoder, validation.view, strict=validation.strict)
        evaluation = evaluate_dataset(validation.data, runner, options, group=group)
        return evaluation.score.headline[1]

    return score
