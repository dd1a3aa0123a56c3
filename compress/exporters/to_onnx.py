"""A network as one ONNX file that takes any batch, height and width where the network does.

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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim

import compress
from compress.errors import NetworkError, UsageError
from compress.exporters.peaks_graph import PeakFinder, PeakOptions
from compress.files import atomic_path, refuse_existing
from compress.model import Model
from compress.network.duplicate import duplicate
from compress.network.inputs import InputSpec, zero_inputs
from compress.network.outputs import Outputs, describe, read_once
from compress.pose.decoders.registry import get_decoder
from compress.progress import Progress, Silent
from compress.runtime.file_interface import SECTION
from compress.runtime.runner import PEAKS

if TYPE_CHECKING:
    from onnx import ModelProto

#: The operator set that torch's exporter writes without converting; every current runtime reads it.
OPSET = 18

#: Name of the input of a network that reads images.
INPUT = "images"

#: Prefix of our keys in the file's metadata.
PREFIX = f"{SECTION}."

#: What the sides of an input may have to be multiples of: the strides that networks have.
MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128)

#: Least height and width of the example that is followed through a network of free size.
_EXAMPLE_SIZE = (128, 160)

#: An ONNX file is one protobuf message, which can't reach 2 GiB.
_MOST_BYTES = 2**31 - 2**24

_BATCH, _HEIGHT, _WIDTH = "batch", "height", "width"


@dataclass(frozen=True)
class _Sizes:
    """An example of the inputs, and which of their axes are free.

    Attributes
    ----------
    inputs : tuple of InputSpec
        Shapes of the example.
    axes : tuple of dict of int to str
        For each input the names of its free axes.
    multiple : int
        What free heights and widths are multiples of.
    """

    inputs: tuple[InputSpec, ...]
    axes: tuple[dict[int, str], ...]
    multiple: int = 1

    @property
    def free(self) -> set[str]:
        """Names of all free axes."""
        return {name for axes in self.axes for name in axes.values()}


class _FinalOutputs(nn.Module):
    """The final outputs as a tuple in the order of their names, and the peaks of heatmaps if they are wanted."""

    def __init__(self, module: nn.Module, reader: Outputs, names: tuple[str, ...], finder: nn.Module | None) -> None:
        super().__init__()
        self.module = module
        self.reader = reader
        self.names = names
        self.finder = finder

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        final = self.reader.final(self.module(*inputs))
        values = tuple(final[name] for name in self.names)
        return values if self.finder is None else (*values, self.finder(final["heatmaps"]))


def export_onnx(
    model: Model,
    path: Path,
    *,
    opset: int = OPSET,
    peaks: PeakOptions | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write the final outputs of a network as ONNX.

    Parameters
    ----------
    model : Model
        The network; it stays as it was. A copy is exported from the CPU, in evaluation mode (batch normalisation
        folded into convolutions) and in float32. The names of its outputs are those of the pose specification, in
        order; without one, all outputs by their own names. Metadata: ``compress.pose`` holds the pose specification
        or ``compress.outputs`` the names, as JSON; name and options of the network, and numbers and short texts of
        its history follow.
    path : Path
        Where to write.
    opset : int
        Version of the operator set, 18 or later.
    peaks : PeakOptions, optional
        Find the peaks of the heatmaps inside the graph, too, as one more output ``peaks`` (batch, joints, top_k, 3):
        x, y in cells and height (`compress.exporters.peaks_graph.PeakFinder`). The options go into the metadata.
    force : bool
        Replace an existing file.
    progress : Progress, optional
        Told where the file takes inputs of one size only, because the network does.

    Returns
    -------
    Path
        ``path``. The input of a network with one is ``images`` (batch, channels, height, width), float32.

    Raises
    ------
    FileError
        If the file exists already.
    NetworkError
        If the network lacks an output, can't be exported, can't be exported for any size although its decoder needs
        that, or is too large for one file.
    UsageError
        If peaks are asked of a network without heatmaps.
    """
    import onnx

    refuse_existing(path, force)
    finder = _finder(model, peaks)
    module = duplicate(model.module).to("cpu", torch.float32).eval()
    names = _output_names(model, module)
    copy = _FinalOutputs(module, model.outputs, names, finder).eval().requires_grad_(False)
    size_bytes = sum(t.numel() * t.element_size() for t in (*copy.parameters(), *copy.buffers()))
    if size_bytes > _MOST_BYTES:
        raise NetworkError("the network is too large for one ONNX file", found=f"{size_bytes / 1e9:.2f} GB")
    graph, sizes = _first_that_works(model, copy, (*names, PEAKS) if finder else names, opset)
    if model.pose is not None:
        _check_sizes_are_free(graph, sizes)
    fixed = {_BATCH, *({_HEIGHT, _WIDTH} if len(model.inputs[0].shape) == 4 else ())} - sizes.free
    if fixed:
        shapes = ", ".join(
            str(("any", *spec.shape[1:]) if _BATCH in sizes.free else spec.shape) for spec in sizes.inputs
        )
        (progress or Silent()).say(
            f"the network can't be exported for any {' or '.join(sorted(fixed))}: the file takes inputs of {shapes}"
        )
    _remove_traces(graph)
    graph.producer_name, graph.producer_version = "compress", compress.__version__
    for key, value in _metadata(model, names, peaks).items():
        graph.metadata_props.add(key=PREFIX + key, value=value)
    with atomic_path(path, force=force) as temporary:
        temporary.write_bytes(graph.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(temporary), full_check=True)
    return path


