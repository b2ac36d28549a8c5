"""COCO files as tools lay them out and fill them: every image is found, and what is left out is said."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segrow.data import coco_shapes
from segrow.data.coco import CocoDataset
from segrow.data.coco_shapes import clipped, draw_shapes
from segrow.data.given import open_given
from segrow.errors import UserError

masks = pytest.importorskip("pycocotools.mask", reason='needs pip install "segrow[coco]"')

HEIGHT, WIDTH = 20, 30
SQUARE = [4, 4, 14, 4, 14, 14, 4, 14]
Coco = dict[str, list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))


def content(names: list[str]) -> Coco:
    """An image per name, each with a square of the only category."""
    images = [
        {"id": k, "file_name": n, "height": HEIGHT, "width": WIDTH} for k, n in enumerate(names, start=1)
    ]
    squares = [
        {"id": k, "image_id": k, "category_id": 1, "segmentation": [SQUARE]} for k in range(1, len(names) + 1)
    ]
    return {"images": images, "categories": [{"id": 1, "name": "zebra"}], "annotations": squares}


def put(root: Path, file: str, images: list[str], said: list[str] | None = None) -> Path:
    """A COCO file, and its images at these places; it says other names where they are given."""
    for image in images:
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)).save(root / image)
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content(said or [Path(image).name for image in images])))
    return root


def change(path: Path, act: Callable[[Coco], Any]) -> None:
    value: Coco = json.loads(path.read_text())
    act(value)
    path.write_text(json.dumps(value))


def two(folder: str, suffix: str = ".png") -> list[str]:
    return [f"{folder}/{k:03d}{suffix}" for k in (1, 2)]


LAYOUTS: list[tuple[str, str, list[str]]] = [
    ("COCO", "annotations/instances_train2017.json", two("train2017")),
    ("CVAT", "annotations/instances_default.json", two("images/default", ".PNG")),
    ("Datumaro", "annotations/instances_train.json", two("images/train")),
    ("Roboflow", "train/_annotations.coco.json", two("train")),
    ("beside", "labels.json", two(".")),
    ("images/", "result.json", two("images")),
    ("labelme2coco", "train.json", two("train")),
]


@pytest.mark.parametrize(("tool", "file", "images"), LAYOUTS)
def test_layouts(tmp_path: Path, tool: str, file: str, images: list[str]) -> None:
    data = open_given(put(tmp_path / "d", file, images), "--data")
    assert data.ids("train") == ("001", "002")
    assert data.notes == ()
    assert int(data.mask("train", "002").sum()) == 100


@pytest.mark.parametrize(
    ("files", "folders"),
    [
        (
            ("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
            ("train2017", "val2017"),
        ),
        (
            ("annotations/instances_train.json", "annotations/instances_val.json"),
            ("images/train", "images/val"),
        ),
        (("train/_annotations.coco.json", "valid/_annotations.coco.json"), ("train", "valid")),
        (("train.json", "val.json"), ("images", "images")),
    ],
)
def test_a_file_per_split(tmp_path: Path, files: tuple[str, str], folders: tuple[str, str]) -> None:
    root = tmp_path / "d"
    put(root, files[0], [f"{folders[0]}/a{k}.png" for k in range(3)])
    put(root, files[1], [f"{folders[1]}/b{k}.png" for k in range(2)])
    change(root / files[1], lambda c: c["categories"].insert(0, {"id": 0, "name": "okapi"}))
    data = open_given(root, "--data")
    assert data.ids("train") == ("a0", "a1", "a2")
    assert data.ids("val") == ("b0", "b1")
    assert data.class_names == ("background", "zebra", "okapi")  # by name, whatever the ids of the second
    assert set(np.unique(data.mask("val", "b0"))) == {0, 1}
    assert data.notes == ()


def test_files_that_are_not_of_outlines_are_left_out_with_a_note(tmp_path: Path) -> None:
    root = put(tmp_path / "d", "annotations/instances_train2017.json", two("train2017"))
    (root / "annotations/captions_train2017.json").write_text("{}")
    assert open_given(root, "--data").notes == (f"{root}: annotations/captions_train2017.json is not read",)
    roboflow = put(tmp_path / "r", "train/_annotations.coco.json", two("train"))
    put(roboflow, "test/_annotations.coco.json", two("test"))
    assert f"{roboflow}: test/_annotations.coco.json is not read" in open_given(roboflow, "--data").notes


MOVED: list[tuple[str, str]] = [
    ("images\\001.png", "images/001.png"),
    ("..\\..\\label-studio\\media\\upload\\4\\001.png", "images/001.png"),
    ("C:\\data\\images\\001.png", "images/001.png"),
    ("/data/upload/4/001.png", "images/001.png"),
    ("/data/local-files/?d=photos%2Fmy%20zebra.png", "images/my zebra.png"),
    ("https://example.org/x/my%20zebra.png", "my zebra.png"),
    ("upload/1a2b3c4d-photo.png", "images/photo.png"),
    ("001.JPG", "images/001.jpg"),
    ("cafe\u0301.png", "images/caf\u00e9.png"),
    ("caf\u00e9.png", "images/cafe\u0301.png"),
]


@pytest.mark.parametrize(("said", "there"), MOVED)
def test_names_of_other_machines(tmp_path: Path, said: str, there: str) -> None:
    data = open_given(put(tmp_path / "d", "result.json", [there], [said]), "--data")
    assert len(data.ids("train")) == 1
    assert data.image_path("train", data.ids("train")[0]).name == Path(there).name
    if said.count("/") + said.count("\\") > 1 or "1a2b" in said:
        assert f"1 of 1 image is not where it says (first {said}: it is " in data.notes[0]


def test_two_images_of_one_name_have_their_folders_in_their_ids(tmp_path: Path) -> None:
    names = ["a/001.png", "b/001.png"]
    data = open_given(put(tmp_path / "d", "x.json", [f"images/{n}" for n in names], names), "--data")
    assert data.ids("train") == ("a/001", "b/001")
    assert data.presence("train").present.all()


def test_two_names_for_one_image(tmp_path: Path) -> None:
    put(tmp_path / "d", "x.json", ["images/001.png"], ["a/001.png", "b/001.png"])
    with pytest.raises(
        UserError, match=r"lists a/001\.png and b/001\.png, which are both .*; they must differ"
    ):
        open_given(tmp_path / "d", "--data")


def test_missing_and_unlisted_images(tmp_path: Path) -> None:
    root = put(tmp_path / "d", "x.json", two("images"), ["001.png", "007.png", "008.png"])
    lists = (
        r"lists image 007\.png, which is missing; expected it as .*; 1 image more cannot be used: segrow data"
    )
    with pytest.raises(UserError, match=lists):
        open_given(root, "--data")
    (root / "x.json").write_text(json.dumps(content(["001.png"])))
    assert (
        "1 image is not listed in the COCO file and left out (first " in open_given(root, "--data").notes[0]
    )


# --- categories ---------------------------------------------------------------------------------------------


def classes(tmp_path: Path, act: Callable[[Coco], Any], ignore: list[str] | None = None) -> CocoDataset:
    root = put(tmp_path / "d", "x.json", two("images"))
    change(root / "x.json", act)
    return CocoDataset(root, ignore)


def category(number: int, name: str, above: str = "") -> dict[str, Any]:
    return {"id": number, "name": name, "supercategory": above}


def test_background_is_no_class(tmp_path: Path) -> None:
    data = classes(tmp_path, lambda c: c["categories"].insert(0, category(0, "Background")))
    assert data.class_names == ("background", "zebra")


@pytest.mark.parametrize(("root", "said"), [("zebra", "there twice"), ("animals", "is the root of others")])
def test_the_root_that_a_tool_adds(tmp_path: Path, root: str, said: str) -> None:
    def act(c: Coco) -> None:
        c["categories"] = [category(0, root, "none"), category(1, "zebra", root)]

    data = classes(tmp_path, act)
    assert data.class_names == ("background", "zebra")
    assert len(data.notes) == 1
    assert f'category 0 "{root}" is' in data.notes[0]
    assert "left out" in data.notes[0]


def region(c: Coco, name: str) -> None:
    """The upper left 6 x 6 pixels of each image are of a second category."""
    c["categories"].append(category(2, name))
    corner = [0, 0, 6, 0, 6, 6, 0, 6]
    c["annotations"] += [
        {"id": 10 + k, "image_id": k, "category_id": 2, "segmentation": [corner]} for k in (1, 2)
    ]


@pytest.mark.parametrize("name", ["ignore", "Void", "don't care", "DontCare", "unlabeled", "ignore_region"])
def test_what_must_not_count_is_ignored(tmp_path: Path, name: str) -> None:
    data = classes(tmp_path, lambda c: region(c, name))
    assert data.class_names == ("background", "zebra")
    assert int((data.mask("train", "001") == 255).sum()) == 36
    assert data.notes == (
        f'x.json: pixels of "{name}" (2 annotations) count nowhere; --ignore none (segrow train: '
        "--data.ignore none) makes it a class",
    )


def test_the_user_says_what_is_ignored(tmp_path: Path) -> None:
    named = classes(tmp_path, lambda c: region(c, "mud"), ["mud"])
    assert named.class_names == ("background", "zebra")
    assert int((named.mask("train", "001") == 255).sum()) == 36
    assert 'pixels of "mud" (2 annotations) count nowhere; as --ignore says' in named.notes[0]
    shutil.rmtree(tmp_path / "d")
    none = classes(tmp_path, lambda c: region(c, "ignore"), [])
    assert none.class_names == ("background", "zebra", "ignore")
    assert int((none.mask("train", "001") == 2).sum()) == 36
    with pytest.raises(UserError, match='has no category "snow" to ignore; its categories are ignore, zebra'):
        CocoDataset(tmp_path / "d", ["snow"])


# --- outlines -----------------------------------------------------------------------------------------------


def spare(c: Coco, outline: object, **more: Any) -> None:
    c["annotations"].append({"id": 9, "image_id": 1, "category_id": 1, "segmentation": outline, **more})


@pytest.mark.parametrize(
    ("act", "note"),
    [
        (
            lambda c: spare(c, [SQUARE], image_id=99),
            "1 annotation of images that it does not list is left out",
        ),
        (
            lambda c: spare(c, {"counts": [], "size": [HEIGHT, WIDTH]}),
            "1 annotation without an outline (1 with nothing alone) is left out",
        ),
        (
            lambda c: spare(c, [], bbox=[1, 1, 2, 2]),
            "1 annotation without an outline (1 with a box alone) is left",
        ),
        (
            lambda c: spare(c, None, keypoints=[1]),
            "1 annotation without an outline (1 with keypoints alone) is",
        ),
        (
            lambda c: spare(c, [[1, 1, 2, 2]]),
            "(1 with a polygon of fewer than three corners or with half a corner alone) is left out",
        ),
        (lambda c: spare(c, [[5, 5, 5, 5, 5, 5]]), "annotations without a pixel of their image, left out: 1"),
        (
            lambda c: spare(c, [[90, 90, 99, 90, 99, 99]]),
            "annotations without a pixel of their image, left out: 1",
        ),
        (
            lambda c: spare(c, [SQUARE, [1, 1, 2, 2]]),
            "1 polygon of fewer than three corners or with half a corner is left out",
        ),
        (lambda c: c["annotations"].pop(), "1 of 2 images has no annotation and shows background alone"),
    ],
)
def test_one_bad_annotation_is_left_out_with_a_note(
    tmp_path: Path, act: Callable[[Coco], Any], note: str
) -> None:
    for _ in range(2):  # the second time masks come from the cache
        data = _opened(tmp_path, act)
        present = data.presence("train", progress=False)
        assert present.present[:, 1].sum() >= 1
        assert len(data.notes) == 1
        assert note in data.notes[0]


def _opened(tmp_path: Path, act: Callable[[Coco], Any]) -> CocoDataset:
    if not (tmp_path / "d").exists():
        return classes(tmp_path, act)
    return CocoDataset(tmp_path / "d")


@pytest.mark.parametrize(("key", "said"), [("bbox", "with a box"), ("keypoints", "with keypoints")])
def test_no_outline_at_all(tmp_path: Path, key: str, said: str) -> None:
    def act(c: Coco) -> None:
        for annotation in c["annotations"]:
            annotation.update({"segmentation": [], key: [1, 1, 2, 2]})

    with pytest.raises(
        UserError, match=rf"has no outline in its 2 annotations \(2 {said} alone\); segrow learns"
    ):
        classes(tmp_path, act)


def test_a_polygon_without_a_list_around_it(tmp_path: Path) -> None:
    data = classes(tmp_path, lambda c: c["annotations"][0].update(segmentation=SQUARE))
    assert int(data.mask("train", "001").sum()) == 100


def inside(polygon: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Even-odd rule at the middle of every pixel, one at a time."""
    found = np.zeros(size, bool)
    for y in range(size[0]):
        for x in range(size[1]):
            odd = False
            for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
                if (y1 > y + 0.5) != (y2 > y + 0.5):
                    odd ^= x + 0.5 < x1 + (y + 0.5 - y1) / (y2 - y1) * (x2 - x1)
            found[y, x] = odd
    return found


