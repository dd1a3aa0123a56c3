"""`compress finetune`: fine-tune a compressed network, or distil it from a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compress.commands.base import Command
from compress.commands.fields import NetworkText, option
from compress.commands.tuning import TuneOptions, TuneResult, tune
from compress.errors import CheckpointError, UsageError
from compress.progress import Progress

if TYPE_CHECKING:
    from compress.model import Model


class FinetuneOptions(TuneOptions):
    """Options of `compress finetune`."""

    teacher: Path | None = option(None, "Model to learn from; no annotations are needed then", flag="-t")
    teacher_network: NetworkText | None = option(None, "Network of --teacher, as for --network (default: the same)")
    label_weight: float = option(1.0, "Weight of annotations, where the data has them; 0 ignores them")
    map_weight: float = option(1.0, "Weight of the teacher's outputs")
    feature_weight: float = option(10.0, "Weight of the teacher's intermediate features")


def load_teacher(options: FinetuneOptions) -> Model | None:
    """The teacher, built by its own network, or by the student's unless its file is of another one."""
    from compress.checkpoint.load import load

    if options.teacher is None:
        if options.teacher_network is not None:
            raise UsageError("--teacher-network needs --teacher", found=str(options.teacher_network))
        return None
    if options.teacher_network is not None or options.network is None:
        return load(options.teacher, options.teacher_network)
    try:
        return load(options.teacher, options.network)
    except CheckpointError as error:
        try:
            return load(options.teacher)
        except CheckpointError:
            raise error from None


def run(options: FinetuneOptions, progress: Progress) -> TuneResult:
    """Fine-tune on annotations, on a teacher, or on both."""
    from compress.training.distil import DistilWeights

    if not options.has_data:
        raise UsageError(
            "there are no images to fine-tune on",
            hint="Give --data; with --teacher, images:DIR without annotations is enough",
        )
    return tune(
        options,
        progress,
        "finetune",
        teacher=load_teacher(options),
        label_weight=options.label_weight,
        distil=DistilWeights(options.map_weight, options.feature_weight),
    )


COMMAND = Command(
    FinetuneOptions, run, "compress finetune small.pt --teacher model.pt --data synthetic:7:4000 -o tuned.pt"
)
