"""Find people in pictures, videos or a camera's images, and draw them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compress.commands.base import StageResult, option
from compress.commands.evaluate import RunnerOptions, ScoreOptions
from compress.commands.options import ModelOptions
from compress.commands.registry import Stage
from compress.data.boxes import Boxes, read_boxes
from compress.data.frames import Frame, Frames, Unreadable
from compress.data.sample import Image
from compress.data.sources import open_sources, skipped_entries
from compress.data.written import Album, output_paths
from compress.errors import DataError
from compress.evaluation.overlap import in_order
from compress.evaluation.score import crop_size
from compress.evaluation.stream import Finder, Item, Network, Seen
from compress.files import refuse_existing, write_text
from compress.pose.metrics.oks import coco_results
from compress.pose.skeleton import COCO17, Skeleton
from compress.pose.spec import PoseSpec
from compress.progress import Progress
from compress.reporting.drawing import draw_poses
from compress.runtime.opening import MOST_STREAMS, open_runner, runtime_of, usual_streams

#: What is timed, in the order in which it happens to an image.
STEPS = ("read", "prepare", "network", "decode", "draw", "write")

#: Images that are gone through one after the other, to tell what overlap wins; at most a third of all.
_ALONE = 8

#: What a joint's score has to exceed to be drawn where every joint has one; lower ones don't count for scores either.
_DRAWN_ABOVE = 0.2

RESULTS = "people.json"


class PredictOptions(ModelOptions, ScoreOptions, RunnerOptions):
    """Options of `compress predict`."""

    inputs: tuple[Path, ...] = option(..., "Pictures, folders, videos, or a camera's number", positional=True)
    output: Path = option(Path("predicted"), f"Folder for drawn people and {RESULTS}", flag="-o", output=True)
    boxes: Path | None = option(
        None, "Detections in COCO results form: where a top-down network looks for people (default: the whole image)"
    )
    limit: int | None = option(None, "Stop after so many images")
    draw: bool = option(True, f"Draw people; without it only {RESULTS} is written")
    streams: int | None = option(
        None,
        "Images in the network at once, each on its share of the threads: more in all, each one later (OpenVINO only; "
        f"default: up to {MOST_STREAMS}, 1 for a camera)",
    )
    show_scores: bool = option(False, "Write each person's score over its head")
    force: bool = option(False, "Replace existing outputs")


@dataclass
class _Times:
    """Seconds of steps, summed over images, and of the wall clock."""

    images: int = 0
    wall: float = 0.0
    steps: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))

    def add(self, seconds: dict[str, float]) -> None:
        self.images += 1
        for step, value in seconds.items():
            self.steps[step] += value

    def milliseconds(self) -> dict[str, float]:
        """Means an image, the wall clock last."""
        means = {step: 1e3 * value / self.images for step, value in self.steps.items()}
        return means | {"wall": 1e3 * self.wall / self.images}


def run(options: PredictOptions, progress: Progress) -> StageResult:
    """Find people and draw them: reading, network, decoding and drawing side by side."""
    results = options.output / RESULTS
    frames = Frames(open_sources(options.inputs), options.limit)
    where = output_paths(frames.sources, options.output) if options.draw else {}
    for path in (results, *where.values()):
        refuse_existing(path, options.force)
    boxes = None if options.boxes is None else read_boxes(options.boxes)
    streams = options.streams
    if streams is None:
        streams = 1 if frames.live else usual_streams(runtime_of(options.model), options.device, options.threads)
    runner = open_runner(
        options.model,
        runtime=options.runtime,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        streams=streams,
        network=options.network,
    )
    network = Network(runner, streams)
    with closing(network):
        if boxes is not None and runner.pose.decoder != "heatmap":
            raise DataError("this network finds people by itself and takes no boxes", found=boxes.name)
        with Album(where, options.force) as album:
            find = Finder(network, options, boxes)
            found = _go_through(frames, find, album, options, runner.pose, progress, streams)
        _check(found, boxes, options.inputs)
    write_text(results, json.dumps(found.people), force=options.force)
    both = found.alone.images > 0 and found.side_by_side.images > 0
    mean = (found.side_by_side if found.side_by_side.images else found.alone).milliseconds()
    alone = found.alone.milliseconds() if both else None
    record: dict[str, Any] = {
        "model": str(options.model),
        "runtime": runner.name,
        "device": runner.device,
        "precision": runner.precision,
        "threads": runner.threads,
        "streams": streams,
        "height": crop_size(runner.pose, options.height)[0],
        "images": found.images,
        "people": len(found.people),
        "nobody": found.nobody,
        "fps": 1e3 / mean["wall"],
        "milliseconds": mean,
        "alone": alone,
        "alone_images": found.alone.images if both else 0,
        "overlap": None if alone is None else alone["wall"] / mean["wall"],
        "skeleton": _result_skeleton(runner.pose.joints).name,
        "unreadable": [asdict(one) for one in found.unreadable],
        "undrawn": [asdict(one) for one in album.undrawn],
        "skipped": [str(path) for path in skipped_entries(options.inputs)],
        "ended": [asdict(one) for one in frames.ended],
        "results": str(results),
        "outputs": [str(path) for path in album.written],
    }
    return StageResult(record, (results, *album.written))


@dataclass
class _Found:
    """What came out of all images."""

    people: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    image_ids: list[int] = field(default_factory=list)
    nobody: int = 0
    alone: _Times = field(default_factory=_Times)
    side_by_side: _Times = field(default_factory=_Times)

    @property
    def images(self) -> int:
        return len(self.image_ids)


def _go_through(
    frames: Frames,
    find: Finder,
    album: Album,
    options: PredictOptions,
    pose: PoseSpec,
    progress: Progress,
    streams: int,
) -> _Found:
    """All images: some one after the other, to have something to compare with, then all others side by side."""
    found = _Found()
    items = _timed(frames.read())
    alone = _ALONE if frames.total is None else min(_ALONE, frames.total // 3)
    if streams > 1:
        alone = 0  # alone, an image would have a part of the threads only: overlap would look better than it is

    def finish(seen: Seen | Unreadable, times: _Times, advance: Callable[..., None]) -> None:
        if isinstance(seen, Unreadable):
            found.unreadable.append(seen)
            return
        if options.draw:
            start = time.perf_counter()
            picture = _draw(seen, pose, options)
            drawn = time.perf_counter()
            album.add(seen.frame, picture)
            seen.seconds.update(draw=drawn - start, write=time.perf_counter() - drawn)
        times.add(seen.seconds)
        found.people += _results(seen, pose.joints)
        found.nobody += not seen.poses
        found.image_ids.append(seen.frame.image_id)
        advance(1)

    def go(advance: Callable[..., None]) -> None:
        item = _warmed_up(items, find, found.unreadable)
        for _ in range(alone):
            if item is None:
                return
            start = time.perf_counter()
            finish(find(item), found.alone, advance)
            found.alone.wall += item[1] + time.perf_counter() - start
            item = next(items, None)
        if item is None:
            return
        start = time.perf_counter() - item[1]
        try:
            # More than the network takes, so that it never waits for an image.
            with closing(in_order(_chain(item, items), find, workers=streams + 2)) as stream:
                for seen in stream:
                    finish(seen, found.side_by_side, advance)
        finally:
            found.side_by_side.wall = time.perf_counter() - start

    with closing(items), progress.bar("predict", frames.total) as advance:
        try:
            go(advance)
        except KeyboardInterrupt:
            # A camera does not end by itself: what has been seen is the result.
            if not frames.live:
                raise
    return found


def _timed(items: Generator[Frame | Unreadable, None, None]) -> Generator[Item, None, None]:
    """Items and the seconds that each took to come."""
    with closing(items):
        while True:
            start = time.perf_counter()
            item = next(items, None)
            if item is None:
                return
            yield item, time.perf_counter() - start


def _chain(first: Item, rest: Generator[Item, None, None]) -> Generator[Item, None, None]:
    yield first
    yield from rest


def _warmed_up(items: Generator[Item, None, None], find: Finder, unreadable: list[Unreadable]) -> Item | None:
    """The first image, looked at once without a clock: a runtime's first run takes many times what others do."""
    for item in items:
        if isinstance(item[0], Frame):
            find(item)
            return item
        unreadable.append(item[0])
    return None


