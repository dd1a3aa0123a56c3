"""OpenVINO IR files."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from compress.checkpoint.own_code import Network
from compress.errors import FileError, RuntimeAbsent, UsageError
from compress.files import read_bytes
from compress.network.inputs import InputSpec
from compress.pose.spec import PoseSpec
from compress.runtime.file_interface import SECTION, Port, read_interface, specs_of
from compress.runtime.runner import Array, ArrayInputs, Shape, cannot_run, check_inputs, fits, one_by_one

#: Public releases without a specification of their own, by the name inside their IR. Their graphs begin with the
#: normalisation and take raw pixels.
_RELEASES = {"human-pose-estimation-0001": PoseSpec()}

_DTYPES = {"i64": "int64", "i32": "int32", "boolean": "bool", "u8": "uint8"}

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class OpenVinoRunner:
    """An OpenVINO IR as OpenVINO runs it.

    Parameters
    ----------
    path : Path
        The ``.xml`` file; the weights lie beside it with the suffix ``.bin``. Its ``rt_info`` says what the network
        expects and returns, or it is a known public release, or ``network`` says it.
    device : str
        ``"cpu"``, or another device that OpenVINO finds, such as ``"gpu"``.
    precision : {"fp32", "bf16", "fp16"}
        What to compute in. By default OpenVINO would take bf16 wherever the CPU has it.
    threads : int, optional
        CPU threads; OpenVINO's own choice by default.
    streams : int
        Number of threads that may call `run` at once; each call then has its share of the CPU threads. One image
        takes longer, all of them together less: in small layers threads mostly wait for each other.
    network : str, callable or nn.Module, optional
        The network in a file from elsewhere.

    Attributes
    ----------
    shape : tuple of int or None
        Sizes of the image that the file fixes, None for each free one; None if all are free.
    inputs : tuple of InputSpec
        What the network reads; empty where the file leaves heights or widths free.

    Raises
    ------
    RuntimeAbsent
        If OpenVINO, the device or the precision is not there.
    FileError
        If one of the two files is missing, empty or damaged, or does not fit its pose specification.
    """

    name = "openvino"

    def __init__(
        self,
        path: Path,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        threads: int | None = None,
        streams: int = 1,
        network: Network | None = None,
    ) -> None:
        read_bytes(path, "OpenVINO model")
        read_bytes(path.with_suffix(".bin"), "file of the OpenVINO model's weights")
        core = open_core(device)
        model = _read(core, path)
        self.device = device
        ports = [Port(frozenset(output.names), _channels(output)) for output in model.outputs]
        release = _RELEASES.get(model.get_friendly_name())
        metadata = _metadata(model, path)
        found = read_interface(path, ports, metadata, network, release)
        self.pose: PoseSpec | None = found.pose
        self._names, self._outputs = found.names, found.indices
        self.shape: Shape | None = None
        if self.pose is not None:
            _check_image(model, self.pose, path)
            self.shape = _free_sizes(model, self.pose)
            if release is not None and "pose" not in metadata:
                model = _denormalised(model, self.pose)
        self.inputs: tuple[InputSpec, ...] = specs_of(
            [_sides(port) for port in model.inputs],
            [_DTYPES.get(port.get_element_type().get_type_name(), "float32") for port in model.inputs],
        )
        several = {"NUM_STREAMS": streams} if streams > 1 else {}
        self._compiled = compile_model(core, model, device, precision, threads, **several)
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(streams):
            self._idle.put(self._compiled.create_infer_request())
        quantised = any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
        self.precision = precision if not quantised else "int8" if precision == "fp32" else f"int8+{precision}"
        self.threads = int(self._compiled.get_property("INFERENCE_NUM_THREADS")) if device == "cpu" else 1

    def run(self, inputs: ArrayInputs) -> dict[str, Array]:
        """Outputs of the network; see `compress.runtime.runner.Runner.run`."""
        arrays = check_inputs(inputs, self.pose)
        if not fits(self.shape, arrays[0]):
            if self.shape is not None and self.shape[0] == 1 < len(arrays[0]):
                return one_by_one(self.run, inputs)
            raise UsageError(
                "the file takes inputs of one shape only", found=arrays[0].shape, hint=f"It takes {self.shape}"
            )
        # Shared: the input is read where it lies. Results are copied, because the next run writes over them.
        request = self._idle.get()
        try:
            values = request.infer(
                [np.ascontiguousarray(array) for array in arrays], share_inputs=True, share_outputs=True
            )
            return {name: _owned(values[index]) for name, index in zip(self._names, self._outputs, strict=True)}
        except RuntimeError as error:
            raise cannot_run(self.name, arrays, error) from error
        finally:
            self._idle.put(request)

    def close(self) -> None:
        """Drop the compiled model."""
        del self._idle, self._compiled


@cache
def shared_core() -> Any:
    """OpenVINO itself, one for the whole program; `RuntimeAbsent` if it is not installed.

    Not one for each model: the CPU plugin of every ``Core`` installs an alternate signal stack and restores the
    previous one at its end, even if that has been freed by then; the next signal that Python handles, such as the end
    of a data loader's worker, then kills the program (OpenVINO 2026.4).
    """
    try:
        import openvino
    except ImportError as error:
        raise RuntimeAbsent("OpenVINO is not installed", hint="pip install openvino") from error
    return openvino.Core()


def open_core(device: str) -> Any:
    """OpenVINO itself; `RuntimeAbsent` if it or the device is not there."""
    core = shared_core()
    there = [name.lower() for name in core.available_devices]
    if device not in there:
        raise RuntimeAbsent(
            f"OpenVINO has no device {device} on this machine", found=device, hint=f"It has: {', '.join(there)}"
        )
    return core


def _read(core: Any, path: Path) -> Any:
    try:
        return core.read_model(path)
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")]
        raise FileError(
            f"the file can't be read as an OpenVINO model ({lines[-1][:200] if lines else 'no reason given'})",
            found=str(path),
            hint="Fetch or export the .xml and the .bin file again; they belong together",
        ) from error


def _metadata(model: Any, path: Path) -> dict[str, str]:
    """Our own metadata in the model's ``rt_info``."""
    try:
        return {
            key: model.get_rt_info([SECTION, key]).astype(str)
            for key in ("pose", "outputs")
            if model.has_rt_info([SECTION, key])
        }
    except UnicodeDecodeError as error:
        raise FileError("the file's metadata is not valid UTF-8", found=str(path), hint="Export it again") from error


