"""An ONNX file of ours as OpenVINO IR: a pair of files, ``.xml`` for the graph and ``.bin`` for the weights."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.errors import FileError, UsageError
from compress.exporters.ir_layers import layers_of, weights_of
from compress.exporters.to_onnx import read_metadata
from compress.files import refuse_existing
from compress.runtime.file_interface import SECTION
from compress.runtime.openvino_runner import shared_core

#: How weights can be stored.
WEIGHT_PRECISIONS = ("fp32", "fp16")


def export_openvino(onnx_path: Path, path: Path, *, precision: str = "fp32", force: bool = False) -> tuple[Path, Path]:
    """Write an ONNX file as OpenVINO IR.

    Parameters
    ----------
    onnx_path : Path
        A file that `compress.exporters.to_onnx.export_onnx` wrote.
    path : Path
        The ``.xml`` file; the weights go beside it, with the suffix ``.bin``.
    precision : {"fp32", "fp16"}
        How weights are stored; the precision of the arithmetic is chosen at run time.
    force : bool
        Replace existing files.

    Returns
    -------
    (Path, Path)
        The ``.xml`` and the ``.bin`` file.

    Raises
    ------
    FileError
        If one of the files exists already.
    UsageError
        If the suffix is not ``.xml`` or the precision is unknown.
    """
    with atomic_pair(path, force=force) as temporary:
        write_ir(onnx_path, temporary, precision=precision)
    return path, path.with_suffix(".bin")


def write_ir(onnx_path: Path, path: Path, *, precision: str = "fp32") -> None:
    """Convert and replace what is at ``path``, not atomically; `export_openvino` is the safe way.

    Our metadata goes into the IR's ``rt_info`` under `SECTION`, with the keys of the ONNX file.
    """
    import openvino

    if precision not in WEIGHT_PRECISIONS:
        raise UsageError("unknown precision of weights", found=precision, hint=f"Known: {', '.join(WEIGHT_PRECISIONS)}")
    model = read_folded(onnx_path)
    for key, value in read_metadata(onnx_path).items():
        model.set_rt_info(value, [SECTION, key])
    openvino.save_model(model, path, compress_to_fp16=precision == "fp16")


def read_folded(source: Path | bytes) -> Any:
    """An ONNX file, or what would be in one, as an ``openvino.Model`` whose constants are folded.

    Weights that are still reshaped in the graph would not be quantised as weights.
    """
    from openvino import passes

    # Not openvino.convert_model: it reports every use to a server unless the user has opted out. With constants
    # folded, the graph is the same.
    model = shared_core().read_model(source)
    names = {op.get_friendly_name(): weights_of(op).get_friendly_name() for op in layers_of(model)}
    folding = passes.Manager()
    folding.register_pass(passes.ConstantFolding())
    folding.run_passes(model)
    for op in layers_of(model):
        # Folding invents names for weights that it reshapes; theirs is the network's own name of the layer.
        weights_of(op).set_friendly_name(names.get(op.get_friendly_name(), weights_of(op).get_friendly_name()))
    model.validate_nodes_and_infer_types()
    return model


@contextmanager
def atomic_pair(path: Path, *, force: bool = True) -> Iterator[Path]:
    """Give a temporary ``.xml`` name; it and the ``.bin`` beside it are put in place together.

    The graph file vanishes first and comes back last, so a pair of old and new halves is never there to be read:
    whatever interrupts, a reader finds a whole pair or no graph. After an error in the block nothing has changed.

    Raises
    ------
    UsageError
        If the suffix is not ``.xml``.
    FileError
        If ``path`` or its ``.bin`` exists and ``force`` is false, or the folder can't be made.
    """
    if path.suffix != ".xml":
        raise UsageError("an OpenVINO file's name must end in .xml", found=str(path))
    weights = path.with_suffix(".bin")
    refuse_existing(path, force)
    refuse_existing(weights, force)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"the folder can't be made: {error.strerror}", found=str(path.parent)) from error
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}.", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        new_weights = temporary.with_suffix(".bin")
        for file in (temporary, new_weights):
            with file.open("rb") as written:
                os.fsync(written.fileno())
        path.unlink(missing_ok=True)
        new_weights.replace(weights)
        temporary.replace(path)
