"""`compress init`: write a checkpoint of a network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.commands.base import Command, CommandOptions, Result
from compress.commands.fields import NetworkText, Texts, option, parse_pairs
from compress.progress import Progress


class InitOptions(CommandOptions):
    """Options of `compress init`."""

    network: NetworkText = option(
        ...,
        "Network: a name of compress networks, or your own as package.module:factory or file.py:factory, which runs "
        "that code",
        positional=True,
    )
    output: Path = option(..., "Model to write (.pt or .safetensors)", flag="-o", output=True)
    set: Texts = option((), "Option of the network as NAME=VALUE; repeat for more")
    backbone: Path | None = option(
        None,
        "Trunk to start from: a state dict of ResNet, MobileNet v1, v2 or VGG-19 in the layout of torchvision or timm",
    )
    untrained: bool = option(False, "Start from random weights even where trained ones ship with the package")
    seed: int = option(0, "Seed of random weights")
    force: bool = option(False, "Replace an existing output")


@dataclass(frozen=True)
class InitResult(Result):
    """The network that was written, its options, whether its weights are trained, and what the trunk was taken from."""

    output: str
    network: str
    options: dict[str, Any]
    trained: bool
    backbone: str | None = None
    taken: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """File, network and kind of weights."""
        weights = f"{'trained' if self.trained else 'random'} weights"
        return f"{self.output}: {self.network}, {weights if self.backbone is None else self.backbone}"

    def show(self) -> None:
        """Print the summary."""
        from compress.commands.terminal import print_lines

        print_lines(self.summary, *self.notices)


def parse_network_options(pairs: tuple[str, ...]) -> dict[str, Any]:
    """``("refinements=2",)`` as ``{"refinements": 2}``; values are JSON, anything else a string."""
    options: dict[str, Any] = {}
    for name, value in parse_pairs(pairs, "a network option").items():
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def run(options: InitOptions, progress: Progress) -> InitResult:
    """Build the network and write its checkpoint."""
    from compress.checkpoint.backbone import load_backbone
    from compress.checkpoint.load import create
    from compress.checkpoint.save import save

    network_options = parse_network_options(options.set)
    trained = False if options.untrained or options.backbone is not None else None
    model = create(options.network, network_options, seed=options.seed, trained=trained)
    found = None if options.backbone is None else load_backbone(model, options.backbone)
    model = model if found is None else found.model
    save(model, options.output, force=options.force)
    return InitResult(
        output=str(options.output),
        network=options.network,
        options=network_options,
        trained=bool(model.history and model.history[-1].get("trained")),
        backbone=None if found is None else found.summary,
        taken=() if found is None else found.taken,
        left=() if found is None else found.left,
        notices=() if found is None else found.notices,
        written=(options.output,),
    )


COMMAND = Command(InitOptions, run, "compress init default -o model.pt")