def side_multiple(module: nn.Module, channels: int = 3) -> int:
    """What the sides of a network's image must be multiples of, found by trial: one of `MULTIPLES`, 1 if none runs."""
    probe = duplicate(module).to("meta")
    for multiple in MULTIPLES:
        odd = 128 // multiple + 1
        try:
            with torch.no_grad():
                probe(torch.empty(1, channels, odd * multiple, (odd + 2) * multiple, device="meta"))
        except Exception:  # whatever the network's code raises
            continue
        return multiple
    return 1


def _output_names(model: Model, module: nn.Module) -> tuple[str, ...]:
    """Names of the outputs in their order, from one run; a `NetworkError` if one is missing."""
    final = model.outputs.final(read_once(module, model.inputs))
    names = tuple(final) if model.pose is None else model.pose.outputs
    missing = [name for name in names if name not in final]
    if missing:
        raise NetworkError(
            f"the network's last stage has no {', '.join(missing)}",
            found=describe(final),
            hint="Name its outputs in the pose specification",
        )
    return names


def _finder(model: Model, peaks: PeakOptions | None) -> PeakFinder | None:
    if peaks is None:
        return None
    if model.pose is None or "heatmaps" not in model.pose.outputs:
        raise UsageError("peaks can be found only in heatmaps, and the network has none", found=model.name)
    return PeakFinder(len(model.pose.joints.joints), model.pose.stride, peaks)


def _first_that_works(
    model: Model, copy: _FinalOutputs, outputs: tuple[str, ...], opset: int
) -> tuple[ModelProto, _Sizes]:
    """The graph with as many free axes as the network allows."""
    choices = _choices(model, copy.module)
    first: Exception | None = None
    for sizes in choices:
        try:
            return _graph(copy, outputs, sizes, opset), sizes
        except Exception as error:  # torch's exporter raises errors of many kinds
            first = first or error
    assert first is not None
    any_size = len(choices) == 1
    raise NetworkError(
        "the network can't be exported to ONNX" + (" for every batch, height and width" if any_size else ""),
        found=next((line for line in str(first).splitlines() if line.strip()), type(first).__name__),
        hint="Replace operations that need sizes or values known in advance",
    ) from first


