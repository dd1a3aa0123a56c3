"""Swap the attention blocks of a network, or insert some."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from compress.checkpoint import save_checkpoint, snapshot
from compress.files import refuse_existing
from compress.model.cost import cost
from compress.networks.attention import Attention
from compress.stages.base import Progress, StageResult, option
from compress.stages.models import ModelOptions, SizeOptions, counting_size, load
from compress.stages.registry import Stage
from compress.surgery.attention import swap_attention


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
        None, "Checkpoint to write (default: beside the model, the kind added)", flag="-o", output=True
    )
    force: bool = option(False, "Replace existing outputs")


def run(options: AttentionOptions, progress: Progress) -> StageResult:
    """Swap or insert blocks, and write the network with the edit that replays it."""
    output = options.output or options.model.with_name(f"{options.model.stem}-{options.to}.pt")
    refuse_existing(output, options.force)
    checkpoint = load(options)
    module = checkpoint.build()
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
        "network": checkpoint.network.name,
        "input": list(size),
        "kind": options.to,
        "identity": options.identity,
        "blocks": blocks,
        "params": [before.params, after.params],
        "macs": [before.macs, after.macs],
        "size_bytes": [before.size_bytes, after.size_bytes],
    }
    changed = snapshot(
        checkpoint,
        done.module,
        edits=(done.edit,),
        command="attention",
        to=options.to,
        seed=options.seed,
        blocks=blocks,
    )
    save_checkpoint(changed, output, force=options.force)
    return StageResult(record, (output,))


STAGE = Stage(AttentionOptions, run, "compress attention model.pt --to cbam --after cpm -o attentive.pt")
