"""Tucker-2 of a whole network, ours and tensorly's: ``python benchmarks/decomposition.py [CHECKPOINT] [-o FILE.md]``.

All dense k x k convolutions of the network except the stem, at the given shares of the channels; without a checkpoint,
14 random 128x128x3x3 kernels whose spectra decay like those of trained ones. Both get the same float32 kernels and
ranks, tensorly its default settings. They take turns within each round, and both errors are computed in the same way.
"""

from __future__ import annotations

import math
import os
import sys
import time
from fractions import Fraction
from pathlib import Path

import click
import pandas as pd
import tensorly
import torch
from tensorly.decomposition import partial_tucker

from compress.checkpoint.load import load
from compress.decomposition.tucker import tucker2
from compress.files import write_text
from compress.forms.registry import get_form
from compress.measure.bootstrap import paired_speedup
from compress.measure.machine import describe
from compress.network.layers import list_layers
from compress.planning.policies import read_share
from compress.planning.selection import STEM_CHANNELS


def network_kernels(path):
    module = load(path).module
    layers = list_layers(module, (256, 256))
    return [
        module.get_submodule(layer.name).weight.detach()
        for layer in layers
        if layer.kind == "conv" and layer.groups == 1 and layer.weight_shape[1] > STEM_CHANNELS
        if math.prod(layer.weight_shape[2:]) > 1
    ]


def random_kernels(decay, count=14, size=128):
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, size + 1) ** -decay
    kernels = []
    for _ in range(count):
        factors = [torch.linalg.qr(torch.randn(size, size, generator=generator)).Q * spectrum for _ in range(2)]
        kernel = torch.randn(size, size, 3, 3, generator=generator)
        kernels.append(torch.einsum("at,tskl,bs->abkl", factors[0], kernel, factors[1]))
    return kernels


def ours(kernel, ranks):
    factors = tucker2(kernel, ranks)
    return factors.last, factors.core, factors.first


def theirs(kernel, ranks):
    (core, (last, first)), _ = partial_tucker(kernel, rank=[ranks[1], ranks[0]], modes=[0, 1])
    return last, core, first.T


def mean_error(kernels, factors):
    errors = []
    for kernel, parts in zip(kernels, factors, strict=True):
        last, core, first = (part.double() for part in parts)
        rebuilt = torch.einsum("tj,jikl,is->tskl", last, core, first)
        errors.append(float((kernel - rebuilt).norm() / kernel.double().norm()))
    return sum(errors) / len(errors)


def compare(kernels, share: Fraction, rounds, threads):
    """One row of the table."""
    torch.set_num_threads(threads)
    ranks = [
        get_form("tucker2").clip(k.shape, tuple(max(1, math.floor(share * n + 0.5)) for n in (k.shape[1], k.shape[0])))
        for k in kernels
    ]
    wall, cpu, factors = ({ours: [], theirs: []} for _ in range(3))
    for number in range(rounds + 1):  # the first round warms up
        for method in (ours, theirs) if number % 2 else (theirs, ours):
            start = time.perf_counter(), time.process_time()
            factors[method] = [method(k, r) for k, r in zip(kernels, ranks, strict=True)]
            if number:
                wall[method].append(time.perf_counter() - start[0])
                cpu[method].append(time.process_time() - start[1])
    speedups = [paired_speedup(times[theirs], times[ours]) for times in (wall, cpu)]
    return {
        "threads": threads,
        "share": str(share),
        "ours, s": round(pd.Series(wall[ours]).median(), 3),
        "tensorly, s": round(pd.Series(wall[theirs]).median(), 3),
        "times faster": f"{speedups[0].median:.2f} [{speedups[0].low:.2f}, {speedups[0].high:.2f}]",
        "in CPU time": f"{speedups[1].median:.2f} [{speedups[1].low:.2f}, {speedups[1].high:.2f}]",
        "our error": f"{mean_error(kernels, factors[ours]):.6f}",
        "tensorly's error": f"{mean_error(kernels, factors[theirs]):.6f}",
    }


@click.command()
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option("--ratio", "shares", multiple=True, default=("1/2", "1/3", "1/4"), show_default=True)
@click.option("--rounds", default=25, show_default=True)
@click.option("--threads", multiple=True, type=int, default=(1,), show_default=True)
@click.option("--decay", default=0.3, show_default=True, help="Exponent of the mode spectra of random kernels.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Markdown file to write.")
def main(checkpoint, shares, rounds, threads, decay, output):
    tensorly.set_backend("pytorch")
    kernels = network_kernels(checkpoint) if checkpoint else random_kernels(decay)
    table = pd.DataFrame([compare(kernels, read_share(share), rounds, count) for count in threads for share in shares])
    machine = describe()
    command = " ".join(Path(word).name if checkpoint and word == str(checkpoint) else word for word in sys.argv[1:])
    shapes = pd.Series(["x".join(map(str, k.shape)) for k in kernels]).value_counts()
    text = "\n".join([
        "# Tucker-2 of a whole network: ours and tensorly's",
        "",
        f"`python benchmarks/decomposition.py {command}`",
        "",
        f"Kernels: {', '.join(f'{count} of {shape}' for shape, count in shapes.items())}, "
        + (f"from {checkpoint.name}." if checkpoint else f"random, spectra i^-{decay}."),
        "Seconds are medians for the whole network; times faster is the median over paired rounds with its 95 %",
        "bootstrap interval; errors are means over the kernels of |W - W~| / |W|.",
        "",
        f"{machine.cpu} ({', '.join(machine.instruction_sets)}), {machine.cores} cores, load at the end "
        f"{os.getloadavg()[0]:.1f}; torch {machine.torch}, tensorly {tensorly.__version__} (backend pytorch, default "
        f"settings), Python {machine.python}; {rounds} rounds.",
        "",
        table.to_markdown(index=False, disable_numparse=True),
        "",
    ])  # fmt: skip
    click.echo(text)
    if output:
        write_text(output, text)


if __name__ == "__main__":
    main()