@pytest.mark.parametrize("far", [5.0, 60.0, 2_000.0, 900_000.0])
def test_a_polygon_that_reaches_far_outside(far: float) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        polygon = np.array([8.3, 7.1]) + rng.uniform(-1, 1, (5, 2)) * far
        order = np.argsort(np.arctan2(*(polygon - polygon.mean(0)).T))
        polygon = polygon[order]
        outline = [polygon.ravel().tolist()]
        drawn, empty, _ = draw_shapes([(outline, 1, "it")], (HEIGHT, WIDTH), masks, np.uint8)
        truth = inside(polygon, (HEIGHT, WIDTH))
        # pycocotools gives pixels of the border to either side, along edges
        assert int((drawn.astype(bool) != truth).sum()) <= 60
        middle = truth.copy()
        middle[1:-1, 1:-1] &= truth[2:, 1:-1] & truth[:-2, 1:-1] & truth[1:-1, 2:] & truth[1:-1, :-2]
        assert drawn[1:-1, 1:-1][middle[1:-1, 1:-1]].all()
        assert empty == (not drawn.any())


def test_a_polygon_near_the_image_stays_as_it_is() -> None:
    polygon = np.array([[-20.5, 3.25], [44.0, -9.5], [31.5, 25.0]])
    assert np.array_equal(clipped(polygon, (HEIGHT, WIDTH)), polygon)
    assert len(clipped(polygon + 1000, (HEIGHT, WIDTH))) == 0


