"""State dicts: what they are wrapped in, and how their names are brought in line with a network's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.checkpoint.bare import HELD_AS
from compress.checkpoint.reading import SAVE_WEIGHTS_ALONE, Placeholder, contains_code
from compress.errors import CheckpointError
from compress.zoo.foreign import translated

#: Keys under which training programs put the state dict beside optimizer, epoch and scores, in order of preference.
WRAPPERS = ("state_dict", "model_state_dict", "model")

#: Tensors that training tools add: the number of averages of ``AveragedModel``, and the counters of thop.
_COUNTERS = ("n_averaged", "total_ops", "total_params")

#: What ``DataParallel`` and ``torch.compile`` put before every name; taken off without a notice.
_SILENT_PREFIXES = ("module.", "_orig_mod.")

#: At most this many names of one kind are listed in an error.
LISTED = 20

#: At most this many wrapped dicts or shared prefixes are taken off.
_DEPTH = 4


@dataclass(frozen=True)
class Weights:
    """A state dict, and what was changed about its names.

    Attributes
    ----------
    state : dict of str to Tensor
        Tensors by name.
    notices : tuple of str
        What was left out or renamed, in words.
    """

    state: dict[str, Tensor]
    notices: tuple[str, ...] = ()


def find_state(raw: object) -> Weights:
    """The state dict in what a file held.

    Parameters
    ----------
    raw : object
        What `compress.checkpoint.reading.read` returned.

    Raises
    ------
    CheckpointError
        If there is no state dict in it or several, or a value is not an ordinary tensor with values.
    """
    state, notices = raw, []
    for _ in range(_DEPTH):  # a file may wrap a dict in itself, so not without end
        key = _wrapper(state) if isinstance(state, Mapping) else None
        if key is None:
            break
        assert isinstance(state, Mapping)
        others = [name for name, value in state.items() if name != key and _is_state(value)]
        notices += [f"read {key}, not {', '.join(others)}"] if others else []
        state = state[key]
    if isinstance(state, Placeholder):
        raise contains_code(state.origin)
    if not isinstance(state, Mapping):
        raise CheckpointError("the file holds no state dict", found=type(state).__name__, hint=SAVE_WEIGHTS_ALONE)
    if not state:
        raise CheckpointError("the file's state dict is empty", hint=SAVE_WEIGHTS_ALONE)
    _refuse_odd(state)
    return Weights(dict(state), tuple(notices))


def _wrapper(state: Mapping[object, object]) -> str | None:
    """The key of the state dict inside a larger record; None where this is the state dict."""
    known = next((key for key in WRAPPERS if isinstance(state.get(key), Mapping)), None)
    if known is not None:
        return known
    nested = [key for key, value in state.items() if isinstance(key, str) and _is_state(value)]
    if len(nested) > 1:
        raise CheckpointError(
            f"the file holds several state dicts: {list_names(nested)}", hint="Save the one that you want alone"
        )
    return nested[0] if nested else None


def _is_state(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items())
    )


def _refuse_odd(state: Mapping[object, object]) -> None:
    odd = {key: value for key, value in state.items() if not isinstance(key, str) or not isinstance(value, Tensor)}
    if odd:
        stand_in = next((value for value in odd.values() if isinstance(value, Placeholder)), None)
        if stand_in is not None:
            raise contains_code(stand_in.origin)
        names = [key if isinstance(key, str) else f"a key of type {type(key).__name__}" for key in odd]
        raise CheckpointError(
            f"the file's state dict holds more than tensors: {list_names(names)}", hint=SAVE_WEIGHTS_ALONE
        )
    special = [str(key) for key, value in state.items() if isinstance(value, Tensor) and not _is_ordinary(value)]
    if special:
        raise CheckpointError(
            f"quantised, sparse and empty tensors can't be read: {list_names(special)}",
            hint="Save the weights of the float network",
        )


def variants(weights: Weights) -> Iterator[Weights]:
    """The state dict as it is, then with more and more of what training tools add to names taken off.

    First counters, wrappers of parts and pruning masks go, then prefixes that all names share.
    """
    yield weights
    state, notices = _without_counters(weights.state)
    plain = _without_part_wrappers(state)
    if plain != state:
        notices.append("took wrappers of parts off names")
    pruned = _without_masks(plain)
    if pruned.keys() != plain.keys():
        notices.append("multiplied pruned weights by their masks")
    current = Weights(pruned, (*weights.notices, *notices))
    if current.state.keys() != weights.state.keys():
        yield current
    for _ in range(_DEPTH):
        prefix = next(iter(current.state), "").partition(".")[0] + "."
        if not all(key.startswith(prefix) and key != prefix for key in current.state):
            return
        notice = () if prefix in _SILENT_PREFIXES else (f"took the prefix {prefix} off all names",)
        current = Weights(
            {key.removeprefix(prefix): value for key, value in current.state.items()}, (*current.notices, *notice)
        )
        yield current


def _without_counters(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    counters = [key for key in state if key.rpartition(".")[2] in _COUNTERS]
    if not counters:
        return state, []
    return {key: value for key, value in state.items() if key not in counters}, [f"left out {list_names(counters)}"]


def _without_part_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        name = ".".join(part for part in key.split(".") if part not in HELD_AS)
        if name in renamed or not name:
            return state  # two tensors would have one name
        renamed[name] = value
    return renamed


def _without_masks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of ``torch.nn.utils.prune`` as one tensor each."""
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removesuffix("_orig")
        mask = state.get(f"{name}_mask")
        if key.endswith("_mask") and f"{key.removesuffix('_mask')}_orig" in state:
            continue
        paired = name != key and mask is not None and mask.shape == value.shape
        result[name if paired else key] = value * mask.to(value.dtype) if paired and mask is not None else value
    return result


