"""Distillation: a network learns the maps and features of a teacher; no labels are needed.

Follows Hinton et al. ("Distilling the Knowledge in a Neural Network", 2015) in spirit and Romero et al. ("FitNets",
2015) for the features, without an adapter: student and teacher share the width of the compared features, as a
factorized network and its original do. What is compared is the output of a whole block by its name, whatever is inside
it: factors in place of a layer, other ranks, other attention or attention where there was none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor, nn

from compress.errors import NetworkError
from compress.network.duplicate import duplicate
from compress.training.losses import Loss, Maps, add_losses, masked_squares

#: Guards the relative feature error against a teacher whose features are all zero.
_TINY = 1e-12

#: Side in pixels of the image that shapes are compared on.
_PROBE = 64


@dataclass(frozen=True)
class DistilWeights:
    """How much each part of the distillation counts.

    Attributes
    ----------
    maps : float
        Of the squared error to the teacher's maps (the scale of the loss against labels).
    features : float
        Of each stage's feature error, relative to the energy of the teacher's features: 1 is as bad as no features.
    """

    maps: float = 1.0
    features: float = 10.0


def feature_loss(student: Tensor, teacher: Tensor, mean: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Squared error of features over the energy of the teacher's: ``|s - t|^2 / |t|^2``, whatever their scale.

    Where processes share a batch, ``mean`` gives the mean energy over them, so that the mean of their losses is the
    loss of the batch.
    """
    goal = teacher.float()
    energy = goal.square().sum()
    return (student.float() - goal).square().sum() / ((energy if mean is None else mean(energy)) + _TINY)


class Taps:
    """Reads the outputs of named submodules while a network runs.

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

    def __enter__(self) -> Taps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self.features.clear()


def pair_stages(student: Sequence[Maps], teacher: Sequence[Maps]) -> list[tuple[Maps, Maps]]:
    """Which stages are compared: all in order where both have as many, otherwise the last of each."""
    if len(student) == len(teacher):
        return list(zip(student, teacher, strict=True))
    return [(student[-1], teacher[-1])]


class Distiller:
    """The loss of a student against a teacher.

    Parameters
    ----------
    student : Module
        The network that is trained.
    teacher : Module
        The network it learns from; stays as it is, a frozen copy runs.
    weights : DistilWeights
        Weights of the parts.
    mean : callable, optional
        Of `feature_loss`.

    Attributes
    ----------
    points : tuple of str
        Names of the submodules whose outputs are compared: those that both networks name in ``distill_points`` and
        that give features of the same shape.

    Raises
    ------
    NetworkError
        If the networks' final maps differ in name, channels or size.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        weights: DistilWeights,
        mean: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.weights, self._mean = weights, mean
        self.teacher = duplicate(teacher).eval().requires_grad_(False)
        known = getattr(student, "distill_points", ())
        shared = tuple(point for point in known if point in getattr(teacher, "distill_points", ()))
        (ours, our_features), (theirs, their_features) = _shapes(student, shared), _shapes(teacher, shared)
        if ours != theirs:
            raise NetworkError(
                f"the teacher's maps are not the student's, {_describe(ours)}",
                found=_describe(theirs),
                hint="Choose a teacher with the same skeleton and stride",
            )
        self.points = tuple(point for point in shared if our_features[point] == their_features[point])

    def to(self, device: torch.device, memory_format: torch.memory_format) -> Distiller:
        """Move the teacher."""
        self.teacher.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
        return self

    def __call__(self, images: Tensor, stages: Sequence[Maps], features: dict[str, Tensor]) -> Loss:
        """Compare a student's forward pass with the teacher's.

        Parameters
        ----------
        images : Tensor, shape (N, 3, H, W)
            What the student saw.
        stages : sequence of mappings
            What it gave.
        features : dict
            Its outputs at ``points``.

        Returns
        -------
        Loss
            Parts ``maps.heatmaps``, ``maps.pafs``, ... and ``features.<point>``, each times its weight.
        """
        with torch.inference_mode(), Taps(self.teacher, self.points) as taps:
            taught = self.teacher(images)
            goals = dict(taps.features)
        pairs = pair_stages(stages, taught)
        maps = {
            name: torch.stack([masked_squares(ours[name], theirs[name], None) for ours, theirs in pairs]).sum()
            for name in pairs[0][0]
        }
        losses = {"maps": (self.weights.maps, _sum(maps))}
        if self.points:
            relative = {point: feature_loss(features[point], goals[point], self._mean) for point in self.points}
            losses["features"] = (self.weights.features, _sum(relative))
        return add_losses(losses)


def _sum(parts: dict[str, Tensor]) -> Loss:
    return Loss(torch.stack(list(parts.values())).sum(), {name: part.detach() for name, part in parts.items()})


def _shapes(module: nn.Module, points: Sequence[str]) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Shapes of the final maps and of the features at ``points``, from a run without arithmetic."""
    ghost = duplicate(module, "meta").eval()
    with torch.no_grad(), Taps(ghost, points) as taps:
        stages = ghost(torch.empty(1, 3, _PROBE, _PROBE, device="meta"))
        features = {point: tuple(feature.shape) for point, feature in taps.features.items()}
    return {name: tuple(value.shape) for name, value in stages[-1].items()}, features


def _describe(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape[1]}x1/{_PROBE // shape[-1]}" for name, shape in sorted(shapes.items()))
