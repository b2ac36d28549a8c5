"""Names are data everywhere: classes, files and folders whose names mean something to somebody."""

import csv
import html
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from trees import folder_tree

from segrow import cli
from segrow.errors import shown
from segrow.protocol import summarise
from segrow.report.demo_page import write_page
from segrow.report.export import slugs_of
from segrow.report.figures import Example, curves, qualitative
from segrow.report.tables import markdown

Capture = pytest.CaptureFixture[str]

CLASSES = (
    "$",
    "$x_1$ $\\frac$",
    "%s %(x)s %",
    "[/red]",
    "[link=http://x]y[/link]",
    "<script>alert(1)</script>&amp;",
    '=1+1"',
    "_hidden",
    "{}{0}{{ 7*7 }}",
    "emoji 😀 :smile:",
    "@x|y`*a*",
    "-'quoted'",
    "x" * 300,
    "+\\",
)
NEW = "~new[/b]$"
# what a file system takes; it takes no slash, which closes markup, and no NUL
ODD = "a [bold][link=x]$x_1$ %s<b>&\x1b[31m\n\t{}'\"=é😀\u202e"
FAST = ("--workers", "0", "--device", "cpu", "--epochs", "2")
_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2028]")


@dataclass(frozen=True)
class Said:
    """What a command wrote."""

    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything goes in here; its own name is odd, too."""
    plain = tmp_path_factory.mktemp("names")
    place = plain / ODD
    place.mkdir()
    names = ("background", *CLASSES)
    every = [{k, k % len(CLASSES) + 1} for k in range(1, len(names))]
    folder_tree(plain / "data", names, train=every, val=every[:4], size=(32, 36))
    folder_tree(plain / "new", ("background", NEW), train=[{1}] * 6, val=[{1}] * 2, size=(32, 36))
    for name in ("data", "new"):
        for kind in ("images", "masks"):
            for split in ("train", "val"):
                files = plain / name / kind / split
                (files / f"{split}0001.png").rename(files / f"{ODD}.png")
        (plain / name).rename(place / f"{name} {ODD}")
    photos = place / f"photos {ODD}"
    photos.mkdir()
    for name in (f"{ODD}.png", "=1+1.jpg", "$x$.png", f"{'x' * 200}.png"):
        Image.fromarray(np.full((32, 36, 3), 90, np.uint8)).save(photos / name)
    return place


def no_control_characters(text: str, where: str) -> None:
    found = _CONTROL.search(text)
    assert found is None, f"{found[0]!r} in {where}: {text[max(0, found.start() - 60) :][:120]!r}"


def test_every_command_takes_names_as_they_are(folder: Path, capsys: Capture) -> None:
    data, new, run = folder / f"data {ODD}", folder / f"new {ODD}", folder / f"run {ODD}"

    def call(*words: object, code: int = 0) -> Said:
        argv = [str(word) for word in words]
        capsys.readouterr()
        got = cli.main(argv)
        captured = capsys.readouterr()
        assert got == code, (argv, captured.err)
        for text in captured:
            assert "Traceback" not in text
            no_control_characters(text, argv[0])
        return Said(*captured)

    of = ("--data.name", "folder", "--data.root", data)
    task = ("--task", "13-1", "--setting", "overlap")
    said = call("scenario", *of, *task, "--json")
    assert [name for step in said.json["steps"] for name in step["classes"]] == list(CLASSES)
    assert CLASSES[3] in call("scenario", *of, *task).out
    checked = call("data", "check", data, "--task", "13-1", "--json").json
    assert [row["class"] for row in checked["splits"]["train"]["per_class"]][1:] == list(CLASSES)
    assert checked["ok"]
    broken = folder / f"broken {ODD}"
    shutil.copytree(data, broken)
    (broken / f"masks/train/{ODD}.png").write_bytes(b"none")
    (broken / f"images/val/{ODD}.png").unlink()
    bad = folder / f"bad {ODD}"
    said = call("data", "check", broken, "--fix-list", bad, code=1)
    assert shown(f"mask: train/{ODD}: mask {broken}") in said.out
    left = ("--data.root", broken, "--data.exclude", bad)
    call("scenario", "--data.name", "folder", *left, *task)
    network = ("--model.name", "deeplabv3_test_resnet", "--model.weights", "none", "--model.width", "8")
    size = ("--train.epochs", "1", "--train.batch_size", "2", "--train.crop", "32", "--train.workers", "0")
    more = ("--memory.size", "6", "--train.device", "cpu", "--method", "mib", "--out", run)
    words = ("train", *of, *task, *network, *size, *more)
    said = call(*words, "--report", "false")
    assert f"run folder: {shown(str(run))}" in said.out
    said = call(*words)  # and again: it is finished, and the page is drawn
    assert "no report" not in said.err + said.out
    _check_page(run / "report.html", run.name)
    other = folder / f"run2 {ODD}"
    shutil.copytree(run, other)
    report = folder / f"{ODD}.html"
    said = call("report", run, other, "--out", report, "--images", "3")
    assert shown(str(report)) in said.out
    _check_page(report, run.name)
    _check_page(report, other.name)
    _check_figures(report.with_name(f"{report.stem}_figures"))

    call("results", run, other, "--per_class", "--cost")
    text = call("results", run, "--per_class", "--markdown").out
    for name in (run.name, *CLASSES):
        assert f"| {markdown(name)} |" in text
    assert list(call("results", run, "--json").json["steps"][-1]["per_class"])[1:] == list(CLASSES)
    assert list(call("eval", run, *of[2:], "--json").json["steps"][-1]["per_class"])[1:] == list(CLASSES)
    said = call("eval", run, *of[2:], "--out", folder / f"{ODD}.json")
    assert CLASSES[5] in said.out
    assert json.loads((folder / f"{ODD}.json").read_text())["classes"][1:] == list(CLASSES)

    photos, out = folder / f"photos {ODD}", folder / f"labels {ODD}"
    call("predict", run, photos, "--out", out)
    assert len(list(out.rglob("*.png"))) >= 4
    call("predict", run, f"{photos}/nothing{ODD}", "--out", out, code=2)

    model = folder / f"model {ODD}"
    shutil.copytree(run / "steps/01/model", model)
    teach = ("add", model, "--data", new, "--classes", NEW, "--check", data, *FAST, "--max-drop", "100")
    call(*teach, "--dry-run")
    said = call(*teach, "--json")
    assert said.json["passed"]
    assert said.json["model"] == str(model)
    assert [c["name"] for c in said.json["old"]][1:] == list(CLASSES)
    said = call("lineage", model, "--json")
    assert said.json["versions"][-1]["classes"][1:] == [*CLASSES, NEW]
    call("lineage", model)
    call("rename-class", model, CLASSES[0], f"was {CLASSES[0]}[/b]")
    call("remove-class", model, CLASSES[4])
    call("remove-class", model, f"gone {ODD}", code=2)
    classes = call("lineage", model, "--json").json["versions"][-1]["classes"]
    assert classes[1] == f"was {CLASSES[0]}[/b]"
    assert CLASSES[4] not in classes
    call("rollback", model, "--to-step", "1")
    assert call("lineage", model, "--json").json["versions"]


def _check_page(page: Path, name: str) -> None:
    text = page.read_text(encoding="utf-8")
    no_control_characters(text, "the page")
    assert "<script>alert" not in text
    assert "49" not in re.findall(r"\{\}\{0\}(\d+)", text)
    visible = html.unescape(text)
    for word in (*CLASSES, shown(name)):
        assert word in visible, word
    assert "new figures" not in text


def _check_figures(figures: Path) -> None:
    """Whole names in CSV, with the mark before what a spreadsheet would compute; SVG that is XML."""
    import xml.etree.ElementTree

    for path in figures.glob("*.svg"):
        xml.etree.ElementTree.parse(path)
    [table, _] = sorted(figures.glob("iou-*.csv"))
    with table.open(newline="", encoding="utf-8") as file:
        cells = [row[0] for row in csv.reader(file)][2:]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    assert [cell[1:] if cell.startswith("'") else cell for cell in cells] == list(CLASSES)
    drawn = "".join(next(figures.glob("iou-*.svg")).read_text(encoding="utf-8"))
    assert "$x_1$ $\\frac$" in drawn
    assert "_hidden" in next(figures.glob("pictures-*.svg")).read_text(encoding="utf-8")


def test_a_long_name_still_names_files() -> None:
    names = ["語" * 80, "語" * 80 + "b", "../../x", "a\nb"]
    slugs = slugs_of(names)
    assert len(set(slugs)) == len(names)
    assert all(len(f"confusion-{slug}.csv.tmp".encode()) <= 255 and "/" not in slug for slug in slugs)


def test_markdown_shows_a_name_as_it_is() -> None:
    assert markdown("dining_table 2-1 (a.b)") == "dining_table 2-1 (a.b)"
    assert markdown("_a_ b|c\n<i>`*[x](y)$&\\") == r"\_a\_ b\|c\\n\<i\>\`\*\[x\](y)\$\&" + "\\\\"


def test_pictures_of_the_demo_take_names_as_they_are(tmp_path: Path) -> None:
    from test_report import results

    stored = {name: results(8) for name in (ODD, "_a", "$x_1$")}
    for each in stored.values():
        each["classes"] = ["background", "<b>$", ODD, "語" * 50]
        for step, names in zip(each["steps"], (["<b>$"], [ODD, "語" * 50]), strict=True):
            step["classes"] = names
    summaries = [(name, summarise(each, "mib")) for name, each in stored.items()]
    picture = np.zeros((8, 10, 3), np.uint8)
    labels = np.arange(80).reshape(8, 10) % 4
    maps = {name: [labels, labels] for name in stored}
    figures = {
        f"curves {ODD}": curves(summaries, tmp_path / "curves.png"),
        "grid": qualitative([Example(picture, labels, maps)], stored["_a"]["classes"], tmp_path / "grid.png"),
    }
    page = tmp_path / "index.html"
    write_page(page, f"title {ODD}", summaries, stored, figures, f"segrow demo --out '{ODD}'")
    text = page.read_text(encoding="utf-8")
    no_control_characters(text, "the page")
    assert html.escape(shown(ODD), quote=False).split("'")[0] in text
    assert "<b>$" not in text
