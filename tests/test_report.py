"""Report: tables that say how they count, pictures of the right pixels, a page that needs nothing else."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segrow.errors import UserError
from segrow.palette import voc_palette
from segrow.protocol import Summary, summarise
from segrow.report.demo_page import write_page
from segrow.report.figures import Example, curves, outline, overlay, qualitative
from segrow.report.tables import as_markdown, percent, results_table
from segrow.terminal import Terminal

NAMES = ["background", "cat", "dog", "<cow>"]


def results(kept: int, method: str = "ssul", steps: int = 2, seen: int = 10) -> dict[str, Any]:
    """A run of cat, then dog and cow: `kept` of cat's 10 pixels stay right, cow has `seen` of 10 pixels."""
    first = np.diag([10, 10, 0, 0])[:, :2]
    second = np.diag([10, kept, 10, seen])
    second[1, 0] = 10 - kept
    cost = {
        "train_s": 12.34,
        "eval_s": 1.5,
        "peak_memory_bytes": None,
        "trainable": 1_234_567,
        "parameters": 2_000_000,
        "stored_bytes": 8_000_000,
        "iterations": 10,
    }
    stored = [
        {
            "step": i,
            "classes": taught,
            "known": matrix.shape[1],
            "images": 5 + i,
            "exemplars": 0,
            "matrix": matrix.tolist(),
            "matrix_known": matrix.tolist(),
            "n_images": 3,
            "n_images_known": 3,
            "cost": cost,
            "from_base": None,
        }
        for i, (taught, matrix) in enumerate([(["cat"], first), (["dog", "<cow>"], second)])
    ]
    return {
        "format": 1,
        "segrow": "0.1.0",
        "data": "digits",
        "task": "1-2",
        "setting": "overlap",
        "method": method,
        "seed": 1,
        "classes": NAMES,
        "evaluation": {"crop_val": True, "crop": 96, "images": 3},
        "steps": stored[:steps],
    }


def two(definition: str = "mib") -> list[tuple[str, Summary]]:
    return [
        ("finetune", summarise(results(0, "finetune"), definition)),
        ("ssul", summarise(results(8), definition)),
    ]


def printed(summaries: list[tuple[str, Summary]]) -> str:
    console = Terminal(wide=True)
    with console.capture() as capture:
        console.print(results_table(summaries))
    return capture.get()


def test_percent_has_one_decimal_and_says_not_counted() -> None:
    assert [percent(v) for v in (0.54637, 1.0, 0.0, -0.0001, None)] == ["54.6", "100.0", "0.0", "0.0", "n/a"]


def test_table_names_the_definition_and_holds_the_numbers() -> None:
    text = printed(two())
    assert "definition mib" in text
    assert "foreground classes only" in text
    words = [re.split(r"\s+", line.strip()) for line in text.replace("│", " ").splitlines()]
    assert ["0", "finetune", "100.0", "n/a", "100.0", "n/a", "n/a"] in words
    # cat 80, dog and cow 100: old 80, new 100, all 93.3, harmonic 2 * 80 / 1.8, cat fell by 20
    assert ["ssul", "80.0", "100.0", "93.3", "88.9", "20.0"] in words
    assert ["1", "finetune", "0.0", "100.0", "66.7", "0.0", "100.0"] in words
    assert ["mean", "finetune", "83.3"] in words
    assert ["mean", "1+", "finetune", "66.7"] in words


def test_table_names_absent_classes_and_prints_markup_as_it_is() -> None:
    absent = [("[b]x[/b]", summarise(results(8, seen=0), "mib"))]
    assert "without a pixel in the truth: <cow>" in printed(absent)
    assert "[b]x[/b]" in printed(absent)
    assert "without a pixel" not in printed(two())


def test_runs_of_different_length_and_a_lone_base_step() -> None:
    summaries = [*two(), ("short", summarise(results(8, steps=1), "mib"))]
    assert as_markdown(summaries).count("| short |") == 3  # step 0 and the two means
    alone = [("short", summarise(results(8, steps=1), "mib"))]
    assert "mean" not in as_markdown(alone)


