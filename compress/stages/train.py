"""Train a network on annotated images."""

from __future__ import annotations

from compress.errors import UsageError
from compress.stages.base import Progress, StageResult
from compress.stages.finetune import TuneOptions, tune
from compress.stages.registry import Stage


def run(options: TuneOptions, progress: Progress) -> StageResult:
    """Train on annotations alone."""
    if not options.has_data:
        raise UsageError("there are no images to train on", way_out="Give --data with annotations")
    return tune(options, progress, "train", None)


STAGE = Stage(TuneOptions, run, "compress train model.pt --data synthetic:0:20000 --steps 7000 -o trained.pt")
