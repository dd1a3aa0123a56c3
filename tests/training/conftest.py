"""Fixtures of the training tests."""

from __future__ import annotations

import pytest
import torch
from stickmen import Stickmen, TinyPose

from compress.data.augment import PLAIN
from compress.training.options import FineTuneOptions


@pytest.fixture
def network() -> TinyPose:
    torch.manual_seed(0)
    return TinyPose()


@pytest.fixture
def options() -> FineTuneOptions:
    """Twelve quick float32 steps without augmentation."""
    return FineTuneOptions(
        steps=12, batch_size=4, size=(64, 64), learning_rate=3e-3, workers=0, amp="off", augmentation=PLAIN,
        checkpoint_every=4,
    )  # fmt: skip


@pytest.fixture
def stickmen() -> type[Stickmen]:
    return Stickmen


@pytest.fixture
def tiny_pose() -> type[TinyPose]:
    return TinyPose
