"""Swap the attention blocks of a network, or insert some."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from compress.checkpoint.save import save
from compress.commands.base import StageResult, option
from compress.commands.options import ModelOptions, SizeOptions, counting_size, load_model
from compress.commands.registry import Stage
from compress.files import refuse_existing
from compress.network.cost import cost
from compress.progress import Progress
from compress.surgery.attention import swap_attention
from compress.zoo.attention import Attention


class AttentionOptions(ModelOptions, SizeOptions):
    """Options of `compress attention`."""

    to: Literal["none", "se", "se_spatial", "cbam", "esa_seq", "esa_par", "esa_7", "coord"] = option(
        ..., "Kind of the new blocks; gates of an old block that fit are carried over, with their weights"
    )
    at: tuple[str, ...] = option(
        (), "Swap only blocks of this name or pattern; repeat for more (default: all, or none with --after)"
    )
    after: tuple[str, ...] = option((), "Insert a block after modules of this name or pattern; repeat for more")
    reduction: int | None = option(
        None, "How much narrower the middle of the channel gate is (default: as before, or the kind's paper)"
    )
    identity: bool = option(
        True,
        "Start fresh gates open, so that an inserted block changes no output before training and a swapped one is as "
        "none but for what is carried over",
    )
    seed: int = option(0, "Seed of fresh weights")
    output: Path | None = option(
        None, "Model to write (default: beside the model, the kind added)", flag="-o", output=True
    )
    force: bool = option(False, "Replace existing outputs")


def run(options: AttentionOptions, progress: Progress) -> StageResult:
    """Swap or insert blocks, and write the network with the edit that replays it."""
    output = options.output or options.model.with_name(f"{options.model.stem}-{options.to}.pt")
    refuse_existing(output, options.force)
    checkpoint = load_model(options)
    module = checkpoint.module
    size = counting_size(checkpoint, options.input)
    done = swap_attention(
        module,
        options.to,
        options.at,
        options.after,
        options.reduction,
        identity=options.identity,
        input_size=size,
        seed=options.seed,
    )
    blocks: list[dict[str, Any]] = []
    for name, spec in (*done.edit.swaps.items(), *done.edit.inserts.items()):
        old = module.get_submodule(name)
        swapped = name in done.edit.swaps and isinstance(old, Attention)
        blocks.append(
            {
                "name": name,
                "was": old.kind if swapped else None,
                "channels": spec.channels,
                "reduction": spec.reduction,
                "carried": list(done.carried.get(name, ())) if swapped else [],
            }
        )
    before, after = cost(module, size), cost(done.module, size)
    record: dict[str, Any] = {
        "output": str(output),
        "network": checkpoint.source.name,
        "input": list(size),
        "kind": options.to,
        "identity": options.identity,
        "blocks": blocks,
        "params": [before.params, after.params],
        "macs": [before.macs, after.macs],
        "size_bytes": [before.size_bytes, after.size_bytes],
    }
    changed = checkpoint.derive(
        done.module,
        edits=(done.edit,),
        command="attention",
        to=options.to,
        seed=options.seed,
        blocks=blocks,
    )
    save(changed, output, force=options.force)
    return StageResult(record, (output,))


STAGE = Stage(AttentionOptions, run, "compress attention model.pt --to cbam --after cpm -o attentive.pt")
