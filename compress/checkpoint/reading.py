"""Reading checkpoint files of any origin without running code from them."""

from __future__ import annotations

import io
import json
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from compress.errors import CheckpointError

FORMAT = "compress-checkpoint"

SAVE_WEIGHTS_ALONE = "Where it was made, save the weights alone: torch.save(model.state_dict(), path)"

#: Files that are taken for checkpoints by mistake, by their suffix or by their first bytes.
_EXPORTED = (".onnx", ".xml")
_OTHERS = {
    b"\xff\xd8\xff": "a JPEG image", b"\x89PNG": "a PNG image", b"{": "JSON text", b"<": "XML or HTML text",
    b"version https://git-lfs": "a Git LFS pointer, not the file that it stands for",
}  # fmt: skip

#: A file may name at most about this many unknown classes that have to be found one by one.
_MOST_ATTEMPTS = 100

#: Modules whose functions no file has an innocent reason to name.
_HARMFUL = re.compile(r"(__builtin__|builtins|os|posix|nt|sys|subprocess|shutil|importlib|runpy|socket)\.")

#: Constructors of plain values, which stand-ins replace like unknown classes.
_CONSTRUCTORS = tuple(
    f"builtins.{name}"
    for name in ("bytes", "dict", "float", "frozenset", "int", "list", "object", "slice", "str", "tuple")
)


class Placeholder:
    """Stands for an object of a class that is not read: scores, settings or log records beside the weights.

    Its class is never looked up, so that no code of it can run; what the file says about the object is dropped.
    """

    origin = ""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _ListPlaceholder(Placeholder):
    """Stands for an object with items, which come as a plain list."""

    def __new__(cls, *args: object) -> Any:
        return []


class _DictPlaceholder(Placeholder):
    """Stands for an object with keys and values, which come as a plain dict."""

    def __new__(cls, *args: object) -> Any:
        return OrderedDict()


def read(content: bytes, suffix: str) -> object:
    """What a file holds, in the form of our record or as it is.

    Objects of unknown classes, such as NumPy values, come as `Placeholder`.

    Raises
    ------
    CheckpointError
        If the file is of another kind, damaged, or can't be read without running code.
    """
    if suffix in _EXPORTED:
        raise CheckpointError(
            "an exported model is no checkpoint",
            hint="Evaluate or benchmark it; for anything else take the checkpoint that it was made from",
        )
    length = int.from_bytes(content[:8], "little")
    if length < len(content) and content[8:9] == b"{":
        return _read_safetensors(content, length)
    for start, kind in _OTHERS.items():
        if content.startswith(start):
            raise CheckpointError(f"this is no checkpoint but {kind}", hint="Check the path")
    return _read_pickle(content)


def contains_code(name: str) -> CheckpointError:
    """The error for a file that names code where weights belong."""
    return CheckpointError("the file contains pickled code, which is never run", found=name, hint=SAVE_WEIGHTS_ALONE)


def _read_safetensors(content: bytes, length: int) -> object:
    try:
        weights = safetensors.torch.load(content)
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
        record = json.loads(metadata[FORMAT]) if FORMAT in metadata else None
        return weights if record is None else {**record, "state_dict": weights}
    except Exception as error:  # a damaged file can fail in any way
        raise _damaged(error) from error


def _read_pickle(content: bytes) -> object:
    try:
        names = get_unsafe_globals_in_checkpoint(io.BytesIO(content))
    except Exception:  # a file of the old format, or a damaged one: names are found one by one
        names = []
    kinds: dict[str, type[Placeholder]] = dict.fromkeys([*filter(_is_harmless, names), *_CONSTRUCTORS], Placeholder)
    for _ in range(_MOST_ATTEMPTS):
        try:
            return _load(content, kinds)
        except pickle.UnpicklingError as error:
            _learn(kinds, str(error), content, error)
        except Exception as error:  # a damaged file can fail in any way
            if "TorchScript" in str(error):
                raise CheckpointError(
                    "this is a TorchScript archive, which holds code", hint=SAVE_WEIGHTS_ALONE
                ) from None
            raise _damaged(error) from error
    raise contains_code("more unknown classes than are read")


def _load(content: bytes, kinds: Mapping[str, type[Placeholder]]) -> object:
    pairs: list[Any] = [
        (type(f"Placeholder{index}_", (kind,), {"origin": name}), name)
        for index, (name, kind) in enumerate(kinds.items())
    ]
    with warnings.catch_warnings(action="ignore"), safe_globals(pairs):
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _learn(kinds: dict[str, type[Placeholder]], message: str, content: bytes, error: Exception) -> None:
    """Add what a failed attempt says is missing; raises the error if nothing can be added."""
    stated = re.search(r"GLOBAL (\S+)", message)
    if stated:
        name = stated[1]
        if name in kinds or not _is_harmless(name) or "was not an allowed global" not in message:
            raise contains_code(name) from None
        kinds[name] = Placeholder
        return
    filled = re.search(r"Can only (append|extend|SETITEMS?) .*Placeholder(\d+)_", message)
    if filled:
        name = [*kinds][int(filled[2])]
        if kinds[name] is Placeholder:
            kinds[name] = _DictPlaceholder if filled[1].startswith("SETITEM") else _ListPlaceholder
            return
    unknown = next((name for name in kinds if name not in _CONSTRUCTORS), None)
    if unknown is not None:
        raise contains_code(unknown) from None
    if content[:1] == b"\x80":
        raise CheckpointError(
            "the file is a plain pickle, which could run code on loading, or a damaged one", hint=SAVE_WEIGHTS_ALONE
        ) from None
    raise _damaged(error) from error


def _is_harmless(name: str) -> bool:
    return not _HARMFUL.match(name)


def _damaged(error: Exception) -> CheckpointError:
    # Of torch's long message only the cause: the rest advises to read the file unsafely.
    text = str(error)
    lines = (text.partition("WeightsUnpickler error:")[2] or text).strip().splitlines()
    first = lines[0].split(". ")[0][:160] if lines and "weights_only" not in lines[0] else type(error).__name__
    return CheckpointError(
        f"the file can't be read as a checkpoint; it is damaged, cut off, or of another kind ({first})",
        hint="Fetch or write it again",
    )
