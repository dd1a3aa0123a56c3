"""The record of a network in eight bits as tables for people."""

from __future__ import annotations

from typing import Any

from compress.commands.table import print_lines, print_table


def show_int8(record: dict[str, Any]) -> None:
    """Trials, score before and after, layers in floating point, sizes."""
    metric = record["metric"]
    print_table(
        f"{record['file']}: eight bits, calibrated on {record['calibration_images']} images with people, judged on "
        f"{record['images']} images at height {record['height']} against {record['against']}",
        ["in floating point", "layers", f"{metric} FP32", f"{metric} INT8", "lost"],
        [
            (t["kept"], t["layers"], f"{record['before']:.3f}", f"{t['score']:.3f}", f"{t['drop']:+.4f}")
            for t in record["trials"]
        ],
    )
    interval = record["interval"]
    sure = "" if interval is None else " (95 % interval {:+.3f} to {:+.3f})".format(*interval)
    kept = ", ".join(record["kept"]) or "none"
    lines = [
        f"loses {record['drop']:+.4f} of {metric}{sure}, allowed are {record['max_drop']:g}",
        f"{len(record['kept'])} of {record['layers']} layers in floating point: {kept}",
        f"{record['fp32_bytes']} bytes in FP32 -> {record['size_bytes']} bytes",
    ]
    if record["symmetric"]:
        lines.append("steps symmetric about zero: coarser where activations go below it, faster where gates multiply")
    if record["own"]:
        lines.append(
            "note: without annotations the people that the network finds in FP32 count as the truth; "
            f"it scores {record['before']:.3f} there, and small moves cost far more than on annotated data"
        )
    print_lines(lines)
