"""Keypoint sensitivity of layers: each is factorized alone, and the people found are compared with the original's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from torch import nn

from compress.compression.calibration import calibrate
from compress.data.sample import Dataset, Sample
from compress.data.tolerant import readable
from compress.errors import DataError, UsageError
from compress.evaluation.inputs import calibration_inputs
from compress.evaluation.people import find_people
from compress.forms.base import LayerFactors
from compress.forms.registry import forms_for
from compress.model import Model
from compress.network.duplicate import duplicate
from compress.network.inputs import Inputs
from compress.network.kernels import layer_kernel
from compress.network.layers import LayerInfo
from compress.network.moments import gather_moments, in_groups
from compress.planning.budgeted import eligible
from compress.planning.plan import LayerPlan
from compress.planning.policies import read_share, replace_layer
from compress.planning.selection import Selection
from compress.pose.decoders.base import Pose
from compress.pose.metrics.displacement import Displacement, compare_people, summarise
from compress.pose.spec import PoseSpec
from compress.pose.views import View
from compress.progress import Progress, Silent
from compress.runtime.torch_runner import TorchRunner
from compress.surgery.data_aware import fit_layer
from compress.surgery.factorize import decompose, install

#: Shares of full rank that are tried by default.
SHARES = ("3/4", "1/2", "1/3", "1/4")


@dataclass(frozen=True)
class JointShift:
    """Shift of one joint: mean distance in pixels and mean OKS loss, None if nobody has it."""

    pixels: float | None
    loss: float | None


@dataclass(frozen=True)
class LayerShift:
    """What a layer at some ranks does to the keypoints.

    Attributes
    ----------
    share : str
        Share of full rank.
    name, method, ranks : str, str and tuple of int
        The layer, its form and ranks.
    params, macs : (int, int)
        Of the layer before and after.
    kernel_error, output_error : float and float or None
        As ``error`` and ``output_error`` of `compress.planning.plan.LayerPlan`.
    pixels : float or None
        Mean distance of joints that both networks find; None if there are none.
    loss : float
        Mean OKS loss over the original's joints; 1 for a lost joint.
    lost_joints, lost_people, new_people : int
        Joints and people of the original that are lost, and people that only the changed network finds.
    joints : dict of str to JointShift
        By joint.
    """

    share: str
    name: str
    method: str
    ranks: tuple[int, ...]
    params: tuple[int, int]
    macs: tuple[int, int]
    kernel_error: float
    output_error: float | None
    pixels: float | None
    loss: float
    lost_joints: int
    lost_people: int
    new_people: int
    joints: dict[str, JointShift]


@dataclass(frozen=True)
class KeypointSensitivity:
    """Keypoint sensitivity of layers, and the conditions that it holds under.

    Attributes
    ----------
    data : str
        Name of the data set.
    images, height : int
        Number of images, and the height in pixels that they were scaled to.
    people, joints : int
        What the original finds in them.
    joint_names : tuple of str
        Joints of the skeleton.
    shares : tuple of str
        Shares of full rank, falling.
    rows : tuple of LayerShift
        One for each layer and share at which it would be smaller and cheaper, in the order of the network.
    """

    data: str
    images: int
    height: int
    people: int
    joints: int
    joint_names: tuple[str, ...]
    shares: tuple[str, ...]
    rows: tuple[LayerShift, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        return asdict(self)


def keypoint_sensitivity(
    model: Model,
    data: Dataset,
    shares: Sequence[str] = SHARES,
    *,
    selection: Selection | None = None,
    height: int | None = None,
    progress: Progress | None = None,
) -> KeypointSensitivity:
    """Shift of keypoints for each layer and rank.

    Each layer is replaced alone, in its usual form, with factors fitted to its inputs on these images; grouped and
    transposed convolutions and layers that share a weight are fitted to the weight alone.

    Parameters
    ----------
    model : Model
        A pose network; it stays as it was.
    data : Dataset
        Images, with or without annotations.
    shares : sequence of str
        Shares of full rank, such as ``"1/2"``.
    selection : Selection, optional
        Layers to try; without it all but those that read the image.
    height : int, optional
        Height in pixels that images, or crops, are scaled to; the network's own by default.
    progress : Progress, optional
        Receives every step.

    Raises
    ------
    DataError
        If the network finds nobody, so that nothing can move, or is no pose network.
    UsageError
        If no layer is left to try.
    """
    progress = progress or Silent()
    scene = Scene.of(model, data, height)
    names, _ = eligible(model.layers, selection or Selection(pointwise=True))
    tried = {x.name: entries for x in model.layers if x.name in names and (entries := entries_of(x, shares))}
    if not tried:
        raise UsageError("no layer would get smaller and cheaper at these ranks", found=", ".join(shares))
    place = {layer.name: number for number, layer in enumerate(model.layers)}
    rows = sorted(_rows(model, scene, tried, progress), key=lambda row: (place[row.name], -row.macs[1]))
    whole = scene.displacement(model.module)
    return KeypointSensitivity(
        data=data.name,
        images=len(scene.samples),
        height=scene.height,
        people=whole.people,
        joints=whole.joints,
        joint_names=tuple(scene.pose.joints.joints),
        shares=tuple(str(share) for share in sorted({read_share(text) for text in shares}, reverse=True)),
        rows=tuple(rows),
    )


@dataclass(frozen=True)
class Scene:
    """Images, and the people that the original network finds in them.

    Attributes
    ----------
    model : Model
        The original.
    pose : PoseSpec
        Its pose specification.
    samples : tuple of Sample
        The images.
    inputs : tuple of Inputs
        As the network reads them.
    people : tuple of tuple of Pose
        For each image.
    height : int
        Height in pixels that images, or crops, are scaled to.
    """

    model: Model
    pose: PoseSpec
    samples: tuple[Sample, ...]
    inputs: tuple[Inputs, ...]
    people: tuple[tuple[Pose, ...], ...]
    height: int

    @classmethod
    def of(cls, model: Model, data: Dataset, height: int | None = None) -> Scene:
        """Run a model on all images of a data set.

        Raises
        ------
        DataError
            If it finds nobody, or has no pose specification.
        """
        if model.pose is None:
            raise DataError(
                "keypoint sensitivity needs a pose network, and this one has no pose specification",
                found=model.name,
                hint="Give it one: compress.wrap(net, example, pose=PoseSpec(...))",
            )
        pose, height = model.pose, height or model.pose.size[0]
        samples = tuple(readable(data))
        inputs = tuple(calibration_inputs(data, model, _MANY, height))
        people = tuple(_people(model, model.module, samples, height))
        scene = cls(model, pose, samples, inputs, people, height)
        if not scene.displacement(model.module).joints:
            raise DataError(
                "the network finds nobody in these images, so no keypoint can move",
                found=f"{data.name}: {len(samples)} images at height {height}",
                hint="Give images with people, or train the network first",
            )
        return scene

    def displacement(self, module: nn.Module) -> Displacement:
        """How far the people of another network are from the original's."""
        # A top-down network returns a position for every joint; weak ones of the original are noise.
        threshold = self.pose.joint_threshold
        people = _people(self.model, module, self.samples, self.height)
        moved = [
            compare_people(a, b, self.pose.joints, seen=threshold) for a, b in zip(self.people, people, strict=True)
        ]
        return summarise(moved, self.pose.joints)