def _channels(port: Any) -> int | None:
    """Size of a port's second axis where it is fixed."""
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic or len(shape) < 2 or shape[1].is_dynamic:
        return None
    return int(shape[1].get_length())


def _owned(value: Any) -> Array:
    """A copy of an output; floating ones in float32."""
    return np.array(value, dtype=np.float32 if np.issubdtype(value.dtype, np.floating) else None)


def _check_image(model: Any, pose: PoseSpec, path: Path) -> None:
    """Refuse a pose network whose first input is no batch of images."""
    shapes = [port.get_partial_shape() for port in model.inputs]
    axis = 3 if pose.layout == "nhwc" else 1
    image = shapes[0] if shapes and not shapes[0].rank.is_dynamic and len(shapes[0]) == 4 else None
    if image is None or (image[axis].is_static and image[axis].get_length() != pose.channels):
        raise FileError(
            f"the model does not take one batch of images with {pose.channels} channel(s)",
            found=", ".join(map(str, shapes)),
            hint=f"Is {path.name} a pose network, and is its pose specification right?",
        )


def _free_sizes(model: Any, pose: PoseSpec) -> Shape | None:
    """Let the model take any batch, height and width, or any batch; returns the shape it takes where one is fixed.

    Compiled for any size, a model runs as fast as compiled for one, and each new size of image costs next to nothing.
    """
    from openvino import PartialShape

    image = model.inputs[0]
    before = image.get_partial_shape()
    fixed = [side.get_length() if side.is_static else -1 for side in before]
    sides = {1, 2} if pose.layout == "nhwc" else {2, 3}
    for free in ({0} | sides, {0}):
        try:
            model.reshape({image: PartialShape([-1 if axis in free else fixed[axis] for axis in range(4)])})
        except RuntimeError:
            continue
        shapes = [list(output.get_partial_shape()) for output in model.outputs]
        maps = [side for shape in shapes for side in shape[2:] if len(shape) == 4]
        # The sides of outputs that are no maps do not tell whether the input's are free.
        whole = all(side.is_dynamic for side in maps) and all(len(shape) == 4 for shape in shapes)
        if all(shape[0].is_dynamic for shape in shapes if shape) and (whole or free == {0}):
            return None if whole and free != {0} else _static(image)
    model.reshape({image: before})
    return _static(image)


def _static(port: Any) -> Shape | None:
    """The shape of an input where a side of it is fixed, None for each free side; None if all are free."""
    sides = _sides(port)
    return sides if any(side is not None for axis, side in enumerate(sides) if axis != 1) else None


def _sides(port: Any) -> Shape:
    """The sizes of a port, None for each free one."""
    shape = port.get_partial_shape()
    return () if shape.rank.is_dynamic else tuple(int(side.get_length()) if side.is_static else None for side in shape)


def _denormalised(model: Any, pose: PoseSpec) -> Any:
    """The model behind a step that turns prepared images back into pixels, so that it reads what all others read.

    A specification without normalisation would pad images with black instead of the mean.
    """
    from openvino import Layout
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(model)
    steps.input().model().set_layout(Layout("NCHW"))
    steps.input().preprocess().mean([-m * s for m, s in zip(pose.mean, pose.scale, strict=True)]).scale([*pose.scale])
    return steps.build()


def compile_model(core: Any, model: Any, device: str, precision: str, threads: int | None, **config: Any) -> Any:
    """Compile a model for a device; `RuntimeAbsent` if the precision is not there."""
    # Asked for a precision that the device lacks, OpenVINO silently computes in another.
    hint = _HINTS[precision]
    able = core.get_property(device.upper(), "OPTIMIZATION_CAPABILITIES")
    if hint != "f32" and {"f16": "FP16", "bf16": "BF16"}[hint] not in able:
        raise RuntimeAbsent(
            f"the device {device} has no {precision} arithmetic", found=precision, hint="Use --precision fp32"
        )
    config |= {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    return core.compile_model(model, device.upper(), config)
