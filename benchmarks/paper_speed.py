"""The papers' speed tables, measured here: `python benchmarks/paper_speed.py -o FILE.csv`.

Networks have random weights, whose values do not affect latency. All networks and runtimes of a table and size are
timed interleaved, so every speed-up comes from the same rounds and has a 95 % bootstrap interval. Baselines are run
with the same settings as ours: channels last on torch, OpenVINO and its precisions, CUDA graphs. Runtimes that this
machine lacks are reported and left out.

The table `image-to-people` covers the whole way from an image of 1280 x 720 to people: scaling, network, decoding, in
sequence, or, if the decoder's name ends in `overlapped`, for several images at once as in `compress predict`: the time
is then the mean over a stream of images. Networks with random weights find nobody, so maps generated for 1, 10 and 23
people, of the size of the network's own, are decoded. `public` is the published decoder, `ours` is our decoder.

Each size is written to the CSV as soon as it is done, with the machine in the first line; started again with the same
file, the script continues with what is missing. A Markdown file of the same name contains the tables beside the papers'
values.

    python benchmarks/paper_speed.py --networks attention-cpm --sizes 656x368 --rounds 20 -o speed.csv
    python benchmarks/paper_speed.py --networks image-to-people --checkpoint best=small.pt -o people.csv
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from candidates import RUNTIMES as KNOWN
from candidates import Label, Subject, Workshop, build_subject, missing, read_subject
from paper_table import COLUMNS, Row, check_machine, markdown, read_csv, write_csv
from paper_values import TABLES, Size, Table, rounded
from public_decoder import decode_public
from scenes import ImageToPeople, StreamToPeople, ours

from compress.errors import CompressError, UsageError
from compress.measure.bootstrap import paired_speedup
from compress.measure.latency import RoundOptions, Timing, measure_interleaved
from compress.measure.machine import describe
from compress.network.inputs import InputSpec
from compress.runtime.runner import Runner

#: Default runtimes.
RUNTIMES = (
    "torch-cpu", "onnxruntime-cpu", "openvino-cpu", "openvino-cpu-bf16", "openvino-cpu-int8-bf16", "torch-cuda",
    "torch-cuda-fp16-graphs", "onnxruntime-cuda",
)  # fmt: skip

#: Runtimes of the compressed networks in the table from image to people.
BEST = ("openvino-cpu-bf16", "openvino-cpu-int8-bf16", "torch-cuda-fp16-graphs")

PEOPLE = "image-to-people"
SCENES = (1, 10, 23)
PEOPLE_SIZE = rounded(656, 368)
BASELINE, SMALLEST = "OpenPose VGG-19", "attention CPM 1/4"

#: Suffix of the decoder's name of candidates that take a stream of images.
OVERLAPPED = ", overlapped"

#: Images in a stream: for the baseline, which takes seconds for one, and for all others.
SLOW_STREAM, STREAM = 6, 24

#: A candidate: network, runtime, decoder or an empty string.
Key = tuple[str, str, str]

#: What a compressed network has to beat from image to people: the baseline at its fastest, with our decoder.
FASTEST_BASELINE = (BASELINE, "openvino-cpu-bf16", "ours")


class SpeedRun:
    """Times groups of candidates and keeps their rows.

    Parameters
    ----------
    output : Path or None
        CSV to write, and to continue from.
    workshop : Workshop
        Opens candidates.
    labels : sequence of str
        Requested runtimes.
    rounds, budget_s
        As of `compress.measure.latency.RoundOptions`.
    """

    def __init__(
        self,
        output: Path | None,
        workshop: Workshop,
        labels: Sequence[str],
        rounds: int,
        budget_s: float,
    ) -> None:
        self._output, self._workshop, self._rounds, self._budget_s = output, workshop, rounds, budget_s
        self._machine = describe().to_dict()
        self._absent = {label: reason for label in labels if (reason := missing(label)) is not None}
        for label, reason in self._absent.items():
            click.echo(f"not present: {label} ({reason})")
        self.rows: list[Row] = []
        if output is not None and output.exists():
            before, self.rows = read_csv(output)
            check_machine(before, self._machine, output)

    def run(
        self, group: str, size: Size, subjects: Mapping[str, Subject], keys: Sequence[Key], people: int = 0
    ) -> None:
        """Time one group, unless all of it is there; the first key that runs is the baseline of the others."""
        scene = str(people or "")
        done = {row.key for row in self.rows if (row.table, row.size, row.people) == (group, size, scene)}
        title = f"{group} {size[1]}x{size[0]}" + (f", people: {people}" if people else "")
        if all(key in done or key[1] in self._absent for key in keys):
            click.echo(f"{title}: already done")
            return
        click.echo(f"{title}: {len(keys)} candidates")
        with ExitStack() as stack:
            opened = self._open(stack, subjects, keys, size, people)
            if not opened:
                return
            labels = {" / ".join(key): key for key in opened}
            timings = measure_interleaved(
                {label: opened[key] for label, key in labels.items()},
                (InputSpec((1, 3, *size)),),
                RoundOptions(self._rounds, min_rounds=min(5, self._rounds), warmup=1, budget_s=self._budget_s),
            )
            runs = {label: getattr(opened[key], "images", 1) for label, key in labels.items()}
            per_image = {labels[timing.model]: _each(timing, runs[timing.model]) for timing in timings}
            decoding = {key: getattr(runner, "decode_ms", None) for key, runner in opened.items()}
        costs = {name: subject.cost(size) for name, subject in subjects.items()}
        rows = [_row(group, size, scene, key, per_image, costs[key[0]], decoding[key]) for key in per_image]
        for row in rows:
            click.echo(f"  {row.network} / {row.runtime} {row.decoder}: {row.latency_ms} ms, x{row.vs_first or 1}")
        self.rows = [row for row in self.rows if (row.table, row.size, row.people) != (group, size, scene)] + rows
        self.write()

    def write(self) -> None:
        """The CSV, and the tables made from it."""
        if self._output is None:
            return
        command = shlex.join(["python", "benchmarks/paper_speed.py", *sys.argv[1:]])
        write_csv(self._output, self.rows, self._machine, command)
        text = markdown(self.rows, self._machine, command, sorted(f"{a}: {b}" for a, b in self._absent.items()))
        self._output.with_suffix(".md").write_text(text, encoding="utf-8")

    def _open(
        self, stack: ExitStack, subjects: Mapping[str, Subject], keys: Sequence[Key], size: Size, people: int
    ) -> dict[Key, Runner]:
        opened: dict[Key, Runner] = {}
        networks: dict[tuple[str, str, int], Runner] = {}
        for key in keys:
            name, runtime, decoder = key
            if runtime in self._absent:
                continue
            overlapped = decoder.endswith(OVERLAPPED)
            streams = self._workshop.streams(runtime) if overlapped else 1
            if (name, runtime, streams) not in networks:
                networks[name, runtime, streams] = self._workshop.open(subjects[name], runtime, size, streams)
                stack.callback(networks[name, runtime, streams].close)
            opened[key] = networks[name, runtime, streams]
            if people:
                decode: Callable[..., list[Any]] = decode_public if decoder.startswith("public") else ours
                opened[key] = ImageToPeople(opened[key], people, decode, size[0])
            if overlapped:
                images = SLOW_STREAM if name == BASELINE else STREAM
                opened[key] = StreamToPeople(opened[key], streams, images)
                stack.callback(opened[key].close)
        return opened


def _each(timing: Timing, images: int) -> Timing:
    """The time of one image, where each run takes several."""
    low, high = timing.interval_ms
    return replace(
        timing,
        latency_ms=timing.latency_ms / images,
        p90_ms=timing.p90_ms / images,
        p99_ms=timing.p99_ms / images,
        interval_ms=(low / images, high / images),
        fps=timing.fps * images,
        samples_ms=tuple(sample / images for sample in timing.samples_ms),
    )


def _row(
    group: str,
    size: Size,
    scene: str,
    key: Key,
    timings: Mapping[Key, Timing],
    costs: tuple[int, int],
    decode_ms: Sequence[float] | None,
) -> Row:
    name, runtime, decoder = key
    timing, first = timings[key], next(iter(timings))
    same = next(other for other in timings if other[1] == runtime)
    if group == PEOPLE and FASTEST_BASELINE in timings:
        same = FASTEST_BASELINE
    values: dict[str, Any] = dict.fromkeys(COLUMNS, "")
    for prefix, other in (("vs_first", first), ("vs_same", same)):
        if other != key:
            speedup = paired_speedup(timings[other].samples_ms, timing.samples_ms)
            ends = (("", speedup.median), ("_low", speedup.low), ("_high", speedup.high))
            values |= {prefix + end: f"{value:.3g}" for end, value in ends}
    if decode_ms:
        values["decode_ms"] = f"{sorted(decode_ms)[len(decode_ms) // 2]:.2f}"
    if timing.device_ms is not None:
        values["device_ms"] = f"{timing.device_ms:.3f}"
    return Row(
        **values
        | {
            "table": group, "people": scene, "network": name, "runtime": runtime, "decoder": decoder,
            "width": size[1], "height": size[0], "params": costs[0], "macs": costs[1],
            "latency_ms": f"{timing.latency_ms:.2f}", "low_ms": f"{timing.interval_ms[0]:.2f}",
            "high_ms": f"{timing.interval_ms[1]:.2f}", "p90_ms": f"{timing.p90_ms:.2f}",
            "p99_ms": f"{timing.p99_ms:.2f}", "fps": f"{timing.fps:.2f}", "rounds": timing.rounds,
            "threads": timing.threads,
        }
    )  # fmt: skip


def _subjects(table: Table, extra: Mapping[str, Path]) -> dict[str, Subject]:
    subjects = {name: build_subject(f"{table.name} {name}", *wanted) for name, wanted in table.networks.items()}
    return subjects | {name: read_subject(f"checkpoint {name}", path) for name, path in extra.items()}


def people_keys(runtimes: Sequence[str], extra: Sequence[str]) -> list[Key]:
    """Baselines from the slowest to the fastest, then ours on the fastest runtimes; finally the same overlapped."""
    baselines = [(BASELINE, "torch-cpu", "public"), (BASELINE, "torch-cpu", "ours")]
    baselines += [(BASELINE, runtime, "ours") for runtime in BEST]
    best = [(name, runtime, "ours") for name in (SMALLEST, *extra) for runtime in BEST]
    streams = [(BASELINE, "torch-cpu", "public"), FASTEST_BASELINE, *best]
    keys = baselines + best + [(name, runtime, decoder + OVERLAPPED) for name, runtime, decoder in streams]
    return [key for key in keys if key[1] in runtimes]


def _sizes(text: str) -> list[Size]:
    try:
        return [rounded(*(int(side) for side in size.split("x"))) for size in text.split(",")]
    except (TypeError, ValueError):
        raise UsageError("sizes are WIDTHxHEIGHT, separated by commas", found=text) from None


def _names(text: str | None, known: Sequence[str], what: str) -> list[str]:
    names = list(known) if text is None else text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"unknown {what}", found=unknown[0], hint=f"Known: {', '.join(known)}")
    return names


def _checkpoints(texts: Sequence[str]) -> dict[str, Path]:
    pairs = [text.partition("=") for text in texts]
    if any(not name or not path for name, _, path in pairs):
        raise UsageError("a checkpoint is NAME=FILE", found=list(texts))
    return {name: Path(path) for name, _, path in pairs}


@click.command(help=__doc__.replace("\n\n    python", "\n\n\b\n    python"))
@click.option(
    "--networks", help=f"Comma-separated: {', '.join(table.name for table in TABLES)}, {PEOPLE} [default: all]"
)
@click.option("--sizes", help="Only these sizes, WIDTHxHEIGHT, comma-separated")
@click.option(
    "--runtimes", default=",".join(RUNTIMES), show_default=True, help=f"Comma-separated, of {', '.join(KNOWN)}"
)
@click.option(
    "--people",
    default=",".join(map(str, SCENES)),
    show_default=True,
    help="Numbers of people in a scene, comma-separated",
)
@click.option(
    "--checkpoint", "checkpoints", multiple=True, help="NAME=FILE: another network in the attention CPM's table"
)
@click.option("--rounds", default=20, show_default=True, help="Maximum number of rounds for each table and size")
@click.option(
    "--max-seconds", "--budget", default=300.0, show_default=True, help="Start no round of a table and size after this"
)
@click.option("--threads", type=int, help="CPU threads [default: that of each runtime]")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep exported files here for later runs")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="CSV to write, and to continue from")
def main(
    networks: str | None,
    sizes: str | None,
    runtimes: str,
    people: str,
    checkpoints: tuple[str, ...],
    rounds: int,
    max_seconds: float,
    threads: int | None,
    folder: Path | None,
    output: Path | None,
) -> None:
    wanted = _names(networks, [table.name for table in TABLES] + [PEOPLE], "table")
    labels = runtimes.split(",")
    for label in labels:
        Label.read(label)
    chosen = None if sizes is None else _sizes(sizes)
    extra = _checkpoints(checkpoints)
    with tempfile.TemporaryDirectory() as temporary:
        speed = SpeedRun(output, Workshop(folder or Path(temporary), threads), labels, rounds, max_seconds)
        for table in TABLES:
            places = [size for size in table.sizes if chosen is None or size in chosen]
            main_table = table is TABLES[0]
            with_people = main_table and PEOPLE in wanted
            if not (places and table.name in wanted) and not with_people:
                continue
            subjects = _subjects(table, extra if main_table else {})
            for size in places if table.name in wanted else ():
                keys = [(name, label, "") for label in labels for name in subjects]
                speed.run(table.name, size, subjects, keys)
            for count in map(int, people.split(",")) if with_people else ():
                kept = {name: subjects[name] for name in (BASELINE, SMALLEST, *extra)}
                speed.run(PEOPLE, PEOPLE_SIZE, kept, people_keys(labels, list(extra)), count)
        speed.write()


if __name__ == "__main__":
    try:
        main()
    except CompressError as error:
        sys.exit(str(error))
