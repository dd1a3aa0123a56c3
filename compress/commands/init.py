"""Write a checkpoint of a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compress.checkpoint.load import create
from compress.checkpoint.save import save
from compress.commands.base import StageOptions, StageResult, option
from compress.commands.registry import Stage
from compress.errors import UsageError
from compress.progress import Progress


class InitOptions(StageOptions):
    """Options of `compress init`."""

    network: str = option(..., "Name of the network: see compress networks", positional=True)
    output: Path = option(..., "Model to write (.pt or .safetensors)", flag="-o", output=True)
    set: tuple[str, ...] = option((), "Option of the network as NAME=VALUE; repeat for more")
    untrained: bool = option(False, "Start from random weights even where trained ones ship with the package")
    seed: int = option(0, "Seed of random weights")
    force: bool = option(False, "Replace an existing output")


def parse_network_options(pairs: tuple[str, ...]) -> dict[str, Any]:
    """``("refinements=2",)`` to ``{"refinements": 2}``; values are JSON, anything else a string."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise UsageError("a network option is written NAME=VALUE", found=pair)
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def init(options: InitOptions, progress: Progress) -> StageResult:
    """Build the network and write its checkpoint."""
    network_options = parse_network_options(options.set)
    checkpoint = create(
        options.network, network_options, seed=options.seed, trained=False if options.untrained else None
    )
    save(checkpoint, options.output, force=options.force)
    trained = bool(checkpoint.history and checkpoint.history[-1].get("trained"))
    record = {"output": str(options.output), "network": options.network, "options": network_options, "trained": trained}
    return StageResult(record, (options.output,))


STAGE = Stage(InitOptions, init, "compress init default -o model.pt")
