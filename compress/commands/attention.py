"""`compress attention`: swap the attention blocks of a network, or insert new ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compress.commands.base import Command, Result
from compress.commands.fields import option
from compress.commands.options import ModelOptions, SizeOptions, sized_model
from compress.progress import Progress


class AttentionOptions(ModelOptions, SizeOptions):
    """Options of `compress attention`."""

    to: Literal["none", "se", "se_spatial", "cbam", "esa_seq", "esa_par", "esa_7", "coord"] = option(
        ..., "Kind of the new blocks; gates of an old block that fit keep their weights"
    )
    at: tuple[str, ...] = option(
        (), "Swap only blocks of this name or pattern; repeat for more (default: all, or none with --after)"
    )
    after: tuple[str, ...] = option((), "Insert a block after modules of this name or pattern; repeat for more")
    reduction: int | None = option(
        None, "Reduction ratio of the channel gate (default: that of the old block, or of the kind's paper)"
    )
    between: Literal["none", "relu"] | None = option(
        None, "Activation between the 3x3 convolutions of an esa gate (default: that of the old block, or none)"
    )
    identity: bool = option(
        True,
        "Initialise new gates as the identity: an inserted block changes no output before training, a swapped one acts "
        "only by the weights it keeps",
    )
    seed: int = option(0, "Seed of new weights")
    output: Path | None = option(
        None, "Model to write (default: beside the model, the kind added to its name)", flag="-o", output=True
    )
    force: bool = option(False, "Replace an existing output")


@dataclass(frozen=True)
class AttentionResult(Result):
    """The swapped and inserted blocks, and the costs before and after."""

    output: str
    network: str
    input: tuple[int, int]
    kind: str
    identity: bool
    blocks: tuple[dict[str, Any], ...]
    params: tuple[int, int]
    macs: tuple[int, int]
    size_bytes: tuple[int, int]

    @property
    def summary(self) -> str:
        """Number of blocks, and the change in cost."""
        from compress.commands.terminal import giga, millions

        return (
            f"{self.output}: {len(self.blocks)} block(s) {self.kind}, parameters {millions(self.params[0])} -> "
            f"{millions(self.params[1])}, MACs {giga(self.macs[0])} -> {giga(self.macs[1])}"
        )

    def show(self) -> None:
        """Print each block and which weights it kept."""
        from compress.commands.terminal import print_lines, print_table

        fresh = "none: identity-initialised" if self.identity else "none"
        print_table(
            f"Attention blocks, now {self.kind}",
            ["block", "was", "channels", "reduction", "weights kept"],
            [
                (
                    block["name"],
                    block["was"] or "(inserted)",
                    block["channels"],
                    block["reduction"],
                    ", ".join(block["carried"]) or fresh,
                )
                for block in self.blocks
            ],
            left=2,
        )
        print_lines(self.summary)


def run(options: AttentionOptions, progress: Progress) -> AttentionResult:
    """Swap or insert blocks, and write the network with the edit that replays it."""
    from compress.checkpoint.save import save
    from compress.compression.attention import AttentionOptions as BlockOptions
    from compress.compression.attention import swap_attention
    from compress.files import refuse_existing
    from compress.zoo.attention import SpatialOptions

    output = options.output or options.model.with_name(f"{options.model.stem}-{options.to}.pt")
    refuse_existing(output, options.force)
    model = sized_model(options, options.input)
    spatial = None if options.between is None else SpatialOptions(options.between)
    blocks = BlockOptions(options.reduction, options.identity, options.seed, spatial)
    changed = swap_attention(model, options.to, at=options.at, after=options.after, options=blocks)
    save(changed, output, force=options.force)
    before, after = model.cost, changed.cost
    return AttentionResult(
        output=str(output),
        network=model.name,
        input=model.size,
        kind=options.to,
        identity=options.identity,
        blocks=tuple(changed.history[-1]["blocks"]),
        params=(before.params, after.params),
        macs=(before.macs, after.macs),
        size_bytes=(before.size_bytes, after.size_bytes),
        written=(output,),
    )


COMMAND = Command(AttentionOptions, run, "compress attention model.pt --to cbam --after cpm -o attentive.pt")