def fit(weights: Weights, module: nn.Module, name: str) -> Weights:
    """Bring a state dict in line with a network: its names, and the floating type of each of its tensors.

    Names are changed only where they do not fit as they are, and only in a way that leaves nothing missing or
    unexpected. The names that another toolkit gives the tensors of a registered network are translated. A missing
    ``num_batches_tracked`` becomes 0: files from before PyTorch 0.4.1 lack it.

    Parameters
    ----------
    weights : Weights
        As `find_state` gives it.
    module : nn.Module
        The network; only names, shapes and types of its tensors are read, so it may be on the meta device.
    name : str
        Its name, for the error.

    Raises
    ------
    CheckpointError
        If tensors are missing, unexpected, or of another shape or kind (with the names of all of them up to
        `LISTED`), or hold NaN or infinity.
    """
    expected: dict[str, Tensor] = module.state_dict()
    tried = [Weights(dict(translated(each.state, name)), each.notices) for each in variants(weights)]
    chosen = next((each for each in tried if _names_fit(each.state, expected)), None)
    chosen = chosen or _one_part(tried, expected) or _with_prefix(tried, expected)
    if chosen is None:
        chosen = min(tried, key=lambda each: len(each.state.keys() ^ expected.keys()))
    return Weights(_converted(chosen.state, expected, name), chosen.notices)


def _names_fit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    missing = expected.keys() - state.keys()
    return state.keys() <= expected.keys() and all(key.endswith("num_batches_tracked") for key in missing)


def _one_part(tried: Iterable[Weights], expected: Mapping[str, Tensor]) -> Weights | None:
    """The only part of a larger network, such as a training module with its loss, that fits."""
    for each in tried:
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in each.state.items():
            first, _, rest = key.partition(".")
            parts.setdefault(first, {})[rest] = value
        fitting = [first for first, part in parts.items() if _names_fit(part, expected)]
        if len(fitting) > 1:
            raise CheckpointError(
                "several parts of the state dict fit the network",
                found=fitting,
                hint="Save the state dict of the one that you want",
            )
        if fitting:
            others = list_names(first for first in parts if first not in fitting)
            return Weights(parts[fitting[0]], (*each.notices, f"read the part {fitting[0]}, left out {others}"))
    return None


def _with_prefix(tried: Iterable[Weights], expected: Mapping[str, Tensor]) -> Weights | None:
    """The state dict of the only child of a network."""
    prefix = next(iter(expected), "").partition(".")[0] + "."
    for each in tried:
        prefixed = {prefix + key: value for key, value in each.state.items()}
        if _names_fit(prefixed, expected):
            return Weights(prefixed, (*each.notices, f"put the prefix {prefix} before all names"))
    return None


def _converted(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    fitted: dict[str, Tensor] = {}
    missing: list[str] = []
    misshapen: list[str] = []
    for key, model in expected.items():
        if key in state:
            given = state[key]
            if given.shape != model.shape:
                misshapen.append(f"{key} {tuple(given.shape)} instead of {tuple(model.shape)}")
            elif given.is_floating_point() != model.is_floating_point() or given.is_complex() != model.is_complex():
                misshapen.append(f"{key} {_kind(given)} instead of {_kind(model)}")
            else:
                try:
                    fitted[key] = given.detach().to(dtype=model.dtype)
                except RuntimeError:  # packed formats of less than a byte have no conversion
                    misshapen.append(f"{key} {_kind(given)} instead of {_kind(model)}")
        elif key.endswith("num_batches_tracked"):
            fitted[key] = torch.zeros(model.shape, dtype=model.dtype)
        else:
            missing.append(key)
    unexpected = [key for key in state if key not in expected]
    faults = (("missing", missing), ("unexpected", unexpected), ("of another shape or kind", misshapen))
    if any(keys for _, keys in faults):
        listed = "; ".join(f"{len(keys)} {fault}: {list_names(keys)}" for fault, keys in faults if keys)
        raise CheckpointError(
            f"the weights do not fit the network {name}: {listed}",
            hint="Name the network that they belong to by --network, or network= in Python",
        )
    broken = [key for key, value in fitted.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"weights are not finite (NaN or infinity): {list_names(broken)}",
            hint="Take a checkpoint from before the training diverged",
        )
    return fitted


def _is_ordinary(value: Tensor) -> bool:
    return value.layout == torch.strided and not value.is_quantized and not value.is_meta and not value.is_nested


def _kind(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def list_names(names: Iterable[str]) -> str:
    """Names for an error: at most `LISTED`, each shortened to a readable length."""
    listed = [name if len(name) <= 120 else f"{name[:117]}..." for name in names]
    more = f", and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
    return ", ".join(listed[:LISTED]) + more
