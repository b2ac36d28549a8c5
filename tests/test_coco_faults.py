"""Faulty images and annotations of a COCO file: all are listed, each by its image, and can be left out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segrow import cli
from segrow.data.coco import CocoDataset
from segrow.data.unfit import Unfit

pytest.importorskip("pycocotools.mask", reason='needs pip install "segrow[coco]"')

HEIGHT, WIDTH = 20, 30
SQUARE = [4, 4, 14, 4, 14, 14, 4, 14]
Coco = dict[str, list[dict[str, Any]]]
Act = Callable[[Path, Coco], Any]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))


def put(root: Path, images: int, *acts: Act) -> Path:
    """A COCO file of images 0.png, 1.png …, with a square each, after something was done to it."""
    root.mkdir()
    rng = np.random.default_rng(0)
    content: Coco = {"images": [], "categories": [{"id": 1, "name": "cat"}], "annotations": []}
    for k in range(images):
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)).save(root / f"{k}.png")
        content["images"].append({"id": k, "file_name": f"{k}.png", "height": HEIGHT, "width": WIDTH})
        content["annotations"].append({"id": k, "image_id": k, "category_id": 1, "segmentation": [SQUARE]})
    for act in acts:
        act(root, content)
    (root / "a.json").write_text(json.dumps(content))
    return root


def annotation(k: int, **to: Any) -> Act:
    return lambda _, c: c["annotations"][k].update(to)


def image(k: int, **to: Any) -> Act:
    return lambda _, c: c["images"][k].update(to)


def gone(k: int) -> Act:
    return lambda root, _: (root / f"{k}.png").unlink()


FAULTS: list[tuple[Act, str]] = [
    (gone(0), "lists image 0.png, which is missing; expected it as"),
    (
        annotation(1, category_id=7),
        "annotation 1 has category 7, which is not in the file's categories (1 cat)",
    ),
    (annotation(2, category_id=None), "annotation 2 has category None, which is not in the file's"),
    (annotation(3, segmentation=[["x"] * 8]), "annotation 3 has a polygon with something else than numbers"),
    (annotation(4, segmentation={"size": [5, 5], "counts": [25]}), "annotation 4 is 5x5 pixels"),
    (image(5, height=21), "is 30x20 pixels (width x height), in"),
    (lambda _, c: c["images"].append({**c["images"][6], "id": 99}), "lists image 6.png 2 times"),
    (image(7, file_name="./8.png"), "lists ./8.png and 8.png, which are both"),
    (annotation(9, id=None, category_id=True), "annotation [9] has category True, which is not in"),
]


def checked(root: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict[str, Any]]:
    code = cli.main(["data", "check", str(root), "--json", *more])
    return code, json.loads(capsys.readouterr().out)


def test_all_faults_are_listed_and_can_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = put(tmp_path / "d", 12, *(act for act, _ in FAULTS), image(10, file_name=None))
    with pytest.raises(
        Unfit, match=r"0\.png, which is missing; .* 7 images more cannot be used: segrow data"
    ):
        CocoDataset(root)
    bad = str(tmp_path / "bad")
    code, report = checked(root, capsys, "--fix-list", bad)
    assert code == 1
    said = {problem["image"]: problem["text"] for problem in report["problems"]}
    assert said.keys() == {f"train/{k}" for k in (0, 1, 2, 3, 4, 5, 6, 8, 9)} | {"train/no name"}
    for _, text in FAULTS:
        assert any(text in each for each in said.values()), text
    assert "images[10] has file_name None, expected a text" in said["train/no name"]
    assert report["splits"]["train"]["usable"] == 1
    assert checked(root, capsys, "--data.exclude", bad)[0] == 0
    args = ["scenario", "--data.name", "folder", "--data.root", str(root), "--task", "offline"]
    assert cli.main([*args, "--data.exclude", bad]) == 0


def test_all_faults_of_one_image_are_one_sentence(tmp_path: Path) -> None:
    def spoil(_: Path, c: Coco) -> None:
        c["annotations"] += [{"id": k, "image_id": 0, "category_id": k} for k in range(50, 59)]

    with pytest.raises(Unfit) as caught:
        CocoDataset(put(tmp_path / "d", 2, spoil))
    assert str(caught.value).count("which is not in") == 5
    assert str(caught.value).endswith("; and 4 more")


@pytest.mark.parametrize("name", ["train/1", "train/1.png"])
@pytest.mark.parametrize("act", [gone(1), annotation(1, category_id=7), annotation(1, segmentation="?")])
def test_an_image_is_left_out_by_name_or_id(tmp_path: Path, act: Act, name: str) -> None:
    data = CocoDataset(put(tmp_path / "d", 3, act), exclude=frozenset({name, "train/none"}))
    assert data.ids("train") == ("0", "2")
    assert data.excluded == (name,)


@pytest.mark.parametrize(
    ("height", "width"), [(20.0, 30.0), ("20", "30"), ("20.0", 30), (None, "30"), (None, None)]
)
def test_sizes_as_tools_write_them(tmp_path: Path, height: Any, width: Any) -> None:
    data = CocoDataset(put(tmp_path / "d", 1, image(0, height=height, width=width)))
    assert (data.mask("train", "0") == 1).sum() == 100


@pytest.mark.parametrize(
    ("said", "there", "hint"),
    [
        ("1.jpg", "1.png", "/1.png is there: correct its suffix in file_name"),
        ("1", "1.png", "/1.png is there: correct its suffix in file_name"),
        ("C:\\x\\1.jpg", "1.png", "/1.png is there: correct its suffix in file_name"),
        ("a.b", "a.b.png", "/a.b.png is there: correct its suffix in file_name"),
        ("1.jpg", "1.txt", ""),
        ("1.jpg", "11.png", ""),
    ],
)
def test_a_missing_image_that_is_there_otherwise(tmp_path: Path, said: str, there: str, hint: str) -> None:
    root = put(tmp_path / "d", 2, image(1, file_name=said), lambda d, _: (d / "1.png").rename(d / there))
    with pytest.raises(Unfit) as caught:
        CocoDataset(root)
    assert str(caught.value).endswith(hint or "images")


@pytest.mark.parametrize(
    ("orientation", "says"),
    [(1, "the file has width and height exchanged"), (6, "annotated unturned, without its EXIF orientation")],
)
def test_sides_exchanged(tmp_path: Path, orientation: int, says: str) -> None:
    root = put(tmp_path / "d", 1, image(0, height=WIDTH, width=HEIGHT))
    exif = Image.Exif()
    exif[0x0112] = orientation
    size = (WIDTH, HEIGHT) if orientation == 1 else (HEIGHT, WIDTH)
    Image.new("RGB", size).save(root / "0.png", exif=exif)
    with pytest.raises(Unfit, match=says):
        CocoDataset(root).mask_path("train", "0")


IGNORED = 'a.json: 1 annotation marked "ignore": 1: pixels of their outlines count nowhere; --ignore none'


@pytest.mark.parametrize(
    ("more", "ignore", "value"),
    [
        ({"ignore": 1}, None, 255),
        ({"ignore": True}, None, 255),
        ({"attributes": {"ignore": True, "occluded": False}}, None, 255),
        ({"attributes": {"ignore": "true"}}, None, 255),
        ({"ignore": 1}, [], 1),
        ({"ignore": 0}, None, 1),
        ({"attributes": {"ignore": False}}, None, 1),
        ({"attributes": ["ignore"]}, None, 1),
    ],
)
def test_an_annotation_that_must_not_count(
    tmp_path: Path, more: dict[str, Any], ignore: list[str] | None, value: int
) -> None:
    data = CocoDataset(put(tmp_path / "d", 2, annotation(0, **more)), ignore)
    assert set(np.unique(data.mask("train", "0"))) == {0, value}
    assert set(np.unique(data.mask("train", "1"))) == {0, 1}
    assert [note for note in data.notes if note.startswith(IGNORED)] == list(data.notes)[: value == 255]
    assert len(data.notes) == (value == 255)


@pytest.mark.parametrize("number", [None, [1], True, 99])
def test_an_annotation_of_no_image_is_told(tmp_path: Path, number: Any) -> None:
    data = CocoDataset(put(tmp_path / "d", 2, annotation(1, image_id=number)))
    assert data.notes[0].startswith(
        "a.json: 1 annotation of images that it does not list is left out (first "
    )


@pytest.mark.parametrize("value", [None, True, [1], {"a": 1}, 1e30])
@pytest.mark.parametrize(
    ("part", "key"),
    [("categories", "supercategory"), ("annotations", "ignore"), ("annotations", "attributes")],
)
def test_a_value_of_any_kind_is_no_traceback(tmp_path: Path, part: str, key: str, value: Any) -> None:
    root = put(tmp_path / "d", 2, lambda _, c: c[part][0].update({key: value}))
    assert CocoDataset(root).ids("train") == ("0", "1")
