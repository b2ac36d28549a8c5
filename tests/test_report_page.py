"""`segrow report`: the page says what the results say, its pictures move, and it needs nothing else."""

import base64
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from browser import PROGRAM, Browser
from matplotlib import colormaps
from PIL import Image
from runs import build_tree, last_line, matrices, options, run_processes, start, weights
from test_report import results

from segrow import cli
from segrow.commands import pages
from segrow.data import open_dataset
from segrow.engine.folder import images_hash
from segrow.errors import UserError
from segrow.methods.base import make_method
from segrow.model.store import load_model
from segrow.palette import voc_palette
from segrow.predict import Predictor
from segrow.protocol import summarise
from segrow.recipes import cell
from segrow.report import export as export_module
from segrow.report import gallery as gallery_module
from segrow.report import page as page_module
from segrow.report.charts import Axis, Chart, axis_of, colours, line_chart
from segrow.report.export import slugs_of
from segrow.report.findings import confusion, drift, warnings
from segrow.report.gallery import (
    SEEN,
    SHOWN,
    SIDE,
    THUMB,
    UNKNOWN_SIDE,
    Gallery,
    choose,
    image_iou,
    label_png,
    pool_of,
    stored_gallery,
)
from segrow.report.page import Pictures, render, write_report
from segrow.report.runs import NUMBERS, ReportRun, group_runs, published, read_runs, spread
from segrow.report.tables import percent, rows

VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """Tables as lists of cell texts, by id or class; all text; every address."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.addresses: list[str] = []
        self.text = ""
        self.pictures: list[dict[str, str]] = []
        self._stack: list[str] = []
        self._rows: list[list[str]] = []
        self.feed(text)
        assert self._stack == []  # every element is closed

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag not in VOID:
            self._stack.append(tag)
        if tag == "table":
            self._rows = self.tables.setdefault(given.get("id") or given.get("class") or "", [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        elif tag == "img":
            self.pictures.append(given)
        self.addresses += [given[name] for name in ("src", "href") if name in given]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass  # svg

    def handle_endtag(self, tag: str) -> None:
        assert self._stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" in self._stack or "style" in self._stack:
            return
        self.text += data
        if "td" in self._stack or "th" in self._stack:
            self._rows[-1][-1] += data.strip()


CONFIG: dict[str, Any] = {
    "task": "1-2",
    "setting": "overlap",
    "seed": 1,
    "data": {"name": "digits", "root": "/nowhere", "classes": None, "order_seed": None, "scenes": 9},
    "model": {"name": "deeplabv3_resnet50"},
    "memory": {"size": 0},
    "train": {"epochs": 3, "lr": 0.1},
    "method": {"name": "ssul"},
}


def store(folder: Path, stored: dict[str, Any], **config: Any) -> Path:
    """A run folder with results and configuration alone."""
    folder.mkdir(parents=True)
    for record in stored["steps"]:
        record["cost"]["peak_memory_bytes"] = 2**21
    (folder / "results.json").write_text(json.dumps(stored))
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **config}))
    return folder


def page_of(folders: list[Path], definition: str = "ssul", pictures: Pictures | None = None) -> str:
    """The page without pictures or files of figures."""
    groups = group_runs(read_runs(folders, definition))
    return render(groups, definition, pictures or Pictures(), {}, [], "report_figures")


SHORT = ("--task", "2-2", "--memory.size", "6", "--train.epochs", "1")


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose page was written as it trained, after the last step alone."""
    out = tmp_path_factory.mktemp("runs") / "first"
    assert start(root, out, *SHORT, "--steps", "1") == 0
    assert start(root, out, *SHORT, "--report", "true") == 0
    return out


# --- written while a run trains ----------------------------------------------------------------------------


def test_train_writes_the_page_and_its_figures(run: Path) -> None:
    assert (run / "report.html").stat().st_mtime_ns >= (run / "results.json").stat().st_mtime_ns
    names = {f"{kind}-first" for kind in ("iou", "confusion", "cost", "pictures")} | {"miou", "drift"}
    figures = {f.name for f in (run / "report_figures").iterdir()}
    assert figures == {f"{name}.{kind}" for name in names for kind in ("png", "svg", "csv")}
    for name in names:
        with Image.open(run / "report_figures" / f"{name}.png") as picture:
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 5  # something is drawn
        assert (run / "report_figures" / f"{name}.svg").read_text().rstrip().endswith("</svg>")
    assert not [f for f in run.rglob(".*") if f.is_file()]  # no temporary file stays


def test_the_page_changes_no_result(root: Path, run: Path, tmp_path: Path) -> None:
    assert start(root, tmp_path / "plain", *SHORT) == 0
    assert not (tmp_path / "plain" / "report.html").exists()
    assert matrices(tmp_path / "plain") == matrices(run)
    assert weights(tmp_path / "plain") == weights(run)


def test_a_finished_run_is_left_alone_and_an_old_page_is_written_again(
    root: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Path] = []
    monkeypatch.setattr(pages, "write_page", lambda out, method, say: drawn.append(out))
    assert start(root, run, *SHORT, "--report", "true") == 0
    assert drawn == []
    os.utime(run / "report.html", (1, 1))  # the run was stopped before the page of its last step
    assert start(root, run, *SHORT, "--report", "true") == 0
    assert drawn == [run]


def test_a_problem_in_drawing_is_one_line(
    root: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the printer\nis on fire")

    monkeypatch.setattr("segrow.report.page.write_report", fail)
    assert start(root, tmp_path / "out", *SHORT, "--report", "true") == 0
    shown = capsys.readouterr()
    assert shown.err.count("no report: RuntimeError: the printer is on fire") == 2  # after each step
    assert "Traceback" not in shown.err + shown.out
    assert matrices(tmp_path / "out") == matrices(run)


def test_finished_steps_are_not_drawn_again(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps: list[int] = []
    draw = gallery_module._draw_step

    def count(*arguments: Any, **more: Any) -> None:
        steps.append(arguments[3])
        draw(*arguments, **more)

    monkeypatch.setattr(gallery_module, "_draw_step", count)
    copy = shutil.copytree(run, tmp_path / "copy")
    (one,) = read_runs([copy], "ssul")
    first = gallery_module.update_gallery(one, None, 64, False)
    assert steps == []
    file = copy / "pictures" / "step_01" / "scores.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model": "another"}))
    assert gallery_module.update_gallery(one, None, 64, False) == first
    assert steps == [1]
    gallery_module.update_gallery(one, None, 5, False)  # another pool: all
    assert steps == [1, 0, 1]


