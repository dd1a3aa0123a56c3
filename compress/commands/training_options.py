"""What a training recipe says besides its steps: optimizer, schedule, epochs, how images vary, and what of the data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from compress.commands.base import Range, StageOptions, option
from compress.data.augment import Augmentation
from compress.data.cache import Cached
from compress.data.each_person import EachPerson, people_of
from compress.data.joined import check_joints
from compress.data.sample import Dataset
from compress.data.tolerant import Tolerant
from compress.errors import UsageError
from compress.pose.spec import PoseSpec
from compress.progress import Progress
from compress.training.options import Optimizer, Schedule

#: Unreadable images that are named one by one.
_NAMED = 5


class ScheduleOptions(StageOptions):
    """How long and how fast a network is trained."""

    epochs: float | None = option(None, "Passes over the data, in the place of --steps; --milestones count them then")
    optimizer: Optimizer = option("adam", "adam, adamw, sgd or rmsprop")
    momentum: float = option(0.9, "Momentum of sgd and rmsprop")
    learning_rate: float = option(1e-3, "Highest learning rate")
    warmup: float = option(0.05, "Share of the steps over which the learning rate rises")
    warmup_steps: int | None = option(None, "Steps over which it rises, in the place of --warmup")
    schedule: Schedule = option("cosine", "Learning rate after the warm-up")
    final_rate: float = option(0.01, "Last learning rate of cosine, poly and exponential, as a share of the highest")
    milestones: tuple[float, ...] = option((), "Steps (or epochs) where the rate of --schedule step falls; repeat")
    gamma: tuple[float, ...] = option((0.1,), "What it falls by there, one for all or one each; also of plateau")
    power: float = option(0.9, "Exponent of poly")
    patience: int = option(5, "Scores without progress that plateau puts up with")
    threshold: float = option(0.0, "Progress of a score that counts for plateau")
    weight_decay: float = option(0.0, "L2 penalty of weights, none for biases and normalisation")
    clip: float | None = option(None, "Largest norm of the gradient")
    loss: Literal["sum", "mean"] = option(
        "sum", "Squared errors of labels summed over joints and cells, or averaged (for rates of sgd)"
    )

    def schedule_settings(self, steps: int, batch_size: int, images: int) -> dict[str, Any]:
        """Settings of `compress.training.options.FineTuneOptions`, all in steps.

        Parameters
        ----------
        steps : int
            Steps, where there is no number of epochs.
        batch_size, images : int
            Images of a step and of an epoch.

        Raises
        ------
        UsageError
            If steps and epochs are given, or the epochs are none.
        """
        each: float = 1
        if self.epochs is not None:
            if "steps" in self.model_fields_set:
                raise UsageError("steps and epochs are two ways to say the same", found=f"{steps} and {self.epochs}")
            if not 0 < self.epochs < math.inf:
                raise UsageError("epochs must be a number above 0", found=self.epochs)
            each = images / batch_size
            steps = max(1, math.ceil(self.epochs * each))
        same = ("optimizer", "momentum", "learning_rate", "warmup", "warmup_steps", "schedule", "final_rate", "gamma",
                "power", "patience", "threshold", "weight_decay", "clip")  # fmt: skip
        return {name: getattr(self, name) for name in same} | {
            "steps": steps,
            "milestones": tuple(round(mark * each) for mark in self.milestones),
        }

    def label_share(self, pose: PoseSpec, size: tuple[int, int]) -> float:
        """What the weight of labels is multiplied by, so that the loss is what `loss` says."""
        if self.loss == "sum":
            return 1.0
        cells = (size[0] // pose.stride) * (size[1] // pose.stride)
        return 1.0 / (cells * (len(pose.joints.joints) + pose.background))


class VariationOptions(StageOptions):
    """How training images vary."""

    scale: Range = option((0.7, 1.4), "Smallest and largest random scale, as LOW,HIGH")
    person_scale: float | None = option(
        None, "Share of the crop's height that a person fills at scale 1, for networks that find several people"
    )
    rotate: float = option(30.0, "Largest random rotation in degrees")
    rotated: float = option(1.0, "Share of the images that are rotated")
    shift: float = option(0.1, "Largest random displacement as a share of the crop")
    colour: float = option(0.25, "Strength of random changes of colour, 0 to below 1")
    channels: float = option(0.0, "Probability that the colour channels change places")
    half_body: float = option(0.0, "Probability of half a body, for networks that see one person")
    body_mask: float = option(0.0, "Probability of a grey mask on the body, for networks that see one person")

    @property
    def augmentation(self) -> Augmentation:
        """The same for the training loop."""
        return Augmentation(**{name: getattr(self, name) for name in VariationOptions.model_fields})


class ExampleOptions(StageOptions):
    """What of the data becomes a training example."""

    each_person: bool = option(
        False, "An epoch shows every annotated person once, not every image (networks that see one person)"
    )
    strict: bool = option(False, "Stop at an image that can't be read, instead of leaving it out and counting it")

    def training_data(
        self, dataset: Dataset, pose: PoseSpec, progress: Progress, *, labels: bool, strict: bool, cache: Path | None
    ) -> Dataset:
        """The data as a training sees it; says what it lacks of the network's joints.

        Parameters
        ----------
        dataset : Dataset
            As it was named.
        pose : PoseSpec
            Of the network.
        progress : Progress
            Where that is said.
        labels : bool
            Whether annotations are learned from.
        strict : bool
            Whether an image that can't be read is an error, and not replaced by the next.
        cache : Path, optional
            Folder that keeps the samples.

        Raises
        ------
        DataError
            If annotations have none of the network's joints.
        UsageError
            If people are to be seen one by one by a network that sees all.
        """
        if dataset.annotated and labels:
            for joints in check_joints(getattr(dataset, "parts", (dataset,)), pose):
                if joints.missing:
                    lacking = ", ".join(joints.missing)
                    progress.say(f"{joints.data}: {len(joints.known)} joints; no labels for {lacking}")
        if self.each_person and pose.decoder == "paf":
            raise UsageError(
                "a network that finds several people learns from whole images", hint="Leave out --each-person"
            )
        people = people_of(dataset) if self.each_person else None
        if cache is not None:
            dataset = Cached(dataset, cache)
        if people is not None:
            dataset = EachPerson(dataset, people)
        return dataset if strict else Tolerant(dataset)


def report_broken(dataset: Dataset, progress: Progress) -> list[str]:
    """Say which images of a training could not be read; what is wrong with each."""
    broken = list(dataset.broken()) if isinstance(dataset, Tolerant) else []
    if broken:
        progress.say(f"{len(broken)} of {len(dataset)} images were left out because they can't be read:")
        for message in broken[:_NAMED]:
            progress.say(f"  {message}")
    return broken
