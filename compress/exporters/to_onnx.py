"""A network as one ONNX file that takes any batch, height and width.

The graph comes from ``torch.export`` with symbolic sizes, so an operation that only works at the example's size is an
error at export and not a wrong result at another size. A traced graph (the exporter before it) would be written
faster but keeps such sizes silently.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim

import compress
from compress.errors import NetworkError
from compress.exporters.peaks_graph import PeakFinder, PeakOptions
from compress.files import atomic_path, refuse_existing
from compress.network.duplicate import duplicate
from compress.network.source import NetworkSpec
from compress.pose.spec import PoseSpec
from compress.runtime.runner import PEAKS

if TYPE_CHECKING:
    from onnx import ModelProto

#: The operator set that torch's exporter writes without converting; every current runtime reads it.
OPSET = 18

#: Name of the input.
INPUT = "images"

#: Prefix of our keys in the file's metadata.
PREFIX = "compress."

#: What the sides of an input may have to be multiples of: the strides that networks have.
MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128)

#: An ONNX file is one protobuf message, which can't reach 2 GiB.
_MOST_BYTES = 2**31 - 2**24

_AXES = {0: "batch", 2: "height", 3: "width"}


class _FinalMaps(nn.Module):
    """The last stage's maps as a tuple in the order of the pose specification, and their peaks if they are wanted."""

    def __init__(self, module: nn.Module, outputs: tuple[str, ...], finder: nn.Module | None) -> None:
        super().__init__()
        self.module = module
        self.outputs = outputs
        self.finder = finder

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.module(images)[-1]
        found = tuple(maps[name] for name in self.outputs)
        return found if self.finder is None else (*found, self.finder(maps["heatmaps"]))


