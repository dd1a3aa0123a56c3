"""How long decoding takes, by mode and number of people: ``python benchmarks/decoding.py [-o FILE.csv]``.

Perfect fields of standing people with 1 % noise, network input 656 x 368 (46 x 82 cells), image 1280 x 720, one thread.
The variants take turns and the clock is the thread's own, so that a busy machine matters little.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import time
from pathlib import Path

import click
import cv2
import numpy as np
import pandas as pd

from compress.files import write_text
from compress.pose.paf import PafOptions, decode
from compress.pose.prepare import prepare
from compress.pose.spec import PoseSpec
from compress.pose.targets import heatmap_targets, paf_targets

SPEC = PoseSpec()
VARIANTS = {
    "compat": PafOptions(mode="compat"),
    "fast x4 greedy": PafOptions(),
    "fast x4 jv": PafOptions(assignment="jv"),
    "fast x2 greedy": PafOptions(upsample=2),
    "fast x8 greedy": PafOptions(upsample=8),
}

#: x and y of the joints of a standing person, in shares of the height.
PERSON = np.array([
    (0, 0.05), (0, 0.18), (-0.09, 0.19), (-0.13, 0.34), (-0.12, 0.48), (0.09, 0.19), (0.14, 0.33), (0.16, 0.47),
    (-0.06, 0.49), (-0.06, 0.71), (-0.06, 0.93), (0.06, 0.49), (0.07, 0.7), (0.08, 0.93), (-0.03, 0.02), (0.03, 0.02),
    (-0.06, 0.04), (0.06, 0.04),
])  # fmt: skip


def make_fields(count, cells, rng):
    rows = max(1, round((count / 3) ** 0.5))
    columns = -(-count // rows)
    size = np.array([cells[1] / columns, cells[0] / rows]) * SPEC.stride
    people = []
    for row, column in list(np.ndindex(rows, columns))[:count]:
        height = min(size[1], 2.5 * size[0]) * rng.uniform(0.8, 0.95)
        points = ((column + 0.5) * size[0], row * size[1] + 4) + height * PERSON + rng.normal(0, 0.01 * height, (18, 2))
        people.append(np.column_stack([points, np.full(18, 2)]).astype(np.float32))
    maps = heatmap_targets(people, cells, SPEC.stride), paf_targets(people, cells, SPEC.stride)
    return [(m + rng.normal(0, 0.01, m.shape)).astype(np.float32) for m in maps]


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), help="CSV file to write.")
@click.option("--repeats", default=40, show_default=True)
def main(output, repeats):
    cv2.setNumThreads(1)
    prepared = prepare(np.zeros((720, 1280, 3), np.uint8), SPEC)
    cells = (prepared.array.shape[1] // SPEC.stride, prepared.array.shape[2] // SPEC.stride)
    rows = []
    for count in (1, 5, 23, 50):
        heatmaps, pafs = make_fields(count, cells, np.random.default_rng(count))
        times = {name: [] for name in VARIANTS}
        for _ in range(repeats):
            for name, options in VARIANTS.items():
                start = time.thread_time()
                decode(heatmaps, pafs, prepared, SPEC, options)
                times[name].append(1000 * (time.thread_time() - start))
        for name, options in VARIANTS.items():
            found = len(decode(heatmaps, pafs, prepared, SPEC, options))
            median, p90, best = np.median(times[name]), np.quantile(times[name], 0.9), min(times[name])
            rows.append((name, count, found, round(median, 2), round(p90, 2), round(best, 2)))
    table = pd.DataFrame(rows, columns=["decoder", "people", "found", "cpu_ms", "p90_ms", "best_ms"])
    click.echo(table.to_string(index=False))
    if output:
        write_text(output, table.to_csv(index=False))


if __name__ == "__main__":
    main()
