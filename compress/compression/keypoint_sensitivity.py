"""What each layer is worth in keypoints: it alone is factorized, and its people are held against the original's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from compress.compression.calibration import calibrate
from compress.data.sample import Dataset, Sample
from compress.data.tolerant import readable
from compress.errors import DataError, UsageError
from compress.evaluation.inputs import network_inputs
from compress.evaluation.people import find_people
from compress.network.duplicate import duplicate
from compress.network.factors import clip_ranks, factorized_cost, full_ranks, layer_kernel
from compress.network.layers import LayerInfo
from compress.network.moments import gather_moments, in_groups
from compress.planning.budgeted import eligible
from compress.planning.plan import LayerPlan
from compress.planning.policies import read_share, replace_layer, usual_method
from compress.planning.selection import Selection
from compress.pose.decoders.base import Pose
from compress.pose.metrics.displacement import Displacement, compare_people, summarise
from compress.pose.spec import PoseSpec
from compress.pose.views import View
from compress.progress import Progress
from compress.runtime.torch_runner import TorchRunner
from compress.surgery.data_aware import fit_layer
from compress.surgery.factorize import LayerFactors, decompose, install

#: Images that networks are compared on unless told otherwise.
IMAGES = 12


@dataclass(frozen=True)
class Scene:
    """Images, and the people that the original network finds in them.

    Attributes
    ----------
    samples : tuple of Sample
        The images.
    inputs : tuple of Tensor, shape (1, 3, H, W)
        As the network reads them.
    people : tuple of tuple of Pose
        For each image.
    pose : PoseSpec
        Of the network.
    height : int
        Height in pixels that images, or crops, are scaled to.
    """

    samples: tuple[Sample, ...]
    inputs: tuple[Tensor, ...]
    people: tuple[tuple[Pose, ...], ...]
    pose: PoseSpec
    height: int

    def displacement(self, module: nn.Module) -> Displacement:
        """How far the people of another network are from the original's."""
        found = _people(module, self.pose, self.samples, self.height)
        moved = [
            compare_people(a, b, self.pose.joints, seen=self.pose.joint_threshold)
            for a, b in zip(self.people, found, strict=True)
        ]
        return summarise(moved, self.pose.joints)


def look(module: nn.Module, pose: PoseSpec, dataset: Dataset, height: int) -> Scene:
    """Let a network look at all images of a data set.

    Raises
    ------
    DataError
        If it finds nobody, so that nothing can move.
    """
    samples = tuple(readable(dataset))
    people = tuple(_people(module, pose, samples, height))
    inputs = tuple(
        torch.from_numpy(array)[None] for sample in samples for array in network_inputs(sample, pose, View(height))
    )
    scene = Scene(samples, inputs, people, pose, height)
    if not scene.displacement(module).joints:
        raise DataError(
            "the network finds nobody in these images, so no keypoint can move",
            found=f"{dataset.name}: {len(samples)} images at height {height}",
            hint="Give images with people, as the network knows them, or train it first",
        )
    return scene


def sensitivity(
    module: nn.Module,
    layers: Sequence[LayerInfo],
    scene: Scene,
    selection: Selection,
    shares: Sequence[str],
    progress: Progress,
) -> dict[str, Any]:
    """Displacement of keypoints for each layer and rank.

    Each layer is replaced alone, in its usual form, with factors fitted to what it reads on these images (grouped and
    transposed convolutions and layers that share a weight: to the weight alone).

    Parameters
    ----------
    module : nn.Module
        The original network in evaluation mode; it is only read.
    layers : sequence of LayerInfo
        Its layers.
    scene : Scene
        What it sees.
    selection : Selection
        Layers to try.
    shares : sequence of str
        Shares of full rank, such as ``"1/2"``.
    progress : Progress
        Told of every step.

    Returns
    -------
    dict
        Plain data: ``rows``, one for each layer and rank that would make the layer smaller and cheaper, and the
        conditions they hold under.

    Raises
    ------
    UsageError
        If no layer is left to try.
    """
    names, _ = eligible(layers, selection)
    tried = {x.name: found for x in layers if x.name in names and (found := entries_of(x, shares))}
    if not tried:
        raise UsageError("no layer would get smaller and cheaper at these ranks", found=", ".join(shares))
    info = {layer.name: layer for layer in layers}
    aware = [x for x in tried if info[x].kind != "conv_transpose" and info[x].groups == 1]
    rows = []
    calibration = calibrate(module, scene.inputs, aware, progress)
    with progress.bar("moving keypoints", sum(map(len, tried.values()))) as advance:

        def measure(share: str, entry: LayerPlan, factors: LayerFactors) -> None:
            changed = install(duplicate(module), [entry], {entry.name: factors})
            rows.append({"share": share, **_row(entry, factors, scene.displacement(changed), scene.pose)})
            advance(1, entry.name)

        for group in in_groups(module, list(calibration.sensitivities), len(aware)):
            for name, seen in gather_moments(module, module, scene.inputs, calibration.sensitivities, group):
                layer = module.get_submodule(name)
                for share, entry in tried[name].items():
                    measure(share, entry, fit_layer(layer, entry, seen, calibration.sensitivities[name].outputs))
        for name in tried.keys() - calibration.sensitivities.keys():
            for share, entry in tried[name].items():
                measure(share, entry, decompose(module.get_submodule(name), entry))
    place = {layer.name: number for number, layer in enumerate(layers)}
    whole = scene.displacement(module)
    return {
        "images": len(scene.samples),
        "height": scene.height,
        "people": whole.people,
        "joints": whole.joints,
        "joint_names": list(scene.pose.joints.joints),
        "shares": [str(share) for share in sorted({read_share(text) for text in shares}, reverse=True)],
        "rows": sorted(rows, key=lambda row: (place[row["name"]], -row["macs"][1])),
    }


def entries_of(layer: LayerInfo, shares: Sequence[str]) -> dict[str, LayerPlan]:
    """What a layer becomes at each share of full rank in its usual form, where that is smaller and cheaper."""
    shape, method = layer_kernel(layer), usual_method(layer)
    full = full_ranks(shape, method)
    found: dict[str, LayerPlan] = {}
    for share in sorted({read_share(text) for text in shares}, reverse=True):
        ranks = clip_ranks(shape, method, tuple(max(1, _half_up(share * rank)) for rank in full))
        params, macs = factorized_cost(layer, method, ranks)
        if params < layer.params and macs < layer.macs and ranks not in [entry.ranks for entry in found.values()]:
            found[str(share)] = replace_layer(layer, method, ranks, "ratio")
    return found


def _half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


def _people(module: nn.Module, pose: PoseSpec, samples: Sequence[Sample], height: int) -> Iterator[tuple[Pose, ...]]:
    runner = TorchRunner(module, pose)
    for sample in samples:
        yield tuple(find_people(runner, sample, view=View(height)))


def _row(entry: LayerPlan, factors: LayerFactors, found: Displacement, pose: PoseSpec) -> dict[str, Any]:
    named = zip(pose.joints.joints, found.joint_pixels, found.joint_loss, strict=True)
    return {
        "name": entry.name,
        "method": entry.method,
        "ranks": list(entry.ranks),
        "params": list(entry.params),
        "macs": list(entry.macs),
        "kernel_error": factors.error,
        "output_error": factors.output_error,
        "pixels": _number(found.pixels),
        "loss": found.loss,
        "lost_joints": found.lost_joints,
        "lost_people": found.lost_people,
        "new_people": found.new_people,
        "joints": {joint: {"pixels": _number(pixels), "loss": _number(loss)} for joint, pixels, loss in named},
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
