"""Images and network inputs in memory: what `compress.images` takes, and what it refuses."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_folder import record, write_images, write_record

from compress.data import arrays as module
from compress.data.arrays import ArrayImages, Tensors
from compress.data.coco import CocoDataset
from compress.data.images import ImageFiles, ImageFolder
from compress.data.sample import iterate
from compress.data.source import images
from compress.data.spec import DataSpec
from compress.data.synthetic import DrawnPeople
from compress.errors import DataError
from compress.network.inputs import InputSpec


def picture(seed: int = 0, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_folders_files_and_names_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "val2017")
    write_record(tmp_path / "annotations" / "person_keypoints_val2017.json", record())
    folder = tmp_path / "val2017"
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in (folder, str(folder), "~/val2017", f"images:{folder}"):
        assert isinstance(images(source), ImageFolder)
    assert isinstance(images(f"coco:{tmp_path}"), CocoDataset)
    assert len(images(DataSpec.parse("synthetic:1:3"))) == 3
    for files in (folder / "a.png", [folder / "b.png", "~/val2017/a.png"]):
        opened = images(files)
        assert isinstance(opened, ImageFiles)
        assert len(list(iterate(opened))) == (1 if isinstance(files, Path) else 2)
    people = DrawnPeople(0, 2)
    assert images(people) is people
    with pytest.raises(DataError, match="no such folder of images"):
        images(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no such COCO folder"):
        images("coco:/nowhere/at/all")


@pytest.mark.parametrize("form", [list, tuple, iter, np.stack], ids=["list", "tuple", "iterator", "stack"])
def test_arrays_become_samples_with_their_pixels(form: Callable[[Any], Any]) -> None:
    pixels = [picture(seed) for seed in range(3)]
    dataset = images(form(pixels))
    assert isinstance(dataset, ArrayImages)
    assert not dataset.annotated
    for index, sample in enumerate(iterate(dataset)):
        assert np.array_equal(sample.image, pixels[index])
        assert sample.image_id == index + 1
        assert sample.mask.all()
        assert not sample.people
    with pytest.raises(IndexError):
        dataset[3]
    with pytest.raises(DataError, match="no annotations"):
        dataset.ground_truth()


def test_a_single_array_is_one_image_and_channels_may_be_red_first_or_grey() -> None:
    pixels = picture()
    for source, color in ((pixels, "bgr"), ([pixels[..., ::-1]], "rgb")):
        dataset = images(source, color=color)
        assert len(dataset) == 1
        assert np.array_equal(dataset[0].image, pixels)
    for grey in (pixels[..., 0], pixels[..., :1]):
        assert np.array_equal(images([grey])[0].image, np.repeat(pixels[..., :1], 3, axis=2))


def test_an_image_of_pillow_is_turned_into_bgr() -> None:
    pillow = pytest.importorskip("PIL.Image")
    pixels = picture()
    assert np.array_equal(images([pillow.fromarray(pixels[..., ::-1])])[0].image, pixels)


def test_an_endless_iterator_is_read_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ITEMS", 5)
    source = (picture(seed) for seed in itertools.count())
    dataset = images(source)
    assert (len(dataset), dataset.name) == (5, "the first 5 items")
    assert len(images([picture()] * 9)) == 9  # a list is in memory already
    assert images(picture(seed) for seed in range(5)).name == "5 arrays"
    monkeypatch.setattr(module, "MAX_BYTES", 3 * picture().nbytes)
    assert len(images(picture(seed) for seed in itertools.count())) == 3


SPECS = (InputSpec((1, 3, 16, 8)),)


@pytest.mark.parametrize("form", ["batches", "singles", "stack", "arrays", "lists of one"])
def test_tensors_come_one_by_one_whatever_their_batches(form: str) -> None:
    values = torch.randn(6, 3, 16, 8)
    source: Any = {
        "batches": iter(values.split(4)),
        "singles": list(values),
        "stack": values,
        "arrays": [array.numpy() for array in values.double()],
        "lists of one": [[batch] for batch in values.split(1)],
    }[form]
    inputs = images(source)
    assert isinstance(inputs, Tensors)
    ready = inputs.for_network(SPECS)
    assert all(isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32 for tensor in ready)
    assert torch.equal(torch.cat(ready), values)  # type: ignore[arg-type]
    assert len(inputs.for_network(SPECS, 5)) == 5


def test_tuples_are_the_inputs_of_one_network() -> None:
    specs = (InputSpec((1, 3, 16, 8)), InputSpec((1, 7), "int64"))
    pairs = [(torch.randn(2, 3, 4, 4), torch.arange(14).reshape(2, 7)), (torch.randn(3, 9, 9), torch.arange(7))]
    ready = images(pairs).for_network(specs)
    assert [[tuple(part.shape) for part in item] for item in ready] == [
        [(1, 3, 4, 4), (1, 7)], [(1, 3, 4, 4), (1, 7)], [(1, 3, 9, 9), (1, 7)]
    ]  # fmt: skip
    assert torch.equal(ready[1][1], pairs[0][1][1:])


def test_images_with_channels_last_fit_a_network_that_reads_them_so() -> None:
    ready = images([torch.zeros(20, 30, 3)]).for_network((InputSpec((1, 16, 8, 3)),))
    assert ready[0].shape == (1, 20, 30, 3)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([torch.zeros(1, 1, 8, 8)], r"item 0 .*shape.*\(1, 1, 8, 8\).*reads \(1, 3, 16, 8\)"),
        ([torch.zeros(3, 8, 8), torch.zeros(8, 8)], r"item 1 .*\(8, 8\)"),
        ([torch.zeros(1, 1, 3, 8, 8)], "shape"),
        ([torch.zeros(3, 8, 8, dtype=torch.int64)], "type that the network reads.*int64.*float32"),
        ([(torch.zeros(3, 8, 8), torch.zeros(1))], "another number of tensors.*2 instead of 1.*without labels"),
    ],
)
def test_tensors_that_the_network_does_not_read_are_refused_with_what_it_reads(items: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        images(items).for_network(SPECS)


def test_inputs_of_different_batch_sizes_are_refused() -> None:
    pair = (torch.zeros(2, 3, 8, 8), torch.zeros(3, 7))
    with pytest.raises(DataError, match=r"different batch sizes.*\[2, 3\]"):
        images([pair]).for_network((*SPECS, InputSpec((1, 7))))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "there are no images.*only once"),
        (iter([]), "there are no images"),
        ({"image": 1}, "these are no images.*dict"),
        (3, "these are no images.*int"),
        (None, "these are no images.*NoneType"),
        ([3], "item 0 is neither.*int"),
        ([(torch.zeros(1, 3), "label")], r"item 0 is neither.*str.*\(x for x, _ in loader\)"),
        ([torch.zeros(3, 8, 8), {"image": 1}], "item 1 is neither.*dict"),
        ([np.zeros((4, 4, 4, 3), np.uint8)], "height, width and three channels"),
        ([np.zeros((4, 4, 2), np.uint8)], "height, width and three channels.*4, 4, 2"),
        ([np.zeros((0, 4, 3), np.uint8)], "height, width and three channels"),
        ([picture(), torch.zeros(3, 8, 8)], "can't be mixed.*item 1"),
        ([torch.zeros(3, 0, 8)], "item 0 is neither"),
        ([torch.full((3, 8, 8), float("nan"))], "item 0 holds NaN or infinite"),
    ],
)
def test_what_is_no_image_is_refused(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        images(source)
