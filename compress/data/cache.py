"""Samples cached on disk, for data sets that are slow to produce."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from compress.data.sample import Dataset, Person, Sample
from compress.errors import DataError
from compress.files import atomic_path

#: Stands for an absent view in a file.
_NO_VIEW = np.full(4, np.nan, dtype=np.float32)


class Cached:
    """A data set whose samples are produced once and then read from a folder.

    Several processes may share the folder. It is tied to the data set by its name alone: when the samples change under
    the same name, use another folder.

    Parameters
    ----------
    data : Dataset
        Where samples come from.
    folder : Path
        Where they are stored, one uncompressed ``.npz`` file each; created if missing.
    """

    def __init__(self, data: Dataset, folder: Path) -> None:
        self.data, self.folder = data, folder
        self.name, self.annotated = data.name, data.annotated

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        """The sample, from the folder if it is cached.

        Raises
        ------
        DataError
            If the folder holds samples of another data set, or a damaged file.
        """
        if not 0 <= index < len(self):
            return self.data[index]
        path = self.folder / f"{index:07d}.npz"
        if path.exists():
            return self._read(path)
        sample = self.data[index]
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **_to_arrays(sample, self.name))
        return sample

    def ground_truth(self) -> dict[str, Any]:
        """Annotations of all images, from the data set itself."""
        return self.data.ground_truth()

    def _read(self, path: Path) -> Sample:
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            owner, sample = str(arrays["data"]), _from_arrays(arrays)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(
                f"a cached sample can't be read: {error}", found=str(path), hint="Remove it, or use another folder"
            ) from error
        if owner != self.name:
            raise DataError(
                f"the folder {path.parent} holds samples of another data set than {self.name}",
                found=owner,
                hint="Use a folder of its own for each data set",
            )
        return sample


def _to_arrays(sample: Sample, name: str) -> dict[str, Any]:
    people = sample.people
    return {
        "data": name,
        "image": sample.image,
        "mask": np.packbits(sample.mask),
        "keypoints": np.concatenate([np.zeros((0, 3), np.float32), *(p.keypoints for p in people)]),
        "joints": np.array([len(p.keypoints) for p in people], dtype=np.int64),
        "boxes": np.array([p.box for p in people], dtype=np.float32).reshape(-1, 4),
        "areas": np.array([p.area for p in people], dtype=np.float64),
        "crowd": np.array([p.crowd for p in people], dtype=np.bool_),
        "views": np.array([np.full(4, np.nan) if p.view is None else p.view for p in people], np.float32).reshape(
            -1, 4
        ),
        "image_id": sample.image_id,
        "name": sample.name,
        "skeleton": sample.skeleton,
    }


def _from_arrays(arrays: dict[str, Any]) -> Sample:
    shape = arrays["image"].shape[:2]
    ends = np.cumsum(arrays["joints"])
    people = tuple(
        Person(keypoints, box, float(area), bool(crowd), None if np.isnan(view).any() else view)
        for keypoints, box, area, crowd, view in zip(
            np.split(arrays["keypoints"], ends)[: len(ends)],
            arrays["boxes"],
            arrays["areas"],
            arrays["crowd"],
            arrays.get("views", np.tile(_NO_VIEW, (len(ends), 1))),  # older folders have none
            strict=True,
        )
    )
    mask = np.unpackbits(arrays["mask"], count=shape[0] * shape[1]).reshape(shape).astype(np.bool_)
    return Sample(arrays["image"], people, mask, int(arrays["image_id"]), str(arrays["name"]), str(arrays["skeleton"]))
