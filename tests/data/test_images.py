"""Image files in all formats and depths, damaged ones, and folders of them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from compress.data.images import ImageFolder, locate_images, read_image, to_bytes
from compress.data.sample import iterate
from compress.errors import DataError


def picture(seed: int = 0, size: tuple[int, int] = (12, 20)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_a_folder_yields_only_its_images_sorted_by_name(tmp_path: Path) -> None:
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
def test_every_image_becomes_three_channels_of_uint8(tmp_path: Path, kind: str) -> None:
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
def test_a_truncated_image_is_refused_by_name(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"image{suffix}"
    cv2.imwrite(str(path), picture(size=(60, 80)))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=rf"image{suffix}"):
        read_image(path)


def test_a_file_that_is_not_an_image_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "page.jpg"
    path.write_text("<html>not found</html>")
    with pytest.raises(DataError, match=r"does not decode.*page\.jpg.*Fetch it again"):
        read_image(path)
    with pytest.raises(DataError, match=r"does not exist.*nothing\.jpg"):
        read_image(tmp_path / "nothing.jpg")


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_images_of_few_bits_stored_in_sixteen_are_as_bright_as_in_eight(tmp_path: Path, bits: int, suffix: str) -> None:
    pixels = picture()
    pixels[0, 0] = 255
    path = tmp_path / f"deep{suffix}"
    cv2.imwrite(str(path), np.rint(pixels * ((2**bits - 1) / 255)).astype(np.uint16))
    assert np.abs(read_image(path).astype(int) - pixels.astype(int)).max() <= 1


@pytest.mark.parametrize("suffix", [".tiff", ".hdr"])
@pytest.mark.parametrize("white", [1.0, 30.0, 255.0])
def test_floating_point_images_are_scaled_by_their_brightest_value(tmp_path: Path, white: float, suffix: str) -> None:
    pixels = picture()
    pixels[0, 0] = 255
    path = tmp_path / f"float{suffix}"
    cv2.imwrite(str(path), pixels.astype(np.float32) * np.float32(white / 255))
    tolerance = 3 if suffix == ".hdr" else 1  # its 8 bits share an exponent
    assert np.abs(read_image(path).astype(int) - pixels.astype(int)).max() <= tolerance


def test_a_few_highlights_leave_a_floating_point_image_visible_and_non_finite_values_are_black() -> None:
    values = np.full((40, 40, 3), 100.0, np.float32)
    values[0, 0] = 1e6
    assert to_bytes(values).min() > 200
    values = np.full((4, 4, 3), 0.5, np.float32)
    values[0, 0], values[1, 1], values[2, 2] = np.nan, np.inf, -3
    assert to_bytes(values)[[0, 1, 2, 3], [0, 1, 2, 3]].tolist() == [[0] * 3, [0] * 3, [0] * 3, [128] * 3]


@pytest.mark.parametrize("suffix", [".gif", ".jfif", ".avif", ".webp", ".jp2"])
def test_a_folder_shows_every_format_that_can_be_read(tmp_path: Path, suffix: str) -> None:
    encoded = cv2.imencode(".jpg" if suffix == ".jfif" else suffix, picture(size=(48, 64)))[1]
    (tmp_path / f"a{suffix}").write_bytes(encoded.tobytes())
    (sample,) = iterate(ImageFolder(tmp_path))
    assert sample.image.shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("listed", "stored"),
    [
        ("m\u00fcller.png", "mu\u0308ller.png"),
        ("mu\u0308ller.png", "m\u00fcller.png"),
        ("sub\\c.png", "sub/c.png"),
        ("s\u00fcb\\d\\c.png", "su\u0308b/d/c.png"),
        ("a.JPG", "a.jpg"),
        ("sub/a.jpeg", "sub/a.JPEG"),
        ("back\\slash.png", "back\\slash.png"),
    ],
)
def test_names_fit_in_another_normalisation_separator_and_case_of_the_suffix(
    tmp_path: Path, listed: str, stored: str
) -> None:
    path = tmp_path / stored
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    assert locate_images([listed], tmp_path) == (path,)


def test_a_name_as_it_is_goes_before_one_that_is_similar(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.JPG", "m\u00fc.png", "mu\u0308.png"):
        (tmp_path / name).write_bytes(b"x")
    names = ["a.JPG", "mu\u0308.png", "a.jpg", "m\u00fc.png"]
    assert [path.name for path in locate_images(names, tmp_path)] == names
    with pytest.raises(DataError, match="1 of 1 images are not in"):
        locate_images(["A.jpg"], tmp_path)
