"""Distillation: a network learns the outputs and features of a teacher; no labels are needed.

After Hinton et al. ("Distilling the Knowledge in a Neural Network", 2015) for the outputs and Romero et al. ("FitNets:
Hints for Thin Deep Nets", 2015, equation 3) for the features, without a regressor: student and teacher have compared
features of the same width, as a factorized network and its original do. The output of a whole block is compared by the
block's name, whatever is inside: factors in place of a layer, other ranks, other attention or none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor, nn

from compress.errors import NetworkError
from compress.model import Model
from compress.network.duplicate import duplicate
from compress.network.inputs import Inputs, InputSpec, call, zero_inputs
from compress.network.output_error import floating
from compress.network.outputs import Tensors, describe
from compress.training.losses import Loss, add_losses, masked_squares

#: Guards the relative feature error against a teacher whose features are all zero.
_TINY = 1e-12


@dataclass(frozen=True)
class DistilWeights:
    """Weights of the terms of the distillation loss.

    Attributes
    ----------
    maps : float
        Of the squared error to the teacher's outputs (on the scale of the loss against labels).
    features : float
        Of each block's feature error, relative to the energy of the teacher's features: all-zero features have an
        error of 1.
    """

    maps: float = 1.0
    features: float = 10.0


def feature_loss(student: Tensor, teacher: Tensor, mean: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Squared error of features over the energy of the teacher's, ``|s - t|^2 / |t|^2``: independent of their scale.

    Where processes share a batch, ``mean`` gives the mean energy over them, so that the mean of their losses is the
    loss of the batch.
    """
    goal = teacher.float()
    energy = goal.square().sum()
    return (student.float() - goal).square().sum() / ((energy if mean is None else mean(energy)) + _TINY)


class FeatureRecorder:
    """Records the outputs of named submodules while a network runs.

    A context manager: hooks live as long as the ``with`` block. ``features`` holds the outputs of the last forward.
    """

    def __init__(self, module: nn.Module, points: Sequence[str]) -> None:
        self.features: dict[str, Tensor] = {}
        self._handles = [
            module.get_submodule(point).register_forward_hook(
                lambda _module, _inputs, output, point=point: self.features.__setitem__(point, output)
            )
            for point in points
        ]

    def __enter__(self) -> FeatureRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self.features.clear()


def pair_stages(student: Sequence[Tensors], teacher: Sequence[Tensors]) -> list[tuple[Tensors, Tensors]]:
    """The stages to compare: all in order where both have the same number, otherwise the last of each."""
    if len(student) == len(teacher):
        return list(zip(student, teacher, strict=True))
    return [(student[-1], teacher[-1])]


class Distiller:
    """The loss of a student against a teacher.

    Parameters
    ----------
    student : Model
        The network that is trained.
    teacher : Model
        The network it learns from; it is not changed, a frozen copy runs.
    weights : DistilWeights
        Weights of the terms.
    inputs : sequence of InputSpec
        What both networks read in training; their outputs are compared at these shapes first.
    mean : callable, optional
        As of `feature_loss`.

    Attributes
    ----------
    points : tuple of str
        Names of the submodules whose outputs are compared: those that both networks list in ``distill_points`` and
        that have features of the same shape.

    Raises
    ------
    NetworkError
        If the final outputs of the networks differ in name or shape, or one can't be run on such inputs.
    """

    def __init__(
        self,
        student: Model,
        teacher: Model,
        weights: DistilWeights,
        inputs: Sequence[InputSpec],
        mean: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.weights, self._mean = weights, mean
        self._outputs = teacher.outputs
        self.teacher = duplicate(teacher.module).eval().requires_grad_(False)
        points = getattr(student.module, "distill_points", ())
        shared = tuple(point for point in points if point in getattr(teacher.module, "distill_points", ()))
        ours, our_features = _probe(student, shared, inputs)
        theirs, their_features = _probe(teacher, shared, inputs)
        if _shapes(ours) != _shapes(theirs):
            raise NetworkError(
                f"the teacher's outputs differ from the student's, which are {describe(ours)}",
                found=describe(theirs),
                hint="Choose a teacher with the same skeleton and stride, or the same outputs",
            )
        self.points = tuple(point for point in shared if our_features[point] == their_features[point])

    def to(self, device: torch.device, memory_format: torch.memory_format) -> Distiller:
        """Move the teacher."""
        self.teacher.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
        return self

    def __call__(self, inputs: Inputs, stages: Sequence[Tensors], features: Mapping[str, Tensor]) -> Loss:
        """Compare a student's forward pass with the teacher's.

        Parameters
        ----------
        inputs : Inputs
            The student's input; for one image a Tensor of shape (N, C, H, W).
        stages : sequence of dict
            The student's outputs, stage by stage.
        features : mapping
            Its features at ``points``.

        Returns
        -------
        Loss
            Terms ``maps.heatmaps``, ``maps.pafs``, ... and ``features.<point>``, each times its weight. Outputs that
            are not floating have none.
        """
        with torch.inference_mode(), FeatureRecorder(self.teacher, self.points) as recorder:
            taught = self._outputs.read(call(self.teacher, inputs))
            goals = dict(recorder.features)
        pairs = pair_stages(stages, taught)
        maps = {
            name: torch.stack([masked_squares(ours[name], theirs[name], None) for ours, theirs in pairs]).sum()
            for name in floating(pairs[-1][0])
        }
        losses = {"maps": (self.weights.maps, _sum(maps))}
        if self.points:
            relative = {point: feature_loss(features[point], goals[point], self._mean) for point in self.points}
            losses["features"] = (self.weights.features, _sum(relative))
        return add_losses(losses)


def _sum(parts: dict[str, Tensor]) -> Loss:
    return Loss(torch.stack(list(parts.values())).sum(), {name: part.detach() for name, part in parts.items()})


def _shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in floating(tensors).items()}


def _probe(model: Model, points: Sequence[str], inputs: Sequence[InputSpec]) -> tuple[Tensors, dict[str, torch.Size]]:
    """Final outputs and the shapes of the features at ``points``; without arithmetic where the network allows that."""
    try:
        return _run(model, points, inputs, "meta")
    except Exception:  # whatever the network's code raises; the second attempt reports it
        try:
            return _run(model, points, inputs, None)
        except Exception as error:
            shapes = ", ".join(str(spec.shape) for spec in inputs)
            raise NetworkError(
                f"the network {model.label or model.name} can't be run on inputs of shape {shapes}: "
                f"{type(error).__name__}: {error}",
                hint="Train at a size that both student and teacher read",
            ) from error


def _run(
    model: Model, points: Sequence[str], inputs: Sequence[InputSpec], target: str | None
) -> tuple[Tensors, dict[str, torch.Size]]:
    network = duplicate(model.module, target).eval()
    weight = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    with torch.no_grad(), FeatureRecorder(network, points) as recorder, weight.device:
        final = model.outputs.final(call(network, zero_inputs(inputs, weight.device, weight.dtype)))
        return final, {point: feature.shape for point, feature in recorder.features.items()}
