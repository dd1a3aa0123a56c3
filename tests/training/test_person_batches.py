"""Batches and losses of networks that see one person at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from stickmen import train_network
from torch import Tensor, nn
from torch.nn import functional

from compress.data.augment import PLAIN, Augmentation
from compress.data.person_view import PersonView
from compress.data.synthetic import DrawnPeople
from compress.errors import DataError, UsageError
from compress.pose.decoders.registry import get_decoder
from compress.pose.spec import PoseSpec
from compress.training.batches import Batch, Span
from compress.training.examples import ExampleOptions, Examples
from compress.training.losses import masked_squares, partial_weights, pose_loss
from compress.training.options import FineTuneOptions

POSE = PoseSpec(
    skeleton="coco17", decoder="heatmap", height=64, width=48, stride=4, background=False, grid="corner",
    fill=(0.0, 0.0, 0.0),
)  # fmt: skip


class TinyHeatmaps(nn.Module):
    """Two stages, the first at half the resolution of the second."""

    distill_points = ("trunk",)

    def __init__(self, joints: int = 17) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.coarse, self.fine = nn.Conv2d(8, joints, 3, 2, 1), nn.Conv2d(8, joints, 3, 1, 1)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        features = self.trunk(x)
        return [{"heatmaps": self.coarse(features)}, {"heatmaps": self.fine(features)}]


def load(data: Any, pose: PoseSpec = POSE, **changes: Any) -> list[Batch]:
    settings = {"size": (64, 48), "augmentation": Augmentation(), "seed": 5, "labels": True} | changes
    workers = settings.pop("workers", 0)
    return list(Examples(data, pose, ExampleOptions(**settings)).batches(Span(4, 0, 3, workers=workers)))


def view(*labelled: int) -> PersonView:
    keypoints = np.zeros((17, 3), np.float32)
    for joint in labelled:
        keypoints[joint] = (20, 28, 2)
    return PersonView(np.zeros((64, 48, 3), np.uint8), keypoints)


def targets(view: PersonView, pose: PoseSpec, sigma: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
    made = get_decoder(pose).targets([view.keypoints], view.image.shape[:2], pose, sigma=sigma)
    return made.outputs, made.weight


def test_a_target_is_an_unnormalised_gaussian_on_the_networks_grid() -> None:
    maps, weights = targets(view(0, 3), POSE, 8.0)
    heat = maps["heatmaps"]
    assert heat.shape == (17, 16, 12)
    assert heat[0, 7, 5] == 1  # cell (5, 7) stands for pixel (20, 28)
    assert heat[0, 7, 7] == pytest.approx(np.exp(-(8**2) / (2 * 8**2)))
    assert not heat[1].any()
    assert weights[:, 0, 0].tolist() == [1 if k in (0, 3) else 0 for k in range(17)]
    assert partial_weights(weights)[:, 0, 0].tolist() == [17 / 2 if k in (0, 3) else 0 for k in range(17)]


def test_the_background_is_the_complement_and_weighted_like_a_joint() -> None:
    pose = replace(POSE, background=True, stride=8, grid="centre")
    maps, weights = targets(view(0, 3), pose, 7.0)
    np.testing.assert_allclose(maps["heatmaps"][17], 1 - maps["heatmaps"][:17].max(axis=0))
    assert weights[:, 0, 0].tolist() == [1 if k in (0, 3, 17) else 0 for k in range(18)]
    assert partial_weights(weights)[:, 0, 0].tolist() == [6 if k in (0, 3, 17) else 0 for k in range(18)]
    nobody = targets(view(), pose, 7.0)[1]
    assert not nobody.any()
    assert not partial_weights(nobody).any()


def test_the_loss_is_the_partial_loss_of_repose_up_to_a_constant() -> None:
    torch.manual_seed(0)
    made, weights = zip(*(targets(v, POSE, 8.0) for v in (view(0), view(*range(9)))), strict=True)
    goal = torch.from_numpy(np.stack([t["heatmaps"] for t in made]))
    prediction = torch.rand(2, 17, 16, 12)
    partial = torch.from_numpy(np.stack([partial_weights(one) for one in weights]))
    loss = pose_loss([{"heatmaps": prediction}], {"heatmaps": goal}, partial)
    expected = 0.0
    for image, labelled in enumerate((1, 9)):
        squares = (prediction[image, :labelled] - goal[image, :labelled]).square().mean(dim=(1, 2))
        expected += float(squares.sum()) / labelled / 2
    assert float(loss.total) == pytest.approx(expected * 17 * 16 * 12 / 2, rel=1e-5)


def small_loss(joint_weights: str, stickmen: Callable[..., Any]) -> tuple[Tensor, Batch]:
    """The loss of maps that are 0.5 everywhere, on people with all joints and with some."""

    class SomeJoints(stickmen):  # type: ignore[misc]
        def __getitem__(self, index: int) -> Any:
            sample = super().__getitem__(index)
            if index >= 6:
                return sample
            (person, *_) = sample.people
            keypoints = person.keypoints.copy()
            keypoints[9:] = 0
            return replace(sample, people=(replace(person, keypoints=keypoints),))

    batch = load(SomeJoints(), augmentation=PLAIN, joint_weights=joint_weights)[0]
    maps = torch.full_like(batch.targets["heatmaps"], 0.5)
    return pose_loss([{"heatmaps": maps}], batch.targets, batch.mask).total, batch


def test_the_plain_loss_is_the_mean_square_error_of_esa(stickmen: Callable[..., Any]) -> None:
    """L = 1/(N K) sum over samples and joints of |S - S'|^2 (equation 2), joints without an annotation left out."""
    loss, batch = small_loss("plain", stickmen)
    samples, joints = batch.mask.shape[:2]
    total = 0.0
    for sample in range(samples):
        for joint in range(joints):
            if batch.mask[sample, joint, 0, 0] > 0:
                total += float((batch.targets["heatmaps"][sample, joint] - 0.5).square().sum())
    assert set(batch.mask.unique().tolist()) == {0.0, 1.0}
    assert float(loss) == pytest.approx(total / (samples * joints) * joints / 2, rel=1e-5)