def test_an_outline_that_is_too_long_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zigzag = [value for k in range(20_000) for value in (0 if k % 2 else WIDTH, k % HEIGHT)]
    data = classes(tmp_path, lambda c: spare(c, [zigzag]))
    start = time.monotonic()
    data.presence("train", progress=False)  # 600,000 pixels: drawn
    assert time.monotonic() - start < 10
    monkeypatch.setattr(coco_shapes, "LONGEST", 100_000)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(
        UserError, match=r"annotation 9 has 20000 corners and an outline of 6e\+05 pixels, expected"
    ):
        CocoDataset(tmp_path / "d").presence("train", progress=False)


def test_without_a_cache_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "file/cache"))
    data = classes(tmp_path, lambda c: None)
    assert int(data.mask("train", "001").sum()) == 100
    said = capsys.readouterr().err
    assert "note: the folder of drawn masks cannot be kept in " in said
    assert "; set SEGROW_CACHE to a folder that can be written" in said


def test_corners_that_are_lists(tmp_path: Path) -> None:
    pairs = [SQUARE[k : k + 2] for k in range(0, 8, 2)]
    data = classes(tmp_path, lambda c: c["annotations"][0].update(segmentation=[pairs]))
    assert int(data.mask("train", "001").sum()) == 100


@pytest.mark.parametrize("form", [str, float, lambda number: f"image-{number}"])
def test_ids_that_are_texts_or_have_a_point(tmp_path: Path, form: Callable[[int], Any]) -> None:
    def act(c: Coco) -> None:
        for image in c["images"]:
            image["id"] = form(image["id"])
        for annotation in c["annotations"]:
            annotation["image_id"] = form(annotation["image_id"])
        c["categories"][0]["id"] = "1"

    data = classes(tmp_path, act)
    assert data.presence("train", progress=False).present.all()
    assert data.notes == ()


def test_images_that_stand_in_folders_of_their_own(tmp_path: Path) -> None:
    root = put(tmp_path / "d", "x.json", ["images/batch 1/a/001.png", "images/batch 2/002.png"])
    data = open_given(root, "--data")
    assert data.ids("train") == ("001", "002")
    assert "2 of 2 images are not where it says (first 001.png: it is " in data.notes[0]
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images/batch 2/001.png")  # now there are two
    with pytest.raises(UserError, match=r"lists image 001\.png, which is missing"):
        open_given(root, "--data")
