"""Image files, good and bad, and folders of them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from compress.data.images import ImageFolder, read_image
from compress.data.sample import iterate
from compress.errors import DataError


def picture(seed: int = 0, size: tuple[int, int] = (12, 20)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_a_folder_gives_its_images_by_name_and_nothing_else(tmp_path: Path) -> None:
    for seed, name in enumerate(("b.PNG", "a.png", "c.bmp")):
        cv2.imwrite(str(tmp_path / name), picture(seed))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "more").mkdir()
    cv2.imwrite(str(tmp_path / "more" / "d.png"), picture())
    folder = ImageFolder(tmp_path)
    samples = list(iterate(folder))
    assert [s.name for s in samples] == ["a.png", "b.PNG", "c.bmp"]
    assert [s.image_id for s in samples] == [1, 2, 3]
    assert np.array_equal(samples[0].image, picture(1))
    assert all(s.mask.all() and s.mask.shape == s.image.shape[:2] and not s.people for s in samples)
    assert not folder.annotated
    with pytest.raises(DataError, match="no annotations to score against"):
        folder.ground_truth()
    with pytest.raises(IndexError):
        folder[3]


def test_several_folders_are_one_data_set(tmp_path: Path) -> None:
    for number, name in enumerate("ba"):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "x.png"), picture(number))
    both = ImageFolder(tmp_path / "b", tmp_path / "a")
    assert [sample.image_id for sample in map(both.__getitem__, range(len(both)))] == [1, 2]
    assert (both[0].image == picture(0)).all()
    assert (both[1].image == picture(1)).all()
    with pytest.raises(DataError, match="no such folder"):
        ImageFolder(tmp_path / "a", tmp_path / "c")


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"holds no images.*\.jpg"):
        ImageFolder(tmp_path)
    for path in (tmp_path / "nowhere", tmp_path / "notes.txt"):
        with pytest.raises(DataError, match="no such folder of images"):
            ImageFolder(path)


@pytest.mark.parametrize("kind", ["grey", "alpha", "sixteen bits"])
def test_every_image_becomes_three_channels_of_bytes(tmp_path: Path, kind: str) -> None:
    colour = picture()
    path = tmp_path / "image.png"
    stored, expected = {
        "grey": (colour[..., 0], np.repeat(colour[..., :1], 3, axis=2)),
        "alpha": (np.dstack([colour, np.full(colour.shape[:2], 7, np.uint8)]), colour),
        "sixteen bits": (colour.astype(np.uint16) * 257, colour),
    }[kind]
    cv2.imwrite(str(path), stored)
    image = read_image(path)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
def test_a_cut_off_image_is_refused_by_name(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"image{suffix}"
    cv2.imwrite(str(path), picture(size=(60, 80)))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=rf"image{suffix}"):
        read_image(path)


def test_what_is_no_image_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "page.jpg"
    path.write_text("<html>not found</html>")
    with pytest.raises(DataError, match=r"does not decode.*page\.jpg.*Fetch it again"):
        read_image(path)
    with pytest.raises(DataError, match=r"does not exist.*nothing\.jpg"):
        read_image(tmp_path / "nothing.jpg")
