"""Distillation: which outputs and features are compared, and that the loss of equal networks is 0."""

from __future__ import annotations

import copy

import pytest
import torch
from stickmen import model_of
from torch import nn

from compress.errors import NetworkError
from compress.network.inputs import image_input
from compress.training.distil import Distiller, DistilWeights, FeatureRecorder, feature_loss, pair_stages

INPUTS = image_input((64, 64))


def distiller_of(student: nn.Module, teacher: nn.Module, weights: DistilWeights) -> Distiller:
    return Distiller(model_of(student), model_of(teacher), weights, INPUTS)


def distil(student: nn.Module, distiller: Distiller, images: torch.Tensor) -> dict[str, float]:
    with FeatureRecorder(student, distiller.points) as taps:
        stages = student(images)
        loss = distiller(images, stages, taps.features)
    parts = {name: float(part) for name, part in loss.parts.items()}
    assert float(loss.total.detach()) == pytest.approx(sum(parts.values()), rel=1e-4)
    return parts


def test_the_loss_of_a_copy_against_its_original_is_zero(network: nn.Module) -> None:
    student = copy.deepcopy(network).eval()
    parts = distil(student, distiller_of(student, network, DistilWeights()), torch.randn(2, 3, 64, 64))
    assert set(parts) == {"maps.heatmaps", "maps.pafs", "features.features", "features.refine"}
    assert all(value == 0 for value in parts.values())


def test_the_teacher_runs_in_eval_mode_and_is_not_changed(network: nn.Module) -> None:
    network.train()
    before = copy.deepcopy(network.state_dict())
    student = copy.deepcopy(network).eval()
    distiller = distiller_of(student, network, DistilWeights())
    for _ in range(2):
        distil(student, distiller, torch.randn(2, 3, 64, 64))
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in distiller.teacher.parameters())


def test_gradients_reach_the_student_through_maps_and_features(network: nn.Module, tiny_pose: type[nn.Module]) -> None:
    student = tiny_pose().eval()
    for weights in (DistilWeights(1, 0), DistilWeights(0, 1)):
        distiller = distiller_of(student, network, weights)
        images = torch.randn(2, 3, 64, 64)
        with FeatureRecorder(student, distiller.points) as taps:
            distiller(images, student(images), taps.features).total.backward()
        assert all(p.grad is not None for p in student.features.parameters())
        assert float(student.features[0].weight.grad.abs().sum()) > 0
        student.zero_grad()


def test_the_terms_follow_the_formulas(network: nn.Module, tiny_pose: type[nn.Module]) -> None:
    student = tiny_pose().eval()
    images = torch.randn(2, 3, 64, 64)
    parts = distil(student, distiller_of(student, network, DistilWeights(2.0, 5.0)), images)
    with torch.no_grad():
        ours, theirs = student(images), network.eval()(images)
        maps = sum(((a["pafs"] - b["pafs"]) ** 2).sum() / 4 for a, b in zip(ours, theirs, strict=True))
        s, t = student.features(images), network.features(images)
    assert parts["maps.pafs"] == pytest.approx(2 * float(maps), rel=1e-4)
    assert parts["features.features"] == pytest.approx(5 * float(((s - t) ** 2).sum() / (t**2).sum()), rel=1e-4)


def test_the_feature_error_does_not_depend_on_the_scale_of_the_features() -> None:
    student, teacher = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    assert float(feature_loss(student * 100, teacher * 100)) == pytest.approx(float(feature_loss(student, teacher)))
    assert float(feature_loss(torch.zeros_like(teacher), teacher)) == pytest.approx(1)


def test_all_stages_are_paired_if_counts_agree_otherwise_only_the_last() -> None:
    a, b, c = ({"heatmaps": torch.tensor(float(i))} for i in range(3))
    assert pair_stages([a, b], [b, c]) == [(a, b), (b, c)]
    assert pair_stages([a], [b, c]) == [(a, c)]


def test_features_of_another_width_are_left_out(network: nn.Module, tiny_pose: type[nn.Module]) -> None:
    wide = tiny_pose(width=16)
    distiller = distiller_of(network, wide, DistilWeights())
    assert distiller.points == ()
    assert set(distil(network, distiller, torch.randn(1, 3, 64, 64))) == {"maps.heatmaps", "maps.pafs"}


def test_a_teacher_with_other_outputs_is_refused(network: nn.Module, tiny_pose: type[nn.Module]) -> None:
    with pytest.raises(NetworkError, match=r"heatmaps \(1, 19, 8, 8\).*heatmaps \(1, 18, 8, 8\).*same skeleton"):
        distiller_of(network, tiny_pose(joints=18), DistilWeights())


def test_hooks_are_removed_after_the_block(network: nn.Module) -> None:
    with FeatureRecorder(network, ("features",)) as taps:
        network(torch.randn(1, 3, 64, 64))
        assert taps.features["features"].shape == (1, 8, 8, 8)
    assert not network.features._forward_hooks