def flip(path: Path) -> None:
    """One bit; the file stays as long as it is."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "again"),
    [
        (lambda p: (p / "0001.jpg").unlink(), [0, 1]),
        (lambda p: (p / "0002.jpg").write_bytes((p / "0002.jpg").read_bytes()[:100]), [0, 1]),
        (lambda p: (p / "pool.json").write_text('{"version": 2}'), [0, 1]),
        (lambda p: (p / "pool.json").write_text("[1]"), [0, 1]),
        (lambda p: flip(p / "0000.png"), [0, 1]),
        (lambda p: flip(p / "step_01/0003.jpg"), [1]),
        (lambda p: (p / "step_00/0003.png").unlink(), [0]),
        (lambda p: (p / "step_01/0003.jpg").write_bytes(b"x"), [1]),
        (lambda p: (p / "step_01/exemplars.jpg").unlink(), [1]),
        (lambda p: rewrite(p / "step_01/scores.json", scores=[0.5]), [1]),
        (lambda p: (p / "step_01/scores.json").write_text('{"model": 1'), [1]),
    ],
)
def test_damaged_pictures_are_drawn_again(
    damage: Callable[[Path], None],
    again: list[int],
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    (one,) = read_runs([copy], "ssul")
    first = stored_gallery(one)
    before = {path: path.read_bytes() for path in (copy / "pictures").rglob("*.??g")}
    damage(copy / "pictures")
    with pytest.raises(UserError, match=r"pictures (from|of 1 of)"):
        stored_gallery(one)
    steps: list[int] = []
    draw = gallery_module._draw_step
    monkeypatch.setattr(gallery_module, "_draw_step", lambda *a, **k: (steps.append(a[3]), draw(*a, **k)))
    assert gallery_module.update_gallery(one, None, 64, False) == first
    assert steps == again
    assert {path: path.read_bytes() for path in (copy / "pictures").rglob("*.??g")} == before


def rewrite(path: Path, **change: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


@pytest.mark.usefixtures("no_files_of_figures")
def test_files_of_others_are_left_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    pictures = copy / "pictures"
    (pictures / "pool.json").write_text("{}")
    (pictures / "holiday.txt").write_text("precious")
    there = sorted(pictures.rglob("*"))
    assert cli.main(["report", str(copy)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "pictures holds holiday.txt, which is not a picture of a report; move it elsewhere" in said
    assert sorted(pictures.rglob("*")) == there
    shutil.rmtree(pictures)
    pictures.mkdir()
    (pictures / "0001.jpg").write_bytes(b"mine")
    assert cli.main(["report", str(copy)]) == 0
    assert "holds pictures that no report has made" in " ".join(capsys.readouterr().err.split())
    assert (pictures / "0001.jpg").read_bytes() == b"mine"


@pytest.mark.slow
def test_of_two_processes_one_writes(root: Path, tmp_path: Path) -> None:
    program, written = tmp_path / "program.py", tmp_path / "written"
    program.write_text(
        "import os, sys\n"
        "from segrow import cli\n"
        "from segrow.report import page\n"
        f"note = lambda *_, **__: print(os.getpid(), file=open({str(written)!r}, 'a'))\n"
        "page.write_report = note\n"
        "sys.exit(cli.main())\n"
    )
    words = options(root, tmp_path / "out", *SHORT, "--report", "true", "--train.devices", "2")
    done = run_processes(words, (str(program),))
    assert done.returncode == 0, done.stderr
    processes = written.read_text().split()
    assert len(processes) == 3  # after each step, and at the end since this stand-in writes no page
    assert len(set(processes)) == 1


# --- what it says -------------------------------------------------------------------------------------------


def test_numbers_are_those_of_results(run: Path) -> None:
    summary = summarise(json.loads((run / "results.json").read_text()), "ssul")
    page = Page((run / "report.html").read_text())
    last = summary["steps"][-1]
    cells = [percent(last[key]) for key in NUMBERS]
    assert page.tables["headline"][1] == ["first", "1", *cells, percent(summary["average"])]
    assert page.tables["headline"][0][2:7] == list(NUMBERS)
    assert summary["rules"] in page.text
    assert page.tables["steps"][1:] == [list(row) for group in rows([("first", summary)]) for row in group]
    heat = {row[0]: row[1:] for row in page.tables["heat"][1:]}
    for name in last["per_class"]:
        expected = [s["per_class"].get(name, "") for s in summary["steps"]]
        assert heat[name] == [v if v == "" else percent(v) for v in expected]


def test_pictures_of_every_step_are_in_it(run: Path) -> None:
    page = Page((run / "report.html").read_text())
    of = [p["alt"] for p in page.pictures]
    for step in (0, 1):
        assert of.count(f"prediction of first after step {step}") == SHOWN
        assert of.count(f"unknown map of first after step {step}") == SHOWN
    assert of.count("truth") == SHOWN
    assert of.count("training images of step 0") == 1
    assert of.count("exemplars replayed in step 1") == 1
    shown = [p for p in page.pictures if p["alt"].startswith("prediction") and "hidden" not in p]
    assert {p["alt"] for p in shown} == {"prediction of first after step 1"}  # without JavaScript
    assert "8 of 8 images that were looked at (8 validation images, all)" in page.text


def test_pictures_are_what_each_steps_model_says(run: Path, root: Path) -> None:
    (one,) = read_runs([run], "ssul")
    kept = stored_gallery(one)
    truth_of = {0: 0, 255: -1, **{k: k for k in range(1, 5)}}
    for step in (0, 1):
        model, meta = load_model(run / "steps" / f"{step:02d}" / "model")
        method = make_method(meta["method"]["name"], meta["method"]["fields"])
        predictor = Predictor(model, method.scores, meta["class_names"], crop=32, novelty=method.novelty)
        for k, name in enumerate(kept.images):
            seen = predictor(root / "JPEGImages" / f"{name}.jpg")
            labels = seen.labels
            grey = np.asarray(Image.open(kept.unknown(step, k)), dtype=float)
            assert np.abs(grey - 255 * seen.unknown).mean() < 3  # JPEG
            assert kept.labels(step, k).read_bytes() == label_png(labels, (48, 40), voc_palette(5))
            mask = np.array(Image.open(root / "SegmentationClassAug" / f"{name}.png"))
            truth = np.vectorize(truth_of.get)(mask)
            assert kept.truth(k).read_bytes() == label_png(truth, (48, 40), voc_palette(5))
            assert kept.scores[step][k] == image_iou(truth, labels, len(meta["class_names"]))


def test_a_class_has_one_colour_in_every_order(root: Path, tmp_path: Path) -> None:
    palettes = []
    for name, order in (("a", "bird,boat,bicycle"), ("b", "boat,bicycle,bird")):
        stored = {**results(8), "data": "voc", "classes": ["background", *order.split(",")]}
        data = {
            "name": "voc",
            "root": str(root),
            "classes": order.split(","),
            "order_seed": None,
            "scenes": 1,
        }
        (run,) = read_runs([store(tmp_path / name, stored, data=data)], "ssul")
        stored["evaluation"]["images_hash"] = images_hash(open_dataset("voc", str(root)).ids("val"))
        source = gallery_module.open_source(
            ReportRun("x", run.folder, stored, run.config, run.summary), None, 8
        )
        palettes.append(dict(zip(source.scenario.classes, source.palette.tolist(), strict=True)))
    assert palettes[0] == palettes[1]
    assert palettes[0]["boat"] == voc_palette(21)[4].tolist()


def test_it_needs_nothing_else(run: Path) -> None:
    text = (run / "report.html").read_text()
    page = Page(text)
    assert all(address.startswith("data:") for address in page.addresses)
    assert not re.search(r"https?://|@import|<script src|url\((?!data:)", text)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_cost_configuration_and_protocol(run: Path) -> None:
    page = Page((run / "report.html").read_text())
    record = json.loads((run / "results.json").read_text())["steps"][1]
    cost = record["cost"]
    line = next(row for row in page.tables["cost"] if row[0] == "1")
    assert line[1:3] == [str(cost["iterations"]), f"{cost['train_s']:.1f}"]
    assert line[4] == f"{cost['peak_memory_bytes'] / 2**20:.0f}"
    assert line[6:] == [f"{cost['parameters'] / 1e6:.2f}", f"{cost['stored_bytes'] / 2**20:.1f}"]
    assert f"{record['images']} images + 6 exemplars (6 of step 0)" in page.text
    assert "train.feature_views" in page.text
    assert "8 validation images after every step, centre crop of 32 pixels" in page.text


def test_cost_in_its_units_and_as_parts_of_the_largest(tmp_path: Path) -> None:
    stored = results(8)
    for record, factor in zip(stored["steps"], (1, 4), strict=True):
        record["cost"] = {
            **record["cost"],
            "iterations": 25 * factor,
            "train_s": 30.0 * factor,
            "stored_bytes": 50 * 2**20 * factor,
            "trainable": 10**6 * factor,
            "parameters": 2 * 10**6 * factor,
        }
    text = page_of([store(tmp_path / "run", stored)])
    lines = {row[0]: row[1:] for row in Page(text).tables["cost"][1:]}
    assert lines["0"] == ["25", "30.0", "1.5", "2", "1.00", "2.00", "50.0"]
    assert lines["1"] == ["100", "120.0", "1.5", "2", "4.00", "8.00", "200.0"]
    parts = [float(part) for part in re.findall(r"--part:([\d.]+)%", text)]
    assert parts == [25, 25, 100, 100, 25, 25, 25, *[100] * 7]


def test_thumbnails_are_of_images_and_of_exemplars(run: Path, root: Path) -> None:
    (one,) = read_runs([run], "ssul")
    kept = stored_gallery(one)
    memory = json.loads((run / "steps" / "00" / "model" / "memory.json").read_text())["exemplars"]
    picture = kept.exemplars(1)
    assert picture is not None
    row = np.asarray(Image.open(picture), dtype=float)
    assert row.shape == (THUMB, len(memory) * THUMB, 3)
    for k, exemplar in enumerate(memory):
        with Image.open(root / "JPEGImages" / f"{exemplar['image']}.jpg") as photo:
            side = min(photo.size)
            left, top = (photo.width - side) // 2, (photo.height - side) // 2
            square = photo.convert("RGB").crop((left, top, left + side, top + side))
        expected = np.asarray(square.resize((THUMB, THUMB), Image.Resampling.LANCZOS), dtype=float)
        assert np.abs(row[:, k * THUMB : (k + 1) * THUMB] - expected).mean() < 12  # JPEG
    assert kept.exemplars(0) is None


def test_exported_pictures_show_prediction_and_unknown_map(run: Path) -> None:
    (one,) = read_runs([run], "ssul")
    kept = stored_gallery(one)
    above, below = export_module._rows(kept, 2, 2)
    assert len(above) == len(below) == 4
    for step in (0, 1):
        photo = Image.open(kept.photo(2)).convert("RGBA")
        painted = Image.alpha_composite(photo, Image.open(kept.labels(step, 2)).convert("RGBA"))
        assert (np.asarray(above[2 + step]) == np.asarray(painted)).all()
        grey = np.asarray(Image.open(kept.unknown(step, 2)).convert("RGB"))
        assert (np.asarray(below[2 + step]) == grey).all()


SVG = "{http://www.w3.org/2000/svg}"


def drawn(svg: Path, title: str) -> list[float]:
    """Values of the first line in the panel of that title, read from where its points are drawn."""
    tree = ElementTree.parse(svg)
    panels = [
        g
        for g in tree.iter(f"{SVG}g")
        if g.get("id", "").startswith("axes_") and title in [t.text for t in g.iter(f"{SVG}text")]
    ]
    groups = {g.get("id", ""): g for g in panels[0].iter(f"{SVG}g")}
    ticks = {}
    first = next(g for g in tree.iter(f"{SVG}g") if g.get("id") == "axes_1")  # the axis is shared
    for g in first.iter(f"{SVG}g"):
        if g.get("id", "").startswith("ytick_"):
            (use,), (text,) = list(g.iter(f"{SVG}use"))[-1:], list(g.iter(f"{SVG}text"))
            ticks[float((text.text or "").replace("\N{MINUS SIGN}", "-"))] = float(use.get("y", "nan"))
    (low, y_low), (high, y_high) = min(ticks.items()), max(ticks.items())
    path = next(
        p
        for name, g in groups.items()
        if name.startswith("line2d_")
        for p in g.findall(f"{SVG}path")
        if "stroke-width: 1.6" in p.get("style", "")
    )
    heights = [float(y) for _, y in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path.get("d", ""))]
    return [low + (y - y_low) / (y_high - y_low) * (high - low) for y in heights]


def test_exported_curves_and_heat_map_hold_the_numbers(tmp_path: Path) -> None:
    stored = results(3)
    write_report([store(tmp_path / "run", stored)], tmp_path / "x.html", pool=0)
    steps = summarise(stored, "ssul")["steps"]
    figures = tmp_path / "x_figures"
    for key in ("old", "all"):
        values = [100 * step[key] for step in steps]
        assert drawn(figures / "miou.svg", key) == pytest.approx(values, abs=0.5)
    lost = drawn(figures / "drift.svg", "old classes taken for background")
    assert lost == pytest.approx([70], abs=0.5)
    image = next(ElementTree.parse(figures / "iou-run.svg").iter(f"{SVG}image"))
    content = image.get("{http://www.w3.org/1999/xlink}href", "").split(",", 1)[1]
    cells = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"), dtype=int)[
        ::-1
    ]  # the file has the lowest row first
    names = list(steps[-1]["per_class"])
    height, width = cells.shape[0] / len(names), cells.shape[1] / len(steps)
    for row, name in enumerate(names):
        for column, step in enumerate(steps):
            value = step["per_class"].get(name)
            if value is None:
                continue
            expected = np.array(colormaps["viridis"](value)[:3]) * 255
            got = cells[int((row + 0.5) * height), int((column + 0.5) * width)]
            assert np.abs(got - expected).max() < 6, (name, step["step"])


def test_csv_holds_the_numbers(run: Path) -> None:
    stored = json.loads((run / "results.json").read_text())
    last = summarise(stored, "ssul")["steps"][-1]
    lines = (run / "report_figures" / "miou.csv").read_text().splitlines()
    assert lines[0] == "group,runs,step,number,mean,std,n"
    assert f"first,first,1,all,{last['all']},,1" in lines
    table = [line.split(",") for line in (run / "report_figures" / "confusion-first.csv").read_text().split()]
    matrix = np.zeros_like(np.array(stored["steps"][1]["matrix"]))
    for step, truth, got, pixels in table[1:]:
        if step == "1":
            matrix[stored["classes"].index(truth), stored["classes"].index(got)] = int(pixels)
    assert matrix.tolist() == stored["steps"][1]["matrix"]


def test_runs_of_another_length_and_a_shared_base(tmp_path: Path) -> None:
    long, short = results(8), {**results(3, steps=1), "task": "2-1"}
    long["steps"][0]["from_base"] = "/runs/elsewhere"
    page = Page(
        page_of([store(tmp_path / "long", long), store(tmp_path / "short", short, seed=2, task="2-1")])
    )
    assert [row[:2] for row in page.tables["headline"][1:]] == [["long", "1"], ["short", "0"]]
    assert page.tables["cost"][1][1:] == ["shared"] * 7
    assert "shared: elsewhere" in page.text


# --- several runs -------------------------------------------------------------------------------------------


def test_seeds_are_averaged_as_numpy_does(tmp_path: Path) -> None:
    kept = (8, 3, 5)
    folders = [store(tmp_path / f"s{k}", {**results(kept=n), "seed": k}, seed=k) for k, n in enumerate(kept)]
    other = store(tmp_path / "other", results(0, "finetune"), method={"name": "finetune"})
    page = Page(page_of([*folders, other]))
    steps = [summarise(results(kept=n), "ssul")["steps"][-1] for n in kept]
    row = page.tables["headline"][1]
    assert row[0] == "ssul (3 runs)"
    for shown, key in zip(row[2:7], NUMBERS, strict=True):
        values = np.array([step[key] for step in steps], float)
        mean, std = values.mean(), values.std(ddof=1)
        assert shown == f"{100 * mean:.1f} ± {100 * std:.1f}", key
    assert page.tables["headline"][2][0] == "other"
    assert "±" not in "".join(page.tables["headline"][2])
    assert "sample standard deviation (n − 1) over s0, s1, s2" in page.text


def test_class_orders_are_averaged_and_settings_are_not(tmp_path: Path) -> None:
    shuffled = {**results(5), "classes": ["background", "dog", "cat", "<cow>"]}
    folders = [
        store(tmp_path / "a", results(8)),
        store(
            tmp_path / "b",
            {**shuffled, "task": "1-2_b"},
            task="1-2_b",
            data={**CONFIG["data"], "order_seed": 3},
        ),
        store(tmp_path / "c", results(8), train={"epochs": 4, "lr": 0.1}),
        store(tmp_path / "d", results(7), train={"epochs": 4, "lr": 0.1}, seed=2),
        store(tmp_path / "e", results(6, "mib"), method={"name": "mib"}),
    ]
    groups = group_runs(read_runs(folders, "ssul"))
    assert [[run.name for run in group.runs] for group in groups] == [["a", "b"], ["c", "d"], ["e"]]
    labels = ["ssul, train.epochs 3 (2 runs)", "ssul, train.epochs 4 (2 runs)", "e"]
    assert [group.label for group in groups] == labels


def test_spread_leaves_out_what_is_not_there() -> None:
    assert spread([None, None]) == (None, None, 0)
    assert spread([0.5, None]) == (0.5, None, 1)
    mean, std, n = spread([0.2, 0.4, None, 0.9])
    assert (mean, std, n) == (pytest.approx(0.5), pytest.approx(np.std([0.2, 0.4, 0.9], ddof=1)), 3)


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [store(tmp_path / x / "run", results(8), seed=k) for k, x in enumerate("ab")]
    assert [run.name for run in read_runs(folders, "ssul")] == ["run", "run (2)"]


def test_a_run_given_twice_counts_once(tmp_path: Path) -> None:
    run = store(tmp_path / "run", results(8))
    other = store(tmp_path / "other", results(8), seed=2)
    (tmp_path / "link").symlink_to(run)
    twice = [run, tmp_path / "link", other, tmp_path / "other" / ".." / "run"]
    assert [one.name for one in read_runs(twice, "ssul")] == ["run", "other"]


@pytest.mark.parametrize("change", [{"images": 4}, {"images_hash": "beef"}])
def test_runs_tested_on_other_images_are_not_averaged_and_named(
    change: dict[str, Any], tmp_path: Path
) -> None:
    folders = []
    for k, name in enumerate("abcd"):
        stored = results(8)
        stored["evaluation"] |= {"images": 3, "images_hash": "cafe", **(change if name > "b" else {})}
        folders.append(store(tmp_path / name, stored, seed=k))
    groups = group_runs(read_runs(folders, "ssul"))
    assert [[run.name for run in group.runs] for group in groups] == [["a", "b"], ["c", "d"]]
    if "images_hash" in change:
        assert groups[1].label == "ssul, evaluation.images_hash beef (2 runs)"
    text = " ".join(Page(page_of(folders)).text.split())
    count = change.get("images", 3)
    assert f"tested on {count} images that are not those of a: not comparable (c, d)" in text
    assert "not comparable" not in page_of(folders[:2])


def test_runs_trained_on_other_images_are_not_averaged(tmp_path: Path) -> None:
    folders = []
    for k, name in enumerate("abcd"):
        stored = {**results(8), "training": {"images": 250, "images_hash": "few" if name > "b" else "all"}}
        folders.append(store(tmp_path / name, stored, seed=k))
    groups = group_runs(read_runs(folders, "ssul"))
    assert [[run.name for run in group.runs] for group in groups] == [["a", "b"], ["c", "d"]]
    assert groups[1].label == "ssul, training.images_hash few (2 runs)"


def test_train_stores_on_which_images(run: Path, root: Path) -> None:
    ids = (root / "ImageSets/Segmentation/train_aug.txt").read_text().split()
    stored = json.loads((run / "results.json").read_text())["training"]
    assert stored == {"images": len(ids), "images_hash": images_hash(tuple(ids))}


def test_a_copy_of_a_run_repeats_nothing(tmp_path: Path) -> None:
    folders = [
        store(tmp_path / "a", results(8)),
        store(tmp_path / "b", results(7), seed=2),
        store(tmp_path / "again", results(8)),
    ]
    groups = group_runs(read_runs(folders, "ssul"))
    assert [[run.name for run in group.runs] for group in groups] == [["a", "b"], ["again"]]
    both = [*folders, store(tmp_path / "b2", results(7), seed=2)]
    groups = group_runs(read_runs(both, "ssul"))
    assert [group.label for group in groups] == ["ssul (2 runs)", "ssul (2 runs), again: again, b2"]


def test_whether_views_fit_a_budget_tells_experiments_apart(tmp_path: Path) -> None:
    train = {**CONFIG["train"], "feature_budget": 0}
    folders = [store(tmp_path / "a", results(8)), store(tmp_path / "b", results(8), seed=2, train=train)]
    assert len(group_runs(read_runs(folders, "ssul"))) == 2


def test_other_classes_are_named(tmp_path: Path) -> None:
    other = {**results(8), "classes": ["background", "cat", "dog", "horse"]}
    other["steps"][1]["classes"] = ["dog", "horse"]
    folders = [store(tmp_path / "a", results(8)), store(tmp_path / "b", other)]
    assert "learns other classes than a: not comparable (b)" in " ".join(Page(page_of(folders)).text.split())
    assert "other classes than" not in page_of(folders[:1])


def test_another_crop_is_another_experiment(tmp_path: Path) -> None:
    whole = results(8)
    whole["evaluation"]["crop_val"] = False
    folders = [store(tmp_path / "a", results(8)), store(tmp_path / "b", whole, seed=2)]
    assert len(group_runs(read_runs(folders, "ssul"))) == 2


def test_the_band_of_a_chart_is_mean_plus_and_minus_the_deviation() -> None:
    values = [spread([0.4, 0.6]), spread([None]), spread([0.2, 0.2])]
    chart: Chart = line_chart("x", [("a", values)], 3)
    (line,) = chart.lines
    assert [path.count(",") for path in line.paths] == [1, 1]  # a gap where nothing can be counted
    height = {label: y for y, label in chart.y_ticks}
    assert line.marks[0].y == height["50"]
    above, below = (float(point.split(",")[1]) for point in line.bands[0].split())
    std = np.std([0.4, 0.6], ddof=1)
    per_unit = height["0"] - height["100"]
    assert above == pytest.approx(height["0"] - (0.5 + std) * per_unit, abs=0.02)
    assert below == pytest.approx(height["0"] - (0.5 - std) * per_unit, abs=0.02)
    assert "± 14.1" in line.marks[0].says
    assert axis_of([("a", values)]) == Axis(0.0, 0.8)


@pytest.mark.parametrize(
    ("means", "low", "high"),
    [
        ([0.4, -0.003], -0.15, 0.45),  # little below 0: little room there
        ([-0.3, -0.1], -0.3, 0.1),
        ([0.002, -0.001], -0.02, 0.06),
        ([0.9, -0.02], -0.3, 0.9),
        ([0.9, -0.7], -1.0, 1.0),
        ([0.79, -0.79], -0.8, 0.8),
        ([0.81, -0.81], -1.0, 1.0),
        ([0.95, -0.05], -1.0, 1.0),  # nothing is above 100 %
    ],
)
def test_an_axis_has_zero_on_a_line_and_room_for_all(means: list[float], low: float, high: float) -> None:
    axis = axis_of([("a", [spread([mean]) for mean in means])])
    assert axis == pytest.approx((low, high))
    values = [axis.low + (axis.high - axis.low) * k / 4 for k in range(5)]
    assert min(abs(value) for value in values) == pytest.approx(0, abs=1e-9)


def test_negative_forgetting_stands_below_zero(tmp_path: Path) -> None:
    values = [spread([0.1]), spread([-0.3])]
    assert axis_of([("a", values)]) == pytest.approx((-0.3, 0.1))
    chart = line_chart("x", [("a", values)], 2, axis_of([("a", values)]))
    height = {label: y for y, label in chart.y_ticks}
    assert list(height) == ["-30", "-20", "-10", "0", "10"]
    (line,) = chart.lines
    part = (height["-30"] - height["0"]) / 0.3
    assert [mark.y for mark in line.marks] == pytest.approx(
        [height["0"] - 0.1 * part, height["0"] + 0.3 * part]
    )
    stored = results(8)  # cat is better after step 1 than it was after step 0
    stored["steps"][0]["matrix"][1] = [6, 4]
    folder = store(tmp_path / "run", stored)
    assert "-30.4 %</title>" in page_of([folder])
    write_report([folder], tmp_path / "x.html", pool=0)
    heights = drawn(tmp_path / "x_figures" / "miou.svg", "forgetting")
    assert heights == pytest.approx([-30.4], abs=0.5)


# --- names and mistakes -------------------------------------------------------------------------------------

EVIL = '<img src=x onerror="alert(1)"> & "co\''


def test_names_are_escaped(tmp_path: Path) -> None:
    stored = results(8)
    names = ["background", EVIL, "a</script>b", "<cow>"]
    stored["classes"], stored["remarks"] = names, [f"remark {EVIL}"]
    stored["steps"][0]["classes"], stored["steps"][1]["classes"] = names[1:2], names[2:]
    folder = store(tmp_path / "a & <b>", stored)
    problem = f"problem {EVIL}"
    text = page_of([folder, store(tmp_path / "c", results(0), seed=2)], pictures=Pictures({}, [problem]))
    page = Page(text)
    assert text.count("<script") == text.count("</script") == 1
    assert not page.pictures  # no name became an element
    assert "<cow>" not in text
    for name in (EVIL, "a</script>b", "<cow>", "a & <b>", f"remark {EVIL}", problem):
        assert name in page.text
    assert f'title="{EVIL.replace("&", "&amp;")}' not in text
    assert slugs_of(["a & <b>/../c"]) == ["a_b_.._c"]


@pytest.mark.usefixtures("undrawn")
def test_each_run_has_files_of_its_own(tmp_path: Path) -> None:
    assert slugs_of(["a b", "a_b", "A_B", "a_b_2"]) == ["a_b", "a_b_2", "A_B_3", "a_b_2_2"]
    folders = [store(tmp_path / name, results(n), seed=n) for n, name in ((8, "a b"), (2, "a_b"))]
    write_report(folders, tmp_path / "x.html", pool=0)
    for slug, n in (("a_b", 8), ("a_b_2", 2)):
        lines = (tmp_path / "x_figures" / f"confusion-{slug}.csv").read_text().splitlines()
        assert f"1,cat,cat,{n}" in lines


@pytest.mark.usefixtures("undrawn")
def test_figures_of_a_run_that_is_not_shown_go_away(tmp_path: Path) -> None:
    folders = [store(tmp_path / name, results(8), seed=k) for k, name in enumerate("ab")]
    write_report(folders, tmp_path / "x.html", pool=0)
    (tmp_path / "x_figures" / "notes.txt").write_text("mine")
    (tmp_path / "x_figures" / "pictures-b.png").write_text("of an earlier report with pictures")
    write_report(folders[1:], tmp_path / "x.html", pool=0)
    there = {path.stem for path in (tmp_path / "x_figures").iterdir()}
    assert there == {"miou", "drift", "iou-b", "confusion-b", "cost-b", "pictures-b", "notes"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nowhere"], "no results.json"),
        (["{run}", "--out", "x.pdf"], "should be an .html file"),
        (["{run}", "--images", "-1"], "0 or more, got -1"),
        (["{run}", "--definition", "sul"], 'Did you mean "ssul"?'),
        (["{run}", "--images", "0", "--out", "{run}/results.json/x.html"], "cannot be written"),
        (["{run}", "{ade}", "--definition", "dkd"], "not counted in one way"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = store(tmp_path / "run", results(8))
    ade = store(tmp_path / "ade", {**results(8), "data": "ade20k"})
    given = [word.format(run=folder, ade=ade) for word in words]
    assert cli.main(["report", *given]) == 2
    assert expected in last_line(capsys.readouterr().err)
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.parametrize(
    ("lost", "commands"),
    [
        ("matrix", ["report", "results"]),
        ("known", ["report", "results"]),
        ("classes", ["report"]),
        ("cost", ["report"]),
    ],
)
def test_a_step_that_lacks_something_is_one_line(
    lost: str, commands: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = results(8)
    folder = store(tmp_path / "run", stored)
    del stored["steps"][1][lost]
    (folder / "results.json").write_text(json.dumps(stored))
    for command in commands:
        assert cli.main([command, str(folder)]) == 2
        said = capsys.readouterr().err
        assert f"1 of results lacks {lost};" in said or f"results.json: steps[1] lacks {lost};" in said
        assert "Traceback" not in said


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        ("config.yaml", lambda c: {"a": 1}, "config.yaml lacks task, setting, seed, data, model,"),
        ("config.yaml", lambda c: {**c, "data": "voc"}, 'config.yaml: data holds "voc", expected a mapping;'),
        ("config.yaml", lambda c: {**c, "data": {}}, "config.yaml: data lacks name;"),
        (
            "results.json",
            lambda r: {**r, "evaluation": None},
            "results.json: evaluation holds null, expected a mapping;",
        ),
        (
            "results.json",
            lambda r: {**r, "evaluation": {}},
            "results.json: evaluation lacks images, crop, crop_val;",
        ),
        (
            "results.json",
            lambda r: {**r, "steps": [3]},
            "results.json: steps[0] holds 3, expected a mapping;",
        ),
        (
            "results.json",
            lambda r: with_step(r, cost=None),
            "results.json: steps[1].cost holds null, expected a mapping;",
        ),
        (
            "results.json",
            lambda r: with_step(r, cost={"train_s": "x"}),
            'steps[1].cost.train_s holds "x", expected a finite number or null;',
        ),
        ("results.json", lambda r: {**r, "steps": 3}, "results.json: steps holds 3, expected a list;"),
        ("results.json", lambda r: with_step(r, known="3"), "step 1 knows 3 of 4 classes"),
        ("results.json", lambda r: with_step(r, matrix=[["x"] * 4] * 4), "matrix holds something else than"),
        ("results.json", lambda r: with_step(r, matrix=[[-1] * 4] * 4), "matrix holds something else than"),
        ("results.json", lambda r: with_step(r, matrix=None), "matrix holds something else than"),
    ],
)
def test_a_damaged_file_is_one_line(
    file: str,
    change: Callable[[Any], Any],
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stored = results(8)
    stored["steps"][1]["exemplars"] = 2
    folder = store(tmp_path / "run", stored)
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    content = change(yaml.safe_load(path.read_text()) if path.exists() else None)
    path.write_text(yaml.safe_dump(content) if path.suffix == ".yaml" else json.dumps(content))
    assert cli.main(["report", str(folder), "--images", "0"]) == 2
    said = capsys.readouterr().err
    assert expected in last_line(said)
    assert "Traceback" not in said


def with_step(stored: dict[str, Any], **change: Any) -> dict[str, Any]:
    """With another step 1."""
    return {**stored, "steps": [stored["steps"][0], {**stored["steps"][1], **change}]}


def test_the_command_writes_beside_the_run_or_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written: list[tuple[list[Path], Path, str, dict[str, Any]]] = []

    def note(folders: list[Path], out: Path, definition: str, **more: Any) -> Path:
        written.append((folders, out, definition, more))
        return out

    monkeypatch.setattr("segrow.report.page.write_report", note)
    a, b = store(tmp_path / "a", results(8)), store(tmp_path / "b", results(8))
    assert cli.main(["report", str(a)]) == 0
    assert cli.main(["report", str(a), str(b), "--definition", "mib", "--images", "9"]) == 0
    assert cli.main(["report", str(a), "--out", "x/y.html", "--data.root", "z", "--allow_code"]) == 0
    assert [w[1] for w in written] == [a / "report.html", Path("report.html"), Path("x/y.html")]
    assert [w[2] for w in written] == ["ssul", "mib", "ssul"]
    assert [w[3]["pool"] for w in written] == [64, 9, 64]
    assert (written[2][3]["root"], written[2][3]["allow_code"]) == ("z", True)


# --- data that are not there --------------------------------------------------------------------------------


def moved(run: Path, to: Path) -> Path:
    """A copy of a run whose data are gone."""
    shutil.copytree(run, to)
    config = yaml.safe_load((to / "config.yaml").read_text())
    config["data"]["root"] = "/gone"
    (to / "config.yaml").write_text(yaml.safe_dump(config))
    return to


@pytest.fixture
def no_files_of_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page alone: writing the files takes seconds."""
    monkeypatch.setattr(page_module, "export", lambda *_: None)


