"""The commands by name, each imported only when it is run."""

from __future__ import annotations

import importlib

from compress.commands.base import Command
from compress.errors import UsageError, similar

#: Command name to one line of help; the order is that of ``compress --help``.
SUMMARIES = {
    "networks": "List the networks that can be built by name, or explain how one follows its paper",
    "init": "Write a checkpoint of a network, trained where weights ship with the package",
    "inspect": "List the layers: shape, cost, VBMF ranks, why one can't be factorized, keypoint sensitivity",
    "factorize": "Factorize convolutions and linear layers by Tucker-2, SVD and other low-rank forms",
    "search": "Try ranks, forms and recovery within a time limit and keep the Pareto front",
    "attention": "Swap attention blocks or insert new ones; new blocks are identity-initialised",
    "train": "Train a network on annotated images",
    "finetune": "Fine-tune or distil a compressed network",
    "evaluate": "Score a model by keypoint accuracy (OKS average precision)",
    "predict": "Find people in images, videos or a camera stream and draw them",
    "export": "Write ONNX and OpenVINO files, checked against the network",
    "benchmark": "Time models on runtimes, interleaved",
    "report": "Compare an original with compressed networks: cost, latency, accuracy, sample images",
}


def get_command(name: str) -> Command:
    """The command of that name.

    Raises
    ------
    UsageError
        If there is no such command.
    """
    if name not in SUMMARIES:
        raise UsageError(f"unknown stage{similar(name, SUMMARIES)}", found=name, hint=f"Known: {', '.join(SUMMARIES)}")
    command: Command = importlib.import_module(f"compress.commands.{name}").COMMAND
    return command
