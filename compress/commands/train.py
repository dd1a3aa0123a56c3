"""Train a network on annotated images."""

from __future__ import annotations

from compress.commands.base import StageResult
from compress.commands.finetune import TuneOptions, tune
from compress.commands.registry import Stage
from compress.errors import UsageError
from compress.progress import Progress


def run(options: TuneOptions, progress: Progress) -> StageResult:
    """Train on annotations alone."""
    if not options.has_data:
        raise UsageError("there are no images to train on", hint="Give --data with annotations")
    return tune(options, progress, "train", None)


STAGE = Stage(TuneOptions, run, "compress train model.pt --data synthetic:0:20000 --steps 7000 -o trained.pt")
