"""The parts of the script that need no timing: labels, sizes, the file that is continued, and tables."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.errors import FileError, UsageError
from compress.measure.latency import Timing
from compress.network.inputs import InputSpec
from compress.pose.decoders.paf import PafDecoder
from compress.pose.prepare import prepare
from compress.pose.spec import PoseSpec

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))

import candidates  # noqa: E402
import paper_speed  # noqa: E402
import paper_table  # noqa: E402
import paper_values  # noqa: E402
from public_decoder import decode_public  # noqa: E402
from scenes import IMAGE, ImageToPeople, StreamToPeople, make_fields, ours  # noqa: E402

MACHINE = {
    "cpu": "A CPU", "cores": 2, "instruction_sets": ["avx2"], "gpu": "not present", "torch": "2", "openvino": "3",
    "onnxruntime": "4", "memory_gb": 1.0, "threads": 2,
}  # fmt: skip
ROW = paper_table.Row(
    "attention-cpm", 656, 368, "", "OpenPose VGG-19", "torch-cpu", "", 52_000_000, 242_000_000_000, "1662.00",
    "1650.00", "1670.00", "1700.00", "1800.00", "", "", "0.60", 20, 2, "", "", "", "", "", "",
)  # fmt: skip
FASTER = replace(
    ROW, network="attention CPM 1/3", macs=12_270_000_000, latency_ms="97.00", vs_same="17.1", vs_same_low="16.9",
    vs_same_high="17.4", vs_first="17.1", vs_first_low="16.9", vs_first_high="17.4",
)  # fmt: skip
UNSURE = replace(FASTER, network="attention CPM", vs_same="1.01", vs_same_low="0.98", vs_same_high="1.03")


def test_sizes_of_the_paper_are_rounded_to_the_stride() -> None:
    assert paper_values.TABLES[0].sizes == ((192, 328), (368, 656), (576, 984), (768, 1312))
    assert paper_values.rounded(300, 300, 32) == (288, 288)


def test_speed_ups_of_the_paper_are_those_of_its_tables() -> None:
    table = paper_values.TABLES[0]
    found = {
        (value.where, value.size): paper_values.printed_ratio(table, "OpenPose VGG-19", value)
        for value in table.printed
        if value.network == "attention CPM 1/3"
    }
    assert found["RTX 2060, Table I", (368, 656)] == pytest.approx(2.35, abs=0.01)
    assert found["RTX 2060, Table I", (768, 1312)] == pytest.approx(2.86, abs=0.01)
    assert found["Ryzen 7 1700, Table II", (368, 656)] == pytest.approx(43.3, abs=0.1)
    beside = paper_values.printed_beside(table, "OpenPose VGG-19", (368, 656), "cpu")
    assert [round(value.ms) for value in beside] == [3333, 10000]


def test_rows_round_trip_and_other_machines_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "speed.csv"
    paper_table.write_csv(path, [ROW, FASTER], MACHINE, "python x.py")
    machine, rows = paper_table.read_csv(path)
    assert rows == [ROW, FASTER]
    paper_table.check_machine(machine, MACHINE | {"threads": 1}, path)
    with pytest.raises(FileError, match=r"other versions \(torch\)"):
        paper_table.check_machine(machine, MACHINE | {"torch": "1"}, path)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "# machine: {}\n# command: x\na,b\n1,2\n"])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text(text)
    with pytest.raises(FileError, match="not a table of paper_speed"):
        paper_table.read_csv(tmp_path / "other.csv")


def test_tables_show_the_papers_values_and_mark_insignificant_differences() -> None:
    people = replace(ROW, table="image-to-people", people="23", decoder="public", decode_ms="525.00")
    text = paper_table.markdown([people, ROW, FASTER, UNSURE], MACHINE, "python x.py", ["torch-cuda: none"])
    lines = text.splitlines()
    (faster,) = (line for line in lines if line.startswith("| attention CPM 1/3"))
    assert "| 17.1 (16.9 to 17.4) |" in faster
    assert "76.92 ms (Ryzen 7 1700, Table II)" in faster
    assert "| 43.3; 60 |" in faster
    assert "[1.01 (0.98 to 1.03)]" in text
    assert "Not present: torch-cuda: none." in lines
    assert lines.index("### 656x368") < lines.index("### 656x368, people: 23")
    assert all(line.count("|") == 11 for line in lines if line.startswith("| attention"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("openvino-cpu", ("openvino", "cpu", "fp32", "fp32", ())),
        ("openvino-cpu-int8-bf16", ("openvino", "cpu", "int8", "bf16", ())),
        ("torch-cuda-fp16-graphs-compile", ("torch", "cuda", "fp16", "fp32", ("graphs", "compile"))),
    ],
)
def test_runtimes_are_read(text: str, expected: tuple[object, ...]) -> None:
    label = candidates.Label.read(text)
    assert (label.runtime, label.device, label.precision, label.rest, label.extras) == expected


@pytest.mark.parametrize(
    "text", ["torch", "torch-cpu-int8", "tensorrt-cuda", "openvino-cpu-graphs", "openvino-cpu-bf16-int8", "torch-cpu-x"]
)
def test_invalid_runtimes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="RUNTIME-DEVICE"):
        candidates.Label.read(text)


@pytest.mark.parametrize("people", [0, 1, 10, 23])
def test_the_public_decoder_finds_the_same_people_as_compat(people: int) -> None:
    spec = PoseSpec()
    prepared = prepare(np.zeros((*IMAGE, 3), np.uint8), spec, 368)
    heatmaps, pafs = make_fields(people, (46, 82), people, spec)
    expected = PafDecoder(mode="compat").people(heatmaps, pafs, prepared, spec)
    found = decode_public(heatmaps, pafs, prepared, spec)
    assert len(found) == len(expected) >= people
    for mine, theirs in zip(found, expected, strict=True):
        assert set(mine["joints"]) == set(np.flatnonzero(theirs.keypoints[:, 2]))
        for joint, (x, y, height) in mine["joints"].items():
            np.testing.assert_allclose(theirs.keypoints[joint], (x + 0.5, y + 0.5, height), rtol=1e-5)
        assert theirs.score == pytest.approx(mine["score"] * (mine["parts"] - 1), rel=1e-5)


class FakeRunner:
    """A network that takes a known time and returns nothing."""

    name, device, precision, threads, pose = "torch", "cpu", "fp32", 1, PoseSpec()

    def __init__(self, seconds: float) -> None:
        self.seconds, self.shapes = seconds, set[tuple[int, ...]]()

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        self.shapes.add(images.shape)
        time.sleep(self.seconds)
        return {}

    def close(self) -> None:
        pass


class FakeWorkshop:
    """Opens networks whose names are their milliseconds."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, str, int]] = []

    def streams(self, label: str) -> int:
        return 2 if label.startswith("openvino") else 1

    def open(self, subject: FakeSubject, label: str, size: tuple[int, int], streams: int) -> FakeRunner:
        self.opened.append((subject.name, label, streams))
        return FakeRunner(subject.seconds / (2 if "bf16" in label else 1))


