"""`compress networks`: the networks that can be built by name, with their costs and what papers print of them.

With ``--explain`` it prints what a network's page says of the paper: its parts, our reading, and what is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compress.commands.base import Command, CommandOptions, Result
from compress.commands.fields import option
from compress.errors import UsageError
from compress.progress import Progress

if TYPE_CHECKING:
    from compress.zoo.counts import NetworkCounts, PublishedNumbers


class NetworksOptions(CommandOptions):
    """Options of `compress networks`."""

    network: str | None = option(None, "Only this network", positional=True)
    explain: bool = option(False, "Print where each part of its paper is, how it is read, and what is left out")


@dataclass(frozen=True)
class NetworksResult(Result):
    """Networks with their costs, and the text of a network that is explained."""

    networks: tuple[NetworkCounts, ...]
    explanation: str | None = None

    @property
    def summary(self) -> str:
        """Their number."""
        return f"{len(self.networks)} networks"

    def show(self) -> None:
        """Print the explanation, or the table of networks and why counts differ from printed ones."""
        from compress.commands.terminal import giga, millions, print_lines, print_table
        from compress.network.conventions import CONVENTIONS
        from compress.network.layers import count_flops

        if self.explanation is not None:
            print_lines(*self.explanation.splitlines())
            return
        print_table(
            "Networks (MACs: executed multiply-adds of convolution and linear layers; FLOPs: 2 x MACs)",
            ["name", "paper", "input", "params", "MACs", "FLOPs", "printed params", "printed operations", "deviation"],
            [
                (
                    row.name,
                    row.paper,
                    "x".join(map(str, row.input)),
                    millions(row.params),
                    giga(row.macs),
                    giga(count_flops(row.macs)),
                    *_printed(row.published),
                    ", ".join(_deviations(row)) or "-",
                )
                for row in self.networks
            ],
            left=2,
        )
        published = [(row.name, row.published) for row in self.networks if row.published is not None]
        used = {found.convention for _, found in published}
        print_lines(
            *(f"{name}: {found.reason}" for name, found in published if found.reason),
            *(f"{c.name}: {c.summary}" for c in CONVENTIONS.values() if c.name in used),
        )


def _printed(published: PublishedNumbers | None) -> tuple[str, str]:
    """Parameters and operations as a paper prints them."""
    if published is None:
        return "-", "-"
    params, operations = published.params, published.operations
    return (
        "-" if params is None else f"{params / 1e6:g} M",
        "-" if operations is None else f"{operations:g} {published.unit} ({published.convention})",
    )


def _deviations(row: NetworkCounts) -> list[str]:
    both = (row.deviation.params, row.deviation.operations)
    return [f"{value:+.1%}" for value in both if value is not None]


def run(options: NetworksOptions, progress: Progress) -> NetworksResult:
    """Count the registered networks, and every variant that numbers are printed of; or explain one."""
    from compress.measure.garbage import garbage_collection_paused
    from compress.zoo.counts import count_networks, published_lines
    from compress.zoo.explanation import explain
    from compress.zoo.registry import get_entry

    if options.explain:
        if options.network is None:
            raise UsageError("--explain explains one network", hint="For example: compress networks esa --explain")
        return NetworksResult((), explain(options.network))
    lines = published_lines()
    if options.network is not None:
        chosen = get_entry(options.network).name
        lines = [line for line in lines if line[0].name == chosen]
    # Garbage collection would take a third of the time, and networks without values are small.
    with progress.bar("counting", len(lines)) as advance, garbage_collection_paused():
        return NetworksResult(count_networks(lines, lambda label: advance(1, label)))


COMMAND = Command(NetworksOptions, run, "compress networks attention-cpm --explain")
