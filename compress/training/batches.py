"""Batches for training: the same sequence whatever the number of worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from compress.data.augment import Augmentation, augment
from compress.data.person_view import PersonView, random_view
from compress.data.sample import Dataset, Sample
from compress.errors import CompressError, DataError
from compress.pose.skeleton import convert_keypoints, get_skeleton
from compress.pose.spec import PoseSpec
from compress.pose.targets import heatmap_targets, paf_targets

#: Where a training example comes from: (epoch, index in the data set).
Key = tuple[int, int]

#: Images that are looked at for somebody to show before giving up.
_TRIES = 100

#: Standard deviation of the peaks in input pixels for networks that find several people, or have a background map.
_SIGMA = 7.0


@dataclass(frozen=True)
class Example:
    """One training example: image (H, W, 3) uint8, targets (C, h, w) by name, mask (1, h, w) or (C, 1, 1)."""

    image: np.ndarray
    targets: dict[str, np.ndarray]
    mask: np.ndarray


@dataclass(frozen=True)
class Batch:
    """Examples on top of each other.

    Attributes
    ----------
    images : Tensor, shape (N, 3, H, W), uint8
        Pixels in the network's channel order, not yet normalised; channels last in memory.
    targets : dict of str to Tensor, shape (N, C, h, w)
        Targets by map name; empty without labels.
    mask : Tensor, shape (N, 1, h, w) or (N, C, 1, 1)
        Share of each cell where the annotation can be trusted; for networks that see one person, the weight of each
        map: 0 for joints that are not annotated or not in the picture, the same for all others, 1 on average.
    """

    images: Tensor
    targets: dict[str, Tensor]
    mask: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return Batch(
            self.images.to(device, non_blocking=True),
            {name: target.to(device, non_blocking=True) for name, target in self.targets.items()},
            self.mask.to(device, non_blocking=True),
        )

    def pin_memory(self) -> Batch:
        """The batch in memory that a GPU can read by itself; the loader calls it."""
        return Batch(
            self.images.pin_memory(),
            {name: target.pin_memory() for name, target in self.targets.items()},
            self.mask.pin_memory(),
        )


def normalise(images: Tensor, pose: PoseSpec) -> Tensor:
    """Pixels (N, 3, H, W) uint8 to what the network expects, ``(pixel - mean) * scale``; keeps the memory format."""
    mean, scale = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (pose.mean, pose.scale))
    return images.float().sub_(mean).mul_(scale)


def default_sigma(pose: PoseSpec) -> float:
    """Standard deviation in input pixels of the peaks that a network is trained on unless told otherwise.

    7 as in lightweight OpenPose and Global Context CPM; for other networks that see one person two cells, as in
    SimpleBaseline and HRNet, but no less than 5 pixels, as in RePose.
    """
    if pose.decoder == "paf" or pose.background:
        return _SIGMA
    return max(2.0 * pose.stride, 5.0)


def make_targets(sample: Sample, pose: PoseSpec, sigma: float = _SIGMA) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Target maps of a sample in network-input pixels, and the mask at their size.

    Parameters
    ----------
    sample : Sample
        Of the network's input size, which is a multiple of the stride.
    pose : PoseSpec
        Skeleton, stride and background of the maps.
    sigma : float, optional
        Standard deviation of the heatmaps' peaks in input pixels.

    Returns
    -------
    targets : dict of str to array, shape (C, h, w), float32
        ``heatmaps`` and ``pafs``.
    mask : array, shape (1, h, w), float32
        Share of each cell that the sample's mask trusts.
    """
    height, width = (n // pose.stride for n in sample.image.shape[:2])
    source = get_skeleton(sample.skeleton)
    people = [convert_keypoints(p.keypoints, source, pose.joints) for p in sample.people if not p.crowd]
    size, joints = (height, width), pose.joints
    targets = {
        "heatmaps": heatmap_targets(
            people, size, pose.stride, sigma=sigma, skeleton=joints, background=pose.background
        ),
        "pafs": paf_targets(people, size, pose.stride, skeleton=joints),
    }
    return targets, _shrink_mask(sample.mask, size)


def person_targets(view: PersonView, pose: PoseSpec, sigma: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Target heatmaps of one person, and the weight of each map.

    Parameters
    ----------
    view : PersonView
        Of a size that is a multiple of the stride.
    pose : PoseSpec
        Skeleton, stride, grid and background of the maps.
    sigma : float
        Standard deviation of the peaks in input pixels.

    Returns
    -------
    targets : dict of str to array, shape (C, h, w), float32
        ``heatmaps``: Gaussians that are 1 at the joint, not normalised, and 1 minus the largest of them where the
        network has a background map.
    weights : array, shape (C, 1, 1), float32
        Those of the partial loss of RePose (Isack et al., 2020): 0 for joints that are not there and ``C / n`` for the
        n others and the background, so that people with few annotated joints count as much as any. All 0 without any.
    """
    size = (view.image.shape[0] // pose.stride, view.image.shape[1] // pose.stride)
    maps = heatmap_targets(
        [view.keypoints],
        size,
        pose.stride,
        sigma=sigma,
        skeleton=pose.joints,
        background=pose.background,
        first_cell=pose.first_cell,
    )
    there = view.keypoints[:, 2] > 0
    known = np.append(there, there.any()) if pose.background else there
    weights = known * (len(known) / max(int(known.sum()), 1))
    return {"heatmaps": maps}, weights.astype(np.float32)[:, None, None]


def _shrink_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    # Not cv2.resize: in worker processes it now and then gave cells of 1e37.
    blocks = mask.reshape(size[0], mask.shape[0] // size[0], size[1], mask.shape[1] // size[1])
    return np.asarray(blocks.mean(axis=(1, 3), dtype=np.float32))[None]


class Examples(TorchDataset[Example | CompressError]):
    """A data set seen through augmentation: ``examples[epoch, index]`` depends on these two and the seed alone.

    For a network that sees one person at a time, an example shows a random person of the image; if there is none to
    show, one of another image that the seed, the epoch and the index choose.
    """

    def __init__(
        self,
        data: Dataset,
        pose: PoseSpec,
        *,
        size: tuple[int, int],
        augmentation: Augmentation,
        seed: int,
        labels: bool,
        sigma: float | None = None,
    ) -> None:
        if labels and not data.annotated:
            raise DataError(
                "the data set has no annotations to train on",
                found=data.name,
                hint="Give a teacher to learn from, or annotated data",
            )
        if len(data) == 0:
            raise DataError("the data set is empty", found=data.name)
        self.data, self.pose, self.size = data, pose, size
        self.augmentation, self.seed, self.labels = augmentation, seed, labels
        self.sigma = default_sigma(pose) if sigma is None else sigma
        # The network's channel order is the mean's; OpenCV fills blue, green, red.
        self._fill = pose.mean if pose.color == "bgr" else pose.mean[::-1]

    def __getitem__(self, key: Key) -> Example | CompressError:
        """The example, or the error that made it impossible: raised here, it would lose its parts on the way home."""
        try:
            return self._make(key)
        except CompressError as error:
            return error

    def _make(self, key: Key) -> Example:
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        if self.pose.decoder == "heatmap":
            return self._make_person(index, rng)
        sample = augment(self.data[index], self.size, self.augmentation, rng, self._fill)
        image = sample.image if self.pose.color == "bgr" else sample.image[..., ::-1]
        if self.labels:
            return Example(image, *make_targets(sample, self.pose, self.sigma))
        mask = _shrink_mask(sample.mask, (self.size[0] // self.pose.stride, self.size[1] // self.pose.stride))
        return Example(image, {}, mask)

    def _make_person(self, index: int, rng: np.random.Generator) -> Example:
        for _ in range(_TRIES):
            view = random_view(self.data[index], self.pose, self.size, self.augmentation, rng)
            # Of an image without people nothing can be learned from labels.
            if view is not None and (not self.labels or (view.keypoints[:, 2] > 0).any()):
                image = view.image if self.pose.color == "bgr" else view.image[..., ::-1]
                if self.labels:
                    return Example(image, *person_targets(view, self.pose, self.sigma))
                return Example(image, {}, np.ones((1, 1, 1), dtype=np.float32))
            index = int(rng.integers(len(self.data)))
        raise DataError(
            "found nobody with labelled joints to show a network that sees one person at a time",
            found=self.data.name,
            hint=f"{_TRIES} images were looked at; does the data have the skeleton {self.pose.skeleton}?",
        )


class Steps(Sampler[list[Key]]):
    """Keys of the batches ``start`` to ``steps``: epochs in random order, one after the other without a gap.

    Of several processes each gets its share of each batch, ``share`` being its number and their count, in so many
    pieces; both divide the batch. What a batch holds does not depend on them.
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        start: int,
        steps: int,
        seed: int,
        pieces: int = 1,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.length, self.batch_size, self.start, self.steps, self.seed = length, batch_size, start, steps, seed
        self.pieces, self.share = pieces, share

    def __len__(self) -> int:
        return (self.steps - self.start) * self.pieces

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start, self.steps):
            keys = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // self.length != epoch:
                    epoch = position // self.length
                    order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
                keys.append((epoch, int(order[position % self.length])))
            number, count = self.share
            size = self.batch_size // (count * self.pieces)
            first = number * self.pieces
            yield from (keys[piece * size : (piece + 1) * size] for piece in range(first, first + self.pieces))


def collate(examples: Sequence[Example | CompressError]) -> Batch | CompressError:
    """A batch of examples, or the first error among them."""
    good: list[Example] = []
    for example in examples:
        if isinstance(example, CompressError):
            return example
        good.append(example)
    # (N, H, W, 3) seen as (N, 3, H, W) is channels-last memory: nothing is copied to get there.
    images = torch.from_numpy(np.stack([example.image for example in good])).permute(0, 3, 1, 2)
    targets = {name: torch.from_numpy(np.stack([e.targets[name] for e in good])) for name in good[0].targets}
    return Batch(images, targets, torch.from_numpy(np.stack([example.mask for example in good])))


def load_batches(
    examples: Examples,
    *,
    batch_size: int,
    start: int,
    steps: int,
    workers: int,
    pin: bool = False,
    pieces: int = 1,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Batches number ``start`` to ``steps`` of the sequence that the examples' seed stands for, each in its pieces.

    Parameters
    ----------
    examples : Examples
        Where they come from.
    batch_size, start, steps : int
        Examples per batch, number of the first batch and number after the last one.
    workers : int
        Processes that load ahead; 0 loads in this one. The batches are the same.
    pin : bool
        Whether to put them into pinned memory.
    pieces, share : int, (int, int)
        As of `Steps`.

    Raises
    ------
    CompressError
        Whatever the data set raised.
    """
    loader: DataLoader[Example | CompressError] = DataLoader(
        examples,
        batch_sampler=Steps(
            len(examples.data),
            batch_size=batch_size,
            start=start,
            steps=steps,
            seed=examples.seed,
            pieces=pieces,
            share=share,
        ),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        worker_init_fn=_start_worker,
        # A generator of its own: the loader draws from it, and torch's global one must not depend on loading.
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, CompressError):
            raise batch
        yield batch


def _start_worker(number: int) -> None:
    """One thread a worker: the processes are the parallelism."""
    cv2.setNumThreads(0)