#: More inputs than any data set has.
_MANY = 2**31


def _people(model: Model, module: nn.Module, samples: Sequence[Sample], height: int) -> Iterator[tuple[Pose, ...]]:
    runner = TorchRunner(module, model.pose, outputs=model.outputs)
    for sample in samples:
        yield tuple(find_people(runner, sample, view=View(height)))


def _rows(model: Model, scene: Scene, tried: dict[str, dict[str, LayerPlan]], progress: Progress) -> list[LayerShift]:
    """Each layer at each share, in any order."""
    module, layers = model.module, model.layers.by_name
    aware = [x for x in tried if layers[x].kind != "conv_transpose" and layers[x].groups == 1]
    calibration = calibrate(module, model.outputs, scene.inputs, aware, progress)
    sensitivities = calibration.sensitivities
    rows = []
    with progress.bar("moving keypoints", sum(map(len, tried.values()))) as advance:

        def measure(share: str, entry: LayerPlan, factors: LayerFactors) -> None:
            changed = install(duplicate(module), [entry], {entry.name: factors})
            rows.append(_row(share, entry, factors, scene.displacement(changed), scene.pose))
            advance(1, entry.name)

        for group in in_groups(module, list(sensitivities), len(aware)):
            for name, moments in gather_moments(module, module, scene.inputs, sensitivities, group):
                layer = module.get_submodule(name)
                for share, entry in tried[name].items():
                    measure(share, entry, fit_layer(layer, entry, moments, sensitivities[name].outputs))
        for name in tried.keys() - sensitivities.keys():
            for share, entry in tried[name].items():
                measure(share, entry, decompose(module.get_submodule(name), entry))
    return rows


def entries_of(layer: LayerInfo, shares: Sequence[str]) -> dict[str, LayerPlan]:
    """The layer in its usual form at each share of full rank at which that is smaller and cheaper."""
    form, shape = forms_for(layer)[0], layer_kernel(layer)
    entries: dict[str, LayerPlan] = {}
    for share in sorted({read_share(text) for text in shares}, reverse=True):
        ranks = form.clip(shape, tuple(max(1, _half_up(share * rank)) for rank in form.max_ranks(shape)))
        params, macs = form.cost(layer, ranks)
        if params < layer.params and macs < layer.macs and ranks not in [entry.ranks for entry in entries.values()]:
            entries[str(share)] = replace_layer(layer, form.name, ranks, "ratio")
    return entries


def _half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


def _row(share: str, entry: LayerPlan, factors: LayerFactors, shift: Displacement, pose: PoseSpec) -> LayerShift:
    named = zip(pose.joints.joints, shift.joint_pixels, shift.joint_loss, strict=True)
    return LayerShift(
        share=share,
        name=entry.name,
        method=entry.method,
        ranks=entry.ranks,
        params=entry.params,
        macs=entry.macs,
        kernel_error=factors.error,
        output_error=factors.output_error,
        pixels=_number(shift.pixels),
        loss=shift.loss,
        lost_joints=shift.lost_joints,
        lost_people=shift.lost_people,
        new_people=shift.new_people,
        joints={joint: JointShift(_number(pixels), _number(loss)) for joint, pixels, loss in named},
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
