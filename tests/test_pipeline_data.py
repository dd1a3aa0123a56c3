"""A stage runs again when the data that it reads has changed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from compress import pipeline
from compress.checkpoint.load import create
from compress.checkpoint.save import save
from compress.pipeline import run_recipe
from compress.pose.skeleton import COCO17
from compress.progress import Silent
from compress.recipe import load_recipe

RECIPE = """
[[stage]]
run = "evaluate"
model = "model.pt"
data = "coco:people,test"
height = 64
results = "results.json"
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save(create("default", trained=False), path)
    return path


@pytest.fixture
def folder(tmp_path: Path, model: Path) -> Path:
    """The folder of a recipe with an annotated image in it."""
    images = tmp_path / "people" / "test"
    images.mkdir(parents=True)
    cv2.imwrite(str(images / "1.png"), np.full((64, 64, 3), 90, np.uint8))
    person = {
        "id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 900, "bbox": [10, 10, 30, 30],
        "keypoints": [20, 20, 2] * 17, "num_keypoints": 17,
    }  # fmt: skip
    record = {
        "images": [{"id": 1, "file_name": "1.png", "height": 64, "width": 64}],
        "annotations": [person],
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO17.joints), "skeleton": []}],
    }
    annotations = tmp_path / "people" / "annotations" / "person_keypoints_test.json"
    annotations.parent.mkdir()
    annotations.write_text(json.dumps(record))
    (tmp_path / "model.pt").write_bytes(model.read_bytes())
    (tmp_path / "r.toml").write_text(RECIPE)
    return tmp_path


def is_skipped(folder: Path) -> bool:
    (report,) = run_recipe(load_recipe(folder / "r.toml", folder=folder), Silent())
    return report.skipped


def edit_label(folder: Path) -> None:
    """Move a joint, in a file that keeps its size and time."""
    path = folder / "people" / "annotations" / "person_keypoints_test.json"
    before = path.stat()
    path.write_text(path.read_text().replace("[20, 20, 2,", "[21, 20, 2,", 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def replace_image(folder: Path) -> None:
    cv2.imwrite(str(folder / "people" / "test" / "1.png"), np.full((64, 64, 3), 91, np.uint8))


def add_image(folder: Path) -> None:
    cv2.imwrite(str(folder / "people" / "test" / "2.png"), np.full((64, 64, 3), 90, np.uint8))


@pytest.mark.parametrize("change", [edit_label, replace_image, add_image])
def test_changed_data_runs_a_stage_again(folder: Path, change: Callable[[Path], None]) -> None:
    assert not is_skipped(folder)
    assert is_skipped(folder)
    change(folder)
    assert not is_skipped(folder)
    assert is_skipped(folder)


def test_a_small_data_set_that_was_only_copied_counts_as_the_same(folder: Path) -> None:
    assert not is_skipped(folder)
    for path in (folder / "people").rglob("*.*"):
        os.utime(path)
    assert is_skipped(folder)


def test_files_that_a_split_does_not_read_do_not_count(folder: Path) -> None:
    assert not is_skipped(folder)
    other = folder / "people" / "train"
    other.mkdir()
    (other / "9.png").write_bytes(b"of another split")
    assert is_skipped(folder)


def test_large_files_count_by_size_and_time_and_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "SMALL_FILE", 0)
    assert not is_skipped(folder)
    image = folder / "people" / "test" / "1.png"
    seconds = image.stat().st_mtime_ns + 10**9
    os.utime(image, ns=(seconds, seconds))
    assert not is_skipped(folder)
    before = image.stat()
    image.write_bytes(bytes(reversed(image.read_bytes())))
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert is_skipped(folder)


def test_code_of_the_users_own_counts_too(folder: Path) -> None:
    (folder / "nets.py").write_text("from compress.zoo.registry import build\n")
    text = RECIPE + 'network = "nets.py:factory"\n'
    (folder / "r.toml").write_text(text)
    options = load_recipe(folder / "r.toml", folder=folder).steps[0]
    before = pipeline.digest_of(options)
    assert before == pipeline.digest_of(options)
    (folder / "nets.py").write_text("from compress.zoo.registry import build  # changed\n")
    assert pipeline.digest_of(options) != before