def test_the_partial_loss_divides_by_the_annotated_joints(stickmen: Callable[..., Any]) -> None:
    """L = 1/M sum over samples of 1/|a| sum over annotated joints of |H - O|^2 / n^2 (equation 3 of RePose)."""
    loss, batch = small_loss("partial", stickmen)
    samples, joints, height, width = batch.targets["heatmaps"].shape
    total = 0.0
    for sample in range(samples):
        annotated = [joint for joint in range(joints) if batch.mask[sample, joint, 0, 0] > 0]
        squares = [float((batch.targets["heatmaps"][sample, joint] - 0.5).square().sum()) for joint in annotated]
        total += sum(squares) / (height * width) / len(annotated) / samples
    assert float(loss) == pytest.approx(total * joints * height * width / 2, rel=1e-5)


def test_two_joints_by_hand() -> None:
    """Two people, two joints, maps of two cells: the first person has one annotated joint, the second both."""
    goal = torch.tensor([[[[1.0, 0.0]], [[0.0, 0.0]]], [[[1.0, 0.0]], [[0.0, 1.0]]]])
    maps = torch.zeros(2, 2, 1, 2)
    weights = np.array([[1, 0], [1, 1]], np.float32)[..., None, None]
    plain = pose_loss([{"heatmaps": maps}], {"heatmaps": goal}, torch.from_numpy(weights)).total
    # |S - S'|^2 is 1 for each of three annotated joints: 3 / (N K) = 3/4 by equation 2 of ESA, here times K/2.
    assert float(plain) == pytest.approx(3 / 4 * 2 / 2)
    partial = np.stack([partial_weights(one) for one in weights])
    loss = pose_loss([{"heatmaps": maps}], {"heatmaps": goal}, torch.from_numpy(partial)).total
    # (1/1 x 1/2 + 1/2 x (1/2 + 1/2)) / 2 = 1/2 by equation 3 of RePose with two cells for n^2, here times 2 cells K/2.
    assert float(loss) == pytest.approx(1 / 2 * 2 * 2 / 2)


def test_the_partial_loss_is_refused_for_networks_that_find_several_people(stickmen: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="one person at a time"):
        load(stickmen(), PoseSpec(), joint_weights="partial")
    with pytest.raises(UsageError, match="joint_weights must be plain or partial"):
        FineTuneOptions(steps=1, joint_weights="half")