def test_markdown() -> None:
    text = as_markdown([("a|b", two()[1][1])])
    lines = text.splitlines()
    assert lines[0] == "mIoU in %, definition `mib`"
    assert lines[2] == "| step | method | old | new | all | harmonic | forgetting |"
    assert lines[3] == "|---:|---|---:|---:|---:|---:|---:|"
    assert lines[5] == "| 1 | a\\|b | 80.0 | 100.0 | 93.3 | 88.9 | 20.0 |"
    assert text.endswith("\n")
    assert "mib: images with a known class" in lines[-1]


def test_numbers_of_two_definitions_never_share_a_table() -> None:
    mixed = [*two("mib"), *two("ssul")]
    for make in (results_table, as_markdown):
        with pytest.raises(UserError, match=r"not counted in one way .*mib: .* / ssul: "):
            make(mixed)
    with pytest.raises(UserError, match="got no run to show"):
        results_table([])


def test_palette_is_the_one_of_voc() -> None:
    # background, aeroplane, bicycle, bird, ... tvmonitor, and void, as in the label files of VOC
    palette = voc_palette(256)
    assert palette.dtype == np.uint8
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        3: (128, 128, 0),
        4: (0, 0, 128),
        8: (64, 0, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    assert {i: tuple(palette[i].tolist()) for i in known} == known
    assert len(np.unique(voc_palette(1000), axis=0)) == 1000
    assert voc_palette(21).tolist() == palette[:21].tolist()


def test_overlay_tints_classes_and_leaves_background_and_void() -> None:
    image = np.full((5, 5, 3), 100, np.uint8)
    labels = np.zeros((5, 5), np.int16)
    labels[1:, 1:] = 1
    labels[0, 4] = -1
    palette = np.array([[0, 0, 0], [200, 0, 50]], np.uint8)
    out = overlay(image, labels, palette, alpha=0.5)
    assert out.dtype == np.uint8
    assert out[3, 3].tolist() == [150, 50, 75]  # inside: half and half
    assert out[1, 2].tolist() == [200, 0, 50]  # outline: the colour itself
    assert out[0, 0].tolist() == out[0, 4].tolist() == [100, 100, 100]
    assert (image == 100).all()


def test_outline_is_both_sides_of_a_border() -> None:
    labels = np.array([[0, 0, 1, 1], [0, 0, 1, 1]])
    assert outline(labels).tolist() == [[False, True, True, False]] * 2
    assert outline(labels.T).tolist() == np.array([[False, True, True, False]] * 2).T.tolist()
    assert not outline(np.zeros((1, 1))).any()


def test_overlay_refuses_what_does_not_fit() -> None:
    image = np.zeros((2, 3, 3), np.uint8)
    with pytest.raises(ValueError, match="labels are"):
        overlay(image, np.zeros((3, 2), int), voc_palette(2))
    with pytest.raises(ValueError, match="label 2 has no colour"):
        overlay(image, np.full((2, 3), 2), voc_palette(2))


def example() -> Example:
    image = np.full((24, 32, 3), 128, np.uint8)
    truth = np.zeros((24, 32), np.int16)
    truth[4:20, 4:16] = 1
    truth[4:20, 18:30] = 2
    first = np.where(truth == 1, 1, 0)
    return Example(image, truth, {"finetune": [first, np.where(truth == 2, 2, 0)], "ssul": [first, truth]})


def colours_in(path: Path) -> set[tuple[int, ...]]:
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    values, n = np.unique(pixels, axis=0, return_counts=True)
    return {tuple(v.tolist()) for v, count in zip(values, n, strict=True) if count > 50}


def test_curves_draw_every_run(tmp_path: Path) -> None:
    path = curves(two(), tmp_path / "new" / "curves.png")
    colours = colours_in(path)
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours
    assert [p.name for p in path.parent.iterdir()] == ["curves.png"]  # no temporary file stays
    with pytest.raises(UserError, match=r"not counted in one way .*mib: .* / ssul: "):
        curves([*two("mib"), *two("ssul")], tmp_path / "mixed.png")


def test_qualitative_grid_shows_the_classes(tmp_path: Path) -> None:
    path = qualitative([example(), example()], NAMES, tmp_path / "grid.png")
    width, height = Image.open(path).size
    assert 0.5 < height / width < 0.95  # four columns, four rows of 3:4 pictures, a heading and a legend
    assert {(128, 0, 0), (0, 128, 0)} <= colours_in(path)  # the legend's patches
    assert (128, 128, 0) not in colours_in(path)  # <cow> appears nowhere
    empty = Example(example().image, np.zeros((24, 32), int), {"ssul": [np.zeros((24, 32), int)]})
    assert qualitative([empty], NAMES, tmp_path / "empty.png").is_file()


class Page(HTMLParser):
    """Tables as lists of cell texts, images, and every address the page mentions."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.images: list[str] = []
        self.links: list[str] = []
        self.stack: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.stack.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        for name, value in attrs:
            if name in ("src", "href"):
                (self.images if tag == "img" else self.links).append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.stack and self.stack[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


def page(tmp_path: Path) -> tuple[Page, str, Path]:
    figure = curves(two(), tmp_path / "curves.png")
    out = tmp_path / "report.html"
    stored = {"finetune": results(0, "finetune"), "ssul": results(8)}
    stored["ssul"]["steps"][0]["from_base"] = "../finetune"
    write_page(out, "Digits <demo>", two(), stored, {"mIoU & co": figure}, "segrow demo --out x")
    text = out.read_text(encoding="utf-8")
    return Page(text), text, figure


def test_page_holds_the_numbers_and_how_they_were_counted(tmp_path: Path) -> None:
    parsed, text, _ = page(tmp_path)
    headline, costs, classes, full = parsed.tables
    assert headline[0] == ["mIoU in %", "finetune", "ssul"]
    assert ["all, step 1", "66.7", "93.3"] in headline
    assert ["forgetting", "100.0", "20.0"] in headline
    assert ["0", "finetune", "12.3", "1.5", "1,234,567", "2,000,000"] in costs
    assert ["", "ssul", "shared", "1.5", "1,234,567", "2,000,000"] in costs
    assert ["cat", "0.0", "(100.0)", "80.0", "(20.0)"] in classes
    assert ["<cow>", "100.0", "", "100.0", ""] in classes
    assert ["", "ssul", "80.0", "100.0", "93.3", "88.9", "20.0"] in full
    assert "mib: images with a known class" in parsed.text
    assert "segrow demo --out x" in parsed.text
    assert "Digits <demo>" in parsed.text
    assert "<demo>" not in text  # names are escaped


def test_page_needs_nothing_else(tmp_path: Path) -> None:
    parsed, text, figure = page(tmp_path)
    assert not parsed.links
    assert not re.search(r"https?://|@import|<script|url\(", text)
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    (image,) = parsed.images
    head, data = image.split(",", 1)
    assert head == "data:image/png;base64"
    assert base64.b64decode(data) == figure.read_bytes()
    assert not parsed.stack  # every element is closed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "report.html"]


def test_page_of_a_run_that_has_not_come_far(tmp_path: Path) -> None:
    summaries = [*two(), ("short", summarise(results(8, steps=1), "mib"))]
    stored = {"finetune": results(0), "ssul": results(8), "short": results(8, steps=1)}
    write_page(tmp_path / "x.html", "t", summaries, stored, {}, "c")
    tables = Page((tmp_path / "x.html").read_text(encoding="utf-8")).tables
    assert ["all, step 1", "66.7", "93.3", "–"] in tables[0]


def test_a_page_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("old")
    with pytest.raises(KeyError):
        write_page(out, "t", two(), {"ssul": results(8)}, {}, "c")
    with pytest.raises(FileNotFoundError):
        write_page(out, "t", two(), {"ssul": results(8), "finetune": results(0)}, {"a": tmp_path / "no"}, "c")
    assert out.read_text() == "old"
