"""Is loading ever the bottleneck of training? ``python benchmarks/input_pipeline.py [-o FILE.csv] [--memory N]``.

Images a second of the data pipeline alone (reading or drawing, augmentation, targets, batches), from drawn people made
anew or from a cache on disk, with 0, 1 and 2 worker processes, beside those of the training step alone (the embedded
default, its own crop, batch 8, labels) on the CPU. Pipelines and step take turns in each round, and what is shown is
the median over rounds. With ``--memory N`` an epoch over N drawn samples with 2 workers follows, and the memory of all
processes (proportional set size: shared pages are split among those that share them) at ten moments of it.
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
from compress.training.batches import Examples, load_batches
from compress.training.loop import FineTuneOptions, finetune

BATCH = 8
#: Samples of the rounds; all of them are in the cache before the first.
SAMPLES = 64
#: Batches of each turn that are timed, after those that fill the workers' queues (two for each).
TIMED = 8


def make_examples(data, pose, size, seed):
    return Examples(data, pose, size=size, augmentation=Augmentation(), seed=seed, labels=True)


def pipeline_speed(examples, workers):
    """Images a second that a consumer who does nothing gets."""
    lead = 1 + 2 * workers
    batches = load_batches(examples, batch_size=BATCH, start=0, steps=lead + TIMED + lead, workers=workers)
    for _ in range(lead):
        next(batches)
    # What was loaded ahead is paid for by letting the workers load as much again after the last timed batch.
    began = time.perf_counter()
    for _ in range(TIMED):
        next(batches)
    return BATCH * TIMED / (time.perf_counter() - began)


def step_speed(checkpoint, size):
    """Images a second of the training step alone: its batches are ready before it begins."""

    class Ready:
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
    finetune(
        checkpoint.module,
        Ready(),
        options,
        pose=checkpoint.pose,
        on_step=lambda entry: marks.append(time.perf_counter()),
    )
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
    """Memory at ten moments of an epoch over drawn samples with 2 workers."""
    steps = samples // BATCH
    examples = make_examples(DrawnPeople(seed=1, count=samples), pose, size, 0)
    moments = {max(1, round(steps * tenth / 10)) for tenth in range(1, 11)}
    rows, began = [], time.perf_counter()
    for step, _ in enumerate(load_batches(examples, batch_size=BATCH, start=0, steps=steps, workers=2), 1):
        if step in moments:
            rows.append({
                "samples": step * BATCH,
                "memory_mb": round(memory_mb(os.getpid()), 1),
                "seconds": round(time.perf_counter() - began, 1),
            })  # fmt: skip
            click.echo(f"{rows[-1]}", err=True)
    return pd.DataFrame(rows)


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), help="CSV file to write.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--memory", type=int, help="Samples of the epoch whose memory is watched.")
def main(output, rounds, memory):
    checkpoint = create("default")
    pose = checkpoint.pose
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
                    speeds[name, workers].append(step_speed(checkpoint, pose.size))
                else:
                    examples = make_examples({"drawn": drawn, "cached": cached}[name], pose, pose.size, turn)
                    speeds[name, workers].append(pipeline_speed(examples, workers))
    steps = np.array(speeds["training step", None])
    rows = [
        {
            "what": name, "workers": workers, "images_per_second": round(float(np.median(found)), 1),
            "lowest": round(min(found), 1), "highest": round(max(found), 1),
            "times_training_step": round(float(np.median(np.array(found) / steps)), 2),
        }
        for (name, workers), found in speeds.items()
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    click.echo(table.to_string(index=False))
    if output:
        write_text(output, table.to_csv(index=False))


if __name__ == "__main__":
    main()
