"""The record of `compress predict` for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compress.commands.table import print_lines, print_table

Record = dict[str, Any]

_NAMES = {"draw": "draw people", "wall": "image to people, wall clock"}


def show_predict(record: Record) -> None:
    """Where time goes, what overlap won, and what was odd."""
    alone = record["alone"]
    print_table(
        f"{record['model']}: {record['runtime']} {record['device']} {record['precision']}, {record['threads']} "
        f"thread(s), {record['streams']} image(s) at once, height {record['height']}; milliseconds an image",
        ["step", "side by side", *([] if alone is None else ["one after the other"])],
        [
            [_NAMES.get(step, step), f"{value:.2f}", *([] if alone is None else [f"{alone[step]:.2f}"])]
            for step, value in record["milliseconds"].items()
        ],
    )
    lines = []
    if alone is not None:
        lines.append(
            f"overlap: x{record['overlap']:.2f} the speed of the first {record['alone_images']} image(s), "
            "which went one after the other"
        )
    for one in record["unreadable"]:
        lines.append(f"not read: {one['name']}: {one['why']}")
    for one in record["undrawn"]:
        lines.append(f"not drawn: {one['name']}: {one['why']}")
    if record["skipped"]:
        lines.append(f"skipped, no picture or video: {', '.join(Path(name).name for name in record['skipped'])}")
    for one in record["ended"]:
        promised = "" if one["promised"] is None else f" of the {one['promised']} that it promises"
        lines.append(f"{one['name']} ended early: {one['read']} frame(s) read{promised}; they are kept")
    if record["nobody"]:
        lines.append(f"nobody found in {record['nobody']} of {record['images']} image(s)")
    print_lines([*lines, predict_headline(record)])


def predict_headline(record: Record) -> str:
    """People, speed and files in one line."""
    drawn = f", {len(record['outputs'])} drawn file(s)" if record["outputs"] else ""
    return (
        f"{record['results']}: {record['people']} people in {record['images']} image(s), "
        f"{record['fps']:.1f} images a second{drawn}"
    )
