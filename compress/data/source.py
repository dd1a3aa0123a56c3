"""Data sets and images from whatever names or holds them."""

from __future__ import annotations

from pathlib import Path

from compress.data.sample import Dataset
from compress.data.spec import DEFAULT_SPLIT, SPEC_HELP, DataSpec
from compress.errors import UsageError


def open_data(
    spec: str | DataSpec | None,
    *,
    split: str = DEFAULT_SPLIT,
    annotations: Path | None = None,
    images: Path | None = None,
) -> Dataset:
    """The data set of a name.

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
