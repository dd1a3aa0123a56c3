"""`compress predict`: find people in images, videos or a camera stream, and draw them."""

from __future__ import annotations

import json
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.commands.base import Command, Result
from compress.commands.fields import option
from compress.commands.options import (
    ModelOptions,
    RunnerOptions,
    ViewOptions,
    decoder_of,
    open_model_runner,
    view_of,
)
from compress.errors import DataError
from compress.progress import Progress

if TYPE_CHECKING:
    from compress.data.boxes import Boxes
    from compress.data.frames import Ended, Frames, Unreadable
    from compress.data.sample import Image
    from compress.data.written import Album, Undrawn
    from compress.evaluation.prediction import Predicted
    from compress.evaluation.stream import FramePeople, Network
    from compress.pose.spec import PoseSpec

RESULTS = "people.json"

#: Names of steps in the table, where they are not those of the record.
_STEP_NAMES = {"draw": "draw people", "wall": "image to people, wall clock"}


class PredictOptions(ModelOptions, ViewOptions, RunnerOptions):
    """Options of `compress predict`."""

    inputs: tuple[Path, ...] = option(..., "Images, folders, videos, or the number of a camera", positional=True)
    output: Path = option(Path("predicted"), f"Folder for drawn people and {RESULTS}", flag="-o", output=True)
    boxes: Path | None = option(
        None, "Detections in COCO results form: where a top-down network looks for people (default: the whole image)"
    )
    limit: int | None = option(None, "Stop after N images")
    draw: bool = option(True, f"Draw people; without it only {RESULTS} is written")
    streams: int | None = option(
        None,
        "Images in the network at once, each on its share of the threads: higher throughput and latency (OpenVINO "
        "only; default: up to 4, 1 for a camera)",
    )
    show_scores: bool = option(False, "Write each person's score above the head")
    force: bool = option(False, "Replace existing outputs")


@dataclass(frozen=True)
class PredictResult(Result):
    """How many people were found, where time went, and what could not be read or drawn."""

    model: str
    runtime: str
    device: str
    precision: str
    threads: int
    streams: int
    height: int
    images: int
    people: int
    nobody: int
    fps: float
    milliseconds: dict[str, float]
    alone: dict[str, float] | None
    alone_images: int
    overlap: float | None
    skeleton: str
    unreadable: tuple[Unreadable, ...]
    undrawn: tuple[Undrawn, ...]
    skipped: tuple[str, ...]
    ended: tuple[Ended, ...]
    results: str
    outputs: tuple[str, ...]

    @property
    def summary(self) -> str:
        """People, speed and files."""
        drawn = f", {len(self.outputs)} drawn file(s)" if self.outputs else ""
        return f"{self.results}: {self.people} people in {self.images} image(s), {self.fps:.1f} images/s{drawn}"

    def show(self) -> None:
        """Print where time goes, the gain of the overlap, and what was unusual."""
        from compress.commands.terminal import print_lines, print_table

        alone = self.alone
        print_table(
            f"{self.model}: {self.runtime} {self.device} {self.precision}, {self.threads} thread(s), {self.streams} "
            f"image(s) at once, height {self.height}; milliseconds per image",
            ["step", "overlapping", *([] if alone is None else ["one after the other"])],
            [
                [_STEP_NAMES.get(step, step), f"{value:.2f}", *([] if alone is None else [f"{alone[step]:.2f}"])]
                for step, value in self.milliseconds.items()
            ],
        )
        print_lines(*_notes(self), self.summary)


def _notes(result: PredictResult) -> list[str]:
    lines = []
    if result.overlap is not None:
        lines.append(
            f"overlap: x{result.overlap:.2f} the speed of the first {result.alone_images} image(s), which were "
            "processed one after the other"
        )
    lines += [f"not read: {one.name}: {one.why}" for one in result.unreadable]
    lines += [f"not drawn: {one.name}: {one.why}" for one in result.undrawn]
    if result.skipped:
        lines.append(f"skipped, no image or video: {', '.join(Path(name).name for name in result.skipped)}")
    for one in result.ended:
        promised = "" if one.promised is None else f" of the {one.promised} that its file announces"
        lines.append(f"{one.name} ended early: {one.read} frame(s) read{promised}; they are kept")
    if result.nobody:
        lines.append(f"nobody found in {result.nobody} of {result.images} image(s)")
    return lines


