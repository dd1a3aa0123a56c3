"""Peaks found inside an exported graph are those that the decoder finds in the same maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import nn

from compress.checkpoint.load import load
from compress.data.source import open_data
from compress.errors import ParityError, UsageError
from compress.evaluation.inputs import network_inputs
from compress.exporters.checked import CheckOptions, ExportFile, export_checked
from compress.exporters.parity import check, require
from compress.exporters.peaks_graph import PeakFinder, PeakOptions, missed_peaks, to_peaks
from compress.exporters.to_onnx import read_metadata
from compress.model import Model
from compress.network.inputs import image_input
from compress.network.source import NetworkSpec
from compress.pose.decoders.heatmap import find_maxima
from compress.pose.decoders.peaks import find_peaks
from compress.pose.spec import PoseSpec
from compress.pose.targets import heatmap_targets
from compress.pose.views import View
from compress.runtime.opening import open_runner
from compress.runtime.runner import PEAKS
from compress.runtime.torch_runner import TorchRunner

Maps = NDArray[np.float32]


def found_by(options: PeakOptions, maps: Maps, *, joints: int = 18, stride: int = 8) -> Maps:
    finder = PeakFinder(joints, stride, options)
    return np.asarray(finder(torch.from_numpy(np.ascontiguousarray(maps)))).astype(np.float32)


def noise(seed: int, *shape: int) -> Maps:
    smooth = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), (0, 0, 1.3, 1.3))
    return smooth.astype(np.float32)


def drawn_maps() -> Maps:
    """Maps of drawn people as a network is taught them, a little noisy."""
    data = open_data("synthetic:11:3")
    maps = []
    for index in range(3):
        sample = data[index]
        people = [np.concatenate([p.keypoints, p.keypoints[:1]]) for p in sample.people]
        height, width = (side // 8 for side in sample.image.shape[:2])
        maps.append(heatmap_targets(people, (height, width), 8))
    return np.stack(maps) + 0.02 * noise(2, *np.shape(maps))


@pytest.mark.parametrize("upsample", [1, 2, 4])
@pytest.mark.parametrize("size", [(46, 82), (7, 5), (33, 17)])
def test_noise_has_the_peaks_that_the_decoder_finds(upsample: int, size: tuple[int, int]) -> None:
    options = PeakOptions(top_k=200, upsample=upsample)
    maps = noise(upsample, 2, 19, *size)
    output = found_by(options, maps)
    assert output.shape == (2, 18, 200, 3)
    for one, heatmaps in zip(output, maps, strict=True):
        wanted = find_peaks(heatmaps[:18], upsample=upsample, threshold=0.1, radius=6 / 8, limit=200)
        given = to_peaks(one)
        assert len(wanted.points) > 20
        np.testing.assert_array_equal(given.starts, wanted.starts)
        np.testing.assert_allclose(given.points, wanted.points, atol=5e-3)
        np.testing.assert_allclose(given.scores, wanted.scores, atol=1e-5)


@pytest.mark.parametrize("upsample", [1, 2, 4])
def test_drawn_people_have_the_peaks_that_the_decoder_finds(upsample: int) -> None:
    options = PeakOptions(upsample=upsample)
    maps = drawn_maps()
    output = found_by(options, maps)
    assert (output[..., 2] > 0).sum() > 50
    assert [missed_peaks(one, heatmaps[:18], 8, options) for one, heatmaps in zip(output, maps, strict=True)] == [0] * 3


def test_of_more_peaks_than_wanted_the_highest_stay() -> None:
    maps = noise(5, 1, 1, 40, 40)
    many, few = (found_by(PeakOptions(top_k=k), maps, joints=1)[0, 0] for k in (64, 5))
    assert (many[:, 2] > 0).sum() > 10
    np.testing.assert_array_equal(few, many[:5])
    assert (np.diff(many[:, 2]) <= 0).all()


def test_a_peak_beside_a_higher_one_goes_and_the_next_in_the_row_stays() -> None:
    maps = np.zeros((1, 1, 9, 40), dtype=np.float32)
    maps[0, 0, 4, [10, 12, 14]] = 1.0, 0.8, 0.6
    options = PeakOptions(top_k=8, upsample=1, distance=20)  # 2.5 cells: each too near to the one before
    output = found_by(options, maps, joints=1)[0, 0]
    wanted = find_peaks(maps[0], upsample=1, threshold=0.1, radius=2.5, limit=8)
    assert len(wanted.points) == 2
    np.testing.assert_allclose(output[:2, :2], wanted.points, atol=1e-4)
    assert (output[2:] == 0).all()


@pytest.mark.parametrize("value", [0.0, -1.0, 0.09])
def test_maps_without_peaks_give_zeros_and_small_maps_are_no_matter(value: float) -> None:
    assert (found_by(PeakOptions(), np.full((2, 19, 2, 3), value, dtype=np.float32)) == 0).all()


def test_the_highest_peak_of_one_person_lies_in_the_cell_that_the_heatmap_decoder_takes() -> None:
    rng = np.random.default_rng(3)
    places = rng.uniform(4, 40, (6, 17, 2)).astype(np.float32)
    y, x = np.mgrid[:64, :48]
    maps = np.exp(-((x - places[..., :1, None]) ** 2 + (y - places[..., 1:, None]) ** 2) / (2 * 2.0**2))
    output = found_by(PeakOptions(top_k=1), maps.astype(np.float32), joints=17, stride=4)
    cells, _ = find_maxima(maps.astype(np.float32))
    assert np.abs(output[:, :, 0, :2] - cells).max() < 0.5
    # Without their quarter steps: the place itself, within a tenth of a cell.
    assert np.abs(output[:, :, 0, :2] - places).max() < 0.1
    np.testing.assert_allclose(output[:, :, 0, 2], 1, atol=0.02)


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"upsample": 3}, {"threshold": 0.0}, {"distance": -1.0}])
def test_options_without_meaning_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        PeakOptions(**wrong)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, stub_module: nn.Module, pose: PoseSpec) -> list[Path]:
    """The stub with its peaks as ONNX and IR, compared with torch on drawn people on the way."""
    folder = tmp_path_factory.mktemp("peaks")
    targets = [ExportFile(folder / "stub.onnx"), ExportFile(folder / "stub.xml")]
    images = [open_data("synthetic:4:1")[0].image]
    model = Model(stub_module, NetworkSpec("stub"), image_input((64, 80)), pose=pose)
    done = export_checked(model, targets, images, CheckOptions(threads=1, peaks=PeakOptions(top_k=24, upsample=2)))
    for one in done:
        assert one.parity.peaks is not None
        assert one.parity.peaks[0] > 20
    return [target.path for target in targets]


@pytest.mark.parametrize("index", [0, 1], ids=["onnx", "openvino"])
def test_an_exported_file_gives_peaks_of_any_batch_and_size(exported: list[Path], index: int) -> None:
    runner = open_runner(exported[index], threads=1)
    for shape in ((1, 3, 64, 96), (2, 3, 104, 40), (3, 3, 16, 24)):
        images = np.random.default_rng(1).normal(0, 1, shape).astype(np.float32)
        found = runner.run(images)
        assert list(found) == [*runner.pose.outputs, PEAKS]
        assert found[PEAKS].shape == (shape[0], 18, 24, 3)
        options = PeakOptions(top_k=24, upsample=2)
        missed = [missed_peaks(p, m[:18], 8, options) for p, m in zip(found[PEAKS], found["heatmaps"], strict=True)]
        assert sum(missed) <= 0.01 * (found[PEAKS][..., 2] > 0).sum()


def test_the_file_says_how_its_peaks_are_found(exported: list[Path]) -> None:
    record = json.loads(read_metadata(exported[0])["peaks"])
    assert record == {"top_k": 24, "upsample": 2, "threshold": 0.1, "distance": 6.0}


def test_peaks_that_are_not_those_of_the_maps_are_no_parity(stub_module: nn.Module, pose: PoseSpec) -> None:
    class Moved(TorchRunner):
        def run(self, images: Maps) -> dict[str, Maps]:
            maps = super().run(images)
            peaks = found_by(PeakOptions(), maps["heatmaps"])
            peaks[..., 0] += shift * (peaks[..., 2] > 0)
            return maps | {PEAKS: peaks}

    runner = Moved(stub_module, pose, threads=1)
    images = [open_data("synthetic:4:1")[0].image]
    shift = 0.0
    assert require(check(runner, runner, images, peaks=PeakOptions())).ok
    shift = 1.0
    with pytest.raises(ParityError, match="peaks are not those of its maps"):
        require(check(runner, runner, images, peaks=PeakOptions()))


def test_a_file_without_peaks_is_refused_where_they_were_asked_for(stub_module: nn.Module, pose: PoseSpec) -> None:
    runner = TorchRunner(stub_module, pose, threads=1)
    with pytest.raises(ParityError, match="lacks an output"):
        check(runner, runner, [open_data("synthetic:4:1")[0].image], peaks=PeakOptions())


@pytest.mark.real
@pytest.mark.slow
def test_the_real_network_has_the_peaks_that_the_decoder_finds(assets: Path) -> None:
    weights = assets / "weights/human-pose-estimation-0001/human-pose-estimation-0001.pth"
    checkpoint = load(weights)
    runner = TorchRunner.of(checkpoint, threads=1)
    data = open_data(f"images:{assets / 'images/coco/val2017'}")
    options = PeakOptions()
    count = missed = 0
    for index in (0, 20, 40):
        maps = runner.run(network_inputs(data[index], checkpoint.pose, View(256))[0][None])["heatmaps"]
        output = found_by(options, maps)
        count += int((output[..., 2] > 0).sum())
        missed += missed_peaks(output[0], maps[0, :18], 8, options)
    assert count > 50
    assert missed == 0
