"""Batches: their content, which depends neither on workers nor on the starting step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from compress.data.augment import PLAIN, Augmentation, augment
from compress.errors import DataError
from compress.pose.spec import PoseSpec
from compress.training.batches import Batch, Span, Steps, normalise
from compress.training.examples import ExampleOptions, Examples

POSE = PoseSpec()


def examples(data: Any, **changes: Any) -> Examples:
    pose = changes.pop("pose", POSE)
    settings = {"size": (64, 64), "augmentation": Augmentation(), "seed": 5, "labels": True} | changes
    return Examples(data, pose, ExampleOptions(**settings))


def load(source: Examples, **changes: Any) -> list[Batch]:
    return list(source.batches(Span(**({"batch_size": 5, "start": 0, "steps": 6} | changes))))


def parts(batch: Batch) -> dict[str, torch.Tensor]:
    return {"images": batch.inputs, "mask": batch.mask, **batch.targets}


def differences(a: Batch, b: Batch) -> dict[str, float]:
    """Largest difference of each part in which the batches differ."""
    assert parts(a).keys() == parts(b).keys()
    pairs = {name: (value.double(), parts(b)[name].double()) for name, value in parts(a).items()}
    return {name: float((x - y).abs().max()) for name, (x, y) in pairs.items() if not torch.equal(x, y)}


def same(a: Batch, b: Batch) -> bool:
    return not differences(a, b)


def test_workers_and_the_starting_step_do_not_change_a_batch(stickmen: Any) -> None:
    source = examples(stickmen())
    straight = load(source)
    assert len(straight) == 6
    for workers, start in ((2, 0), (1, 2), (0, 4)):
        other = load(source, workers=workers, start=start)
        assert len(other) == 6 - start
        assert [differences(x, y) for x, y in zip(straight[start:], other, strict=True)] == [{}] * (6 - start)


def test_the_seed_and_the_epoch_change_the_views(stickmen: Any) -> None:
    data = stickmen(1)
    first, second = load(examples(data), batch_size=1, steps=2)
    other = load(examples(data, seed=6), batch_size=1, steps=1)[0]
    assert not same(first, second)
    assert not same(first, other)


def test_loading_leaves_the_global_generators_alone(stickmen: Any) -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    load(examples(stickmen()), workers=1)
    load(examples(stickmen()))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002


def test_each_epoch_takes_every_image_once_whatever_the_batch_size() -> None:
    keys = [key for batch in Steps(7, Span(3, 0, 14), seed=1) for key in batch]
    assert len(keys) == 42
    for epoch in range(6):
        chunk = keys[7 * epoch : 7 * epoch + 7]
        assert [e for e, _ in chunk] == [epoch] * 7
        assert sorted(i for _, i in chunk) == list(range(7))
    assert [i for _, i in keys[:7]] != [i for _, i in keys[7:14]]


def test_a_batch_holds_image_targets_and_mask_of_the_same_view(stickmen: Any) -> None:
    data = stickmen()
    source = examples(data, augmentation=PLAIN)
    batch = load(source, batch_size=12, steps=1)[0]
    order = [index for _, index in next(iter(Steps(12, Span(12, 0, 1), seed=5)))]
    assert batch.inputs.dtype == torch.uint8
    assert batch.inputs.is_contiguous(memory_format=torch.channels_last)
    assert batch.targets["heatmaps"].shape == (12, 19, 8, 8)
    assert batch.targets["pafs"].shape == (12, 38, 8, 8)
    for position, index in enumerate(order):
        sample = data[index]
        assert np.array_equal(batch.inputs[position].permute(1, 2, 0).numpy(), sample.image)
        blocks = sample.mask.reshape(8, 8, 8, 8).mean(axis=(1, 3))
        assert np.allclose(batch.mask[position, 0].numpy(), blocks)
        nose = sample.people[0].keypoints[0, :2]
        y, x = np.unravel_index(int(batch.targets["heatmaps"][position, 0].argmax()), (8, 8))
        assert np.abs(np.array([8 * x + 3.5, 8 * y + 3.5]) - nose).max() <= 8


def test_crowds_have_no_targets(stickmen: Any) -> None:
    data = stickmen(1)
    sample = data[0]
    crowd = replace(sample.people[0], crowd=True, keypoints=np.zeros((0, 3), np.float32))

    class Crowded(stickmen):  # type: ignore[misc]
        def __getitem__(self, index: int) -> Any:
            return replace(sample, people=(crowd,))

    targets = load(examples(Crowded(1), augmentation=PLAIN), batch_size=1, steps=1)[0].targets
    assert float(targets["heatmaps"][:, :18].max()) == 0
    assert float(targets["pafs"].abs().max()) == 0


def test_pixels_are_normalised_and_in_the_channel_order_of_the_network(stickmen: Any) -> None:
    pose = PoseSpec(color="rgb", mean=(10.0, 20.0, 30.0), scale=(1.0, 0.5, 0.25), fill=(30.0, 20.0, 10.0))
    data = stickmen(1)
    source = examples(data, pose=pose, augmentation=PLAIN)
    batch = load(source, batch_size=1, steps=1)[0]
    images = normalise(batch.inputs, pose)
    expected = (data[0].image[..., ::-1].astype(np.float32) - pose.mean) * pose.scale
    assert np.allclose(images[0].permute(1, 2, 0).numpy(), expected, atol=1e-4)
    assert images.is_contiguous(memory_format=torch.channels_last)
    # Beyond the image lies the fill, here the mean: the network reads zero there.
    wide = load(examples(data, pose=pose, augmentation=PLAIN, size=(64, 128)), batch_size=1, steps=1)[0]
    assert float(normalise(wide.inputs, pose)[..., :24].abs().max()) == 0


def test_images_without_annotations_suffice_without_labels(stickmen: Any) -> None:
    batch = load(examples(stickmen(annotated=False), labels=False), steps=1)[0]
    assert batch.targets == {}
    assert batch.inputs.shape == (5, 3, 64, 64)


def test_unusable_data_is_refused(stickmen: Any) -> None:
    with pytest.raises(DataError, match=r"no annotations.*stickmen:12.*teacher"):
        examples(stickmen(annotated=False))
    with pytest.raises(DataError, match="empty"):
        examples(stickmen(0))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_data_set_keeps_its_fields(stickmen: Any, workers: int) -> None:
    with pytest.raises(DataError) as caught:
        load(examples(stickmen(broken=3)), workers=workers)
    assert caught.value.cause == "the image does not decode"
    assert caught.value.found == "3.jpg"
    assert caught.value.hint == "Fetch it again"


def test_a_view_of_the_batch_is_the_augmented_sample(stickmen: Any) -> None:
    data = stickmen(1)
    batch = load(examples(data, seed=9), batch_size=1, steps=1)[0]
    view = augment(data[0], (64, 64), Augmentation(), np.random.default_rng((9, 0, 0)))
    assert np.array_equal(batch.inputs[0].permute(1, 2, 0).numpy(), view.image)
