"""Pictures, animations, videos and cameras as one stream, and the drawings written from it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from compress.data import sources as module
from compress.data.frames import Ended, Frame, Frames, Unreadable
from compress.data.sources import Camera, Video, open_sources, skipped_entries
from compress.data.written import Album, container_rate, open_video, output_paths, write_picture
from compress.errors import DataError, FileError, UsageError


def grey(level: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.full((*size, 3), level, np.uint8)


def write_clip(path: Path, levels: list[int], fps: float = 12.5) -> Path:
    with open_video(path, fps, (48, 64)) as add:
        for level in levels:
            add(grey(level))
    return path


def frames_of(*paths: Path, limit: int | None = None) -> tuple[Frames, list[Frame | Unreadable]]:
    stream = Frames(open_sources(paths), limit)
    return stream, list(stream.read())


def test_a_video_comes_back_as_it_was_written(tmp_path: Path) -> None:
    levels = [20, 90, 160, 230, 60]
    clip = write_clip(tmp_path / "clip.mp4", levels)
    stream, found = frames_of(clip)
    assert (stream.total, stream.live, stream.ended) == (5, False, [])
    assert stream.sources[0].fps == pytest.approx(12.5)
    assert [frame.number for frame in found] == [0, 1, 2, 3, 4]
    assert [frame.image_id for frame in found] == [1, 2, 3, 4, 5]
    assert [frame.image.shape for frame in found] == [(48, 64, 3)] * 5
    assert np.abs([frame.image.mean() for frame in found] - np.array(levels)).max() < 4


def test_inputs_keep_their_order_and_folders_are_sorted_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("b.png", "a.jpg"):
        write_picture(folder / name, grey(9))
    (folder / "notes.txt").write_text("no picture")
    write_clip(folder / "c.avi", [1, 2])
    write_picture(tmp_path / "z.bmp", grey(3))
    stream, found = frames_of(tmp_path / "z.bmp", folder)
    assert [frame.source.name for frame in found] == ["z.bmp", "a.jpg", "b.png", "c.avi", "c.avi"]
    assert [frame.image_id for frame in found] == [1, 2, 3, 4, 5]
    assert stream.total == 5


def test_ids_are_the_numbers_in_file_names_as_in_coco_if_all_have_one(tmp_path: Path) -> None:
    for name in ("000000000139.png", "000000000285.png"):
        write_picture(tmp_path / name, grey(9))
    assert [frame.image_id for frame in frames_of(tmp_path)[1]] == [139, 285]
    write_picture(tmp_path / "a.png", grey(9))
    assert [frame.image_id for frame in frames_of(tmp_path)[1]] == [1, 2, 3]


def test_a_limit_ends_the_stream_and_is_not_reported_as_an_early_end(tmp_path: Path) -> None:
    stream, found = frames_of(write_clip(tmp_path / "clip.mp4", [1, 2, 3, 4]), limit=3)
    assert (len(found), stream.total, stream.ended) == (3, 3, [])
    with pytest.raises(UsageError, match="at least 1"):
        Frames((), 0)


def test_unreadable_files_are_reported_and_processing_continues(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    write_picture(tmp_path / "b.png", grey(9))
    (tmp_path / "c.mp4").write_bytes(b"no video at all")
    _, found = frames_of(tmp_path)
    assert [type(one) for one in found] == [Unreadable, Frame, Unreadable]
    assert isinstance(found[0], Unreadable)
    assert isinstance(found[2], Unreadable)
    assert "does not decode" in found[0].why
    assert "no frame" in found[2].why


def test_a_video_that_ends_early_keeps_its_frames_and_reports_the_announced_number(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.avi", list(range(0, 240, 4)))
    content = clip.read_bytes()
    # The number of frames is in the header of an AVI; half of the frames are cut off.
    clip.write_bytes(content[: content.index(b"movi") + (len(content) - content.index(b"movi")) // 2])
    stream, found = frames_of(clip)
    (ended,) = stream.ended
    assert isinstance(ended, Ended)
    assert ended.promised == 60
    assert 0 < ended.read == len(found) < 60


@pytest.mark.parametrize("names", [["nowhere.jpg"], ["nowhere"], ["empty"]])
def test_missing_inputs_are_refused(tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        open_sources([tmp_path / name for name in names])
    assert names[0] in str(caught.value)
    assert caught.value.hint
    with pytest.raises(UsageError, match="there is no input"):
        open_sources([])


class Webcam:
    """OpenCV's capture of a camera that delivers three frames and is then unplugged."""

    def __init__(self, opened: bool) -> None:
        self.left, self.opened, self.released = 3, opened, False

    def isOpened(self) -> bool:
        return self.opened

    def get(self, what: int) -> float:
        return 0.0

    def read(self) -> tuple[bool, Any]:
        self.left -= 1
        return self.left >= 0, grey(50 * self.left) if self.left >= 0 else None

    def release(self) -> None:
        self.released = True


def test_a_missing_camera_is_reported_with_the_existing_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.cv2, "VideoCapture", lambda what: Webcam(opened=False))
    with pytest.raises(DataError, match=r"there is no camera 7.*This machine has"):
        open_sources([Path("7")])


