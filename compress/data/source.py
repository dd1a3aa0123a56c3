"""Opening data sets and images, from names, files, folders or memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from compress.data.arrays import Tensors, read_items
from compress.data.images import ImageFiles, ImageFolder
from compress.data.sample import Dataset
from compress.data.spec import DEFAULT_SPLIT, KINDS, SPEC_HELP, DataSpec
from compress.errors import DataError, UsageError


def open_data(
    spec: str | DataSpec | None,
    *,
    split: str = DEFAULT_SPLIT,
    annotations: Path | None = None,
    images: Path | None = None,
) -> Dataset:
    """Open a data set.

    Parameters
    ----------
    spec : str, DataSpec or None
        As `DataSpec.parse` reads it. None where ``annotations`` and ``images`` are given.
    split : str
        Split where the text names none.
    annotations, images : Path, optional
        A COCO keypoint file and the folder of its images, wherever they lie.

    Raises
    ------
    DataError
        If the text names no data set, or the data set can't be read.
    UsageError
        If no data set is named, or two are.
    """
    return read_spec(spec, split=split, annotations=annotations, images=images).open()


def read_spec(
    spec: str | DataSpec | None,
    *,
    split: str = DEFAULT_SPLIT,
    annotations: Path | None = None,
    images: Path | None = None,
) -> DataSpec:
    """The data set that options name, without opening it; parameters and errors as of `open_data`."""
    if annotations is not None or images is not None:
        if annotations is None or images is None:
            found = "--images alone" if annotations is None else "--annotations alone"
            raise UsageError("--annotations and --images go together", found=found, hint="Give both")
        if spec is not None:
            raise UsageError(
                "two data sets are named", found=str(spec), hint="Give either --data or --annotations and --images"
            )
        return DataSpec.of_files(annotations, images)
    if spec is None:
        raise UsageError(
            "no data set is named", hint=f"Give --data: {SPEC_HELP}; or --annotations FILE with --images DIR"
        )
    return spec if isinstance(spec, DataSpec) else DataSpec.parse(spec, split=split)


def images(source: Any, *, color: Literal["bgr", "rgb"] = "bgr") -> Dataset | Tensors:
    """Images to fit factors to, calibrate, distil or compare on; annotations are not needed.

    Parameters
    ----------
    source : str, Path, DataSpec, Dataset, Tensors or iterable
        A folder or a file of images; the name of a data set (``"coco:DIR"``, see `DataSpec.parse`); a data set as it
        is; or an iterable of file names, of images as arrays (H, W, 3) of uint8, or of network inputs as tensors or
        float arrays, with or without a batch axis, in tuples for a network with several inputs. An iterator is read
        once, up to `compress.data.arrays.MAX_ITEMS` items or `compress.data.arrays.MAX_BYTES` bytes.
    color : str
        Order of the channels of arrays: ``"bgr"`` as OpenCV reads them, or ``"rgb"``.

    Returns
    -------
    Dataset or Tensors
        Samples, or network inputs that need no preparation.

    Raises
    ------
    DataError
        If there are no images, or the source is of another kind.
    """
    if isinstance(source, DataSpec):
        return source.open()
    if isinstance(source, str) and source.partition(":")[0] in KINDS:
        return DataSpec.parse(source).open()
    if isinstance(source, (str, os.PathLike)):
        path = Path(source).expanduser()
        return ImageFiles([path], str(path)) if path.is_file() else ImageFolder(path)
    if isinstance(source, Tensors) or (hasattr(source, "ground_truth") and hasattr(source, "__getitem__")):
        return source
    if isinstance(source, dict) or not (isinstance(source, Iterable) or hasattr(source, "__getitem__")):
        raise DataError(
            "these are no images",
            found=type(source).__name__,
            hint='Give a folder, a name such as "coco:DIR", or an iterable of arrays (H, W, 3) or tensors',
        )
    if isinstance(source, (list, tuple)) and source and all(isinstance(item, (str, os.PathLike)) for item in source):
        return ImageFiles([Path(item).expanduser() for item in source], f"{len(source)} files")
    return read_items(source, color)
