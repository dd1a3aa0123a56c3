"""Leeds Sports Pose (LSP) and its extended training set: one person an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.data.listed import Listed, ListedImages, expect_files, joints_person, read_matlab
from compress.errors import DataError
from compress.pose.skeleton import LSP14

#: Number of training images of LSP, which come first.
TRAINING = 1000


def lsp_files(folder: Path) -> tuple[Path, Path]:
    """The joints and the folder of images, of both parts and of the extended set."""
    return folder / "joints.mat", folder / "images"


def open_lsp(folder: Path, part: str) -> ListedImages:
    """Leeds Sports Pose (Johnson and Everingham, 2010): images 1 to 1000 for training, the rest for the test.

    The folder holds ``joints.mat`` with ``joints`` (3, 14, N) and ``images/im0001.jpg`` on. The third row marks
    occluded joints; all are annotated. Positions are stored counting from 1 and are moved to count from 0.

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
    return _listed(f"lsp:{'train' if part == 'train' else 'test'}", folder, keypoints, range(first, last), digits=4)


def open_lspet(folder: Path) -> ListedImages:
    """The extended training set (Johnson and Everingham, 2011); it has no parts, all of it is for training.

    The folder holds ``joints.mat`` with ``joints`` (14, 3, N) and ``images/im00001.jpg`` on. The third column marks
    joints that are annotated at all.

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
    return _listed("lspet", folder, keypoints, range(len(keypoints)), digits=5)


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


def _listed(name: str, folder: Path, keypoints: NDArray[np.float64], chosen: range, digits: int) -> ListedImages:
    keypoints[..., :2] -= 1
    if not np.isfinite(keypoints).all():
        raise DataError("joints.mat holds positions that are not finite", found=str(folder))
    entries = [Listed(f"im{n + 1:0{digits}d}.jpg", (joints_person(keypoints[n]),)) for n in chosen]
    return ListedImages(name, folder / "images", entries, LSP14, whole=True)
