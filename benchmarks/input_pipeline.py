"""Is data loading ever the bottleneck of training? ``python benchmarks/input_pipeline.py [-o FILE.csv] [--memory N]``.

Images per second of the data pipeline alone (reading or rendering, augmentation, targets, batches), with synthetic
people rendered anew or read from a cache on disk, with 0, 1 and 2 worker processes, beside those of the training step
alone (the default network, its own crop, batch 8, labels) on the CPU. Pipelines and step take turns in each round;
medians over rounds are shown. With ``--memory N``, the memory of all processes (proportional set size: shared pages
are divided among the processes that share them) is measured ten times during an epoch of N rendered samples with 2
workers instead.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch

from compress.checkpoint.load import create
from compress.data.augment import Augmentation
from compress.data.cache import Cached
from compress.data.synthetic import DrawnPeople
from compress.files import write_text
from compress.measure.machine import describe
from compress.training.batches import Span, load_batches
from compress.training.examples import ExampleOptions, Examples
from compress.training.loop import Hooks, train
from compress.training.options import FineTuneOptions

BATCH = 8
#: Number of samples; all of them are cached before the first round.
SAMPLES = 64
#: Timed batches in each turn, after those that fill the workers' queues (two for each).
TIMED = 8


def make_examples(data, pose, size, seed):
    return Examples(data, pose, ExampleOptions(size, Augmentation(), seed=seed, labels=True))


def pipeline_speed(examples, workers):
    """Images per second for a consumer that does nothing with them."""
    lead = 1 + 2 * workers
    batches = load_batches(examples, examples.seed, Span(BATCH, 0, lead + TIMED + lead, workers=workers))
    for _ in range(lead):
        next(batches)
    # Batches that were loaded ahead are balanced by those that the workers load during the timed ones.
    start = time.perf_counter()
    for _ in range(TIMED):
        next(batches)
    return BATCH * TIMED / (time.perf_counter() - start)


def step_speed(model, size):
    """Images per second of the training step alone: its batches are loaded before it begins."""

    class OneSample:
        name, annotated = "one sample", True

        def __init__(self):
            self.sample = DrawnPeople(seed=0, count=1)[0]

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return self.sample

        def ground_truth(self):
            raise NotImplementedError

    marks = []
    options = FineTuneOptions(
        steps=4, batch_size=BATCH, size=size, workers=1, amp="off", learning_rate=1e-6, checkpoint_every=None
    )
    train(model, OneSample(), options, hooks=Hooks(on_step=lambda entry: marks.append(time.perf_counter())))
    return BATCH / float(np.median(np.diff(marks)))


def memory_mb(pid):
    """Proportional memory of a process and its children in MB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    total = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            total += memory_mb(int(child))
    return total


def watch_memory(pose, size, samples):
    """Memory at ten points of an epoch of rendered samples with 2 workers."""
    steps = samples // BATCH
    examples = make_examples(DrawnPeople(seed=1, count=samples), pose, size, 0)
    measured = {max(1, round(steps * tenth / 10)) for tenth in range(1, 11)}
    rows, start = [], time.perf_counter()
    for step, _ in enumerate(load_batches(examples, examples.seed, Span(BATCH, 0, steps, workers=2)), 1):
        if step in measured:
            rows.append({
                "samples": step * BATCH,
                "memory_mb": round(memory_mb(os.getpid()), 1),
                "seconds": round(time.perf_counter() - start, 1),
            })  # fmt: skip
            click.echo(f"{rows[-1]}", err=True)
    return pd.DataFrame(rows)


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), help="CSV file to write.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--memory", type=int, help="Measure memory over an epoch of this many samples.")
def main(output, rounds, memory):
    model = create("default")
    pose = model.pose
    machine = describe()
    click.echo(f"{machine.cpu}, {machine.cores} cores, torch {machine.torch}, {torch.get_num_threads()} thread(s)")
    if memory:
        table = watch_memory(pose, pose.size, memory)
        half = table.memory_mb[len(table) // 2 :].mean() / table.memory_mb[: len(table) // 2].mean()
        click.echo(table.to_string(index=False))
        click.echo(f"second half over first half: {half:.3f}")
        if output:
            write_text(output, table.to_csv(index=False))
        return
    drawn = DrawnPeople(seed=0, count=SAMPLES)
    with tempfile.TemporaryDirectory() as folder:
        cached = Cached(drawn, Path(folder))
        for index in range(SAMPLES):
            cached[index]
        speeds = {("training step", None): []}
        speeds |= {(name, workers): [] for name in ("drawn", "cached") for workers in (0, 1, 2)}
        for turn in range(rounds):
            for name, workers in np.random.default_rng(turn).permutation(np.array(list(speeds), dtype=object)):
                if name == "training step":
                    speeds[name, workers].append(step_speed(model, pose.size))
                else:
                    examples = make_examples({"drawn": drawn, "cached": cached}[name], pose, pose.size, turn)
                    speeds[name, workers].append(pipeline_speed(examples, workers))
    steps = np.array(speeds["training step", None])
    rows = [
        {
            "what": name, "workers": workers, "images_per_second": round(float(np.median(measured)), 1),
            "lowest": round(min(measured), 1), "highest": round(max(measured), 1),
            "times_training_step": round(float(np.median(np.array(measured) / steps)), 2),
        }
        for (name, workers), measured in speeds.items()
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    click.echo(table.to_string(index=False))
    if output:
        write_text(output, table.to_csv(index=False))


if __name__ == "__main__":
    main()
