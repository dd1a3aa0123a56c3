"""Attention blocks: swapped for another kind, or inserted after layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from compress.errors import CheckpointError, NetworkError, UsageError, similar
from compress.network.duplicate import duplicate
from compress.network.inputs import InputSpec, call, zero_inputs
from compress.network.layers import kind_of
from compress.surgery.edits import register_edit
from compress.surgery.substitute import replace_module
from compress.zoo.attention import (
    KINDS,
    MAX_CHANNELS,
    MAX_REDUCTION,
    Attention,
    Gate,
    SpatialOptions,
    build_attention,
    check_spatial,
    default_reduction,
)

#: Maximum number of names that an error lists.
MAX_LISTED = 20


@dataclass(frozen=True)
class BlockSpec:
    """The arguments of `compress.zoo.attention.build_attention`."""

    attention: str
    channels: int
    reduction: int
    identity: bool
    spatial: SpatialOptions = field(default_factory=SpatialOptions)

    def build(self) -> Attention:
        """The block with fresh weights."""
        return build_attention(
            self.attention, self.channels, self.reduction, identity=self.identity, spatial=self.spatial
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, fit for JSON; default options of the spatial gate are left out."""
        record = asdict(self)
        if self.spatial == SpatialOptions():
            del record["spatial"]
        return record


#: Builds a block from its specification and the block that it replaces, or None.
Build = Callable[[BlockSpec, Attention | None], Attention]


class Attended(nn.Module):
    """A layer followed by an attention block.

    The names of the layer's tensors gain ``layer.``. Attributes and submodules of the layer can still be reached under
    their old names.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.layer: nn.Module = nn.Identity()
        self.attention = attention

    def __getattr__(self, name: str) -> Any:
        """Attributes that this module lacks are the layer's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            layer = self.__dict__.get("_modules", {}).get("layer")
            if layer is None:
                raise
            return getattr(layer, name)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output, weighted by the attention block."""
        y: Tensor = self.attention(self.layer(*args, **kwargs))
        return y


@register_edit
@dataclass(frozen=True)
class AttentionEdit:
    """Attention blocks swapped for others, and inserted after layers.

    Attributes
    ----------
    swaps : mapping
        Name of a block in the network to its replacement.
    inserts : mapping
        Name of any other module to the block inserted after it. All names are those before the edit.
    """

    swaps: Mapping[str, BlockSpec]
    inserts: Mapping[str, BlockSpec]

    kind: ClassVar[str] = "attention"

    def apply(self, module: nn.Module) -> nn.Module:
        """Swap and insert the blocks, with fresh weights."""
        return self.apply_with(module, lambda spec, old: spec.build())

    def apply_with(self, module: nn.Module, build: Build) -> nn.Module:
        """Swap and insert blocks made by ``build``, in place.

        Raises
        ------
        CheckpointError
            If the edit does not fit the network.
        """
        swapped = [(_submodule(module, name), spec, name) for name, spec in self.swaps.items()]
        layers = [(_submodule(module, name), spec) for name, spec in self.inserts.items()]
        for layer, spec in layers:
            wrapper = Attended(_like(build(spec, None), layer, module))
            module = replace_module(module, layer, wrapper)
            # Only now: the layer is replaced everywhere, so its replacement must not contain it yet.
            wrapper.layer = layer
        for old, spec, name in swapped:
            if not isinstance(old, Attention) or old.channels != spec.channels:
                raise CheckpointError(
                    f"{name} is not an attention block of {spec.channels} channels", found=str(old)[:80]
                )
            module = replace_module(module, old, _like(build(spec, old), old, module))
        return module

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, fit for JSON."""
        parts = {"swaps": self.swaps, "inserts": self.inserts}
        return {"kind": self.kind, **{k: {name: spec.to_dict() for name, spec in v.items()} for k, v in parts.items()}}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> AttentionEdit:
        """Read what `to_dict` wrote; `CheckpointError` if it is anything else."""
        if set(record) != {"swaps", "inserts"} or not all(isinstance(v, Mapping) for v in record.values()):
            raise CheckpointError("an attention edit has the keys swaps and inserts", found=sorted(map(str, record)))
        swaps, inserts = (
            {name: _read_spec(name, entry) for name, entry in record[key].items()} for key in ("swaps", "inserts")
        )
        return cls(swaps, inserts)


@dataclass(frozen=True)
class Swapped:
    """A network with swapped or inserted attention blocks.

    Attributes
    ----------
    module : nn.Module
        The new network.
    edit : AttentionEdit
        The change, to be replayed.
    carried : mapping
        For each swapped block the names, inside it, of the tensors that keep the old block's weights.
    """

    module: nn.Module
    edit: AttentionEdit
    carried: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class AttentionOptions:
    """How new attention blocks are made.

    Attributes
    ----------
    reduction : int or None
        Reduction ratio of the channel gate; None: that of the replaced block if both kinds' papers use the same, else
        that of the new kind's paper.
    identity : bool
        Whether new gates are identity-initialised, so that an inserted block changes no output before training. False
        makes the plain blocks of the papers.
    seed : int
        Seed of the fresh weights.
    spatial : SpatialOptions or None
        Reading of the spatial gates of ``esa_*``; None: that of the replaced block where it fits, else the default.
    """

    reduction: int | None = None
    identity: bool = True
    seed: int = 0
    spatial: SpatialOptions | None = None


