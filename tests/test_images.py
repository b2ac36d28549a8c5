"""Images, masks and saliency maps of every mode, turned, and damaged."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from segrow.data import files, masks
from segrow.errors import UserError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)


def naive_turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """What a viewer shows, by the definition of the tag: where row 0 and column 0 of the file lie."""
    height, width = image.shape[:2]
    swapped = orientation >= 5
    out = np.zeros((width, height, 3) if swapped else (height, width, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            up, left = height - 1 - y, width - 1 - x
            place = {
                1: (y, x),
                2: (y, left),
                3: (up, left),
                4: (up, x),
                5: (x, y),
                6: (x, up),
                7: (left, up),
                8: (left, y),
            }
            out[place[orientation]] = image[y, x]
    return out


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    image = files.read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image, naive_turn(RGB, orientation))
    assert files.upright_size(tmp_path / "a.png") == image.shape[:2]
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=exif)
    assert files.read_image(tmp_path / "a.jpg").shape == image.shape


def test_broken_exif_is_no_orientation(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=b"Exif\0\0nonsense, not a TIFF header")
    assert files.read_image(tmp_path / "a.jpg").shape == (5, 7, 3)


def test_images_of_every_mode_become_rgb(tmp_path: Path) -> None:
    grey_rgb = np.stack([GREY] * 3, axis=2)
    palette = Image.fromarray(GREY)
    palette.putpalette(RNG.integers(0, 256, 768).tolist())
    wide = GREY.astype(np.uint16) * 256 + 17
    alpha = np.dstack([RGB, np.full((5, 7), 128, np.uint8)])
    cases = {
        "grey.png": (Image.fromarray(GREY), grey_rgb),
        "bits.png": (Image.fromarray(GREY > 99), np.stack([(GREY > 99) * np.uint8(255)] * 3, axis=2)),
        "grey_alpha.png": (Image.fromarray(np.dstack([GREY, GREY]), "LA"), grey_rgb),
        "alpha.png": (Image.fromarray(alpha), RGB),
        "palette.png": (palette, np.asarray(palette.convert("RGB"))),
        "wide.png": (Image.fromarray(wide), grey_rgb),
        "wide.tif": (Image.fromarray(wide), grey_rgb),
        "cmyk.tif": (Image.fromarray(RGB).convert("CMYK"), RGB),
        "rgb.webp": (Image.fromarray(RGB), RGB),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / name, lossless=True)  # only WebP reads the option
        got = files.read_image(tmp_path / name)
        assert got.dtype == np.uint8, name
        np.testing.assert_array_equal(got, expected, err_msg=name)
    palette.save(tmp_path / "see_through.png", transparency=b"\x00\x80")
    np.testing.assert_array_equal(files.read_image(tmp_path / "see_through.png"), cases["palette.png"][1])
    smooth = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    Image.fromarray(smooth).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(files.read_image(tmp_path / "cmyk.jpg").astype(int) - smooth).max() < 8


def test_16_bit_rgb(tmp_path: Path) -> None:
    def block(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in RGB.astype(np.uint16) * 256 + 17)
    header = struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0)
    png = (
        b"\x89PNG\r\n\x1a\n"
        + block(b"IHDR", header)
        + block(b"IDAT", zlib.compress(lines))
        + block(b"IEND", b"")
    )
    (tmp_path / "a.png").write_bytes(png)
    np.testing.assert_array_equal(files.read_image(tmp_path / "a.png"), RGB)


def test_saliency_is_whatever_is_not_zero(tmp_path: Path) -> None:
    objects = GREY // 20
    for number, image in enumerate(
        [
            Image.fromarray(objects),
            Image.fromarray(objects > 0),
            Image.fromarray(np.stack([objects] * 3, axis=2)),
        ]
    ):
        image.save(tmp_path / f"{number}.png")
        np.testing.assert_array_equal(files.read_saliency(tmp_path / f"{number}.png"), objects != 0)


def png(depth: int, kind: int, lines: bytes, size: tuple[int, int], interlaced: int = 0) -> bytes:
    """A PNG file: rows with their filter byte, uncompressed; size is width and height."""

    def block(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, interlaced)
    palette = block(b"PLTE", bytes(range(256)) * 3) if kind == 3 else b""
    packed = zlib.compress(lines)
    parts = [block(b"IDAT", packed[:5]), block(b"IDAT", packed[5:])]
    return b"\x89PNG\r\n\x1a\n" + block(b"IHDR", header) + palette + b"".join(parts) + block(b"IEND", b"")


def test_a_mask_whose_header_was_damaged_is_refused(tmp_path: Path) -> None:
    content = bytearray(png(1, 0, b"\0\xff\0\xff", (8, 2)))
    content[19] = 7  # the width; the row still has one byte
    (tmp_path / "a.png").write_bytes(content)
    for read in (files.read_saliency, lambda path: masks.read_mask(path, masks.Values(21, 255))):
        with pytest.raises(UserError, match="cannot be decoded"):
            read(tmp_path / "a.png")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["PNG", "JPEG", "TIFF", "BMP", "WEBP"]), st.data())
def test_damaged_files_give_an_array_or_one_line(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    for read in (
        files.read_image,
        files.read_saliency,
        files.upright_size,
        lambda p: masks.read_mask(p, masks.Values(21, 255)),
    ):
        message = str(path)
        try:
            read(path)
        except UserError as error:
            message = str(error)
        assert str(path) in message
        assert "\n" not in message