def test_a_camera_is_live_and_its_end_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    webcam = Webcam(opened=True)
    monkeypatch.setattr(module.cv2, "VideoCapture", lambda what: webcam)
    (camera,) = open_sources([Path("0")])
    assert isinstance(camera, Camera)
    stream = Frames([camera])
    assert (stream.live, stream.total) == (True, None)
    assert [frame.number for frame in stream.read() if isinstance(frame, Frame)] == [0, 1, 2]
    assert stream.ended == [Ended("camera 0", 3, None)]
    assert webcam.released


def test_an_abandoned_reader_releases_the_video(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    webcam = Webcam(opened=True)
    monkeypatch.setattr(module.cv2, "VideoCapture", lambda what: webcam)
    stream: Iterator[Any] = Frames([Video(tmp_path / "x.mp4")]).read()
    next(stream)
    webcam.released = False
    stream.close()  # type: ignore[attr-defined]
    assert webcam.released


def test_a_video_replaces_a_file_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"precious")

    def write() -> None:
        with open_video(path, 10, (48, 64)) as add:
            add(grey(1))
            assert path.read_bytes() == b"precious"
            add(grey(1, (32, 64)))

    with pytest.raises(FileError, match="another size"):
        write()
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]
    assert path.read_bytes() == b"precious"
    with pytest.raises(FileError, match="already exists"):
        open_video(path, 10, (48, 64), force=False).__enter__()


def test_lost_frames_are_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.data.written._frame_count", lambda path: 1)
    with pytest.raises(FileError, match="only 1 of 2 frames"):
        write_clip(tmp_path / "clip.mp4", [1, 2])
    assert list(tmp_path.iterdir()) == []


def test_outputs_have_unique_names_and_replace_no_input(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.jpg", "a.png", "a.bmp", "a.avi", "b.JPEG")]
    for path in paths:
        path.write_bytes(b"x")
    sources = open_sources(paths)
    found = output_paths(sources, tmp_path / "out")
    assert [path.name for path in found.values()] == ["a.jpg", "a.png", "a-2.png", "a.mp4", "b.jpg"]
    with pytest.raises(UsageError, match="replace an input"):
        output_paths(sources, tmp_path)


def test_an_album_writes_pictures_and_videos_and_drops_an_unfinished_video(tmp_path: Path) -> None:
    clip, picture = write_clip(tmp_path / "clip.mp4", [40, 120, 200]), tmp_path / "p.png"
    write_picture(picture, grey(77))
    stream = Frames(open_sources([clip, picture, clip]))
    album = Album(output_paths(stream.sources, tmp_path / "out"), force=False)

    def fill() -> None:
        with album:
            for number, frame in enumerate(stream.read()):
                assert isinstance(frame, Frame)
                if number == 6:  # the last frame of the second clip
                    raise ZeroDivisionError
                album.add(frame, frame.image)

    with pytest.raises(ZeroDivisionError):
        fill()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["clip.mp4", "p.png"]
    again = [frame for frame in frames_of(tmp_path / "out" / "clip.mp4")[1] if isinstance(frame, Frame)]
    assert [float(frame.image.mean()) for frame in again] == pytest.approx([40, 120, 200], abs=10)
    assert np.array_equal(cv2.imread(str(tmp_path / "out" / "p.png")), grey(77))


def write_animation(path: Path, count: int = 5, milliseconds: int = 80) -> Path:
    animation = cv2.Animation()
    animation.frames = [grey(40 * number) for number in range(count)]
    animation.durations = [milliseconds] * count
    assert cv2.imwriteanimation(str(path), animation)
    return path


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".avif"])
def test_an_animation_gives_all_its_frames_at_its_rate(tmp_path: Path, suffix: str) -> None:
    stream, found = frames_of(write_animation(tmp_path / f"a{suffix}"))
    assert stream.sources[0].fps == pytest.approx(12.5)
    assert [frame.number for frame in found if isinstance(frame, Frame)] == [0, 1, 2, 3, 4]
    levels = [float(frame.image.mean()) for frame in found if isinstance(frame, Frame)]
    assert levels == pytest.approx([0, 40, 80, 120, 160], abs=12)
    assert stream.ended == []
    assert output_paths(stream.sources, tmp_path / "out")[stream.sources[0]].name == "a.mp4"


def test_a_long_animation_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 2)
    stream, found = frames_of(write_animation(tmp_path / "a.png"))
    assert [round(frame.image.mean()) for frame in found if isinstance(frame, Frame)] == [0, 40, 80, 120, 160]
    assert stream.ended == []


def test_a_picture_in_a_format_of_animations_is_a_picture(tmp_path: Path) -> None:
    for suffix in (".gif", ".webp", ".png", ".avif", ".tiff"):
        write_picture(tmp_path / f"a{suffix}", grey(9))
    stream, found = frames_of(tmp_path)
    assert [source.fps for source in stream.sources] == [None] * 5
    assert len(found) == 5