def swap_blocks(
    module: nn.Module,
    kind: str,
    inputs: Sequence[InputSpec],
    *,
    at: Sequence[str] = (),
    after: Sequence[str] = (),
    options: AttentionOptions | None = None,
) -> Swapped:
    """Swap attention blocks, or insert them after layers.

    New blocks are identity-initialised: with inserted blocks a network computes the same output as before. A swapped
    block acts only by the gates that it keeps: a gate of the old block whose tensors all match one of the new block by
    name and shape keeps its weights and stays open (in the ``esa`` kinds only together with the spatial gate). So a
    block of the same kind and options changes nothing, and neither does ``se`` to ``se_spatial``.

    Parameters
    ----------
    module : nn.Module
        The network; it is not changed and shares nothing with the new one.
    kind : str
        Kind of the new blocks, one of `compress.zoo.attention.KINDS`.
    inputs : sequence of InputSpec
        What the network reads: feature maps are found, and the new network is tried, at these shapes.
    at : sequence of str
        Names or patterns of the blocks to swap; empty means all of them, or none if ``after`` is given.
    after : sequence of str
        Names or patterns of modules to insert a block after.
    options : AttentionOptions, optional
        Reduction, initialisation and seed.

    Raises
    ------
    UsageError
        If a name or pattern matches nothing, or there is no block to swap; the hint lists what could match.
    NetworkError
        If the kind or reduction is unknown, a module to insert after returns no feature map, or the network's code
        does not work with the new blocks.
    """
    options = options or AttentionOptions()
    blocks = {name: part for name, part in module.named_modules() if isinstance(part, Attention)}
    swaps = {}
    for name in _chosen_blocks(blocks, at, after):
        old = blocks[name]
        kept = old.reduction if default_reduction(kind) == default_reduction(old.kind) else None
        reduction = kept if options.reduction is None else options.reduction
        swaps[name] = _spec(
            kind, old.channels, replace(options, reduction=reduction, spatial=options.spatial or _kept(kind, old))
        )
    layers = _chosen_layers(module, blocks, after)
    inserts = {
        name: _spec(kind, channels, options)
        for name, channels in (_channels(module, layers, inputs) if layers else {}).items()
    }
    edit = AttentionEdit(swaps, inserts)
    network = duplicate(module)
    names = {network.get_submodule(name): name for name in swaps}
    carried: dict[str, tuple[str, ...]] = {}

    def build(spec: BlockSpec, old: Attention | None) -> Attention:
        new = spec.build()
        if old is not None:
            carried[names[old]] = _carry_over(old, new)
        return new

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network = edit.apply_with(network, build)
    _channels(network, [*swaps, *(f"{name}.attention" for name in inserts)], inputs)
    return Swapped(network, edit, carried)


def _spec(kind: str, channels: int, options: AttentionOptions) -> BlockSpec:
    with torch.device("meta"):  # reports what can't be built before anything is changed
        block = build_attention(kind, channels, options.reduction, identity=options.identity, spatial=options.spatial)
    return BlockSpec(kind, channels, block.reduction, options.identity, block.spatial)


def _kept(kind: str, old: Attention) -> SpatialOptions | None:
    """The options of the old block's spatial gate, if the new one can have them."""
    try:
        check_spatial(kind, old.channels, old.spatial)
    except NetworkError:
        return None
    return old.spatial


def _chosen_blocks(blocks: Mapping[str, Attention], at: Sequence[str], after: Sequence[str]) -> list[str]:
    """Names of the blocks to swap."""
    if not at:
        if not blocks and not after:
            raise UsageError(
                "the network has no attention blocks to swap",
                hint="Insert some after layers: --after LAYER, with a name or pattern of compress inspect",
            )
        return [] if after else list(blocks)
    for pattern in at:
        if not any(fnmatchcase(name, pattern) for name in blocks):
            known = f"Blocks: {_names(blocks)}" if blocks else "The network has none; insert some by --after LAYER"
            raise UsageError("no attention block matches this name or pattern", found=pattern, hint=known)
    return [name for name in blocks if any(fnmatchcase(name, pattern) for pattern in at)]


