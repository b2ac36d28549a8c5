"""What a mask becomes: format x mode x depth x palette. The right value, a note, or one line."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pngs import ALPHA, COLOUR, GREY, GREY_ALPHA, PALETTE, png
from tiffs import RGB, WHITE_IS_ZERO, tiff

from segrow.data.colours import voc_colours
from segrow.data.masks import Values, decode_mask
from segrow.data.taken import SAYS, Taken, taken_notes
from segrow.errors import UserError
from segrow.palette import voc_palette

# 0, 1, 2, 3 are values; those of 12 classes are 0..11
MASK = np.array([[0, 1, 2, 3, 0], [3, 3, 2, 1, 1], [0, 0, 0, 2, 2]], np.uint8)
BITS = (MASK > 1).astype(np.uint8)
TWELVE = Values(12, 255)
MANY = Values(400, 65535)
RAMP = [k for k in range(256) for _ in range(3)]
COLOURS = [(k * 37 + c * 91) % 256 for k in range(256) for c in range(3)]

Content = bytes | Image.Image


def greys(*values: int) -> list[int]:
    """A palette of greys."""
    return [v for v in values for _ in range(3)]


def shades(picture: Image.Image, palette: list[int]) -> Image.Image:
    picture = picture.copy()
    picture.putpalette(palette)
    return picture


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(values: np.ndarray = MASK) -> Image.Image:
    return Image.fromarray(values)


def order(*values: int) -> np.ndarray:
    """MASK where value k has index values.index(k): as tools that sort a palette write it."""
    return np.argsort(values).astype(np.uint8)[MASK]


def opaque(kind: str) -> np.ndarray:
    channels = 1 if kind == "LA" else 3
    return np.concatenate([np.repeat(MASK[..., None], channels, 2), np.full((*MASK.shape, 1), 255)], 2)


def pgm(kind: str, largest: int) -> bytes:
    """P5 and P2 are grey, P6 and P3 colours; in letters, or in bytes of the largest number."""
    values = np.repeat(MASK, 3 if kind in ("P3", "P6") else 1, axis=1)
    head = f"{kind}\n{MASK.shape[1]} {MASK.shape[0]}\n{largest}\n".encode()
    if kind in ("P2", "P3"):
        return head + " ".join(map(str, values.ravel().tolist())).encode()
    return head + values.astype(">u2" if largest > 255 else "u1").tobytes()


# what is read as it stands, and what is read with a note: name, content, value, how it was taken
READ: list[tuple[str, Content | Callable[[], Content], np.ndarray, Taken]] = [
    ("png grey 1", png(BITS, 1, GREY), BITS, Taken.PLAIN),
    ("png grey 2", png(MASK, 2, GREY), MASK, Taken.PLAIN),  # PIL says 0, 85, 170, 255
    ("png grey 4", png(MASK, 4, GREY), MASK, Taken.PLAIN),  # PIL says 0, 17, 34, 51
    ("png grey 8", png(MASK, 8, GREY), MASK, Taken.PLAIN),
    ("png grey 16", png(MASK, 16, GREY), MASK, Taken.PLAIN),
    ("png grey 2 interlaced", png(MASK, 2, GREY, interlaced=True), MASK, Taken.PLAIN),
    ("png grey 8 interlaced", png(MASK, 8, GREY, interlaced=True), MASK, Taken.PLAIN),
    ("png palette 1", png(BITS, 1, PALETTE, COLOURS[:6]), BITS, Taken.PLAIN),
    ("png palette 2", png(MASK, 2, PALETTE, COLOURS[:12]), MASK, Taken.PLAIN),
    ("png palette 4", png(MASK, 4, PALETTE, COLOURS[:48]), MASK, Taken.PLAIN),
    ("png palette 8", png(MASK, 8, PALETTE, COLOURS), MASK, Taken.PLAIN),
    ("png palette 8 interlaced", png(MASK, 8, PALETTE, COLOURS, interlaced=True), MASK, Taken.PLAIN),
    ("png palette of ramp", png(MASK, 8, PALETTE, RAMP), MASK, Taken.PLAIN),
    ("png palette shorter than ramp", png(MASK, 8, PALETTE, RAMP[:12]), MASK, Taken.PLAIN),
    ("png palette all black", png(MASK, 8, PALETTE, greys(0, 0, 0, 0)), MASK, Taken.INDEX),
    ("png palette of greys to look at", png(MASK, 8, PALETTE, greys(0, 85, 170, 255)), MASK, Taken.INDEX),
    ("png palette black and white", png(BITS, 1, PALETTE, greys(0, 255)), BITS, Taken.INDEX),
    (
        "png palette of exchanged greys",
        png(order(3, 1, 0, 2), 8, PALETTE, greys(3, 1, 0, 2)),
        MASK,
        Taken.GREYS,
    ),
    ("png palette of few greys", png(BITS, 1, PALETTE, greys(0, 9)), BITS * np.uint8(9), Taken.GREYS),
    ("png palette, background alone", png(BITS * 0 + 1, 1, PALETTE, greys(9, 0)), BITS * 0, Taken.GREYS),
    (
        "png palette, greys and ignored",
        png(BITS, 2, PALETTE, greys(7, 255, 0)),
        np.where(BITS, 255, 7),
        Taken.GREYS,
    ),
    ("png transparent value", png(MASK, 8, GREY, transparent=b"\0\1"), MASK, Taken.CLEAR_VALUE),
    ("png transparent index", png(MASK, 8, PALETTE, COLOURS, transparent=b"\0"), MASK, Taken.CLEAR_VALUE),
    ("png grey alpha 8", png(opaque("LA"), 8, GREY_ALPHA), MASK, Taken.ALPHA),
    ("png rgb 8", png(opaque("RGBA")[..., :3], 8, COLOUR), MASK, Taken.COLOURS),
    ("png rgba 8", png(opaque("RGBA"), 8, ALPHA), MASK, Taken.ALPHA | Taken.COLOURS),
    ("tif 1", lambda: saved(grey(BITS > 0), "TIFF"), BITS, Taken.PLAIN),
    ("tif fax", lambda: saved(grey(BITS > 0), "TIFF", compression="group4"), BITS, Taken.PLAIN),
    ("tif 8", lambda: saved(grey(), "TIFF"), MASK, Taken.PLAIN),
    ("tif 8 lzw", lambda: saved(grey(), "TIFF", compression="tiff_lzw"), MASK, Taken.PLAIN),
    ("tif palette", lambda: saved(shades(grey(), COLOURS), "TIFF"), MASK, Taken.PLAIN),
    ("tif 16", lambda: saved(grey(MASK.astype(np.uint16)), "TIFF"), MASK, Taken.PLAIN),
    ("tif 32", lambda: saved(grey(MASK.astype(np.int32)), "TIFF"), MASK, Taken.PLAIN),
    ("tif float", lambda: saved(grey(MASK.astype(np.float32)), "TIFF"), MASK, Taken.FLOAT_MASK),
    ("tif grey alpha", lambda: saved(grey().convert("LA"), "TIFF"), MASK, Taken.ALPHA),
    ("bmp 1", lambda: saved(grey(BITS > 0), "BMP"), BITS, Taken.PLAIN),
    ("bmp 8", lambda: saved(grey(), "BMP"), MASK, Taken.PLAIN),
    ("bmp palette", lambda: saved(shades(grey(), COLOURS), "BMP"), MASK, Taken.PLAIN),
    ("bmp rgb", lambda: saved(grey().convert("RGB"), "BMP"), MASK, Taken.COLOURS),
    ("gif grey", lambda: saved(grey(), "GIF"), MASK, Taken.PLAIN),
    ("gif palette", lambda: saved(shades(grey(), COLOURS), "GIF", optimize=False), MASK, Taken.PLAIN),
    ("pgm", lambda: saved(grey(), "PPM"), MASK, Taken.PLAIN),
    ("pgm of its own maximum", pgm("P5", 3), MASK, Taken.PLAIN),  # PIL says 0, 85, 170, 255
    ("pgm of less than its maximum", pgm("P5", 1), MASK, Taken.PLAIN),
    ("pgm of 12 bits", pgm("P5", 4095), MASK, Taken.PLAIN),
    ("pgm of 16 bits", pgm("P5", 65535), MASK, Taken.PLAIN),
    ("pgm in letters", pgm("P2", 3), MASK, Taken.PLAIN),
    ("pgm in letters, 12 bits", pgm("P2", 4095), MASK, Taken.PLAIN),
    ("ppm of its own maximum", pgm("P6", 3), MASK, Taken.COLOURS),
    ("ppm in letters", pgm("P3", 3), MASK, Taken.COLOURS),
    ("tif signed", tiff(MASK.astype("i1")), MASK, Taken.PLAIN),
    ("tif 16 big-endian", tiff(MASK.astype(">u2")), MASK, Taken.PLAIN),
    ("tif signed 32 big-endian", tiff(MASK.astype(">i4")), MASK, Taken.PLAIN),
    ("tif unsigned 32", tiff(MASK.astype("<u4")), MASK, Taken.PLAIN),
    ("tif with alpha that is opaque", tiff(opaque("LA").astype("u1"), extra=[2]), MASK, Taken.ALPHA),
    ("tif 1 by hand", tiff(BITS, bits=1), BITS, Taken.PLAIN),
    ("no data is a class", tiff(MASK, nodata="3"), MASK, Taken.NODATA),
    ("no data is background", tiff(MASK, nodata=" 0"), MASK, Taken.NODATA),
    ("no data is nowhere", tiff(MASK, nodata="9"), MASK, Taken.PLAIN),
    (
        "no data is ignored",
        tiff(np.where(MASK, MASK, 255), nodata="255"),
        np.where(MASK, MASK, 255),
        Taken.PLAIN,
    ),
    ("no data is no number", tiff(MASK, nodata="nan"), MASK, Taken.PLAIN),
]

# what is refused, and what the line says
REFUSED: list[tuple[str, Content | Callable[[], Content], str]] = [
    ("jpeg", lambda: saved(grey(), "JPEG"), "is a JPEG, which changes values; save masks as PNG"),
    ("webp", lambda: saved(grey().convert("RGB"), "WEBP", lossless=True), "is a WebP, which changes values"),
    ("jpeg in tif", lambda: saved(grey(), "TIFF", compression="jpeg"), "TIFF compressed as jpeg"),
    (
        "colours",
        png(np.dstack([MASK, MASK, MASK * 0]), 8, COLOUR),
        "is an image of mode RGB; expected a palette or",
    ),
    ("cmyk", lambda: saved(grey().convert("CMYK"), "TIFF"), "is an image of mode CMYK; expected"),
    ("half transparent", png(np.dstack([MASK, MASK]), 8, GREY_ALPHA), "has transparent pixels, which may be"),
    ("transparent", png(np.dstack([MASK] * 4), 8, ALPHA), "has transparent pixels, which may be"),
    ("rgb 16", png(np.dstack([MASK] * 3), 16, COLOUR), "has 16 bits per channel with colours or alpha"),
    (
        "grey alpha 16",
        png(np.dstack([MASK, np.full(MASK.shape, 65535)]), 16, GREY_ALPHA),
        "has 16 bits per channel",
    ),
    (
        "not whole",
        lambda: saved(grey(MASK / np.float32(3)), "TIFF"),
        "floating-point numbers that are not whole",
    ),
    ("not a number", lambda: saved(grey(MASK * np.float32("nan")), "TIFF"), "numbers that are not whole"),
    ("negative", lambda: saved(grey(MASK.astype(np.int32) - 1), "TIFF"), "has value -1; values below 0"),
    (
        "too large",
        lambda: saved(grey(MASK.astype(np.uint16) * 100), "TIFF"),
        "has value 300; values above 255",
    ),
    ("32 bits", lambda: saved(grey(MASK.astype(np.int32) << 20), "TIFF"), "has value 3145728; values above"),
    (
        "large float",
        lambda: saved(grey(MASK.astype(np.float32) * 300), "TIFF"),
        "has value 900; values above",
    ),
    (
        "black is 1",
        png(BITS, 1, PALETTE, greys(255, 0)),
        r"palette of greys (index 0 is 255, 1 is 0), so a class may",
    ),
    (
        "greys in disorder",
        png(MASK, 2, PALETTE, greys(0, 200, 100, 255)),
        "1 is 200, 2 is 100, 3 is 255), so",
    ),
    ("pages", lambda: saved(grey(), "TIFF", save_all=True, append_images=[grey()]), "holds several pictures"),
    (
        "frames",
        lambda: saved(grey(), "GIF", save_all=True, append_images=[grey(BITS)]),
        "holds several pictures",
    ),
    ("white is 0", lambda: white_is_zero(), "stores white as 0 (TIFF WhiteIsZero)"),
    ("white is 0 of 1 bit", tiff(BITS, WHITE_IS_ZERO, bits=1), "stores white as 0 (TIFF WhiteIsZero)"),
    (
        "white is 0 of 16 bits",
        tiff(MASK.astype("<u2"), WHITE_IS_ZERO),
        "stores white as 0 (TIFF WhiteIsZero)",
    ),
    ("pbm", lambda: saved(grey(BITS > 0), "PPM"), "is a PBM, which writes black as 1, so a class may be"),
    ("pbm in letters", b"P1\n2 1\n1 0\n", "is a PBM, which writes black as 1, so a class may be"),
    ("ppm of 16 bits", pgm("P6", 999), "has 16 bits per channel with colours or alpha"),
    ("ppm of 16 bits in letters", pgm("P3", 999), "has 16 bits per channel with colours or alpha"),
    ("no data below 0", tiff(MASK.astype("i1") - 1), "has value -1; values below 0 are not a class"),
    ("class and confidence", tiff(np.dstack([MASK, MASK]), extra=[0]), "has 2 bands, of which one may hold"),
    ("four bands", tiff(np.dstack([MASK] * 4), RGB, extra=[0]), "has 4 bands, of which one may hold the"),
    (
        "64 bits",
        tiff(MASK.astype("<i8")),
        "is a TIFF of 64-bit signed whole numbers, a form that is not read",
    ),
    ("64 bits, not whole", tiff(MASK.astype("<f8")), "is a TIFF of 64-bit floating-point numbers, a form"),
    ("half floats", tiff(MASK.astype("<f2")), "is a TIFF of 16-bit floating-point numbers, a form that"),
    ("unsigned 32 big-endian", tiff(MASK.astype(">u4")), "is a TIFF of 32-bit whole numbers, big-endian, a"),
    ("bands that nothing names", tiff(np.dstack([MASK] * 2)), "is a TIFF of 2 8-bit whole numbers per pixel"),
    ("turned", lambda: saved(grey(), "PNG", exif=turned()), "has an EXIF orientation, so its pixels may be"),
    ("an array", lambda: np_file(), "cannot be decoded"),
    ("nothing", b"", "is empty; copy it again, or remove it"),
    ("cut off", png(MASK, 8, GREY)[:-30], "cannot be decoded"),
    ("a program", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 3\n", "cannot be decoded"),
]


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def white_is_zero() -> bytes:
    return saved(grey(), "TIFF", tiffinfo={262: 0})


def np_file() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, MASK)
    return buffer.getvalue()


def written(tmp_path: Path, content: Content | Callable[[], Content]) -> Path:
    path = tmp_path / "mask.png"  # PIL looks at the content, not at the name
    made = content() if callable(content) else content
    assert isinstance(made, bytes)
    path.write_bytes(made)
    return path


@pytest.mark.parametrize(
    ("content", "expected", "taken"), [row[1:] for row in READ], ids=[r[0] for r in READ]
)
def test_what_a_mask_becomes(tmp_path: Path, content: Content, expected: np.ndarray, taken: Taken) -> None:
    path = written(tmp_path, content)
    got, how, _ = decode_mask(path, TWELVE)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, expected)
    assert how == taken
    wide, how, _ = decode_mask(path, Values(12, 65535))
    assert wide.dtype == np.uint16
    if how == taken:  # greys and ignored: 255 is no value there
        np.testing.assert_array_equal(wide, expected)


@pytest.mark.parametrize(("content", "says"), [row[1:] for row in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_is_refused(tmp_path: Path, content: Content, says: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UserError) as caught:
        decode_mask(path, TWELVE)
    message = str(caught.value)
    assert message.startswith(f"mask {path} ")
    assert says in message
    assert "\n" not in message


def test_many_classes_need_16_bits(tmp_path: Path) -> None:
    values = MASK.astype(np.uint16) * 100
    for kind in (np.uint16, np.int32, np.float32):
        Image.fromarray(values.astype(kind)).save(tmp_path / "a.tif")
        got, *_ = decode_mask(tmp_path / "a.tif", MANY)
        np.testing.assert_array_equal(got, values)
    (tmp_path / "a.png").write_bytes(png(values, 16, GREY))
    np.testing.assert_array_equal(decode_mask(tmp_path / "a.png", MANY)[0], values)


def test_vocs_greys_are_no_palette_of_greys(tmp_path: Path) -> None:
    """Index 7 (car) is drawn in grey 128 there; a mask of background and cars shows greys alone."""
    cars = BITS * np.uint8(7)
    (tmp_path / "a.png").write_bytes(png(cars, 8, PALETTE, voc_palette(256).ravel().tolist()))
    got, taken, _ = decode_mask(tmp_path / "a.png", Values(200, 255))
    np.testing.assert_array_equal(got, cars)
    assert taken == Taken.PLAIN


def test_every_flag_has_a_sentence() -> None:
    usual = {Taken.PLAIN, Taken.IGNORED, Taken.SIXTEEN}  # told where other files of the set contradict them
    assert set(SAYS) == set(Taken) - usual
    for flag in SAYS:
        (note,) = taken_notes([Taken.PLAIN, flag, flag], ["a", "b", "c"], "train")
        assert note.startswith("train: 2 of 3 ")
        assert note.endswith("(first b)")


def test_vocs_colours_at_other_indices(tmp_path: Path) -> None:
    """As a web tool saves a palette PNG anew: colours keep, indices do not."""
    table, ours = voc_colours([f"c{k}" for k in range(21)]), np.array([0, 15, 8, 255], np.uint8)
    colours = {v: c for c, v in zip(table.colours, table.values, strict=True)}
    values, at = Values(21, 255, table), np.array([2, 0, 3, 1], np.uint8)  # where each of them stands now
    palette = [c for v in ours[np.argsort(at)] for c in colours[int(v)]]
    path = tmp_path / "a.png"
    path.write_bytes(png(at[MASK], 8, PALETTE, palette))
    got, taken, _ = decode_mask(path, values)
    np.testing.assert_array_equal(got, ours[MASK])
    assert taken == Taken.MOVED
    for other in (COLOURS, RAMP, greys(0, 0, 0, 0)):  # not VOC's: the index counts
        path.write_bytes(png(MASK, 8, PALETTE, other))
        got, taken, _ = decode_mask(path, values)
        np.testing.assert_array_equal(got, MASK)
        assert not taken & Taken.MOVED
    path.write_bytes(png(ours[MASK], 8, PALETTE, voc_palette(256).ravel().tolist()))
    got, taken, _ = decode_mask(path, values)
    np.testing.assert_array_equal(got, ours[MASK])
    assert taken == Taken.PLAIN