def export_onnx(
    module: nn.Module,
    pose: PoseSpec,
    path: Path,
    *,
    network: NetworkSpec | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    opset: int = OPSET,
    example_size: tuple[int, int] = (128, 160),
    peaks: PeakOptions | None = None,
    force: bool = False,
) -> Path:
    """Write the final maps of a network as ONNX.

    Parameters
    ----------
    module : nn.Module
        A network as the registry builds it; it stays as it was. A copy is exported from the CPU, in evaluation mode
        (batch normalisation folded into convolutions) and in float32.
    pose : PoseSpec
        Its ``outputs`` name the file's outputs, in order; the whole record goes into the metadata under
        ``compress.pose`` as JSON.
    path : Path
        Where to write.
    network : NetworkSpec, optional
        Name and options for the metadata.
    history : sequence of mapping
        What was done to the network; numbers and short texts of each entry go into the metadata.
    opset : int
        Version of the operator set, 18 or later.
    example_size : (int, int)
        Height and width of the example that is followed through the network; both are raised to multiples of what the
        network takes, and the width above the height where they were equal.
    peaks : PeakOptions, optional
        Find the peaks of the heatmaps inside the graph, too, as one more output ``peaks`` (batch, joints, top_k, 3):
        x, y in cells and height (`compress.exporters.peaks_graph.PeakFinder`). The options go into the metadata.
    force : bool
        Replace an existing file.

    Returns
    -------
    Path
        ``path``. The input is ``images`` (batch, 3, height, width), float32.

    Raises
    ------
    FileError
        If the file exists already.
    NetworkError
        If the network lacks an output, can't be exported for any size, or is too large for one file.
    """
    import onnx

    refuse_existing(path, force)
    finder = None if peaks is None else PeakFinder(len(pose.joints.joints), pose.stride, peaks)
    copy = _FinalMaps(duplicate(module).to("cpu", torch.float32), pose.outputs, finder).eval().requires_grad_(False)
    size_bytes = sum(t.numel() * t.element_size() for t in (*copy.parameters(), *copy.buffers()))
    if size_bytes > _MOST_BYTES:
        raise NetworkError("the network is too large for one ONNX file", found=f"{size_bytes / 1e9:.2f} GB")
    multiple = side_multiple(copy.module)
    # A batch of one would be taken for a constant, and so would a side of one multiple or two equal sides.
    height, width = (max(2, -(-side // multiple)) * multiple for side in example_size)
    example = torch.zeros(2, 3, height, width + multiple if width == height else width)
    _check_outputs(copy.module, pose.outputs, example)
    outputs = pose.outputs if peaks is None else (*pose.outputs, PEAKS)
    model = _graph(copy, outputs, example, opset, multiple)
    _check_sizes_are_free(model)
    _remove_traces(model)
    model.producer_name, model.producer_version = "compress", compress.__version__
    for key, value in _metadata(pose, network, history, peaks).items():
        model.metadata_props.add(key=PREFIX + key, value=value)
    with atomic_path(path, force=force) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(temporary), full_check=True)
    return path


def side_multiple(module: nn.Module) -> int:
    """What the sides of a network's input must be multiples of, tried out: one of `MULTIPLES`, 1 if none runs."""
    probe = duplicate(module).to("meta")
    for multiple in MULTIPLES:
        odd = 128 // multiple + 1
        try:
            with torch.no_grad():
                probe(torch.empty(1, 3, odd * multiple, (odd + 2) * multiple, device="meta"))
        except (RuntimeError, ValueError):
            continue
        return multiple
    return 1


def read_metadata(path: Path) -> dict[str, str]:
    """Our own metadata of an ONNX file, keys without their prefix; empty for a file from elsewhere."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    return {p.key.removeprefix(PREFIX): p.value for p in model.metadata_props if p.key.startswith(PREFIX)}


def _check_outputs(module: nn.Module, outputs: tuple[str, ...], example: Tensor) -> None:
    with torch.no_grad():
        maps = module(example)[-1]
    missing = [name for name in outputs if name not in maps]
    if missing:
        raise NetworkError(
            f"the network's last stage has no {', '.join(missing)}",
            found=sorted(maps),
            hint="Name its outputs in the pose specification",
        )


def _graph(module: nn.Module, outputs: tuple[str, ...], example: Tensor, opset: int, multiple: int) -> ModelProto:
    free: dict[int, Any] = dict.fromkeys(_AXES, Dim.DYNAMIC)
    if multiple > 1:
        # Divisions without a rest: whether sizes agree that are halved in different ways can't be solved otherwise.
        free |= {axis: multiple * Dim(_AXES[axis]) for axis in (2, 3)}
    try:
        with _quiet(), torch.no_grad():
            # Not left to torch.onnx.export: it retries with sizes fixed where the free ones fail, and says nothing.
            program = torch.export.export(module, (example,), dynamic_shapes=(free,), strict=False)
            converted = torch.onnx.export(
                program,
                dynamo=True,
                input_names=[INPUT],
                output_names=list(outputs),
                dynamic_shapes=(_AXES,),
                opset_version=opset,
                external_data=False,
                verbose=False,
            )
    except RuntimeError as error:
        raise NetworkError(
            "the network can't be exported to ONNX for every batch, height and width",
            found=next((line for line in str(error).splitlines() if line.strip()), type(error).__name__),
            hint="Replace operations that need sizes or values known in advance",
        ) from error
    if converted is None:
        raise RuntimeError("torch.onnx.export gave no program")
    return converted.model_proto


def _check_sizes_are_free(model: ModelProto) -> None:
    for item in (*model.graph.input, *model.graph.output):
        shape = item.type.tensor_type.shape.dim
        axes = {0: _AXES[0]} if item.name == PEAKS else _AXES
        fixed = {name: shape[axis].dim_value for axis, name in axes.items() if not shape[axis].dim_param}
        if fixed:
            raise NetworkError(f"the exported network's {item.name} have one size only", found=fixed)


def _remove_traces(model: ModelProto) -> None:
    """Drop what the exporter notes at each node: stack traces, which name files of this machine."""
    graph = model.graph
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    graph.ClearField("metadata_props")


def _metadata(
    pose: PoseSpec, network: NetworkSpec | None, history: Sequence[Mapping[str, Any]], peaks: PeakOptions | None
) -> dict[str, str]:
    record = {"pose": json.dumps(pose.to_dict()), "version": compress.__version__}
    if peaks is not None:
        record["peaks"] = json.dumps(peaks.to_dict())
    if network is not None:
        record["network"] = json.dumps({"name": network.name, "options": dict(network.options)})
    if history:
        record["history"] = json.dumps([{k: v for k, v in entry.items() if _is_short(v)} for entry in history])
    return record


def _is_short(value: object) -> bool:
    return isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= 200)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress lines, its advice and its notes about packages it does not need."""
    threshold = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(threshold)
