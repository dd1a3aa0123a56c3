"""Options that commands share, and what they name: a model, data, a runner, a view."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compress.commands.base import CommandOptions
from compress.commands.fields import DataTexts, NetworkText, Size, option
from compress.target import DEFAULT_RUNTIMES, targets

if TYPE_CHECKING:
    from compress.data.sample import Dataset
    from compress.model import Model
    from compress.pose.decoders.base import Decoder
    from compress.pose.spec import PoseSpec
    from compress.pose.views import View
    from compress.runtime.runner import Runner

_NETWORK_HELP = (
    "Network of the file, where it can't say: a registered name, or your own as package.module:factory or "
    "file.py:factory, which runs that code"
)


class NetworkOptions(CommandOptions):
    """What the network in a file is."""

    network: NetworkText | None = option(None, _NETWORK_HELP, flag="-n")


class ModelOptions(NetworkOptions):
    """A model to read."""

    model: Path = option(..., "Model: .pt, .pth, .safetensors or .onnx, ours or a public state dict", positional=True)


class SizeOptions(CommandOptions):
    """The input size at which costs are counted."""

    input: Size | None = option(None, "Input size HEIGHTxWIDTH at which MACs are counted (default: the network's own)")


class DataOptions(CommandOptions):
    """A data set, or several that are joined."""

    data: DataTexts = option(
        (),
        "Data set: synthetic[:SEED[:COUNT]], coco:DIR, mpii:DIR, lsp:DIR, lspet:DIR, lip:DIR, crowdpose:DIR, each also "
        "with ,SPLIT, or images:DIR[,DIR]; repeat to join several",
        flag="-d",
    )
    split: str = option("val2017", "Split where --data names none; train or valid for MPII, LSP, LIP and CrowdPose")
    annotations: Path | None = option(None, "COCO keypoint annotations, together with --images")
    images: Path | None = option(None, "Folder of the images of --annotations")
    limit: int | None = option(None, "Use only the first N images")

    @property
    def has_data(self) -> bool:
        """Whether a data set is named at all."""
        return bool(self.data) or self.annotations is not None


class ViewOptions(CommandOptions):
    """How the network looks at an image, and how its outputs are decoded."""

    height: int | None = option(None, "Height that images are scaled to (default: the network's own)")
    decoder: Literal["fast", "compat"] | None = option(
        None, "PAF decoder: fast, or compat for the public algorithm step by step (default: fast)"
    )
    assignment: Literal["greedy", "jv"] | None = option(
        None, "PAF decoder: assignment of limbs, greedy or Jonker-Volgenant (default: greedy)"
    )
    upsample: int | None = option(
        None, "PAF decoder: points per cell and axis among which fast looks for peaks, 1 to 8 (default: 4)"
    )
    flip: bool = option(False, "Average the outputs with those of the mirrored image")
    scales: str = option("1", "Average the outputs over these scales of the image, such as 0.5,1,1.5")
    blur: int | None = option(None, "Heatmap decoder: Gaussian filter over the heatmaps, 11 or 17 cells")
    refine: Literal["quarter", "cubic", "dark", "none"] | None = option(
        None, "Heatmap decoder: how maxima are placed between cells"
    )
    strict: bool = option(False, "Stop at an unreadable image instead of skipping and reporting it")


class RunnerOptions(CommandOptions):
    """Where a network runs."""

    runtime: Literal["torch", "onnxruntime", "openvino"] | None = option(
        None, "Runtime (default: by the file: torch, onnxruntime for .onnx, openvino for .xml)"
    )
    device: str = option("cpu", "cpu or cuda")
    precision: Literal["fp32", "bf16", "fp16"] = option("fp32", "Precision of the runtime's arithmetic")
    threads: int | None = option(None, "CPU threads (default: all cores)")


class TimingOptions(CommandOptions):
    """What models are timed on, and for how long."""

    runtime: tuple[str, ...] = option(
        DEFAULT_RUNTIMES,
        f"Runtime and device, with -bf16 or -fp16 where it is not FP32: {', '.join(targets())}; repeat for more",
    )
    threads: int | None = option(None, "CPU threads (default: all cores)")
    rounds: int = option(200, "Most timing rounds; each runs every model on every runtime once")
    max_seconds: float = option(60.0, "Start no round after this many seconds", old="budget")


def load_model(options: ModelOptions) -> Model:
    """The model that the options name."""
    from compress.checkpoint.load import load

    return load(options.model, options.network)


def sized_model(options: ModelOptions, size: tuple[int, int] | None) -> Model:
    """The model that the options name, its costs counted at a size."""
    return load_model(options).at_size(size)


def open_dataset(options: DataOptions, *, default: str | None = None) -> Dataset:
    """The data set that the options name, or several as one.

    Parameters
    ----------
    options : DataOptions
        The options.
    default : str, optional
        Data set where none is named; without it that is an error.
    """
    from compress.data.joined import Joined
    from compress.data.limited import Limited
    from compress.data.source import open_data

    if default is not None and not options.has_data:
        return open_data(default)
    parts = [
        open_data(spec, split=options.split, annotations=options.annotations, images=options.images)
        for spec in options.data or (None,)
    ]
    dataset = parts[0] if len(parts) == 1 else Joined(*parts)
    return dataset if options.limit is None else Limited(dataset, options.limit)


def open_validation(text: str | None, options: DataOptions) -> Dataset | None:
    """The data set of ``--validation``, if it is given."""
    from compress.data.source import open_data

    return None if text is None else open_data(text, split=options.split)


def view_of(options: ViewOptions) -> View:
    """How the options look at an image."""
    from compress.pose.views import View, read_scales

    return View(options.height, options.flip, read_scales(options.scales))


def decoder_overrides(options: ViewOptions) -> dict[str, Any]:
    """Options of the decoder that replace those of the network's pose specification."""
    given = {
        "mode": options.decoder, "assignment": options.assignment, "upsample": options.upsample, "blur": options.blur,
        "refine": options.refine,
    }  # fmt: skip
    return {name: value for name, value in given.items() if value is not None}


def decoder_of(options: ViewOptions, pose: PoseSpec | None) -> Decoder | None:
    """The network's decoder with the options; None for a network without a pose specification."""
    from compress.pose.decoders.registry import get_decoder

    return None if pose is None else get_decoder(pose, **decoder_overrides(options))


def open_model_runner(model: ModelOptions, runner: RunnerOptions, *, streams: int = 1) -> Runner:
    """A runner for the model that the options name."""
    from compress.runtime.opening import open_runner, target_for

    return open_runner(
        model.model,
        target_for(model.model, runtime=runner.runtime, device=runner.device, precision=runner.precision),
        threads=runner.threads,
        streams=streams,
        network=model.network,
    )
