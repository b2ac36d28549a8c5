"""COCO files: polygons and RLE become masks, and what is wrong with a file is one line."""

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from runs import only_line

from segrow import cli
from segrow.data import coco
from segrow.data.cache import cache_folder
from segrow.data.coco import CocoDataset, find_files
from segrow.data.given import open_given
from segrow.errors import UserError

masks = pytest.importorskip("pycocotools.mask", reason='needs pip install "segrow[coco]"')

HEIGHT, WIDTH = 20, 30
Coco = dict[str, list[dict[str, Any]]]


def square(top: int, left: int, bottom: int, right: int) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def shape_of(top: int, left: int, bottom: int, right: int) -> NDArray[np.uint8]:
    shape = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    shape[top:bottom, left:right] = 1
    return shape


def uncompressed(shape: NDArray[np.uint8]) -> dict[str, Any]:
    """Lengths of the runs, column by column, zeros first."""
    flat = shape.ravel(order="F")
    counts, value, length = [], 0, 0
    for pixel in flat.tolist():
        if pixel != value:
            counts.append(length)
            value, length = pixel, 0
        length += 1
    return {"size": [HEIGHT, WIDTH], "counts": [*counts, length]}


def compressed(shape: NDArray[np.uint8]) -> dict[str, Any]:
    runs = masks.encode(np.asfortranarray(shape))
    return {"size": runs["size"], "counts": runs["counts"].decode()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three images: polygons of two classes, an RLE of each kind, nothing."""
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "coco"
    (root / "images").mkdir(parents=True)
    for k in (1, 2, 3):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 40 * k, np.uint8)).save(root / f"images/{k:03d}.jpg")
    content: Coco = {
        "images": [
            {"id": k, "file_name": f"{k:03d}.jpg", "height": HEIGHT, "width": WIDTH} for k in (1, 2, 3)
        ],
        "categories": [{"id": 7, "name": "okapi"}, {"id": 3, "name": "zebra"}],
        "annotations": [
            # the small one is listed first and still on top
            {"id": 1, "image_id": 1, "category_id": 7, "segmentation": [square(4, 4, 8, 8)]},
            {
                "id": 2,
                "image_id": 1,
                "category_id": 3,
                "segmentation": [square(2, 2, 12, 22), square(14, 24, 18, 28)],
            },
            {"id": 3, "image_id": 2, "category_id": 3, "segmentation": compressed(shape_of(1, 1, 9, 11))},
            {
                "id": 4,
                "image_id": 2,
                "category_id": 7,
                "segmentation": uncompressed(shape_of(10, 3, 19, 29)),
                "iscrowd": 1,
            },
        ],
    }
    (root / "instances.json").write_text(json.dumps(content))
    return root


def test_masks_are_what_was_drawn(folder: Path) -> None:
    data = CocoDataset(folder / "instances.json")
    assert data.class_names == ("background", "zebra", "okapi")  # by category id: 3, 7
    assert data.ids("train") == ("001", "002", "003")
    assert data.ids("val") == ()
    first = np.zeros((HEIGHT, WIDTH), np.uint8)
    first[2:12, 2:22] = 1
    first[14:18, 24:28] = 1
    first[4:8, 4:8] = 2
    assert np.array_equal(data.mask("train", "001"), first)
    second = np.zeros((HEIGHT, WIDTH), np.uint8)
    second[1:9, 1:11] = 1
    second[10:19, 3:29] = 2
    assert np.array_equal(data.mask("train", "002"), second)
    assert not data.mask("train", "003").any()
    assert data.image("train", "002").shape == (HEIGHT, WIDTH, 3)
    assert data.presence("train").present.tolist() == [
        [True, True, True],
        [True, True, True],
        [True, False, False],
    ]


def test_the_masks_are_drawn_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = CocoDataset(folder / "instances.json").mask_path("train", "001")
    monkeypatch.setattr(coco, "draw_masks", None)
    assert CocoDataset(folder / "instances.json").mask_path("train", "001") == first
    text = (folder / "instances.json").read_text()
    (folder / "instances.json").write_text(text.replace("okapi", "okapis"))
    with pytest.raises(TypeError):  # another file: drawn again
        CocoDataset(folder / "instances.json").mask_path("train", "001")


def test_where_the_file_may_be(folder: Path, tmp_path: Path) -> None:
    assert open_given(folder, "--data").name == "coco"
    assert open_given(folder / "instances.json", "--data").name == "coco"
    (folder / "annotations").mkdir()
    (folder / "instances.json").rename(folder / "annotations/instances.json")
    assert open_given(folder, "--data").ids("train") == ("001", "002", "003")
    (folder / "annotations/more.json").write_text("{}")
    assert find_files(folder)[1] == [f"{folder}: annotations/more.json is not read"]
    (folder / "annotations/instances_2.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds 2 \.json files of train images .*; give one of them itself"):
        find_files(folder)


def test_a_suffix_in_capitals(folder: Path) -> None:
    (folder / "instances.json").rename(folder / "instances.JSON")
    assert open_given(folder, "--data").ids("train") == ("001", "002", "003")


def change(folder: Path, act: Callable[[Coco], None]) -> None:
    path = folder / "instances.json"
    content: Coco = json.loads(path.read_text())
    act(content)
    path.write_text(json.dumps(content))


BAD: list[tuple[Callable[[Coco], Any], str]] = [
    (
        lambda c: c["images"][1].update(file_name="gone.jpg"),
        "lists image gone.jpg, which is missing; expected it as",
    ),
    (
        lambda c: c["annotations"][2].update(segmentation={"size": [20, 30]}),
        "has an RLE without counts or size",
    ),
    (
        lambda c: c["annotations"][0].update(category_id=99),
        "has category 99, which is not in the file's categories (3 zebra, 7 okapi); add",
    ),
    (lambda c: c["images"][0].update(height=21), "is 30x20 pixels (width x height), in"),
    (lambda c: c["categories"][0].update(name="zebra"), 'has two categories "zebra"'),
    (
        lambda c: c.pop("categories"),
        "is not a COCO file: expected lists images, annotations, categories in it, got no categories; export",
    ),
    (lambda c: c["images"].clear(), "lists no image or no category"),
    (
        lambda c: c["annotations"][2].update(segmentation=compressed(np.ones((4, 5), np.uint8, order="F"))),
        "annotation 3 is 5x4 pixels (width x height), its image 30x20",
    ),
]


def outline(annotation: int, value: Any) -> Callable[[Coco], Any]:
    return lambda c: c["annotations"][annotation - 1].update(segmentation=value)


def runs(counts: Any, size: Any = (HEIGHT, WIDTH)) -> dict[str, Any]:
    return {"size": size, "counts": counts}


def test_coordinates_in_parts_of_the_sides_are_refused(folder: Path) -> None:
    unit = [[0.1, 0.2, 0.9, 0.2, 0.9, 0.8]]
    change(folder, lambda c: [a.update(segmentation=unit) for a in c["annotations"]])
    with pytest.raises(UserError, match=r"no coordinate above 1, .* multiply x by the width"):
        CocoDataset(folder / "instances.json")
    change(folder, lambda c: c["annotations"][0].update(segmentation=[square(2, 2, 9, 9)]))
    assert CocoDataset(folder / "instances.json").ids("train")  # a tiny one among others


MALFORMED: list[tuple[Callable[[Coco], Any], str]] = [
    (outline(2, ["123456"]), "annotation 2 has a polygon that is not a list"),
    (outline(2, [list("123456")]), "annotation 2 has a polygon with something else than numbers"),
    (outline(2, [[1, 2, 3, 4, 5, float("nan")]]), "something else than numbers of pixels"),
    (outline(2, [[1, 2, 3, 4, 5, 1e30]]), "something else than numbers of pixels"),
    (outline(2, "nothing"), "annotation 2 has 'nothing' for an outline; expected polygons or an RLE"),
    (outline(3, runs("o" * 100_000 + "0")), "annotation 3 has an RLE whose counts are not lengths of runs"),
    (outline(4, runs([10**18, 1])), "has an RLE of 1000000000000000001 pixels"),
    (outline(3, runs("garbage!")), "annotation 3 has an RLE whose counts are not lengths of runs"),
    (outline(3, runs("oooo")), "annotation 3 has an RLE whose counts are not lengths of runs"),
    (outline(3, runs([True, 1919])), "annotation 3 has an RLE whose counts are not lengths of runs"),
    (outline(3, runs("ABC")), "annotation 3 has an RLE"),
    (outline(3, runs("5:")), "has an RLE of 15 pixels, expected 30x20 (width x height) = 600"),
    (
        outline(4, runs([5, 10])),
        "annotation 4 has an RLE of 15 pixels, expected 30x20 (width x height) = 600",
    ),
    (outline(4, runs([610, -10])), "annotation 4 has an RLE whose counts are not lengths of runs"),
    (outline(4, runs(["a", "b"])), "annotation 4 has an RLE whose counts are not lengths of runs"),
    (outline(4, runs({"a": 1})), "annotation 4 has an RLE whose counts are not lengths of runs"),
    (outline(4, runs([600], ["20", "30"])), "has an RLE of size ['20', '30']; expected [height, width]"),
    (outline(4, runs([600], 20)), "has an RLE without counts or size"),
    (lambda c: c["images"][1].pop("id"), "images[1] has id None, expected a whole number or a text"),
    (lambda c: c["images"][1].update(id=[2]), "images[1] has id [2], expected a whole number or a text"),
    (lambda c: c["images"][1].update(id="1"), "images has id 1 twice"),
    (lambda c: c["images"][1].update(id=1), "images has id 1 twice"),
    (lambda c: c["images"][1].pop("file_name"), "images[1] has file_name None, expected a text"),
    (lambda c: c["categories"][1].pop("name"), "categories[1] has name None, expected a text"),
    (lambda c: c["categories"][0].pop("id"), "categories[0] has id None, expected a whole number"),
    (lambda c: c.update(images=[7]), "images[0] is not an object (7)"),  # type: ignore[list-item]
    (lambda c: c.update(annotations=[7]), "annotations[0] is not an object (7)"),  # type: ignore[list-item]
    (lambda c: c.update(categories=[7]), "categories[0] is not an object (7)"),  # type: ignore[list-item]
    (lambda c: c["annotations"][0].update(category_id={}), "annotation 1 has category {}, which is not in"),
    (
        lambda c: c["annotations"][0].update(category_id="1"),
        "has category 1, which is not in the file",
    ),
    (lambda c: c["images"][0].update(height="tall"), "30x'tall'; they must be equal"),
    (lambda c: (c["images"][0].update(height=21), c["images"][0].pop("width")), "30x21; they must be equal"),
]


@pytest.mark.parametrize(("act", "expected"), BAD + MALFORMED)
def test_what_is_wrong_is_one_line(folder: Path, act: Callable[[Coco], None], expected: str) -> None:
    change(folder, act)
    with pytest.raises(UserError) as caught:
        CocoDataset(folder / "instances.json").presence("train")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_json(folder: Path) -> None:
    for content in ("{", "[" * 100_000):
        (folder / "instances.json").write_text(content)
        with pytest.raises(UserError, match=r"COCO file .* is (not JSON|nested)"):
            open_given(folder, "--data")


def test_what_fails_leaves_nothing_in_the_cache(folder: Path) -> None:
    change(folder, lambda c: c["images"][1].update(height=7))
    with pytest.raises(UserError, match="must be equal"):
        CocoDataset(folder / "instances.json").presence("train")
    assert list((cache_folder() / "coco").iterdir()) == []


def test_without_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **named: Any) -> Any:
        if name.startswith("pycocotools"):
            raise ImportError(name)
        return real(name, *args, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r'COCO files need pycocotools; run: pip install "segrow\[coco\]"'):
        CocoDataset(folder / "instances.json")


def test_the_command_says_it_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder, lambda c: c["annotations"][1].update(segmentation=["x"]))
    assert cli.main(["data", "saliency", str(folder), "--model", "x.onnx"]) == 2
    assert "annotation 2 has a polygon that is not a list" in only_line(capsys.readouterr().err)