def _choices(model: Model, module: nn.Module) -> list[_Sizes]:
    """Examples with their free axes, the freest first; a network that reads whole images must be free in all."""
    image, *others = model.inputs
    pose = model.pose
    rows = 1 if pose is not None and pose.layout == "nhwc" else 2
    choices = []
    batches = tuple(InputSpec((2, *spec.shape[1:]), spec.dtype) for spec in model.inputs)
    batch_axes: tuple[dict[int, str], ...] = tuple({0: _BATCH} for _ in model.inputs)
    if len(image.shape) == 4 and not others:
        multiple = side_multiple(module, image.shape[1]) if rows == 2 else 1
        # A batch of one would be taken for a constant, and so would a side of one multiple or two equal sides.
        height, width = (max(2, -(-side // multiple)) * multiple for side in _EXAMPLE_SIZE)
        shape = [2, *image.shape[1:]]
        shape[rows : rows + 2] = height, width + multiple if width == height else width
        axes = {0: _BATCH, rows: _HEIGHT, rows + 1: _WIDTH}
        free = _Sizes((InputSpec(tuple(shape), image.dtype),), (axes,), multiple)
        if pose is not None and not get_decoder(pose).top_down and pose.width is None:
            return [free]
        choices += [free] if _runs(module, free.inputs) else []
    fixed = _Sizes(model.inputs, tuple({} for _ in model.inputs))
    return [*choices, _Sizes(batches, batch_axes), fixed]


def _runs(module: nn.Module, inputs: tuple[InputSpec, ...]) -> bool:
    try:
        read_once(module, inputs)
    except NetworkError:
        return False
    return True


def _graph(module: nn.Module, outputs: tuple[str, ...], sizes: _Sizes, opset: int) -> ModelProto:
    free: list[dict[int, Any]] = [dict.fromkeys(axes, Dim.DYNAMIC) for axes in sizes.axes]
    if sizes.multiple > 1:
        # Divisions without remainder: otherwise it can't be decided whether sizes agree that are halved in different
        # ways.
        for own, axes in zip(free, sizes.axes, strict=True):
            own |= {axis: sizes.multiple * Dim(name) for axis, name in axes.items() if name != _BATCH}
    example = zero_inputs(sizes.inputs)
    examples = example if isinstance(example, tuple) else (example,)
    images = len(examples) == 1 and examples[0].dim() == 4 and INPUT not in outputs
    with _quiet(), torch.no_grad():
        # Not left to torch.onnx.export: it retries with sizes fixed where the free ones fail, and says nothing.
        program = torch.export.export(module, examples, dynamic_shapes=(tuple(free),), strict=False)
        converted = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[INPUT] if images else [f"input_{index}" for index in range(len(examples))],
            output_names=list(outputs),
            dynamic_shapes=(sizes.axes,),
            opset_version=opset,
            external_data=False,
            verbose=False,
        )
    if converted is None:
        raise RuntimeError("torch.onnx.export gave no program")
    return converted.model_proto


def _check_sizes_are_free(model: ModelProto, sizes: _Sizes) -> None:
    """Refuse a graph in which a pose network's batch or maps got one size although the input's is free."""
    (axes,) = sizes.axes[:1]
    for item in (*model.graph.input[:1], *model.graph.output):
        shape = item.type.tensor_type.shape.dim
        maps = len(shape) == 4 and item.name != PEAKS
        checked = axes if maps else {0: _BATCH} if _BATCH in sizes.free else {}
        fixed = {name: shape[axis].dim_value for axis, name in checked.items() if not shape[axis].dim_param}
        if fixed:
            raise NetworkError(f"the exported network's {item.name} have one size only", found=fixed)


def read_metadata(path: Path) -> dict[str, str]:
    """Our own metadata of an ONNX file, keys without their prefix; empty for a file from elsewhere."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    return {p.key.removeprefix(PREFIX): p.value for p in model.metadata_props if p.key.startswith(PREFIX)}


def _remove_traces(model: ModelProto) -> None:
    """Drop what the exporter notes at each node: stack traces, which name files of this machine."""
    graph = model.graph
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    graph.ClearField("metadata_props")


def _metadata(model: Model, names: tuple[str, ...], peaks: PeakOptions | None) -> dict[str, str]:
    record = {"version": compress.__version__}
    if model.pose is None:
        record["outputs"] = json.dumps(list(names))
    else:
        record["pose"] = json.dumps(model.pose.to_dict())
    if peaks is not None:
        record["peaks"] = json.dumps(peaks.to_dict())
    record["network"] = json.dumps({"name": model.source.name, "options": dict(model.source.options)})
    if model.history:
        record["history"] = json.dumps([{k: v for k, v in entry.items() if _is_short(v)} for entry in model.history])
    return record


def _is_short(value: object) -> bool:
    return isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= 200)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress lines and advice, and its reports of attempts that fail."""
    threshold = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(threshold)
