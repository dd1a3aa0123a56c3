"""`compress train`: train a network on annotated images."""

from __future__ import annotations

from compress.commands.base import Command
from compress.commands.tuning import TuneOptions, TuneResult, tune
from compress.errors import UsageError
from compress.progress import Progress


def run(options: TuneOptions, progress: Progress) -> TuneResult:
    """Train on annotations alone."""
    if not options.has_data:
        raise UsageError("there are no images to train on", hint="Give --data with annotations")
    return tune(options, progress, "train")


COMMAND = Command(TuneOptions, run, "compress train model.pt --data synthetic:0:20000 --steps 7000 -o trained.pt")
