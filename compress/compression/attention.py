"""Swapping or inserting attention blocks of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compress.model import Model
from compress.surgery.attention import AttentionOptions as AttentionOptions
from compress.surgery.attention import swap_blocks
from compress.zoo.attention import Attention


def swap_attention(
    model: Model,
    to: str,
    *,
    at: Sequence[str] = (),
    after: Sequence[str] = (),
    options: AttentionOptions | None = None,
) -> Model:
    """Swap the attention blocks of a model for another kind, or insert blocks after layers.

    Gates of an old block that fit the new one keep their weights: `compress.surgery.attention.swap_blocks`.

    Parameters
    ----------
    model : Model
        The model; it is not changed.
    to : str
        Kind of the new blocks, one of `compress.zoo.attention.KINDS`.
    at : sequence of str
        Names or patterns of the blocks to swap; empty means all of them, or none if ``after`` is given.
    after : sequence of str
        Names or patterns of modules to insert a block after.
    options : AttentionOptions, optional
        Reduction, initialisation and seed.

    Returns
    -------
    Model
        The model with the edit; the last record of its history lists the blocks.

    Raises
    ------
    UsageError
        If a name or pattern matches nothing, or there is no block to swap.
    NetworkError
        If the kind or reduction is unknown, a module to insert after returns no feature map, or the network's code
        does not work with the new blocks.
    """
    options = options or AttentionOptions()
    at, after = ((names,) if isinstance(names, str) else tuple(names) for names in (at, after))
    done = swap_blocks(model.module, to, model.inputs, at=at, after=after, options=options)
    blocks: list[dict[str, Any]] = []
    for name, spec in (*done.edit.swaps.items(), *done.edit.inserts.items()):
        old = model.module.get_submodule(name)
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
    return model.derive(done.module, edits=(done.edit,), command="attention", to=to, seed=options.seed, blocks=blocks)
