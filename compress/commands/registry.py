"""The stages by name, each imported only when it is run."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compress.commands.base import StageOptions, StageResult
from compress.errors import UsageError
from compress.progress import Progress


@dataclass(frozen=True)
class Stage:
    """One command and pipeline step.

    Attributes
    ----------
    options : type
        The options it takes.
    run : callable
        ``run(options, progress) -> StageResult``.
    example : str
        A line to copy.
    """

    options: type[StageOptions]
    run: Callable[[Any, Progress], StageResult]
    example: str


#: Command name to one line of help; the order is that of ``compress --help``.
SUMMARIES = {
    "networks": "List the networks that can be built by name",
    "init": "Write a checkpoint of a network: trained where weights ship with the package",
    "inspect": "Print every layer: shape, cost, VBMF ranks, why it can't be factorized, worth in keypoints",
    "factorize": "Factorize convolutions into pointwise, core, pointwise (Tucker-2)",
    "search": "Try ranks, block forms and recovery within a time limit; keep what no other beats",
    "attention": "Swap attention blocks, or insert them after layers; fresh ones start as the identity",
    "train": "Train a network on annotated images",
    "finetune": "Fine-tune or distil a compressed network",
    "evaluate": "Score a model in keypoints (OKS average precision)",
    "predict": "Find people in pictures, videos or a camera's images, and draw them",
    "export": "Write ONNX and OpenVINO files, checked against the network",
    "benchmark": "Time models on runtimes, interleaved",
    "report": "Compare an original with compressed networks: cost, latency, accuracy, pictures",
}


def get_stage(name: str) -> Stage:
    """The stage of that name, or a `UsageError` that lists the known ones."""
    if name not in SUMMARIES:
        raise UsageError("unknown stage", found=name, hint=f"Known: {', '.join(SUMMARIES)}")
    stage: Stage = importlib.import_module(f"compress.commands.{name}").STAGE
    return stage
