"""`compress predict` on drawn people, small."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from compress.checkpoint.load import create
from compress.checkpoint.save import save
from compress.commands.base import check_options
from compress.commands.predict import COMMAND, PredictOptions, PredictResult
from compress.data.frames import Frame, Frames
from compress.data.sources import open_sources
from compress.data.synthetic import DrawnPeople
from compress.data.written import open_video, write_picture
from compress.errors import CompressError, DataError, FileError, RuntimeAbsent, UsageError
from compress.evaluation.people import find_people
from compress.evaluation.prediction import STEPS
from compress.exporters.to_onnx import export_onnx
from compress.exporters.to_openvino import write_ir
from compress.model import Model
from compress.pose.metrics.oks import people_records
from compress.progress import Silent
from compress.runtime.opening import open_runner

SIZE = (96, 128)


def predict(model: Path, *inputs: Path, **options: Any) -> dict[str, Any]:
    return run_predict(model, *inputs, **options).record


def run_predict(model: Path, *inputs: Path, **options: Any) -> PredictResult:
    values = {"model": model, "inputs": inputs, "threads": 1, **options}
    checked = check_options(COMMAND.options, values, "test")
    assert isinstance(checked, PredictOptions)
    result = COMMAND.run(checked, Silent())
    assert isinstance(result, PredictResult)
    json.dumps(result.record, allow_nan=False)
    assert not [t for t in threading.enumerate() if t.name.split("_")[0] in ("read", "work", "network")]
    return result


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("predict") / "model.pt"
    save(create("default"), path)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network as an OpenVINO file."""
    path = tmp_path_factory.mktemp("exported") / "model.xml"
    checkpoint = create("default")
    write_ir(export_onnx(checkpoint, path.with_suffix(".onnx")), path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six drawn scenes, the last one without people."""
    folder = tmp_path_factory.mktemp("photos")
    scenes = DrawnPeople(5, 5, size=(192, 192))
    for index in range(5):
        write_picture(folder / f"{10 * (5 - index):04d}.png", scenes[index].image)
    write_picture(folder / "0099.png", np.full((192, 192, 3), 90, np.uint8))
    return folder


def expected(model: Path, folder: Path) -> list[dict[str, Any]]:
    """The same by single steps, in the order of names."""
    runner = open_runner(model, threads=1)
    found = []
    for frame in Frames(open_sources([folder])).read():
        assert isinstance(frame, Frame)
        poses = find_people(runner, frame.image)
        where = {"file_name": frame.source.name}
        found += [entry | where for entry in people_records(poses, frame.image_id, runner.pose.joints)]
    return found


def test_pictures_give_the_people_of_single_steps_in_order(model: Path, photos: Path, tmp_path: Path) -> None:
    record = predict(model, photos, output=tmp_path / "out")
    found = json.loads((tmp_path / "out" / "people.json").read_text())
    wanted = expected(model, photos)
    assert len(wanted) >= 4
    assert found == wanted
    assert [entry["image_id"] for entry in found] == sorted(entry["image_id"] for entry in found)
    assert (record["images"], record["people"], record["unreadable"], record["ended"]) == (6, len(wanted), [], [])
    assert record["nobody"] == 6 - len({entry["image_id"] for entry in wanted}) >= 1
    assert record["outputs"] == [str(tmp_path / "out" / path.name) for path in sorted(photos.iterdir())]
    drawn = {path.name: cv2.imread(str(path)) for path in (tmp_path / "out").glob("*.png")}
    changed = {name for name, image in drawn.items() if not np.array_equal(image, cv2.imread(str(photos / name)))}
    assert changed == {entry["file_name"] for entry in wanted}


def test_the_record_says_where_time_goes(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_predict(model, photos, output=tmp_path / "out", height=128)
    record = result.record
    for times in (record["milliseconds"], record["alone"]):
        assert set(times) == {*STEPS, "wall"}
        assert all(value > 0 for value in times.values())
    # One after the other, the steps are all that the wall clock sees, and nothing is counted twice.
    steps = sum(record["alone"][step] for step in STEPS)
    assert steps <= record["alone"]["wall"]
    assert record["fps"] == pytest.approx(1000 / record["milliseconds"]["wall"])
    assert record["overlap"] == pytest.approx(record["alone"]["wall"] / record["milliseconds"]["wall"])
    assert (record["alone_images"], record["height"], record["runtime"], record["threads"]) == (2, 128, "torch", 1)
    result.show()
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("read", "prepare", "network", "decode", "draw", "write"))
    assert result.summary in shown
    assert "nobody found in" in shown


def test_without_drawing_only_results_are_written(model: Path, photos: Path, tmp_path: Path) -> None:
    record = predict(model, photos, output=tmp_path / "out", draw=False, limit=2)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["people.json"]
    assert (record["images"], record["outputs"]) == (2, [])
    assert record["milliseconds"]["draw"] == record["milliseconds"]["write"] == 0


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn scene that gets lighter, 24 frames."""
    path = tmp_path_factory.mktemp("clip") / "clip.avi"
    scene = cv2.resize(DrawnPeople(5, 1, size=(192, 192))[0].image, (SIZE[1], SIZE[0]))
    with open_video(path, 12.5, SIZE) as add:
        for number in range(24):
            add(np.minimum(255, scene.astype(int) // 2 + 5 * number).astype(np.uint8))
    return path


def test_a_video_becomes_a_video_of_the_same_length_size_and_rate(model: Path, clip: Path, tmp_path: Path) -> None:
    record = predict(model, clip, output=tmp_path / "out", height=64)
    assert record["outputs"] == [str(tmp_path / "out" / "clip.mp4")]
    assert (record["images"], record["alone_images"]) == (24, 8)
    before, after = (list(Frames(open_sources([path])).read()) for path in (clip, tmp_path / "out" / "clip.mp4"))
    assert isinstance(after[0], Frame)
    assert (len(after), after[0].image.shape) == (24, (*SIZE, 3))
    assert after[0].source.fps == pytest.approx(12.5)
    light = [[float(frame.image.mean()) for frame in some if isinstance(frame, Frame)] for some in (before, after)]
    assert np.abs(np.diff(light, axis=0)).max() < 6
    people = json.loads((tmp_path / "out" / "people.json").read_text())
    assert all(entry["image_id"] == entry["frame"] + 1 for entry in people)
    assert [entry["frame"] for entry in people] == sorted(entry["frame"] for entry in people)


def test_a_video_that_ends_early_and_files_that_are_none_are_told(
    model: Path, clip: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = clip.read_bytes()
    start = content.index(b"movi")
    (tmp_path / "cut.avi").write_bytes(content[: start + (len(content) - start) // 2])
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    result = run_predict(model, tmp_path / "broken.jpg", tmp_path / "cut.avi", output=tmp_path / "out", height=64)
    record = result.record
    (ended,) = record["ended"]
    assert (ended["name"], ended["promised"]) == ("cut.avi", 24)
    assert 0 < ended["read"] == record["images"] < 24
    assert [one["name"] for one in record["unreadable"]] == ["broken.jpg"]
    assert len(list(Frames(open_sources([tmp_path / "out" / "cut.mp4"])).read())) == record["images"]
    result.show()
    shown = capsys.readouterr().out
    assert f"{ended['read']} frame(s) read of the 24 that its file announces" in shown
    assert "not read: broken.jpg" in shown


def test_where_nothing_can_be_read_that_is_an_error(model: Path, tmp_path: Path) -> None:
    for name in ("a.jpg", "b.mp4"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"none of the 2 inputs can be read.*a\.jpg"):
        predict(model, tmp_path / "a.jpg", tmp_path / "b.mp4", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("step", ["compress.evaluation.stream.find_people", "compress.reporting.drawing.draw_poses"])
def test_a_failing_step_ends_all_and_leaves_no_half_video(
    model: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    module, name = step.rsplit(".", 1)
    real = getattr(__import__(module, fromlist=[name]), name)
    calls = []

    def failing(*values: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 15:
            raise CompressError("it broke")
        return real(*values, **options)

    monkeypatch.setattr(step, failing)
    with pytest.raises(CompressError, match="it broke"):
        predict(model, clip, output=tmp_path / "out", height=64)
    assert list((tmp_path / "out").iterdir()) == []
    assert not [t for t in threading.enumerate() if t.name.split("_")[0] in ("read", "work", "network")]


def test_a_camera_is_stopped_by_the_keyboard_and_what_it_saw_is_kept(
    model: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = cv2.VideoCapture(str(clip))
    monkeypatch.setattr("compress.data.sources.open_capture", lambda what: capture)
    calls = []

    def stop(image: Any, *values: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return image

    monkeypatch.setattr("compress.reporting.drawing.draw_poses", stop)
    record = predict(model, Path("0"), output=tmp_path / "out", height=64)
    assert (record["images"], record["outputs"]) == (11, [str(tmp_path / "out" / "camera-0.mp4")])
    monkeypatch.undo()
    assert len(list(Frames(open_sources([tmp_path / "out" / "camera-0.mp4"])).read())) == 11


def test_outputs_are_kept_unless_forced_and_inputs_always(model: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    kept = output / "0010.png"
    kept.write_bytes(b"precious")
    with pytest.raises(FileError, match="--force"):
        predict(model, photos, output=output)
    assert (kept.read_bytes(), [path.name for path in output.iterdir()]) == (b"precious", ["0010.png"])
    with pytest.raises(UsageError, match="replace an input"):
        predict(model, photos, output=photos, force=True)
    predict(model, photos, output=output, force=True, limit=1)
    assert kept.read_bytes() != b"precious"


def test_a_runtime_that_can_not_be_had_is_said_before_anything_is_read(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeAbsent, match="--device cpu"):
        predict(model, photos, output=tmp_path / "out", device="nonsense")
    with pytest.raises(UsageError, match="compress export"):
        predict(model, photos, output=tmp_path / "out", runtime="openvino")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model]:
    """A network that sees one person, with random weights."""
    checkpoint = create("context-cpm", {"stages": 1}, trained=False)
    path = tmp_path_factory.mktemp("single") / "single.pt"
    save(checkpoint, path)
    return path, checkpoint


def test_several_images_in_the_network_at_once_give_what_one_at_a_time_gives(
    model: Path, exported: Path, photos: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, records, results = {}, {}, {}
    for streams in (1, 2):
        folder = tmp_path / str(streams)
        results[streams] = run_predict(exported, photos, clip, output=folder, height=96, threads=2, streams=streams)
        records[streams] = results[streams].record
        found[streams] = json.loads((folder / "people.json").read_text())
        assert records[streams]["streams"] == streams
    assert len(found[1]) == len(found[2]) >= 4
    for one, two in zip(found[1], found[2], strict=True):
        assert (one["image_id"], one["file_name"]) == (two["image_id"], two["file_name"])
        np.testing.assert_allclose(one["keypoints"], two["keypoints"], atol=0.05)
    # With a part of the threads, images one after the other would be no measure of what overlap wins.
    assert records[1]["overlap"] is not None
    assert records[2]["overlap"] is records[2]["alone"] is None
    results[2].show()
    assert "2 image(s) at once" in capsys.readouterr().out
    by_default = predict(exported, photos, output=tmp_path / "default", height=96, threads=2, limit=1)
    assert by_default["streams"] == 2
    with pytest.raises(UsageError, match="one image after the other"):
        predict(model, photos, output=tmp_path / "x", threads=2, streams=2)


def test_a_camera_s_images_go_through_an_openvino_file_one_at_a_time(
    exported: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.data.sources.open_capture", lambda what: cv2.VideoCapture(str(clip)))
    record = predict(exported, Path("0"), output=tmp_path / "out", height=64, threads=2, draw=False, limit=3)
    assert record["streams"] == 1


def test_a_network_that_sees_one_person_looks_at_the_whole_image_or_at_boxes(
    model: Path, single: tuple[Path, Model], photos: Path, tmp_path: Path
) -> None:
    path, checkpoint = single
    record = predict(path, photos, output=tmp_path / "whole", height=64, limit=2)
    found = json.loads((tmp_path / "whole" / "people.json").read_text())
    assert record["people"] == len(found) <= 2
    joints = len(checkpoint.pose.joints.joints)
    size = 17 if record["skeleton"] == "coco17" else joints
    assert all(len(entry["keypoints"]) == 3 * size for entry in found)
    boxes = tmp_path / "boxes.json"
    box = {"category_id": 1, "score": 0.5}
    places = [(10, [5, 5, 80, 150]), (10, [100, 20, 60, 120]), (20, [40, 30, 90, 140]), (20, [40, 30, 90, 140])]
    boxes.write_text(json.dumps([{"image_id": image, "bbox": place, **box} for image, place in places]))
    record = predict(path, photos, output=tmp_path / "boxes", height=64, limit=3, boxes=boxes)
    ids = [entry["image_id"] for entry in json.loads((tmp_path / "boxes" / "people.json").read_text())]
    assert set(ids) <= {10, 20}
    assert ids.count(20) <= 1  # the same box twice is one person
    assert record["nobody"] >= 1  # the third image has no box
    with pytest.raises(DataError, match="takes no boxes"):
        predict(model, photos, output=tmp_path / "x", boxes=boxes)
    boxes.write_text(json.dumps([{"image_id": 7, "bbox": [0, 0, 9, 9], **box}]))
    with pytest.raises(DataError, match="of other images"):
        predict(path, photos, output=tmp_path / "x", height=64, limit=1, boxes=boxes, draw=False)
