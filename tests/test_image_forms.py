"""What an image becomes: format x mode x depth. RGB of 8 bits, a note where a range is guessed, or a line."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pngs import ALPHA, COLOUR, GREY, GREY_ALPHA, PALETTE, png
from tiffs import RGB as IN_COLOURS
from tiffs import tiff

from segrow.data.files import decode_image, examine_image, read_saliency, upright_size
from segrow.data.taken import Taken
from segrow.errors import UserError

RNG = np.random.default_rng(0)
WIDE = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
WIDE[0, :2] = 0, 255
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
BITS = (WIDE > 99).astype(np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)

Content = bytes | Callable[[], bytes]


def saved(values: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture = values if isinstance(values, Image.Image) else Image.fromarray(values)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)


def tif(values: np.ndarray) -> Content:
    return lambda: saved(values, "TIFF")


def with_alpha(alpha: int) -> np.ndarray:
    return np.dstack([RGB, np.full(WIDE.shape, alpha, np.uint8)])


UNIT = (WIDE / 255).astype(np.float32)
HOLE = np.where(BITS > 0, UNIT, np.nan).astype(np.float32)
WORDS = WIDE.astype(np.uint16)

# name, content, what the network sees, what is said
SEEN: list[tuple[str, Content, np.ndarray, Taken]] = [
    ("png grey 1", png(BITS, 1, GREY), grey(BITS * 255), Taken.PLAIN),
    ("png grey 2", png(WIDE // 64, 2, GREY), grey(WIDE // 64 * 85), Taken.PLAIN),
    ("png grey 4", png(WIDE // 16, 4, GREY), grey(WIDE // 16 * 17), Taken.PLAIN),
    ("png grey 8", png(WIDE, 8, GREY), grey(WIDE), Taken.PLAIN),
    ("png grey 8 interlaced", png(WIDE, 8, GREY, interlaced=True), grey(WIDE), Taken.PLAIN),
    ("png grey 16", png(WORDS * 256 + 17, 16, GREY), grey(WIDE), Taken.SIXTEEN),
    ("png grey 16 of 12", png(WORDS * 16 + 5, 16, GREY), grey(WIDE), Taken.TWELVE),
    ("png grey 16 of 8", png(WORDS, 16, GREY), grey(WIDE), Taken.EIGHT),
    ("png grey 16 black", png(WORDS * 0, 16, GREY), grey(WIDE * 0), Taken.PLAIN),
    ("png rgb 8", png(RGB, 8, COLOUR), RGB, Taken.PLAIN),
    ("png rgb 16", png(RGB.astype(np.uint16) * 256 + 17, 16, COLOUR), RGB, Taken.PLAIN),
    ("png rgb 16 of 12", png(RGB.astype(np.uint16) * 16, 16, COLOUR), RGB // 16, Taken.DARK),
    ("png palette", png(WIDE, 8, PALETTE, COLOURS.ravel().tolist()), COLOURS[WIDE], Taken.PLAIN),
    (
        "png palette, one clear",
        png(WIDE, 8, PALETTE, COLOURS.ravel().tolist(), transparent=b"\0"),
        COLOURS[WIDE],
        Taken.SEE_THROUGH,
    ),
    ("png grey alpha", png(np.dstack([WIDE, WIDE * 0 + 255]), 8, GREY_ALPHA), grey(WIDE), Taken.PLAIN),
    ("png grey half clear", png(np.dstack([WIDE, WIDE]), 8, GREY_ALPHA), grey(WIDE), Taken.SEE_THROUGH),
    ("png rgba opaque", png(with_alpha(255), 8, ALPHA), RGB, Taken.PLAIN),
    ("png rgba half clear", png(with_alpha(128), 8, ALPHA), RGB, Taken.SEE_THROUGH),
    ("tif 16", tif(WORDS * 256), grey(WIDE), Taken.SIXTEEN),
    ("tif 16 of 12", tif(WORDS * 16), grey(WIDE), Taken.TWELVE),
    ("tif 16 of 8", tif(WORDS), grey(WIDE), Taken.EIGHT),
    ("tif 32", tif(WIDE.astype(np.int32) * 256), grey(WIDE), Taken.SIXTEEN),
    ("tif 32 of 8", tif(WIDE.astype(np.int32)), grey(WIDE), Taken.EIGHT),
    ("tif float 0..1", tif(UNIT), grey(WIDE), Taken.UNIT),
    ("tif float 0..255", tif(WIDE.astype(np.float32)), grey(WIDE), Taken.FLOAT),
    ("tif float with holes", tif(HOLE), grey(np.where(BITS > 0, WIDE, 0)), Taken.UNIT | Taken.NAN),
    ("tif cmyk", lambda: saved(Image.fromarray(RGB).convert("CMYK"), "TIFF"), RGB, Taken.PLAIN),
    (
        "tif pages",
        lambda: saved(RGB, "TIFF", save_all=True, append_images=[Image.fromarray(RGB // 2)]),
        RGB,
        Taken.FIRST,
    ),
    ("tif of 4 bands", tiff(np.dstack([RGB, WIDE]), IN_COLOURS, [0]), RGB, Taken.BANDS),
    ("tif of 6 bands", tiff(np.dstack([RGB, RGB]), IN_COLOURS, [0, 0, 0]), RGB, Taken.BANDS),
    ("tif of 2 bands", tiff(np.dstack([WIDE, WIDE // 2]), extra=[0]), grey(WIDE), Taken.BANDS),
    (
        "tif of 4 dark bands",
        tiff(np.dstack([RGB, WIDE]).astype("<u2") * 16, IN_COLOURS, [0]),
        RGB // 16,
        Taken.BANDS | Taken.DARK,
    ),
    ("tif with alpha", tiff(np.dstack([RGB, WIDE | 255]), IN_COLOURS, [2]), RGB, Taken.PLAIN),
    ("bmp", lambda: saved(RGB, "BMP"), RGB, Taken.PLAIN),
    ("bmp 1", lambda: saved(BITS > 0, "BMP"), grey(BITS * 255), Taken.PLAIN),
    ("gif", lambda: saved(WIDE, "GIF"), grey(WIDE), Taken.PLAIN),
    (
        "gif frames",
        lambda: saved(WIDE, "GIF", save_all=True, append_images=[Image.fromarray(255 - WIDE)]),
        grey(WIDE),
        Taken.FIRST,
    ),
    ("webp", lambda: saved(RGB, "WEBP", lossless=True), RGB, Taken.PLAIN),
    ("ppm", lambda: saved(RGB, "PPM"), RGB, Taken.PLAIN),
    ("jpeg 2000", lambda: saved(RGB, "JPEG2000"), RGB, Taken.PLAIN),
]

REFUSED: list[tuple[str, Content, str]] = [
    (
        "signed",
        tif(WIDE.astype(np.int32) - 9),
        "holds numbers from -9 to 246; expected 0 to 255 or 0 to 65535",
    ),
    (
        "32 bits",
        tif(WIDE.astype(np.int32) << 20),
        "holds numbers from 0 to 267386880; expected 0 to 255 or 0 to",
    ),
    (
        "float from -1",
        tif(UNIT * 2 - 1),
        "holds numbers from -1 to 1; expected 0 to 1 or 0 to 255: scale them",
    ),
    (
        "64 bits",
        tiff(UNIT.astype("<f8")),
        "is a TIFF of 64-bit floating-point numbers, a form that is not read",
    ),
    ("bands without a word", tiff(np.dstack([RGB, WIDE])), "is a TIFF of 4 8-bit whole numbers per pixel, a"),
    ("float to 65535", tif(UNIT * 65535), "holds numbers from 0 to 65535; expected 0 to 1 or 0 to 255"),
    ("a format that PIL knows and segrow does not", lambda: saved(RGB, "PCX"), "cannot be decoded"),
    ("text", b"no image at all", "cannot be decoded (cannot identify image file"),
    ("a program", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 7 5\n", "cannot be decoded"),
    ("heic", b"\0\0\0\x24ftypheic" + bytes(100), "is HEIC, as phones save it; convert it to JPEG or PNG"),
    ("video", b"\0\0\0\x18ftypmp42" + bytes(100), "is a video; save its frames as images"),
    ("nothing", b"", "is empty; copy it again, or remove it"),
    ("git lfs", b"version https://git-lfs.github.com/spec/v1\noid", "is a pointer of Git LFS, not the file"),
    ("web page", b"\n<!DOCTYPE html><html>404", "is a web page, XML or SVG, not an image"),
    ("pdf", b"%PDF-1.7", "is a PDF; save its pages as PNG"),
    ("photoshop", b"8BPS" + bytes(40), "is a Photoshop file; export it as PNG"),
    ("dicom", bytes(128) + b"DICM", "is DICOM; convert it to PNG"),
    ("png cut off", png(RGB, 8, COLOUR)[:-60], "cannot be decoded"),
    (
        "jpeg cut off",
        lambda: saved(Image.effect_noise((64, 64), 99), "JPEG")[:-200],
        "cannot be decoded (image file is",
    ),
    ("tif cut off", lambda: saved(RGB, "TIFF")[:-40], "cannot be decoded"),
    ("webp cut off", lambda: saved(RGB, "WEBP")[:-20], "cannot be decoded"),
    ("gif cut off", lambda: saved(WIDE, "GIF")[:-20], "cannot be decoded"),
    ("bmp cut off", lambda: saved(RGB, "BMP")[:-40], "cannot be decoded"),
]


def written(tmp_path: Path, content: Content) -> Path:
    path = tmp_path / "a.jpg"  # PIL looks at the content, not at the name
    path.write_bytes(content if isinstance(content, bytes) else content())
    return path


@pytest.mark.parametrize(
    ("content", "expected", "taken"), [row[1:] for row in SEEN], ids=[r[0] for r in SEEN]
)
def test_what_an_image_becomes(tmp_path: Path, content: Content, expected: np.ndarray, taken: Taken) -> None:
    path = written(tmp_path, content)
    image, how = decode_image(path)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), expected)
    assert how == taken
    assert examine_image(path) == (expected.shape[:2], taken)  # as the index looks at it


@pytest.mark.parametrize(("content", "says"), [row[1:] for row in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_is_refused(tmp_path: Path, content: Content, says: str) -> None:
    path = written(tmp_path, content)
    for read in (decode_image, examine_image):
        with pytest.raises(UserError) as caught:
            read(path)
        message = str(caught.value)
        assert message.startswith(f"image {path} ")
        assert says in message
        assert "\n" not in message


def test_a_saliency_map_of_greys_is_read_by_its_greys(tmp_path: Path) -> None:
    """As of masks: a tool that saves grey with a palette may put white first."""
    white_first = png(1 - BITS, 1, PALETTE, [255] * 3 + [0] * 3)
    coloured = png(BITS, 1, PALETTE, [9, 0, 0, 0, 0, 9])
    for content in (
        white_first,
        coloured,
        png(BITS, 1, GREY),
        png(BITS * 3, 2, GREY),
        png(WIDE // 20 * BITS, 8, GREY),
    ):
        np.testing.assert_array_equal(read_saliency(written(tmp_path, content)), BITS)


def test_an_orientation_is_found_whatever_else_is_asked(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        path = written(tmp_path, saved(RGB, kind, exif=exif))
        assert examine_image(path)[0] == upright_size(path) == (7, 5)
        assert decode_image(path)[0].size == (5, 7)


@pytest.mark.parametrize(
    ("orientation", "size", "told"),
    [(1, (5, 7), False), (3, (5, 7), True), (6, (5, 7), False), (6, (7, 7), True)],
)
def test_a_turned_image_whose_size_does_not_tell(
    tmp_path: Path, orientation: int, size: tuple[int, int], told: bool
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = written(tmp_path, saved(np.zeros((*size, 3), np.uint8), "JPEG", exif=exif))
    assert (examine_image(path)[1] == Taken.TURNED) == told