def test_the_pages_of_a_tiff_are_frames(tmp_path: Path) -> None:
    pages = [np.full((48, 64, 3), 4 * level, np.uint16) for level in (50, 150, 255)]
    assert cv2.imwritemulti(str(tmp_path / "a.tiff"), pages)
    _, found = frames_of(tmp_path / "a.tiff")
    assert [int(frame.image.max()) for frame in found if isinstance(frame, Frame)] == [200, 150, 255]


def test_a_damaged_animation_is_reported(tmp_path: Path) -> None:
    path = write_animation(tmp_path / "a.gif")
    (source,) = open_sources([path])
    path.write_bytes(path.read_bytes()[:20])
    (found,) = Frames([source]).read()
    assert isinstance(found, Unreadable)
    assert "no frame of the animation" in found.why


def test_a_stream_of_jpeg_images_is_a_video(tmp_path: Path) -> None:
    (tmp_path / "cam.mjpeg").write_bytes(b"".join(cv2.imencode(".jpg", grey(n))[1].tobytes() for n in (20, 90, 160)))
    _, found = frames_of(tmp_path)
    assert [frame.number for frame in found if isinstance(frame, Frame)] == [0, 1, 2]


def test_other_entries_of_a_folder_are_listed_as_skipped(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg", grey(9))
    for name in ("notes.txt", "raw.heic", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "more").mkdir()
    assert [path.name for path in skipped_entries([tmp_path, tmp_path / "a.jpg"])] == ["more", "notes.txt", "raw.heic"]


@pytest.mark.parametrize(
    ("fps", "written"),
    [
        (12.5, 12.5), (29.97, 29.97), (211.22265625, 211.22), (999.9, 999.9), (65.537, 65.54), (0.01, 0.01),
        (0.0, 25.0), (-3.0, 25.0), (float("nan"), 25.0), (1e6, 25.0), (0.001, 25.0),
    ],
)  # fmt: skip
def test_every_frame_rate_becomes_one_that_the_container_can_store(tmp_path: Path, fps: float, written: float) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [1, 2], fps)
    assert container_rate(fps) == pytest.approx(written)
    assert cv2.VideoCapture(str(clip)).get(cv2.CAP_PROP_FPS) == pytest.approx(written, rel=1e-4)


def test_a_video_whose_name_is_not_utf8_is_reported_and_processing_continues(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "ok.mp4", [1, 2])
    picture = tmp_path / os.fsdecode(b"caf\xe9.png")
    write_picture(picture, grey(9))
    (tmp_path / os.fsdecode(b"caf\xe9.mp4")).write_bytes(clip.read_bytes())
    stream, found = frames_of(tmp_path)
    (unreadable,) = [one for one in found if isinstance(one, Unreadable)]
    assert unreadable.name == "caf\ufffd.mp4"
    assert "not valid UTF-8" in unreadable.why
    assert [one.source.name for one in found if isinstance(one, Frame)] == ["caf\ufffd.png", "ok.mp4", "ok.mp4"]
    for path in output_paths(stream.sources, tmp_path / "out").values():
        path.name.encode("utf-8")


def test_a_drawing_that_cannot_be_written_is_recorded_and_the_others_are_drawn(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [40, 120, 200])
    for name in ("p.png", "q.png"):
        write_picture(tmp_path / name, grey(77))
    stream = Frames(open_sources([clip, tmp_path / "p.png", tmp_path / "q.png"]))
    out = tmp_path / "out"
    out.mkdir()
    (out / "p.png").write_bytes(b"precious")
    with Album(output_paths(stream.sources, out), force=False) as album:
        for frame in stream.read():
            assert isinstance(frame, Frame)
            odd = frame.number == 1
            album.add(frame, grey(1, (24, 64)) if odd else frame.image)
    assert [one.name for one in album.undrawn] == ["clip.mp4", "p.png"]
    assert "another size" in album.undrawn[0].why
    assert "already exists" in album.undrawn[1].why
    assert album.written == [out / "q.png"]
    assert sorted(path.name for path in out.iterdir()) == ["p.png", "q.png"]
    assert (out / "p.png").read_bytes() == b"precious"


def test_a_video_that_lost_frames_is_recorded_when_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [40, 120])
    write_picture(tmp_path / "p.png", grey(7))
    stream = Frames(open_sources([clip, tmp_path / "p.png", clip]))
    frames = [frame for frame in stream.read() if isinstance(frame, Frame)]
    monkeypatch.setattr("compress.data.written._frame_count", lambda path: 1)
    out = tmp_path / "out"
    with Album(output_paths(stream.sources, out), force=False) as album:
        for frame in frames:
            album.add(frame, frame.image)
    assert [one.name for one in album.undrawn] == ["clip.mp4", "clip.mp4"]
    assert [path.name for path in album.written] == [path.name for path in out.iterdir()] == ["p.png"]


def test_a_video_in_a_folder_whose_name_is_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="not valid UTF-8"):
        write_clip(tmp_path / os.fsdecode(b"caf\xe9") / "clip.mp4", [1])
