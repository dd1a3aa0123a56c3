"""Leeds Sports Pose (LSP) and its extended training set: one person an image."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.data.listed import Listed, ListedImages, expect_files, joints_person, read_matlab
from compress.errors import DataError
from compress.pose.skeleton import LSP14

#: Number of training images of LSP, which come first.
TRAINING = 1000

#: Side of the crop of a person of scale 1 in pixels: MPII's 200 times the padding that the public code uses for LSP.
SIDE = 200 * 1.4375

#: Length in pixels of the head, from neck to top, of a person of scale 1.
_HEAD = 35.0

#: Smallest scale per pixel of the joints' extent: the joints fill at most 304 of 368 pixels of a crop at 41/35 (CPM).
_LEAST = (41 / 35) / (368 - 64)

#: The limbs whose lengths tell the scale: the head, and limbs of each side.
_HEAD_LIMB = ("neck", "head_top")
_SIDE_LIMBS = (("{}_ankle", "{}_knee"), ("{}_knee", "{}_hip"), ("{}_hip", "neck"), ("{}_wrist", "{}_elbow"),
               ("{}_elbow", "{}_shoulder"), ("{}_shoulder", "neck"))  # fmt: skip


def lsp_files(folder: Path) -> tuple[Path, Path]:
    """The joints and the folder of images, of both parts and of the extended set."""
    return folder / "joints.mat", folder / "images"


def open_lsp(folder: Path, part: str) -> ListedImages:
    """Leeds Sports Pose (Johnson and Everingham, 2010): images 1 to 1000 for training, the rest for the test.

    The folder holds ``joints.mat`` with ``joints`` (3, 14, N) and ``images/im0001.jpg`` on. The third row marks
    occluded joints; all are annotated. Positions are stored counting from 1 and are moved to count from 0.

    A test person is seen in the whole image. A training person is seen in a square of the estimated centre and scale
    (`estimated_views`), as RePose (Isack et al., 2020) and the public code before it train.

    Parameters
    ----------
    folder : Path
        The data set.
    part : str
        ``"train"``, or anything else for the test.

    Raises
    ------
    DataError
        If the folder has another layout, or holds no images of that part.
    """
    joints = _read(folder, "Leeds Sports Pose", (3, 14))
    keypoints = joints.transpose(2, 1, 0).copy()
    keypoints[..., 2] = 2 - (keypoints[..., 2] > 0)
    first = 0 if part == "train" else TRAINING
    last = min(TRAINING, len(keypoints)) if part == "train" else len(keypoints)
    if last <= first:
        raise DataError(
            f"the folder has no images of the test part, which begins at number {TRAINING + 1}",
            found=len(keypoints),
            hint="Pass --split train",
        )
    if part == "train":
        return _listed("lsp:train", folder, keypoints, range(first, last), digits=4, estimated=True)
    return _listed("lsp:test", folder, keypoints, range(first, last), digits=4, estimated=False)


def open_lspet(folder: Path) -> ListedImages:
    """The extended training set (Johnson and Everingham, 2011); it has no parts, all of it is for training.

    The folder holds ``joints.mat`` with ``joints`` (14, 3, N) and ``images/im00001.jpg`` on. The third column marks
    joints that are annotated at all. People are seen as the training people of `open_lsp`.

    Parameters
    ----------
    folder : Path
        The data set.

    Raises
    ------
    DataError
        If the folder has another layout.
    """
    keypoints = _read(folder, "LSP-extended", (14, 3)).transpose(2, 0, 1).copy()
    keypoints[..., 2] = 2 * (keypoints[..., 2] > 0)
    return _listed("lspet", folder, keypoints, range(len(keypoints)), digits=5, estimated=True)


def estimated_views(keypoints: NDArray[np.float64]) -> NDArray[np.float32]:
    """Squares that show people of whom only joints are known, from an estimated centre and a scale like MPII's.

    The centre is the middle of the bounds of the annotated joints. For the scale, each limb's length is divided by the
    median of its ratio to the head's length (neck to head top) over all people; the upper quartile of these estimates
    of the head's length, over 35 pixels, is the scale, but never so small that the joints would be cut off. The side is
    200 x 1.4375 times the scale. This is how the code of convolutional pose machines (Wei et al., 2016) and of feature
    pyramids (Yang et al., 2017) prepares LSP, with three differences: occluded joints count; the limbs of both legs are
    the same (that code takes left ankle to neck for one); and the centre in LSP itself is not that of the image.

    Parameters
    ----------
    keypoints : array, shape (N, 14, 3)
        x, y and visibility of LSP's joints of each person; 0 for a joint that is not annotated.

    Returns
    -------
    array, shape (N, 4), float32
        x, y, width and height in pixels; x and y are the left and upper edge. All NaN for people without two annotated
        joints at different places.
    """
    places, known = keypoints[..., :2], keypoints[..., 2] > 0
    limbs = (_HEAD_LIMB, *((a.format(side), b.format(side)) for side in ("right", "left") for a, b in _SIDE_LIMBS))
    ends = np.array([[LSP14.joints.index(joint) for joint in limb] for limb in limbs])
    lengths = np.linalg.norm(places[:, ends[:, 0]] - places[:, ends[:, 1]], axis=2)
    lengths = np.where(known[:, ends].all(axis=2) & (lengths > 0), lengths, np.nan)
    views = np.full((len(keypoints), 4), np.nan)
    with warnings.catch_warnings():  # limbs that nobody has
        warnings.simplefilter("ignore", RuntimeWarning)
        heads = np.nanquantile(lengths / np.nanmedian(lengths / lengths[:, :1], axis=0), 0.75, axis=1, method="hazen")
    for index, joints in enumerate(known):
        if not joints.any():
            continue
        low, high = places[index, joints].min(axis=0), places[index, joints].max(axis=0)
        scale = np.nanmax([heads[index] / _HEAD, _LEAST * (high - low).max()])
        if scale > 0:
            side = SIDE * scale
            views[index] = [*((low + high) / 2 + 0.5 - side / 2), side, side]
    return views.astype(np.float32)


def _read(folder: Path, kind: str, shape: tuple[int, int]) -> NDArray[np.float64]:
    expect_files(folder, kind, ("joints.mat", "images"))
    joints = read_matlab(folder / "joints.mat", ("joints",))["joints"]
    if joints.ndim != 3 or joints.shape[:2] != shape or joints.dtype.kind not in "fiu":
        other = "LSP-extended (lspet:DIR)" if joints.shape[:2] == (14, 3) else "LSP (lsp:DIR)"
        hint = f"It looks like {other}" if joints.shape[:2] in ((3, 14), (14, 3)) else ""
        raise DataError(
            f"joints.mat of {kind} holds an array of {shape[0]} x {shape[1]} x images",
            found=joints.shape,
            hint=hint,
        )
    return joints.astype(np.float64)


def _listed(
    name: str, folder: Path, keypoints: NDArray[np.float64], chosen: range, *, digits: int, estimated: bool
) -> ListedImages:
    keypoints[..., :2] -= 1
    if not np.isfinite(keypoints).all():
        raise DataError("joints.mat holds positions that are not finite", found=str(folder))
    views: list[NDArray[np.float32] | None] = [None] * len(keypoints)
    if estimated:
        views = [view if np.isfinite(view).all() else None for view in estimated_views(keypoints)]
    entries = [Listed(f"im{n + 1:0{digits}d}.jpg", (joints_person(keypoints[n], views[n]),)) for n in chosen]
    return ListedImages(name, folder / "images", entries, LSP14, whole=not estimated)