class _Writer:
    """Collects the people of each image as COCO results, and draws them."""

    def __init__(self, options: PredictOptions, pose: PoseSpec, album: Album) -> None:
        from compress.pose.metrics.oks import result_skeleton

        self.people: list[dict[str, Any]] = []
        self.skeleton = result_skeleton(pose.joints)
        self.pose, self._options, self._album = pose, options, album

    def __call__(self, image: FramePeople) -> dict[str, float]:
        """Take an image; the seconds of drawing and writing."""
        from compress.pose.metrics.oks import people_records

        where: dict[str, Any] = {"file_name": image.frame.source.name}
        if image.frame.number is not None:
            where["frame"] = image.frame.number
        records = people_records(image.poses, image.frame.image_id, self.pose.joints, self.skeleton)
        self.people += [record | where for record in records]
        if not self._options.draw:
            return {}
        start = time.perf_counter()
        picture = self._drawn(image)
        drawn = time.perf_counter()
        self._album.add(image.frame, picture)
        return {"draw": drawn - start, "write": time.perf_counter() - drawn}

    def _drawn(self, image: FramePeople) -> Image:
        from compress.reporting.drawing import draw_poses

        labels = [f"{person.score:.3g}" for person in image.poses] if self._options.show_scores else []
        keypoints = [person.keypoints for person in image.poses]
        above = self.pose.joint_threshold
        return draw_poses(image.frame.image, keypoints, self.pose.joints, above=above, labels=labels)


def _check(done: Predicted, boxes: Boxes | None, options: PredictOptions) -> None:
    """Refuse a run without any image."""
    if not done.image_ids:
        if done.unreadable:
            count, first = len(done.unreadable), done.unreadable[0]
            raise DataError(f"none of the {count} inputs can be read; the first: {first.why}")
        found = ", ".join(map(str, options.inputs))
        raise DataError("no image was read", found=found, hint="Is the camera in use by another program?")
    if boxes is not None and not boxes.by_image.keys() & set(done.image_ids):
        raise DataError(
            "the boxes are of other images",
            found=boxes.name,
            hint="An image's id is the number that is its file's name, if all have one; otherwise they count from 1",
        )


def _streams(options: PredictOptions, frames: Frames) -> int:
    """Images in the network at once."""
    from compress.runtime.opening import runtime_of, usual_streams

    if options.streams is not None:
        return options.streams
    return 1 if frames.live else usual_streams(runtime_of(options.model), options.device, options.threads)


def run(options: PredictOptions, progress: Progress) -> PredictResult:
    """Find people and draw them: reading, network, decoding and drawing overlap."""
    from compress.data.boxes import read_boxes
    from compress.data.frames import Frames
    from compress.data.sources import open_sources
    from compress.data.written import Album, output_paths
    from compress.evaluation.people import pose_of
    from compress.evaluation.prediction import predict_frames
    from compress.evaluation.stream import Finder, Network
    from compress.files import refuse_existing, write_text

    results = options.output / RESULTS
    frames = Frames(open_sources(options.inputs), options.limit)
    paths = output_paths(frames.sources, options.output) if options.draw else {}
    for path in (results, *paths.values()):
        refuse_existing(path, options.force)
    boxes = None if options.boxes is None else read_boxes(options.boxes)
    streams = _streams(options, frames)
    network = Network(open_model_runner(options, options, streams=streams), streams)
    with closing(network), Album(paths, options.force) as album:
        pose = pose_of(network.runner)
        writer = _Writer(options, pose, album)
        find = Finder(network, decoder_of(options, pose), view_of(options), boxes)
        done = predict_frames(frames, find, writer, progress, streams=streams)
        _check(done, boxes, options)
    write_text(results, json.dumps(writer.people), force=options.force)
    return _result(options, network, frames, done, writer, album)


def _result(
    options: PredictOptions, network: Network, frames: Frames, done: Predicted, writer: _Writer, album: Album
) -> PredictResult:
    from compress.data.sources import skipped_entries
    from compress.pose.crop import crop_size

    runner, mean, alone = network.runner, done.mean, done.mean_sequential
    results = options.output / RESULTS
    return PredictResult(
        model=str(options.model),
        runtime=runner.name,
        device=runner.device,
        precision=runner.precision,
        threads=runner.threads,
        streams=_streams(options, frames),
        height=crop_size(writer.pose, options.height)[0],
        images=done.images,
        people=len(writer.people),
        nobody=done.nobody,
        fps=1e3 / mean["wall"],
        milliseconds=mean,
        alone=alone,
        alone_images=0 if alone is None else done.sequential.images,
        overlap=None if alone is None else alone["wall"] / mean["wall"],
        skeleton=writer.skeleton.name,
        unreadable=tuple(done.unreadable),
        undrawn=tuple(album.undrawn),
        skipped=tuple(str(path) for path in skipped_entries(options.inputs)),
        ended=tuple(frames.ended),
        results=str(results),
        outputs=tuple(map(str, album.written)),
        written=(results, *album.written),
    )


COMMAND = Command(PredictOptions, run, "compress predict model.pt photos clip.mp4 -o predicted")
