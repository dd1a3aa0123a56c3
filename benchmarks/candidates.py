"""Networks with random weights on runtimes, ready to be timed within seconds.

A checked export for any size takes a minute; here the outputs do not matter, so a graph traced for one size is enough.
The values of weights do not change how long a network takes, except for denormal numbers, which initialised weights do
not contain.
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoint.load import load
from compress.errors import RuntimeAbsent, UsageError
from compress.exporters.to_onnx import INPUT, OPSET
from compress.exporters.to_openvino import write_ir
from compress.measure.on_target import write_quantised
from compress.network.cost import cost
from compress.network.outputs import BY_STRUCTURE
from compress.network.source import NetworkSpec
from compress.pose.spec import PoseSpec
from compress.runtime.onnx_runner import POSE_KEY, OnnxRunner
from compress.runtime.opening import usual_streams
from compress.runtime.openvino_runner import OpenVinoRunner
from compress.runtime.runner import Runner
from compress.runtime.torch_runner import TorchOptions, TorchRunner
from compress.zoo.registry import build, pose_spec

RUNTIMES = ("torch", "onnxruntime", "openvino")
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
EXTRAS = ("graphs", "compile")


@dataclass(frozen=True)
class Label:
    """A runtime as it is written: ``openvino-cpu-int8-bf16``, ``torch-cuda-fp16-graphs``.

    ``int8-bf16`` computes what is not quantised in BF16.
    """

    runtime: str
    device: str
    precision: str = "fp32"
    rest: str = "fp32"
    extras: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str) -> Label:
        """Parse a label; `UsageError` if it is malformed."""
        runtime, _, words = text.partition("-")
        device, *others = words.split("-")
        precisions = [word for word in others if word in PRECISIONS]
        extras = tuple(word for word in others if word in EXTRAS)
        good = runtime in RUNTIMES and device in ("cpu", "cuda") and len(precisions) + len(extras) == len(others)
        good &= len(precisions) < 2 or (len(precisions) == 2 and precisions[0] == "int8")
        good &= "int8" not in precisions or runtime == "openvino"
        good &= not extras or runtime == "torch"
        if not good:
            raise UsageError(
                "a runtime is RUNTIME-DEVICE[-PRECISION][-graphs][-compile]",
                found=text,
                hint="For example torch-cpu, onnxruntime-cpu, openvino-cpu-bf16, openvino-cpu-int8-bf16, "
                "torch-cuda-fp16-graphs",
            )
        first, rest = (*precisions, "fp32", "fp32")[:2]
        return cls(runtime, device, first, rest, extras)


@dataclass(frozen=True)
class Subject:
    """A network to time.

    Attributes
    ----------
    name : str
        For tables.
    module : nn.Module
        In eval mode.
    pose : PoseSpec
        Its pose specification.
    """

    name: str
    module: nn.Module
    pose: PoseSpec

    def cost(self, size: tuple[int, int]) -> tuple[int, int]:
        """Parameters and multiply-adds."""
        counted = cost(self.module, size)
        return counted.params, counted.macs


def build_subject(name: str, network: str, options: Mapping[str, Any]) -> Subject:
    """A network of the registry."""
    torch.manual_seed(0)
    return Subject(name, build(NetworkSpec(network, dict(options))).eval(), pose_spec(network))


def read_subject(name: str, path: Path) -> Subject:
    """A network from a checkpoint."""
    model = load(path)
    if model.pose is None:
        raise UsageError("the network has no pose specification", found=str(path))
    return Subject(name, model.module, model.pose)


class Workshop:
    """Opens subjects on runtimes; exported files are kept in a folder.

    Parameters
    ----------
    folder : Path
        Of exported files.
    threads : int or None
        CPU threads of all runners.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self._folder, self._threads = folder, threads

    def streams(self, text: str) -> int:
        """Number of images that a runner should process at once for the highest throughput."""
        label = Label.read(text)
        return usual_streams(label.runtime, label.device, self._threads)

    def open(self, subject: Subject, text: str, size: tuple[int, int], streams: int = 1) -> Runner:
        """A runner; `RuntimeAbsent` if this machine lacks it."""
        label = Label.read(text)
        if label.runtime == "torch":
            return TorchRunner(
                subject.module,
                subject.pose,
                device=label.device,
                precision=label.precision,
                threads=self._threads,
                options=TorchOptions("compile" in label.extras, "graphs" in label.extras),
            )
        name = subject.name.replace("/", "-").replace(" ", "_")
        path = self._folder / f"{name}-{size[0]}x{size[1]}.onnx"
        if not path.exists():
            trace(subject, path, size)
        if label.runtime == "onnxruntime":
            return OnnxRunner(path, device=label.device, precision=label.precision, threads=self._threads)
        graph = path.with_suffix(".xml")
        if not graph.exists():
            write_ir(path, graph)
        precision = label.precision
        if precision == "int8":
            precision = label.rest
            quantised = graph.with_name(f"{graph.stem}-int8.xml")
            graph = quantised if quantised.exists() else write_quantised(graph, size)
        return OpenVinoRunner(graph, device=label.device, precision=precision, threads=self._threads, streams=streams)


def missing(text: str) -> str | None:
    """Why this machine can't run anything on a runtime; None if it can."""
    label = Label.read(text)
    if label.precision == "int8":
        if importlib.util.find_spec("nncf") is None:
            return "NNCF is not installed"
        text = "-".join([label.runtime, label.device, *([] if label.rest == "fp32" else [label.rest])])
    tiny = Subject("tiny", _Tiny(), PoseSpec(stride=1))
    with tempfile.TemporaryDirectory() as folder:
        try:
            Workshop(Path(folder), 1).open(tiny, text, (8, 8)).close()
        except RuntimeAbsent as error:
            return error.cause
    return None


class _Tiny(nn.Module):
    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        spec = PoseSpec()
        joints = len(spec.joints.joints) + spec.background
        return [{"heatmaps": images[:, :1].repeat(1, joints, 1, 1), "pafs": images[:, :2].repeat(1, 19, 1, 1)}]


class _FinalMaps(nn.Module):
    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.module, self.outputs = subject.module, subject.pose.outputs

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = BY_STRUCTURE.final(self.module(images))
        return tuple(maps[name] for name in self.outputs)


def trace(subject: Subject, path: Path, size: tuple[int, int]) -> None:
    """A traced ONNX file for one size of input."""
    import onnx

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _FinalMaps(subject).eval(),
            (torch.zeros(1, 3, *size),),
            str(temporary),
            dynamo=False,
            input_names=[INPUT],
            output_names=list(subject.pose.outputs),
            opset_version=OPSET,
        )
    model = onnx.load(str(temporary))
    model.metadata_props.add(key=POSE_KEY, value=json.dumps(subject.pose.to_dict()))
    onnx.save(model, str(temporary))
    os.replace(temporary, path)
