"""Time of decoding, by decoder and number of people: ``python benchmarks/decoding.py [-o FILE.csv]``.

Exact heatmaps and fields of standing people with 1 % noise, network input 656 x 368 (46 x 82 cells), image 1280 x 720,
one thread. The decoders take turns and the clock counts the thread's CPU time, so that a busy machine matters little.
``public`` is the published algorithm of lightweight OpenPose (`public_decoder.py`); ``compat`` repeats it with
vectorised steps. The last columns are the speed-up over ``public`` with its 95 % bootstrap interval over repeats. With
``--network-ms TIME``, the latency of a network, each decoder's time is also given as a share of it.
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
from public_decoder import decode_public
from scenes import IMAGE, make_fields

from compress.files import write_text
from compress.measure.bootstrap import paired_speedup
from compress.pose.decoders.paf import PafDecoder
from compress.pose.prepare import prepare
from compress.pose.spec import PoseSpec

SPEC = PoseSpec()
VARIANTS = {
    "public": decode_public,
    "compat": PafDecoder(mode="compat").people,
    "fast x4 greedy": PafDecoder().people,
    "fast x4 jv": PafDecoder(assignment="jv").people,
    "fast x1 greedy": PafDecoder(upsample=1).people,
    "fast x2 greedy": PafDecoder(upsample=2).people,
    "fast x8 greedy": PafDecoder(upsample=8).people,
}


def measure(count, repeats):
    """Times of each decoder in ms, and the number of people that it finds."""
    prepared = prepare(np.zeros((*IMAGE, 3), np.uint8), SPEC, 368)
    cells = (prepared.array.shape[1] // SPEC.stride, prepared.array.shape[2] // SPEC.stride)
    heatmaps, pafs = make_fields(count, cells, count, SPEC)
    times = {name: [] for name in VARIANTS}
    for _ in range(repeats):
        for name, decoder in VARIANTS.items():
            start = time.thread_time()
            decoder(heatmaps, pafs, prepared, SPEC)
            times[name].append(1000 * (time.thread_time() - start))
    return times, {name: len(decoder(heatmaps, pafs, prepared, SPEC)) for name, decoder in VARIANTS.items()}


@click.command(help=__doc__)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="CSV file to write.")
@click.option("--repeats", default=40, show_default=True)
@click.option("--people", multiple=True, type=int, default=(1, 5, 23, 50), show_default=True)
@click.option("--network-ms", type=float, help="Latency of a network, of which decoding is shown as a share.")
def main(output, repeats, people, network_ms):
    cv2.setNumThreads(1)
    rows = []
    for count in people:
        times, found = measure(count, repeats)
        for name, taken in times.items():
            speedup = paired_speedup(times["public"], taken)
            row = {
                "decoder": name, "people": count, "found": found[name], "cpu_ms": round(np.median(taken), 2),
                "p90_ms": round(np.quantile(taken, 0.9), 2), "best_ms": round(min(taken), 2),
                "times_faster": round(speedup.median, 2), "low": round(speedup.low, 2), "high": round(speedup.high, 2),
            }  # fmt: skip
            if network_ms:
                row["share_of_network"] = round(float(np.median(taken)) / network_ms, 3)
            rows.append(row)
    table = pd.DataFrame(rows)
    click.echo(table.to_string(index=False))
    if output:
        write_text(output, table.to_csv(index=False))


if __name__ == "__main__":
    main()
