"""Options and steps that stages share: the checkpoint they read, the data they look at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator

from compress.checkpoint.load import load
from compress.commands.base import Size, StageOptions, option
from compress.data.joined import Joined
from compress.data.limited import Limited
from compress.data.source import open_data
from compress.model import Model
from compress.zoo.registry import get_entry

if TYPE_CHECKING:
    from compress.data.sample import Dataset


class ModelOptions(StageOptions):
    """A checkpoint to read."""

    model: Path = option(..., "Model: .pt, .safetensors, or a public state dict", positional=True)
    network: str | None = option(
        None, "Name of the network in a foreign checkpoint; your own as package.module:factory", flag="-n"
    )


class SizeOptions(StageOptions):
    """The input size that costs are counted at."""

    input: Size | None = option(None, "Input size HEIGHTxWIDTH for counting MACs (default: the network's own)")


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class DataOptions(StageOptions):
    """A data set, or several that are joined."""

    data: Annotated[tuple[str, ...], BeforeValidator(_one_or_more)] = option(
        (),
        "synthetic[:SEED[:COUNT]], coco:DIR, mpii:DIR, lsp:DIR, lspet:DIR, lip:DIR, crowdpose:DIR, each with ,SPLIT, "
        "or images:DIR[,DIR]; repeat to join several",
        flag="-d",
    )
    split: str = option("val2017", "Split of a COCO folder; train or valid of MPII, LSP, LIP and CrowdPose")
    annotations: Path | None = option(None, "COCO keypoint annotations, together with --images")
    images: Path | None = option(None, "Folder of the images of --annotations")
    limit: int | None = option(None, "Use only the first so many images")

    @property
    def has_data(self) -> bool:
        """Whether a data set was named at all."""
        return bool(self.data) or self.annotations is not None


def open_dataset(options: DataOptions) -> Dataset:
    """The data set that the options name, or several as one."""
    parts = [
        open_data(spec, split=options.split, annotations=options.annotations, images=options.images)
        for spec in options.data or (None,)
    ]
    dataset = parts[0] if len(parts) == 1 else Joined(*parts)
    return dataset if options.limit is None else Limited(dataset, options.limit)


def load_model(options: ModelOptions) -> Model:
    """The checkpoint that the options name."""
    return load(options.model, options.network)


def counting_size(checkpoint: Model, asked: tuple[int, int] | None) -> tuple[int, int]:
    """The input size at which MACs are counted: the one asked for, else the network's own."""
    if asked is not None:
        return asked
    if checkpoint.source.is_custom:
        return checkpoint.pose.size
    return get_entry(checkpoint.source.name).input_size
