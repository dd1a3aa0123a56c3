"""Reading checkpoint files of any origin without running code from them."""

from __future__ import annotations

import io
import json
import pickle
import re
import warnings

import safetensors.torch
import torch

from compress.errors import CheckpointError

FORMAT = "compress-checkpoint"

_HOW_TO_SAVE = "Where it was made, save the weights alone: torch.save(model.state_dict(), path)"

#: Files that are taken for checkpoints by mistake, by their suffix or by their first bytes.
_EXPORTED = (".onnx", ".xml")
_OTHERS = {
    b"\xff\xd8\xff": "a JPEG image", b"\x89PNG": "a PNG image", b"{": "JSON text", b"<": "XML or HTML text",
    b"version https://git-lfs": "a Git LFS pointer, not the file that it stands for",
}  # fmt: skip


def read(content: bytes, suffix: str) -> object:
    """What a file holds, in the form of our record or as it is."""
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
        with warnings.catch_warnings(action="ignore"):  # what torch makes of other people's pickles is in the error
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None and content[:1] == b"\x80":
            raise CheckpointError(
                "the file is a plain pickle, which could run code on loading, or a damaged one", hint=_HOW_TO_SAVE
            ) from None
        if wanted is None:
            raise _damaged(error) from error
        raise CheckpointError(
            "the file wants to run code on loading, and no file is trusted with that",
            found=wanted[1],
            hint=_HOW_TO_SAVE,
        ) from None
    except Exception as error:  # a damaged file can fail in any way
        if "TorchScript" in str(error):
            raise CheckpointError("this is a TorchScript archive, which holds code", hint=_HOW_TO_SAVE) from None
        raise _damaged(error) from error


def _damaged(error: Exception) -> CheckpointError:
    # Of torch's long message only the cause: the rest advises to read the file unsafely.
    text = str(error)
    lines = (text.partition("WeightsUnpickler error:")[2] or text).strip().splitlines()
    first = lines[0].split(". ")[0][:160] if lines and "weights_only" not in lines[0] else type(error).__name__
    return CheckpointError(
        f"the file can't be read as a checkpoint; it is damaged, cut off, or of another kind ({first})",
        hint="Fetch or write it again",
    )
