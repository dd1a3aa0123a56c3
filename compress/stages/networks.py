"""List the networks that can be built by name."""

from __future__ import annotations

from compress.model.cost import cost
from compress.networks.registry import NetworkSpec, build, entries
from compress.stages.base import Progress, StageOptions, StageResult
from compress.stages.registry import Stage


class NetworksOptions(StageOptions):
    """`compress networks` takes no options."""


def list_networks(options: NetworksOptions, progress: Progress) -> StageResult:
    """Every registered network with its options and costs."""
    rows = []
    for entry in entries():
        counted = cost(build(NetworkSpec(entry.name)), entry.input_size)
        rows.append(
            {
                "name": entry.name,
                "summary": entry.summary,
                "source": entry.source,
                "params": counted.params,
                "macs": counted.macs,
                "input": list(entry.input_size),
                "options": entry.options,
                "weights": entry.weights is not None,
            }
        )
    return StageResult({"networks": rows})


STAGE = Stage(NetworksOptions, list_networks, "compress networks")