@dataclass(frozen=True)
class FakeSubject:
    name: str
    seconds: float

    def cost(self, size: tuple[int, int]) -> tuple[int, int]:
        return 1, size[0] * size[1]


def test_the_network_gets_an_image_of_the_table_size_and_all_generated_people_are_decoded() -> None:
    runner = FakeRunner(0.0)
    whole = ImageToPeople(runner, 10, ours, 368)
    assert whole.run(np.zeros((1, 3, 8, 8), np.float32)) == {}
    assert runner.shapes == {(1, 3, *paper_speed.PEOPLE_SIZE)}
    assert whole.found == 10
    assert len(whole.decode_ms) == 1


class Pair(FakeRunner):
    """A network whose runs end only in pairs."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self.both = threading.Barrier(2, timeout=30)

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        self.both.wait()
        return super().run(images)


def test_the_network_of_a_stream_takes_as_many_images_at_once_as_it_has_streams() -> None:
    whole = ImageToPeople(Pair(), 3, ours, 368)
    stream = StreamToPeople(whole, 2, 8)
    assert stream.run(np.zeros((1, 3, 8, 8), np.float32)) == {}
    stream.close()
    assert len(whole.decode_ms) == stream.images == 8
    assert whole.found == 3


def test_the_time_of_one_image_in_a_stream_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed_types = []

    def measure(runners: dict[str, Any], inputs: tuple[InputSpec, ...], options: Any) -> list[Timing]:
        for runner in runners.values():
            runner.run(np.zeros(inputs[0].shape, np.float32))
        timed_types.extend(type(runner) for runner in runners.values())
        times = {ImageToPeople: 60.0, StreamToPeople: 480.0}
        return [
            Timing(
                label, "openvino", "cpu", "bf16", 8, 8, 1, times[type(runner)], 500.0, 510.0, (470.0, 490.0),
                1e3 / times[type(runner)], 2, 2, None, (times[type(runner)],) * 2,
            )
            for label, runner in runners.items()
        ]  # fmt: skip

    monkeypatch.setattr(paper_speed, "measure_interleaved", measure)
    monkeypatch.setattr(paper_speed, "missing", lambda label: None)
    keys = [(paper_speed.SMALLEST, "openvino-cpu-bf16", decoder) for decoder in ("ours", "ours, overlapped")]
    workshop = FakeWorkshop()
    speed = paper_speed.SpeedRun(tmp_path / "speed.csv", workshop, ["openvino-cpu-bf16"], 2, 60.0)
    speed.run("image-to-people", paper_speed.PEOPLE_SIZE, {paper_speed.SMALLEST: FakeSubject("small", 0.0)}, keys, 1)
    assert timed_types == [ImageToPeople, StreamToPeople]
    assert [streams for _, _, streams in workshop.opened] == [1, 2]
    single, stream = speed.rows
    assert (single.latency_ms, stream.latency_ms) == ("60.00", "20.00")
    assert (float(stream.fps), float(stream.low_ms)) == pytest.approx((50.0, 470 / 24), abs=0.01)
    assert stream.vs_first == "3"


def test_a_group_is_timed_written_and_not_timed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_speed, "missing", lambda label: "no such device" if "cuda" in label else None)
    subjects = {paper_speed.BASELINE: FakeSubject("openpose", 0.04), paper_speed.SMALLEST: FakeSubject("small", 0.004)}
    labels = ["torch-cpu", "openvino-cpu-bf16", "torch-cuda-fp16-graphs"]
    keys = [key for key in paper_speed.people_keys(labels, []) if key[2] == "ours"]
    workshops = []
    for _ in range(2):
        workshops.append(FakeWorkshop())
        speed = paper_speed.SpeedRun(tmp_path / "speed.csv", workshops[-1], labels, 2, 60.0)
        speed.run("image-to-people", paper_speed.PEOPLE_SIZE, subjects, keys, 1)
    assert sorted(workshops[0].opened) == [
        ("openpose", "openvino-cpu-bf16", 1), ("openpose", "torch-cpu", 1), ("small", "openvino-cpu-bf16", 1),
    ]  # fmt: skip
    assert workshops[1].opened == []
    rows = {row.key: row for row in speed.rows}
    small = rows[paper_speed.SMALLEST, "openvino-cpu-bf16", "ours"]
    assert 1 < float(small.vs_same) < float(small.vs_first) < 21
    assert rows[paper_speed.FASTEST_BASELINE].vs_same == ""
    text = (tmp_path / "speed.md").read_text()
    assert "Not present: torch-cuda-fp16-graphs: no such device." in text
    assert "### 656x368, people: 1" in text