@pytest.mark.usefixtures("no_files_of_figures")
def test_the_terminal_says_what_could_not_be_drawn(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    out = str(tmp_path / "x.html")
    assert cli.main(["report", str(copy), "--out", out, "--data.root", "nope"]) == 0
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("pictures: copy: --data.root nope is not a folder")
    assert line.endswith("; its pictures are those of an earlier report")
    assert "earlier" not in said.out
    shutil.rmtree(copy / "steps" / "01" / "model")
    assert cli.main(["report", str(copy), "--out", out]) == 0
    assert "pictures need the model of every step; its pictures are those" in capsys.readouterr().err
    assert cli.main(["report", str(copy), "--out", out, "--images", "0"]) == 0
    assert capsys.readouterr().err == ""  # that was wished


@pytest.mark.usefixtures("no_files_of_figures")
def test_without_data_the_page_says_so(run: Path, tmp_path: Path) -> None:
    copy = moved(run, tmp_path / "copy")
    shutil.rmtree(copy / "pictures")
    write_report([copy], tmp_path / "x.html")
    page = Page((tmp_path / "x.html").read_text())
    assert "copy: its data were in /gone, which is not there; give --data.root DIR" in page.text
    assert "so there are no pictures of it" in page.text
    assert not page.pictures
    assert page.tables["headline"][1][0] == "copy"
    assert not (copy / "pictures").exists()
    assert not list((tmp_path / "x_figures").glob("pictures*"))


def test_without_data_kept_pictures_are_shown_and_named_so(run: Path, tmp_path: Path) -> None:
    copy = moved(run, tmp_path / "copy")
    (one,) = read_runs([copy], "ssul")
    pictures = Pictures()
    page_module._draw(one, None, 64, False, None, "cpu", None, pictures)
    assert list(pictures.galleries) == ["copy"]
    (problem,) = pictures.problems
    assert problem.endswith("its pictures are those of an earlier report")


def test_a_folder_that_may_only_be_read(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "pictures")

    copy = shutil.copytree(run, tmp_path / "copy")
    shutil.rmtree(copy / "pictures")
    monkeypatch.setattr(gallery_module, "write_atomic", fail)
    (one,) = read_runs([copy], "ssul")
    pictures = Pictures()
    page_module._draw(one, None, 64, False, None, "cpu", None, pictures)
    assert pictures.galleries == {}
    assert "pictures cannot be kept" in pictures.problems[0]


def test_other_data_are_not_taken_for_the_runs_own(run: Path, tmp_path: Path) -> None:
    other = build_tree(tmp_path / "VOC2012").root
    names = (other / "ImageSets/Segmentation/val.txt").read_text().split()
    (other / "ImageSets/Segmentation/val.txt").write_text("".join(f"{n}\n" for n in names[:-1]))
    (one,) = read_runs([run], "ssul")
    with pytest.raises(ValueError, match="are not those that first was tested on"):
        gallery_module.open_source(one, str(other), 64)


# --- warnings -----------------------------------------------------------------------------------------------


def warned(stored: dict[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for kind, text in warnings(stored, summarise(stored, "ssul")):
        found.setdefault(kind, []).append(text)
    return found


def healthy() -> dict[str, Any]:
    stored = results(8)
    stored["evaluation"]["images"] = 100
    for record in stored["steps"]:
        record["images"] = 40
    return stored


def test_a_healthy_run_has_no_warning() -> None:
    assert warned(healthy()) == {}


def test_few_images_are_remarked_on() -> None:
    stored = healthy()
    stored["steps"][1]["images"] = 39
    stored["evaluation"]["images"] = 99
    assert warned(stored)["few images"] == [
        "step 1 teaches 2 classes from 39 images, fewer than 20 a class",
        "tested on 99 images, fewer than 100",
    ]


def test_a_class_never_predicted_is_remarked_on() -> None:
    stored = healthy()
    matrix = np.array(stored["steps"][1]["matrix"])
    matrix[:, 0] += matrix[:, 3]
    matrix[:, 3] = 0
    stored["steps"][1]["matrix"] = matrix.tolist()
    found = warned(stored)
    assert found == {"never predicted": ["<cow>: no pixel is given this class after step 1"]}
    stored["steps"][1]["matrix"] = results(0)["steps"][1]["matrix"]
    assert list(warned(stored)) == ["collapsed"]  # cat, which was learnt once: one sentence, not two


def test_a_collapsed_class_is_remarked_on() -> None:
    stored = healthy()
    lost = results(1)["steps"][1]["matrix"]  # 1 of cat's 10 pixels stays
    stored["steps"][1]["matrix"] = lost
    assert warned(stored) == {"collapsed": ["cat: IoU fell from 100.0 % after step 0 to 10.0 %"]}
    gone = {
        **healthy(),
        "steps": [healthy()["steps"][0], {**stored["steps"][1], "matrix": results(0)["steps"][1]["matrix"]}],
    }
    assert "(never predicted)" in warned(gone)["collapsed"][0]


def test_an_unfinished_run_is_remarked_on() -> None:
    stored = healthy()
    del stored["steps"][1]
    assert warned(stored)["unfinished"] == ["1 of 3 classes are taught after step 0"]


def test_warnings_stand_on_the_page_once(tmp_path: Path) -> None:
    folders = [store(tmp_path / n, results(0), seed=k) for k, n in enumerate("ab")]
    page = Page(page_of(folders))
    assert page.text.count("tested on 3 images, fewer than 100") == 1
    assert "(all runs)" in page.text


# --- confusion ----------------------------------------------------------------------------------------------


def test_confusion_and_drift_are_those_of_the_matrix() -> None:
    matrix = [[70, 10, 20], [30, 60, 10], [5, 15, 80], [40, 0, 60]]  # the last is not learnt yet
    record = {"matrix": matrix, "known": 3}
    names = ["background", "a", "b", "c"]
    rows = confusion(record, 2, names)
    assert [row.row for row in rows] == ["background", "old", "new", "future"]
    assert [(s.name, s.kind, round(s.fraction, 6)) for s in rows[1].shares] == [
        ("a", "right", 0.6),
        ("background", "background", 0.3),
        ("b", "class", 0.1),
    ]
    assert [(s.name, s.kind) for s in rows[3].shares] == [("background", "background"), ("b", "class")]
    found = drift(record, 2)
    assert vars(found) == {
        "old_as_background": 0.3,
        "old_as_new": 0.1,
        "background_as_class": 0.3,
        "future_as_class": 0.6,
    }
    record["matrix"] = [*matrix[:3], [40, 20, 40]]
    assert drift(record, 2).future_as_class == 0.6  # whichever known class it is
    first = drift({"matrix": [[1, 0], [0, 1]], "known": 2}, 1)
    assert (first.old_as_background, first.future_as_class) == (None, None)


def test_shares_of_many_classes_add_up() -> None:
    matrix = np.random.default_rng(0).integers(1, 100, (9, 9))
    for row in confusion({"matrix": matrix.tolist(), "known": 9}, 4, list("abcdefghi")):
        assert sum(share.fraction for share in row.shares) == pytest.approx(1)
        assert [s.kind for s in row.shares].count("class") == 3
        assert row.shares[-1].kind == "rest"
    assert confusion({"matrix": [[0, 0], [0, 0]], "known": 2}, 1, ["a", "b"])[1].shares == ()


# --- published ----------------------------------------------------------------------------------------------


def as_voc(stored: dict[str, Any], memory: int = 0) -> dict[str, Any]:
    return {**stored, "data": "voc", "task": "15-1", "memory": memory}


def test_the_published_value_stands_beside(tmp_path: Path) -> None:
    known = cell("voc-15-1-ssul")
    assert known is not None
    folder = store(tmp_path / "run", as_voc(results(8)))
    page = Page(page_of([folder]))
    assert page.tables["headline"][0][-1] == "published all"
    assert page.tables["headline"][1][-1] == f"{known.published:.1f}"
    assert known.source in page.text
    other = Page(page_of([folder], "mib"))
    assert other.tables["headline"][1][-1] == f"{known.published:.1f}*"
    assert "counted as ssul, so not comparable" in other.text
    short = store(tmp_path / "short", as_voc(results(8, steps=1)), seed=2)
    for folders in ([short], [folder, short], [short, folder]):
        page = Page(page_of(folders))
        assert page.tables["headline"][1][-1] == f"{known.published:.1f}*"
        assert "after the last step, which is not reached here" in page.text


@pytest.mark.parametrize("first", [0, 1])
def test_nothing_is_published_for_a_mean_over_class_orders(tmp_path: Path, first: int) -> None:
    shuffled = {**as_voc(results(8)), "classes": ["background", "dog", "cat", "<cow>"]}
    folders = [
        store(tmp_path / "own", as_voc(results(8))),
        store(tmp_path / "other", shuffled, data={**CONFIG["data"], "order_seed": 3}),
    ]
    page = Page(page_of(folders[::-1] if first else folders))
    assert page.tables["headline"][1][0] == "ssul (2 runs)"
    assert "published all" not in page.tables["headline"][0]


def test_nothing_is_published_for_other_experiments(tmp_path: Path) -> None:
    data = CONFIG["data"]
    for k, (stored, config) in enumerate(
        [
            (results(8), {}),
            (as_voc(results(8)), {"data": {**data, "classes": ["cat"]}}),
            (as_voc(results(8)), {"data": {**data, "order_seed": 1}}),
            (as_voc(results(8, "finetune")), {}),
            ({**as_voc(results(8)), "setting": "disjoint"}, {}),
        ]
    ):
        (run,) = read_runs([store(tmp_path / str(k), stored, **config)], "ssul")
        assert published(run) is None
    (run,) = read_runs([store(tmp_path / "m", as_voc(results(8), 100))], "ssul")
    found = published(run)
    assert found is not None
    assert found.name == "voc-15-1-ssul-m"


# --- which images -------------------------------------------------------------------------------------------


def test_the_worst_are_shown_and_those_that_lost_most() -> None:
    rng = np.random.default_rng(0)
    last = rng.uniform(0.3, 1, 40)
    first = last.copy()
    last[[3, 17]] = 0.0
    first[9], last[9] = 1.0, 0.35
    scores: list[list[float | None]] = [list(first), list(last)]
    scores[1][5] = None
    chosen = dict(choose(scores))
    assert len(chosen) == SHOWN
    worst = [int(k) for k in np.argsort([2.0 if v is None else v for v in scores[1]])[:4]]
    assert [k for k, why in chosen.items() if why == "among the worst"] == worst
    assert chosen[9] == "lost most" or 9 in worst
    assert chosen[int(np.nanargmax([np.nan if v is None else v for v in scores[1]]))] == "the best"
    assert 5 not in chosen


def test_of_several_runs_the_mean_decides(tmp_path: Path) -> None:
    runs = read_runs([store(tmp_path / n, results(8), method={"name": n}) for n in "ab"], "ssul")
    names = tuple(f"i{k}" for k in range(20))
    rng = np.random.default_rng(0)
    scores = [rng.uniform(0, 1, (2, 20)) for _ in runs]
    galleries = {
        run.name: Gallery(run.folder, names, 20, (), tuple(tuple(map(float, row)) for row in values))
        for run, values in zip(runs, scores, strict=True)
    }
    _, chosen = page_module._chosen(Pictures(galleries), runs)
    mean = np.mean(scores, axis=0)[1]
    worst = [k for k, why in chosen if why == "among the worst"]
    assert worst == np.argsort(mean)[:4].tolist() != np.argsort(scores[0][1])[:4].tolist()


def test_few_images_are_all_shown_once() -> None:
    chosen = choose([[0.5, None, 0.2]])
    assert sorted(k for k, _ in chosen) == [0, 1, 2]
    assert choose([[None, None]]) == [(0, "further"), (1, "further")]


def test_every_class_is_in_the_pool() -> None:
    rng = np.random.default_rng(1)
    present = rng.random((300, 20)) < 0.05
    present[:, 7] = False
    present[211, 7] = True
    chosen = pool_of(present, 25)
    assert len(chosen) == len(set(chosen)) == 25
    assert present[chosen].any(0).all()
    assert len(pool_of(present, 1000)) == 300
    assert pool_of(present[:, ::-1], 25) is not chosen


def test_image_iou_counts_future_classes_as_background() -> None:
    truth = np.array([[0, 1, 1, 3], [0, 1, -1, 3]])
    labels = np.array([[0, 1, 2, 0], [0, 1, 1, 2]])
    # class 1: 2 of 3; class 2: predicted on two pixels that are not it; class 3 is not known
    assert image_iou(truth, labels, 3) == pytest.approx((2 / 3 + 0) / 2)
    assert image_iou(np.zeros((2, 2), int), np.zeros((2, 2), int), 3) is None


def test_a_label_picture_has_the_classes_where_they_are(tmp_path: Path) -> None:
    labels = np.zeros((60, 80), np.int16)
    labels[10:50, 10:40] = 2
    labels[:, 70:] = -1
    (tmp_path / "x.png").write_bytes(label_png(labels, (40, 30), voc_palette(3)))
    picture = np.asarray(Image.open(tmp_path / "x.png").convert("RGBA"))
    assert picture.shape == (30, 40, 4)
    assert picture[15, 12].tolist() == [0, 128, 0, 150]
    assert picture[15, 5].tolist() == [0, 128, 0, 255]  # its edge
    assert picture[2, 2, 3] == 0
    assert picture[15, 38].tolist() == [224, 224, 192, 90]
    many = np.arange(300).reshape(15, 20) % 151
    (tmp_path / "y.png").write_bytes(label_png(many, (20, 15), voc_palette(151)))
    assert (
        np.asarray(Image.open(tmp_path / "y.png").convert("RGB"))[0, 5].tolist()
        == voc_palette(151)[5].tolist()
    )


# --- size ---------------------------------------------------------------------------------------------------


def large(folder: Path, classes: int = 21, steps: int = 11, pool: int = 8) -> Path:
    """A run of 21 classes in 11 steps whose pictures have the size of VOC's and much in them."""
    rng = np.random.default_rng(0)
    names = ["background", *(f"class {k}" for k in range(1, classes))]
    known = [11 + k for k in range(steps)]
    stored = results(8)
    record = stored["steps"][1]
    stored["classes"] = names
    stored["steps"] = [
        {
            **record,
            "step": k,
            "known": n,
            "classes": names[1:11] if k == 0 else [names[n - 1]],
            "matrix": rng.integers(1, 9999, (classes, n)).tolist(),
            "matrix_known": rng.integers(1, 9999, (classes, n)).tolist(),
        }
        for k, n in enumerate(known)
    ]
    store(folder, stored, task="10-1")
    pictures = folder / "pictures"
    pictures.mkdir()
    about = {
        "palette": voc_palette(classes).tolist(),
        "version": gallery_module.VERSION,
        "images": [f"i{k}" for k in range(pool)],
        "of": pool,
        "classes": names,
    }
    coarse = rng.integers(0, 256, (pool, 40, 54, 3)).astype(np.uint8)
    for k in range(pool):
        photo = Image.fromarray(coarse[k]).resize(_size(SIDE), Image.Resampling.BICUBIC)
        noisy = np.clip(np.asarray(photo) + rng.normal(0, 12, (photo.height, photo.width, 1)), 0, 255).astype(
            np.uint8
        )
        Image.fromarray(noisy).save(pictures / f"{k:04d}.jpg", quality=85)
        (pictures / f"{k:04d}.png").write_bytes(blobs(rng, classes))
    gallery_module._close(pictures, "pool.json", about)
    for step in range(steps):
        target = pictures / f"step_{step:02d}"
        target.mkdir()
        for k in range(pool):
            (target / f"{k:04d}.png").write_bytes(blobs(rng, known[step]))
            grey = Image.fromarray(rng.integers(0, 256, (12, 16)).astype(np.uint8)).resize(
                _size(UNKNOWN_SIDE)
            )
            grey.save(target / f"{k:04d}.jpg", quality=75)
        row = Image.fromarray(coarse[0]).resize((SEEN * THUMB, THUMB))
        row.save(target / "seen.jpg", quality=80)
        gallery_module._close(target, "scores.json", {"model": "x", "scores": rng.random(pool).tolist()})
    return folder


def _size(side: int) -> tuple[int, int]:
    return side, side * 3 // 4


def blobs(rng: np.random.Generator, classes: int) -> bytes:
    """A label map of many regions, as a picture."""
    coarse = rng.integers(0, classes, (7, 9)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(_size(SIDE), Image.Resampling.NEAREST))
    return label_png(np.roll(smooth, rng.integers(0, 9, 2), (0, 1)), _size(SIDE), voc_palette(classes))


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the large run."""
    folder = large(tmp_path_factory.mktemp("big") / "large")
    (one,) = read_runs([folder], "ssul")
    kept = stored_gallery(one)
    chosen = choose(kept.scores)
    out = folder / "report.html"
    groups = group_runs([one])
    out.write_text(render(groups, "ssul", Pictures(), {one.name: kept}, chosen, "report_figures"))
    return out


def test_21_classes_and_11_steps_stay_below_15_megabytes(big: Path) -> None:
    assert 1e6 < big.stat().st_size <= 15e6
    page = Page(big.read_text())
    assert sum(p["alt"].startswith("prediction") for p in page.pictures) == 8 * 11
    assert len(page.tables["heat"]) == 22


def test_every_step_of_every_picture_is_another(big: Path) -> None:
    sources = [p["src"] for p in Page(big.read_text()).pictures if p["alt"].startswith("prediction")]
    assert len(set(sources)) == len(sources)


def test_colours_can_be_read() -> None:
    for value in np.linspace(0, 1, 21):
        ground, ink = colours(float(value))
        r, g, b = (int(v) for v in re.findall(r"\d+", ground))
        contrast = _contrast((r, g, b), (17, 17, 17) if ink == "#111" else (255, 255, 255))
        assert contrast >= 4, (value, contrast)


def _contrast(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    def luminance(rgb: tuple[int, int, int]) -> float:
        parts = [v / 255 / 12.92 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in rgb]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


# --- in a browser -------------------------------------------------------------------------------------------

browser = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here (apt-get install chromium)")
SHOWN_NOW = """[...document.querySelectorAll('.prediction img')].filter(i => i.offsetParent !== null)
    .map(i => [i.naturalWidth > 0, i.alt, i.src.length, i.src.slice(-200)])"""


@pytest.fixture(scope="module")
def opened(big: Path) -> Iterator[Callable[..., Browser]]:
    tabs: list[Browser] = []

    def open_page(width: int = 1280, height: int = 900, dark: bool = False) -> Browser:
        tab = Browser(width, height, dark)
        tab.__enter__()
        tabs.append(tab)
        tab.open(big)
        return tab

    yield open_page
    for tab in tabs:
        assert tab.errors == []  # nothing was written to the console
        tab.__exit__(None, None, None)


@browser
@pytest.mark.slow
def test_slider_and_keys_change_the_pictures(opened: Callable[..., Browser]) -> None:
    page = opened()
    last = page.value(SHOWN_NOW)
    assert len(last) == 8
    assert all(drawn and "after step 10" in alt for drawn, alt, _, _ in last)
    page.press("ArrowLeft")  # focus is on the page itself
    before = page.value(SHOWN_NOW)
    assert all("after step 9" in alt for _, alt, _, _ in before)
    assert all(a[2:] != b[2:] for a, b in zip(last, before, strict=True))
    page.value("document.getElementById('step').focus()")
    page.press("ArrowLeft")  # the slider's own
    assert page.value("document.getElementById('step').value") == "8"
    assert all("after step 8" in alt for _, alt, _, _ in page.value(SHOWN_NOW))
    assert page.value("document.getElementById('step').getAttribute('aria-valuetext')") == "step 8"
    slide = "const s = document.getElementById('step'); s.value = 0; s.dispatchEvent(new Event('input'))"
    page.value(slide)
    first = page.value(SHOWN_NOW)
    assert all(drawn and "after step 0" in alt for drawn, alt, _, _ in first)
    page.press("ArrowLeft")
    assert page.value(SHOWN_NOW) == first  # there is nothing before
    page.value("document.getElementById('on').click()")
    assert all("after step 1" in alt for _, alt, _, _ in page.value(SHOWN_NOW))
    said = "[...document.querySelectorAll('#says span')].filter(s => s.offsetParent).map(s => s.innerText)"
    assert "step 1 teaches class 11" in page.value(said)
    bars = "[...document.querySelectorAll('.taken')].filter(t => t.offsetParent).length"
    assert page.value(bars) == 1


@browser
@pytest.mark.slow
def test_focus_is_seen(opened: Callable[..., Browser]) -> None:
    page = opened()
    page.press("Tab")
    outline = "getComputedStyle(document.activeElement).outlineStyle + document.activeElement.id"
    assert page.value(outline) == "solidtheme"


@browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_no_width_scrolls_sideways(opened: Callable[..., Browser], width: int) -> None:
    page = opened(width, 800)
    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.value("window.innerWidth") == width
    assert page.value("document.querySelector('#headline thead').offsetHeight") < 60  # no word is broken up
    # every number of the result is on the screen, and what a class was taken for is in words
    cells = "[...document.querySelectorAll('#headline td')].map(c => c.getBoundingClientRect().right)"
    assert all(right <= width for right in page.value(cells))
    words = "[...document.querySelectorAll('.words')].filter(w => w.offsetParent).map(w => w.innerText)"
    if width < 500:
        assert any(re.search(r"background\s\d+\s%", said) for said in page.value(words))
        label = "getComputedStyle(document.querySelector('#headline td.main'), '::before').content"
        assert "all" in page.value(label)
    else:
        assert page.value(words) == []


@browser
@pytest.mark.slow
def test_light_and_dark(opened: Callable[..., Browser]) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = opened(), opened(dark=True)
    white, black = light.value(ground), dark.value(ground)
    assert min(int(v) for v in re.findall(r"\d+", white)) > 200
    assert max(int(v) for v in re.findall(r"\d+", black)) < 60
    for tab, other in ((light, black), (dark, white)):
        own = tab.value(ground)
        tab.value("document.getElementById('theme').click()")
        assert tab.value(ground) == other
        tab.value("document.getElementById('theme').click()")
        assert tab.value(ground) == own


@browser
@pytest.mark.slow
def test_runs_are_chosen(tmp_path: Path) -> None:
    folders = [
        store(tmp_path / "a", results(8)),
        store(tmp_path / "b", results(0, steps=1), seed=2, task="3-1"),
    ]
    (tmp_path / "x.html").write_text(page_of(folders))
    with Browser(1280, 900) as page:
        page.open(tmp_path / "x.html")
        visible = "[...document.querySelectorAll('section[data-run]')].map(s => s.offsetParent !== null)"
        assert page.value(visible) == [True, False]
        page.value(
            "const r = document.getElementById('run'); r.value = 1; r.dispatchEvent(new Event('change'))"
        )
        assert page.value(visible) == [False, True]
        assert page.errors == []


@browser
@pytest.mark.slow
def test_the_browser_sees_errors(tmp_path: Path) -> None:
    """The tests above could not fail otherwise."""
    (tmp_path / "x.html").write_text("<script>console.error('bad'); nothing();</script><img src='none.png'>")
    with Browser(400, 400) as page:
        page.open(tmp_path / "x.html")
        assert page.value("1 + 1") == 2
        assert any("bad" in error for error in page.errors)
        assert any("nothing is not defined" in error for error in page.errors)
