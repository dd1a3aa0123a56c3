"""MPII Human Pose, in the folder layout of the public training code."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.data.images import check_inside
from compress.data.listed import Listed, ListedImages, expect_files, joints_person, read_list, read_matlab
from compress.data.sample import Person
from compress.errors import DataError
from compress.pose.crop import PADDING
from compress.pose.skeleton import MPII16

#: A person of MPII's scale 1 is this tall in pixels.
_HEIGHT = 200

_HEADS = "gt_valid.mat"

#: The lists of people that a part is taken from. The public split has one each; ``train80`` and ``valid20`` divide the
#: people of both, the split of CBAM-Lite-HRNet's paper.
PARTS = {"train": ("train",), "valid": ("valid",), "train80": ("train", "valid"), "valid20": ("train", "valid")}

#: Share of the images in ``train80``.
_TRAINING_SHARE = 0.8


def mpii_files(folder: Path, part: str) -> tuple[Path, ...]:
    """The people of a part, the head boxes where it has any, and the folder of images."""
    lists = tuple(folder / "annot" / f"{name}.json" for name in PARTS[part])
    heads = (folder / "annot" / _HEADS,) if part in ("valid", "valid20") else ()
    return *lists, *heads, folder / "images"


def open_mpii(folder: Path, part: str) -> ListedImages:
    """MPII's training or validation people.

    The folder holds ``images`` and ``annot`` with ``train.json`` and ``valid.json`` (one entry a person: ``image``,
    ``center``, ``scale``, ``joints``, ``joints_vis``). For PCKh the validation also needs ``annot/gt_valid.mat``, which
    has the head boxes. The people of one image make one sample. Each person's view is a square whose side is 200 times
    the scale times `compress.pose.crop.PADDING`, its centre 15 times the scale below the annotated one, as in the
    public code. Positions are stored counting from 1 and are moved to count from 0.

    ``train80`` and ``valid20`` divide the images of both lists 80 to 20, by the SHA-256 of their names: the same
    images everywhere, no image in both, whatever the order of the lists. Only people of ``valid.json`` have a head box,
    so PCKh counts those of ``valid20`` who have one.

    Parameters
    ----------
    folder : Path
        The data set.
    part : str
        A key of `PARTS`.

    Raises
    ------
    DataError
        If the folder has another layout, or an entry can't be used.
    """
    expect_files(folder, "MPII", ("images", *(f"annot/{name}.json" for name in PARTS[part])))
    people: dict[str, list[Person]] = {}
    facts: dict[str, list[dict[str, Any]]] = {}
    for source in PARTS[part]:
        _read_people(folder, source, with_heads=part in ("valid", "valid20"), people=people, facts=facts)
    names = list(people)
    if part in ("train80", "valid20"):
        training = _training_images(names)
        names = [name for name in names if (name in training) == (part == "train80")]
    entries = [Listed(name, tuple(people[name]), tuple(facts[name])) for name in names]
    return ListedImages(f"mpii:{part}", folder / "images", entries, MPII16)


def _read_people(
    folder: Path,
    source: str,
    *,
    with_heads: bool,
    people: dict[str, list[Person]],
    facts: dict[str, list[dict[str, Any]]],
) -> None:
    """Add the people of a list, and what is known of each, to those of the images."""
    path = folder / "annot" / f"{source}.json"
    records = read_list(path)
    heads = _read_heads(folder / "annot" / _HEADS, len(records)) if with_heads and source == "valid" else None
    for index, record in enumerate(records):
        try:
            name, person = check_inside(str(record["image"]), path), _person(record)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"entry {index} of {path.name} can't be used: {error!r}",
                found=sorted(map(str, record)),
                hint="An entry has image, center, scale, 16 joints and joints_vis",
            ) from error
        people.setdefault(name, []).append(person)
        facts.setdefault(name, []).append({} if heads is None else heads[index])


def _training_images(names: list[str]) -> set[str]:
    """The images of ``train80``: the first 80 % in the order of the hashes of their names."""
    order = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return set(order[: round(_TRAINING_SHARE * len(order))])


def _person(record: dict[str, Any]) -> Person:
    joints = np.array(record["joints"], dtype=np.float64)
    visible = np.array(record["joints_vis"], dtype=np.float64)
    centre, scale = np.array(record["center"], dtype=np.float64), float(record["scale"])
    if joints.shape != (16, 2) or visible.shape != (16,) or centre.shape != (2,) or not scale > 0:
        raise ValueError("joints, center or scale have another shape")
    if not (np.isfinite(joints).all() and np.isfinite(centre).all() and np.isfinite(scale)):
        raise ValueError("a position is not finite")
    side = _HEIGHT * scale * PADDING
    middle = centre + np.array([0, 15 * scale]) - 1 + 0.5  # to count from 0, and from the pixel's edge
    view = np.array([*(middle - side / 2), side, side], dtype=np.float32)
    return joints_person(np.column_stack([joints - 1, 2 * (visible > 0)]), view)


def _read_heads(path: Path, count: int) -> list[dict[str, Any]] | None:
    """Keypoints and head boxes (left, upper, right, lower) of the validation people; None without the file."""
    if not path.exists():
        return None
    arrays = read_matlab(path, ("jnt_missing", "pos_gt_src", "headboxes_src"))
    missing, places, boxes = (arrays[name] for name in ("jnt_missing", "pos_gt_src", "headboxes_src"))
    if missing.shape != (16, count) or places.shape != (16, 2, count) or boxes.shape != (2, 2, count):
        raise DataError(
            f"{path.name} is not about the people of valid.json",
            found=(missing.shape, places.shape, boxes.shape),
            hint=f"It should hold {count} people with 16 joints",
        )
    return [
        {"keypoints": _keypoints(places[..., n], missing[:, n]), "head_box": boxes[..., n].ravel().tolist()}
        for n in range(count)
    ]


def _keypoints(places: NDArray[Any], missing: NDArray[Any]) -> list[float]:
    labelled = missing == 0
    values = np.column_stack([places - 1, 2 * labelled]) * labelled[:, None]
    return [float(value) for value in np.where(np.isfinite(values), values, 0).ravel()]
