"""Training examples: augmented views of a data set, with targets for networks that learn from labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from compress.data.augment import Augmentation, augment
from compress.data.person_view import random_view
from compress.data.sample import Dataset
from compress.errors import CompressError, DataError, UsageError
from compress.network.inputs import Inputs, batched
from compress.pose.decoders.registry import get_decoder
from compress.pose.prepare import arrange_channels
from compress.pose.skeleton import convert_keypoints, get_skeleton
from compress.pose.spec import PoseSpec
from compress.training.batches import Batch, Example, Key, SizedExamples, Span, load_batches, normalise
from compress.training.losses import partial_weights
from compress.training.options import JointWeights

#: Images tried before giving up on finding a person to show.
_TRIES = 100


@dataclass(frozen=True)
class ExampleOptions:
    """How samples become examples.

    Attributes
    ----------
    size : (int, int)
        Height and width of the examples.
    augmentation : Augmentation
        How they are varied.
    seed : int
        Seed of order and augmentation.
    labels : bool
        Whether to make targets.
    sigma : float or None
        Standard deviation of the heatmaps' peaks in input pixels; None: that of the network's paper.
    overlap : str or None
        As of `compress.training.options.FineTuneOptions`.
    joint_weights : str
        As of `compress.training.options.FineTuneOptions`.
    """

    size: tuple[int, int]
    augmentation: Augmentation
    seed: int
    labels: bool
    sigma: float | None = None
    joint_weights: JointWeights = "plain"
    overlap: str | None = None


class Examples(SizedExamples):
    """Augmented views of a data set: ``examples[epoch, index]`` depends on these two and the seed alone.

    For a network that sees one person at a time, an example shows a random person of the image; if it has none, one of
    another image, chosen by the seed, the epoch and the index.

    Parameters
    ----------
    data : Dataset
        Where samples come from.
    pose : PoseSpec
        How images become the network's input, and people its targets.
    options : ExampleOptions
        How samples become examples.

    Raises
    ------
    DataError
        If the data set is empty, or has no annotations to make targets of.
    UsageError
        If a network that finds several people is to be trained by the partial loss, or one that sees one person at a
        time with targets for overlapping people.
    """

    def __init__(self, data: Dataset, pose: PoseSpec, options: ExampleOptions) -> None:
        if options.labels and not data.annotated:
            raise DataError(
                "the data set has no annotations to train on",
                found=data.name,
                hint="Give a teacher to learn from, or annotated data",
            )
        if len(data) == 0:
            raise DataError("the data set is empty", found=data.name)
        self.data, self.pose, self.options, self.seed = data, pose, options, options.seed
        self.decoder = get_decoder(pose, **({"overlap": options.overlap} if options.labels else {}))
        if options.labels and options.joint_weights == "partial" and not self.decoder.top_down:
            raise UsageError(
                "the partial loss is for networks that see one person at a time",
                found=f"decoder {pose.decoder}",
                hint="Leave out joint_weights",
            )

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: Key) -> Example | CompressError:
        """The example, or the error that made it impossible: raised in a worker process, it would lose its fields."""
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        try:
            return self._person(index, rng) if self.decoder.top_down else self._whole(index, rng)
        except CompressError as error:
            return error

    def batches(self, span: Span) -> Iterator[Batch]:
        """See `compress.training.batches.BatchSource`."""
        return load_batches(self, self.seed, span)

    def network_inputs(self, batch: Batch) -> Inputs:
        """Normalised pixels in the network's layout."""
        images = normalise(batched(batch.inputs), self.pose)
        return images.permute(0, 2, 3, 1) if self.pose.layout == "nhwc" else images

    def _whole(self, index: int, rng: np.random.Generator) -> Example:
        options, pose = self.options, self.pose
        blue, green, red = pose.fill
        sample = augment(self.data[index], options.size, options.augmentation, rng, (blue, green, red))
        image = arrange_channels(sample.image, pose)
        if not options.labels:
            return Example(image, {}, self.decoder.trust(sample.mask, pose))
        source = get_skeleton(sample.skeleton)
        people = [convert_keypoints(p.keypoints, source, pose.joints) for p in sample.people if not p.crowd]
        targets = self.decoder.targets(people, options.size, pose, sigma=options.sigma, trusted=sample.mask)
        return Example(image, targets.outputs, targets.weight)

    def _person(self, index: int, rng: np.random.Generator) -> Example:
        options, pose = self.options, self.pose
        for _ in range(_TRIES):
            view = random_view(self.data[index], pose, options.size, options.augmentation, rng)
            # Labels of an image without people teach nothing.
            if view is not None and (not options.labels or (view.keypoints[:, 2] > 0).any()):
                image = arrange_channels(view.image, pose)
                if not options.labels:
                    return Example(image, {}, np.ones((1, 1, 1), dtype=np.float32))
                targets = self.decoder.targets([view.keypoints], options.size, pose, sigma=options.sigma)
                weight = partial_weights(targets.weight) if options.joint_weights == "partial" else targets.weight
                return Example(image, targets.outputs, weight)
            index = int(rng.integers(len(self.data)))
        raise DataError(
            "no person with labelled joints to train a network on that sees one person at a time",
            found=self.data.name,
            hint=f"{_TRIES} images were tried; does the data have the skeleton {pose.joints.name}?",
        )