@pytest.mark.parametrize("cells", [0, 1, 2])
def test_with_a_sigma_of_one_cell_the_covariance_of_esa_is_the_identity(cells: int) -> None:
    """H(p) = exp(-|p - a|^2 / 2) in cells (equation 1 with the identity): 4 pixels at a stride of 4."""
    heat = targets(view(0), POSE, 4.0)[0]["heatmaps"][0]
    assert heat[7, 5 + cells] == pytest.approx(np.exp(-(cells**2) / 2), rel=1e-6)
    assert heat[7 + cells, 5 + cells] == pytest.approx(np.exp(-(cells**2)), rel=1e-6)


def test_a_stage_of_another_size_is_weighted_by_its_mean_over_cells() -> None:
    torch.manual_seed(0)
    target, weights = torch.rand(2, 5, 16, 12), torch.rand(2, 5, 1, 1)
    small = torch.rand(2, 5, 8, 6)
    loss = pose_loss([{"heatmaps": small}], {"heatmaps": target}, weights)
    resized = functional.interpolate(target, (8, 6), mode="bilinear", antialias=True)
    assert float(loss.total) == pytest.approx(4 * float(masked_squares(small, resized, weights)), rel=1e-6)
    flat = pose_loss([{"heatmaps": torch.zeros(2, 5, 8, 6)}], {"heatmaps": torch.ones(2, 5, 16, 12)}, None)
    same = pose_loss([{"heatmaps": torch.zeros(2, 5, 16, 12)}], {"heatmaps": torch.ones(2, 5, 16, 12)}, None)
    assert float(flat.total) == pytest.approx(float(same.total))


def test_workers_do_not_change_the_views() -> None:
    data = DrawnPeople(3, 6)
    straight, other = load(data), load(data, workers=2)
    assert len(straight) == len(other) == 3
    for a, b in zip(straight, other, strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets["heatmaps"], b.targets["heatmaps"])
        assert torch.equal(a.mask, b.mask)
    assert straight[0].inputs.shape == (4, 3, 64, 48)
    assert straight[0].targets["heatmaps"].shape == (4, 17, 16, 12)
    assert straight[0].mask.shape == (4, 17, 1, 1)


def test_images_without_people_are_replaced_by_others(stickmen: Callable[..., Any]) -> None:
    class Half(stickmen):  # type: ignore[misc]
        def __getitem__(self, index: int) -> Any:
            sample = super().__getitem__(index)
            return sample if index % 2 else replace(sample, people=())

    for batch in load(Half(), augmentation=PLAIN):
        assert (batch.mask.mean(dim=1) > 0.99).all()


def test_data_without_a_usable_person_is_refused_unless_no_labels_are_needed(stickmen: Callable[..., Any]) -> None:
    class Empty(stickmen):  # type: ignore[misc]
        def __getitem__(self, index: int) -> Any:
            return replace(super().__getitem__(index), people=())

    with pytest.raises(DataError, match="no person with labelled joints"):
        load(Empty())
    batch = load(stickmen(annotated=False), labels=False)[0]
    assert batch.targets == {}
    assert batch.inputs.float().std() > 0


@pytest.mark.parametrize(
    ("pose", "sigma"),
    [(PoseSpec(), 7), (POSE, 8), (replace(POSE, stride=1), 5), (replace(POSE, background=True, stride=8), 7)],
)
def test_the_default_width_of_the_peaks_is_that_of_the_paper(pose: PoseSpec, sigma: float) -> None:
    assert get_decoder(pose).default_sigma(pose) == sigma


@pytest.mark.parametrize("teacher", [False, True])
def test_the_loss_decreases_with_labels_and_with_a_teacher(stickmen: Callable[..., Any], teacher: bool) -> None:
    torch.manual_seed(0)
    network, other = TinyHeatmaps(), TinyHeatmaps()
    options = FineTuneOptions(
        steps=30, batch_size=4, size=(64, 48), learning_rate=1e-2, workers=0, amp="off", augmentation=PLAIN
    )
    data = stickmen(annotated=not teacher)
    done = train_network(network, data, options, pose=POSE, teacher=other.eval() if teacher else None)
    losses = [entry.loss for entry in done.log]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert {name.split(".")[0] for name in done.log[0].parts} == {"teacher" if teacher else "labels"}
