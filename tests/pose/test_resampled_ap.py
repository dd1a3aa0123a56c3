from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compress.pose.oks import keypoint_ap
from compress.pose.resampled_ap import average_precision, match_images


def scene(seed: int, images: int = 12) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotated people, some without keypoints or in crowds, and detections near and far from them."""
    random = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        for _ in range(random.integers(0, 5)):
            corner, size = random.uniform(0, 300, 2), random.uniform(40, 160, 2)
            joints = corner + random.random((17, 2)) * size
            seen = random.integers(0, 3, 17) * (random.random() > 0.15)
            keypoints = np.column_stack([joints, seen])
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image, "category_id": 1,
                    "iscrowd": int(random.random() < 0.1),
                    "area": float(size.prod() * 0.6), "bbox": [*map(float, corner), *map(float, size)],
                    "keypoints": keypoints.ravel().tolist(), "num_keypoints": int((seen > 0).sum()),
                }
            )  # fmt: skip
            for _ in range(random.integers(0, 3)):
                moved = joints + random.normal(0, random.uniform(0.5, 12), (17, 2))
                points = np.column_stack([moved, np.ones(17)])
                results.append(
                    {
                        "image_id": image, "category_id": 1, "keypoints": points.ravel().tolist(),
                        "score": float(random.random()),
                    }
                )  # fmt: skip
    info = [{"id": i, "width": 640, "height": 480} for i in range(1, images + 1)]
    truth = {"images": info, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    return truth, results


@pytest.mark.parametrize("seed", range(8))
def test_all_images_once_give_the_reference_ap(seed: int) -> None:
    truth, results = scene(seed)
    ids = [image["id"] for image in truth["images"]]
    matches = match_images(truth, results)
    wanted = keypoint_ap(truth, results, ids)["AP"]
    assert average_precision([matches[i] for i in ids]) == pytest.approx(wanted, abs=1e-6)


def test_a_part_of_the_images_gives_the_reference_ap_of_that_part() -> None:
    truth, results = scene(3)
    ids = [2, 3, 5, 7, 11]
    matches = match_images(truth, results)
    wanted = keypoint_ap(truth, results, ids)["AP"]
    assert average_precision([matches[i] for i in ids]) == pytest.approx(wanted, abs=1e-6)


def test_without_people_there_is_no_ap() -> None:
    truth, results = scene(1)
    matches = match_images(truth | {"annotations": []}, results)
    assert np.isnan(average_precision(list(matches.values())))
