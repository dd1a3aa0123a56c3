"""Reading checkpoint files of any origin without running code from them."""

from __future__ import annotations

import io
import json
import pickle
import re
import warnings
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

#: At most this many classes of other programs are replaced by placeholders in one file.
_MOST_PLACEHOLDERS = 100

#: Modules whose functions no file has an innocent reason to name.
_HARMFUL = re.compile(r"(__builtin__|builtins|os|posix|nt|sys|subprocess|shutil|importlib|runpy|socket)\.")


class Placeholder:
    """Stands for an object of a class that is not read: scores, settings or log records beside the weights.

    Its class is never looked up, so that no code of it can run; what the file says about the object is dropped.
    """

    origin = ""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


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
    placeholders = {name: _placeholder(name) for name in names[:_MOST_PLACEHOLDERS] if not _HARMFUL.match(name)}
    while True:
        try:
            return _load(content, placeholders)
        except pickle.UnpicklingError as error:
            stated = re.search(r"GLOBAL (\S+)", str(error))
            name = stated[1] if stated else ""
            blocked = name in placeholders or _HARMFUL.match(name) or "was not an allowed global" not in str(error)
            if not stated and placeholders:
                raise contains_code(next(iter(placeholders))) from None
            if not stated and content[:1] == b"\x80":
                raise CheckpointError(
                    "the file is a plain pickle, which could run code on loading, or a damaged one",
                    hint=SAVE_WEIGHTS_ALONE,
                ) from None
            if not stated:
                raise _damaged(error) from error
            if blocked or len(placeholders) >= _MOST_PLACEHOLDERS:
                raise contains_code(name) from None
            placeholders[name] = _placeholder(name)
        except Exception as error:  # a damaged file can fail in any way
            if "TorchScript" in str(error):
                raise CheckpointError(
                    "this is a TorchScript archive, which holds code", hint=SAVE_WEIGHTS_ALONE
                ) from None
            raise _damaged(error) from error


def _load(content: bytes, placeholders: dict[str, type[Placeholder]]) -> object:
    pairs: list[Any] = [(stand_in, name) for name, stand_in in placeholders.items()]
    with warnings.catch_warnings(action="ignore"), safe_globals(pairs):
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _placeholder(name: str) -> type[Placeholder]:
    return type("Placeholder", (Placeholder,), {"origin": name})


def _damaged(error: Exception) -> CheckpointError:
    # Of torch's long message only the cause: the rest advises to read the file unsafely.
    text = str(error)
    lines = (text.partition("WeightsUnpickler error:")[2] or text).strip().splitlines()
    first = lines[0].split(". ")[0][:160] if lines and "weights_only" not in lines[0] else type(error).__name__
    return CheckpointError(
        f"the file can't be read as a checkpoint; it is damaged, cut off, or of another kind ({first})",
        hint="Fetch or write it again",
    )