def _chosen_layers(module: nn.Module, blocks: Mapping[str, Attention], after: Sequence[str]) -> list[str]:
    """Names of the modules to insert after."""
    inside = tuple(f"{name}." for name in blocks)
    names = [name for name, _ in module.named_modules() if name and not name.startswith(inside)]
    for pattern in after:
        if not any(fnmatchcase(name, pattern) for name in names):
            layers = (name for name in names if kind_of(module.get_submodule(name)) == "conv")
            raise UsageError(
                f"no module matches this name or pattern{similar(pattern, names)}",
                found=pattern,
                hint=f"Convolutions: {_names(layers)}",
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in after)]


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    more = f", and {len(listed) - MAX_LISTED} more" if len(listed) > MAX_LISTED else ""
    return ", ".join(listed[:MAX_LISTED]) + more


def _carry_over(old: Attention, new: Attention) -> tuple[str, ...]:
    """Copy the weights of every gate that fits; the names of the copied tensors."""
    copied: list[str] = []
    gates = dict(old.named_children())
    for name, gate in new.named_children():
        before = gates.get(name)
        if not isinstance(gate, Gate) or not isinstance(before, Gate) or not gate.same_function(before):
            continue
        theirs, ours = before.state_dict(), gate.state_dict()
        blend = theirs.pop("blend", None)
        fits = {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in ours.items() if k != "blend"}
        if not fits or (blend is not None and gate.blend is None):
            continue
        copied += [f"{name}.{key}" for key in theirs]
        if gate.blend is not None:
            # A plain gate equals a blended one with blend 1.
            theirs["blend"] = torch.ones(()) if blend is None else blend
        gate.load_state_dict({key: value.detach() for key, value in theirs.items()})
    return tuple(copied)


def _channels(module: nn.Module, names: Sequence[str], inputs: Sequence[InputSpec]) -> dict[str, int]:
    """Channels of the feature maps that modules return, from a run on the meta device if the network allows that.

    Raises `NetworkError` if the network can't be run, or a module is never called or returns no feature map.
    """
    try:
        outputs = _run(module, names, inputs, "meta")
    except Exception:  # whatever the network's code raises; the second attempt reports it
        try:
            outputs = _run(module, names, inputs, None)
        except Exception as error:
            shapes = ", ".join(str(spec.shape) for spec in inputs)
            raise NetworkError(
                f"the network can't be run on inputs of shape {shapes}: {type(error).__name__}: {error}",
                hint="Choose another input size, or other layers: the network's code may depend on the type of a layer",
            ) from error
    channels = {}
    for name in names:
        calls = outputs.get(name, [])
        maps = [y for y in calls if isinstance(y, Tensor) and y.ndim == 4]
        if not maps or len(maps) != len(calls) or len({y.shape[1] for y in maps}) > 1:
            reason = "returns no feature map" if calls else "is never called"
            raise NetworkError("attention needs a feature map (N, C, h, w)", found=f"{name} {reason}")
        channels[name] = int(maps[0].shape[1])
    return channels


def _run(
    module: nn.Module, names: Sequence[str], inputs: Sequence[InputSpec], target: str | None
) -> dict[str, list[object]]:
    network = duplicate(module, target).eval()
    some = next((p for p in (*network.parameters(), *network.buffers()) if p.is_floating_point()), torch.empty(0))
    device = torch.device(target) if target else some.device
    outputs: dict[str, list[object]] = {}
    for name in names:
        network.get_submodule(name).register_forward_hook(
            lambda _part, _inputs, output, name=name: outputs.setdefault(name, []).append(output)
        )
    with torch.random.fork_rng(devices=[]), torch.no_grad(), device:
        call(network, zero_inputs(inputs, device, some.dtype))
    return outputs


def _submodule(module: nn.Module, name: str) -> nn.Module:
    try:
        part = module.get_submodule(name)
    except AttributeError:
        part = module
    if part is module:
        raise CheckpointError("an edit names a layer that the network does not have", found=name)
    return part


def _like(new: Attention, old: nn.Module, module: nn.Module) -> Attention:
    """The block on the network's device, in its precision, and in the mode of the module that it belongs to."""
    some = next((p for p in module.parameters() if p.is_floating_point()), None)
    if some is not None:
        new = new.to(device=some.device, dtype=some.dtype)
    return new.train(old.training)


def _read_spec(name: Any, entry: Any) -> BlockSpec:
    try:
        spatial = SpatialOptions(**entry.get("spatial", {}))
        spec = BlockSpec(**{**entry, "spatial": spatial})
        numbers = ((spec.channels, MAX_CHANNELS), (spec.reduction, MAX_REDUCTION))
        if not isinstance(name, str) or type(spec.identity) is not bool or spec.attention not in KINDS:
            raise ValueError
        if any(type(value) is not int or not 1 <= value <= most for value, most in numbers):
            raise ValueError
        check_spatial(spec.attention, spec.channels, spatial)
    except (AttributeError, TypeError, ValueError, NetworkError):
        raise CheckpointError(f"an attention edit can't be read at {name}", found=entry) from None
    return spec
