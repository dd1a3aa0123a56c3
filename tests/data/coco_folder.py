"""A small COCO data set for tests: one image with every kind of annotation, one without people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from compress.pose.skeleton import COCO17

SIZE = (40, 60)


def keypoints(*, labelled: int = 17) -> list[float]:
    points = [[5.0 + 2 * k, 10.0 + k, 2 - k % 2] if k < labelled else [0, 0, 0] for k in range(17)]
    return [value for point in points for value in point]


def record() -> dict[str, Any]:
    """Annotations of two images; the first has a person, a crowd, and two people without keypoints."""
    crowd = np.zeros(SIZE, np.bool_)
    crowd[:5, 40:] = True
    edges = np.flatnonzero(np.diff(crowd.T.ravel())) + 1
    runs = np.diff([0, *edges, crowd.size]).tolist()
    return {
        "images": [
            {"id": 7, "file_name": "b.png", "height": SIZE[0], "width": SIZE[1]},
            {"id": 3, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]},
        ],
        "categories": [
            {"id": 90, "name": "toothbrush"},
            {"id": 5, "name": "person", "keypoints": list(COCO17.joints), "skeleton": [[1, 2]]},
        ],
        "annotations": [
            {"id": 0, "image_id": 7, "category_id": 5, "iscrowd": 0, "num_keypoints": 16, "bbox": [5, 10, 32, 17],
             "keypoints": keypoints(labelled=16), "area": 300.5, "segmentation": [[5, 10, 37, 10, 37, 27, 5, 27]]},
            {"id": 1, "image_id": 7, "category_id": 5, "iscrowd": 1, "num_keypoints": 0, "keypoints": [0] * 51,
             "bbox": [40, 0, 20, 5], "area": 100, "segmentation": {"counts": runs, "size": list(SIZE)}},
            {"id": 2, "image_id": 7, "category_id": 5, "iscrowd": 0, "num_keypoints": 0, "keypoints": [0] * 51,
             "bbox": [0, 30, 10, 10], "area": 50, "segmentation": [[0, 30, 10, 30, 10, 35, 0, 35]]},
            {"id": 3, "image_id": 7, "category_id": 5, "iscrowd": 0, "num_keypoints": 0, "keypoints": [0] * 51,
             "bbox": [50, 30, 5, 5], "area": 25},
            {"id": 4, "image_id": 7, "category_id": 90, "bbox": [1, 1, 2, 2], "area": 4, "iscrowd": 0},
        ],
    }  # fmt: skip


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(folder / name), rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))


def write_record(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
