"""OpenVINO IR files."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from compress.errors import FileError, RuntimeAbsent, UsageError
from compress.files import read_bytes
from compress.pose.spec import PoseSpec
from compress.runtime.runner import PEAKS, Array, cannot_run, check_input, foreign_pose, match_outputs, read_pose

#: Where an exported file's ``rt_info`` holds the pose specification as JSON.
POSE_PATH = ["compress", "pose"]

#: Public releases, by the name inside their IR, which bring no specification of their own. Their graphs begin with the
#: normalisation and take pixels as they are.
_RELEASES = {"human-pose-estimation-0001": PoseSpec()}

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class OpenVinoRunner:
    """An OpenVINO IR as OpenVINO runs it.

    Parameters
    ----------
    path : Path
        The ``.xml`` file; the weights lie beside it with the suffix ``.bin``. Its ``rt_info`` says what the network
        expects and gives, or it is a known public release, or ``network`` says it.
    device : str
        ``"cpu"``, or another device that OpenVINO finds, such as ``"gpu"``.
    precision : {"fp32", "bf16", "fp16"}
        What to compute in. Left to itself, OpenVINO takes bf16 wherever the CPU has it.
    threads : int, optional
        CPU threads; OpenVINO's own choice by default.
    streams : int
        So many threads may call `run` at once; each call then has its share of the CPU threads. One image takes
        longer, all of them together less: small layers lose time wherever threads wait for each other.
    network : str, optional
        Name of the network in a file from elsewhere.

    Raises
    ------
    RuntimeAbsent
        If OpenVINO, the device or the precision is not there.
    FileError
        If one of the two files is missing, empty or damaged, or it is not a pose network.
    CompressError
        If the file does not say what it expects and gives, and ``network`` is not given.
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
        network: str | None = None,
    ) -> None:
        read_bytes(path, "OpenVINO model")
        read_bytes(path.with_suffix(".bin"), "file of the OpenVINO model's weights")
        core = open_core(device)
        model = _read(core, path)
        self.device = device
        self.pose = _pose(model, path, network)
        self._outputs = match_outputs([(o.names, _channels(o)) for o in model.outputs], self.pose, path)
        self._names = self.pose.outputs
        peaks = [index for index, output in enumerate(model.outputs) if PEAKS in output.names]
        if peaks:
            self._outputs, self._names = [*self._outputs, *peaks], (*self._names, PEAKS)
        self._shape = _free_sizes(model, path)
        if not model.has_rt_info(POSE_PATH) and model.get_friendly_name() in _RELEASES:
            model = _denormalised(model, self.pose)
        several = {"NUM_STREAMS": streams} if streams > 1 else {}
        self._compiled = compile_model(core, model, device, precision, threads, **several)
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(streams):
            self._idle.put(self._compiled.create_infer_request())
        quantised = any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
        self.precision = precision if not quantised else "int8" if precision == "fp32" else f"int8+{precision}"
        self.threads = int(self._compiled.get_property("INFERENCE_NUM_THREADS")) if device == "cpu" else 1

    def run(self, images: Array) -> dict[str, Array]:
        """Final maps of images; see `compress.runtime.runner.Runner.run`."""
        check_input(images, self.pose)
        if self._shape is not None and images.shape != self._shape:
            raise UsageError(
                "the file takes inputs of one shape only", found=images.shape, hint=f"It takes {self._shape}"
            )
        # Shared: the input is read where it lies. Results are copied, because the next run writes over them.
        request = self._idle.get()
        try:
            maps = request.infer([np.ascontiguousarray(images)], share_inputs=True, share_outputs=True)
            return {
                name: np.array(maps[index], dtype=np.float32)
                for name, index in zip(self._names, self._outputs, strict=True)
            }
        except RuntimeError as error:
            raise cannot_run(self.name, images, error) from error
        finally:
            self._idle.put(request)

    def close(self) -> None:
        """Drop the compiled model."""
        del self._idle, self._compiled


@cache
def shared_core() -> Any:
    """OpenVINO itself, one for the whole program; `RuntimeAbsent` if it is not installed.

    Not one for each model: the CPU plugin of every ``Core`` sets a stack for signals aside and takes the one before
    it back at its end, also when that is gone by then, and the next signal that Python handles, such as the end of a
    worker of a data loader, kills the program (OpenVINO 2026.4).
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


def _pose(model: Any, path: Path, network: str | None) -> PoseSpec:
    if model.has_rt_info(POSE_PATH):
        return read_pose(model.get_rt_info(POSE_PATH).astype(str), path)
    release = _RELEASES.get(model.get_friendly_name())
    return release if release is not None else foreign_pose(path, network)


def _channels(port: Any) -> int | None:
    """Size of a port's second axis where it is fixed."""
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic or len(shape) != 4 or shape[1].is_dynamic:
        return None
    return int(shape[1].get_length())


def _free_sizes(model: Any, path: Path) -> tuple[int, ...] | None:
    """Let the model take any batch, height and width; gives the only shape it takes where that can't be.

    Compiled for any size, a model runs as fast as compiled for one, and each new size of image costs next to nothing.
    """
    from openvino import PartialShape

    if len(model.inputs) != 1 or _channels(model.inputs[0]) not in (3, None):
        raise FileError(
            "the model does not take one batch of images (images, 3, height, width)",
            found=", ".join(str(port.get_partial_shape()) for port in model.inputs),
            hint=f"Is {path.name} a pose network?",
        )
    before = model.inputs[0].get_partial_shape()
    try:
        model.reshape(PartialShape([-1, 3, -1, -1]))
        free = all(side.is_dynamic for o in model.outputs for side in list(o.get_partial_shape())[2:])
    except RuntimeError:
        free = False
    if free:
        return None
    model.reshape(before)
    return None if before.is_dynamic else tuple(before.to_shape())


def _denormalised(model: Any, pose: PoseSpec) -> Any:
    """The model behind a step that makes pixels of prepared images, so that it sees what all other models see.

    Giving it pixels by a specification without normalisation would pad images with black instead of the mean.
    """
    from openvino import Layout
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(model)
    steps.input().model().set_layout(Layout("NCHW"))
    steps.input().preprocess().mean([-m * s for m, s in zip(pose.mean, pose.scale, strict=True)]).scale([*pose.scale])
    return steps.build()


def compile_model(core: Any, model: Any, device: str, precision: str, threads: int | None, **config: Any) -> Any:
    """Compile a model for a device; `RuntimeAbsent` if the precision is not there."""
    # Asked for more than the device can do, OpenVINO quietly computes in something else.
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