def _draw(seen: Seen, pose: PoseSpec, options: PredictOptions) -> Image:
    labels = [f"{found.score:.3g}" for found in seen.poses] if options.show_scores else []
    above = _DRAWN_ABOVE if pose.decoder == "heatmap" else 0.0
    return draw_poses(seen.frame.image, [p.keypoints for p in seen.poses], pose.joints, above=above, labels=labels)


def _result_skeleton(skeleton: Skeleton) -> Skeleton:
    """COCO's, unless joints of it are missing: then the network's own."""
    return COCO17 if set(COCO17.joints) <= set(skeleton.joints) else skeleton


def _results(seen: Seen, skeleton: Skeleton) -> list[dict[str, Any]]:
    """People as COCO results, with the file they are from."""
    where: dict[str, Any] = {"file_name": seen.frame.source.name}
    if seen.frame.number is not None:
        where["frame"] = seen.frame.number
    image_id = seen.frame.image_id
    if _result_skeleton(skeleton) is COCO17:
        entries = coco_results(seen.poses, image_id, skeleton)
    else:
        entries = [
            {
                "image_id": image_id,
                "category_id": 1,
                "keypoints": pose.keypoints.ravel().tolist(),
                "score": float(pose.score),
            }
            for pose in seen.poses
        ]
    return [entry | where for entry in entries]


def _check(found: _Found, boxes: Boxes | None, inputs: Sequence[Path]) -> None:
    """Refuse a run that saw nothing."""
    if not found.image_ids:
        bad = found.unreadable
        if bad:
            raise DataError(f"none of the {len(bad)} inputs can be read; the first: {bad[0].why}")
        raise DataError("no image came", found=", ".join(map(str, inputs)), hint="Is the camera in use elsewhere?")
    if boxes is not None and not boxes.by_image.keys() & set(found.image_ids):
        raise DataError(
            "the boxes are of other images",
            found=boxes.name,
            hint="An image's id is the number that is its file's name, if all have one; else they count from 1",
        )


STAGE = Stage(PredictOptions, run, "compress predict model.pt photos clip.mp4 -o predicted")
