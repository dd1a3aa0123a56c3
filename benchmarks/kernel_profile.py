"""Time and operations of networks by kernel size: `python benchmarks/kernel_profile.py NETWORK...`.

The profile of section 5.5 of the paper on global context for convolutional pose machines, where 1x1 convolutions are
the bottleneck of hourglass networks. Times are of each layer inside the running network; networks have random weights,
whose values do not affect latency. A context module: `--within refinement_stages.0.trunk.0`.
"""

from __future__ import annotations

import click

from compress.checkpoint.load import create
from compress.commands.init import parse_network_options
from compress.errors import CompressError
from compress.measure.kernel_profile import kernel_profile
from compress.measure.layer_latency import VariantTimingOptions, measure_variants
from compress.target import Target


@click.command()
@click.argument("networks", nargs=-1, required=True)
@click.option("--set", "pairs", multiple=True, help="Option of all networks as NAME=VALUE.")
@click.option("--target", default="torch-cpu", show_default=True, help="Runtime and device.")
@click.option("--threads", type=int, help="CPU threads (default: all cores).")
@click.option("--rounds", default=16, show_default=True, help="Most rounds.")
@click.option("--within", default="", help="Only the layers of this submodule, for example a context module.")
def main(
    networks: tuple[str, ...], pairs: tuple[str, ...], target: str, threads: int | None, rounds: int, within: str
) -> None:
    """Print a Markdown table of each network."""
    options = VariantTimingOptions(threads=threads, rounds=rounds, fresh=True)
    try:
        for network in networks:
            model = create(network, parse_network_options(pairs), trained=False)
            table = measure_variants(model, Target.parse(target), {}, options=options)
            size = "x".join(map(str, model.size))
            click.echo(f"\n{network} {' '.join(pairs)} at {size} on {target}: {table.original_ms:.1f} ms\n")
            click.echo("| kernels | layers | GMACs | of MACs | ms | of time |\n|---|---|---|---|---|---|")
            for row in kernel_profile(model.layers, table, within):
                click.echo(
                    f"| {row.kernel} | {row.layers} | {row.macs / 1e9:.3f} | {row.macs_share:.1%} "
                    f"| {row.latency_ms:.2f} | {row.latency_share:.1%} |"
                )
    except CompressError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
