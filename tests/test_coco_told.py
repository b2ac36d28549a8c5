"""COCO files whose names or outlines are nearly right: what is told of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segrow.data.coco import CocoDataset
from segrow.data.coco_shapes import check_outline
from segrow.errors import UserError

pytest.importorskip("pycocotools.mask", reason='needs pip install "segrow[coco]"')

SQUARE = [4, 4, 14, 4, 14, 14, 4, 14]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))


def put(root: Path, file: str, image: str, category: str, said: str | None = None) -> None:
    """A COCO file of one image with one square; it may call the image otherwise."""
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(path.parent / image)
    content = {
        "images": [{"id": 0, "file_name": said or image}],
        "categories": [{"id": 0, "name": category}],
        "annotations": [{"id": 0, "image_id": 0, "category_id": 0, "segmentation": [SQUARE]}],
    }
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("rest", ["", "?sig=a/b&x=1", "#top"])
def test_an_address_with_more_than_a_path(tmp_path: Path, rest: str) -> None:
    put(tmp_path, "a.json", "my photo.png", "cat", f"https://x.org/a/my%20photo.png{rest}")
    data = CocoDataset(tmp_path)
    assert data.ids("train") == ("my photo",)
    assert "1 of 1 image is not where it says (first https:" in data.notes[0]


def test_names_alike_in_two_files_are_two_classes(tmp_path: Path) -> None:
    put(tmp_path, "train/_annotations.coco.json", "a.png", "Cat")
    put(tmp_path, "valid/_annotations.coco.json", "b.png", "cat")
    data = CocoDataset(tmp_path)
    assert data.class_names == ("background", "Cat", "cat")
    assert any('"Cat" and "cat" are two classes' in note for note in data.notes)


@pytest.mark.parametrize(
    ("one", "other"), [("caf\u00e9", "cafe\u0301"), ("cat", "cat "), ("cat", "cat\u200b")]
)
def test_one_class_that_two_files_write_otherwise(tmp_path: Path, one: str, other: str) -> None:
    put(tmp_path, "train/a.coco.json", "a.png", one)
    put(tmp_path, "valid/b.coco.json", "b.png", other)
    data = CocoDataset(tmp_path)
    assert data.class_names == ("background", one)
    (note,) = (note for note in data.notes if "are one class" in note)
    first, second = ascii(one)[1:-1], ascii(other)[1:-1]
    assert note.startswith(
        f'"{first}" of a.coco.json and "{second}" of b.coco.json are one class: they differ'
    )


@pytest.mark.parametrize(
    ("name", "told"), [("Background", True), ("_background_", True), ("background", False)]
)
def test_a_category_called_background_in_another_way(tmp_path: Path, name: str, told: bool) -> None:
    put(tmp_path, "a.json", "a.png", "cat")
    content = json.loads((tmp_path / "a.json").read_text())
    content["categories"].append({"id": 7, "name": name})
    (tmp_path / "a.json").write_text(json.dumps(content))
    said = f'a.json: "{name}" is taken as background, which is no class'
    assert (said in CocoDataset(tmp_path).notes) == told


def test_what_is_not_seen_in_a_category(tmp_path: Path) -> None:
    put(tmp_path, "a.json", "a.png", "cat\u200b")
    data = CocoDataset(tmp_path)
    assert data.class_names == ("background", "cat")
    assert data.notes == ('a.json: characters that are not seen, around names, are left out ("cat\\u200b")',)


def test_a_group_counts_as_its_class_and_is_told(tmp_path: Path) -> None:
    put(tmp_path, "a.json", "a.png", "cat")
    content = json.loads((tmp_path / "a.json").read_text())
    content["annotations"][0]["iscrowd"] = 1
    (tmp_path / "a.json").write_text(json.dumps(content))
    data = CocoDataset(tmp_path)
    assert data.notes == (
        "a.json: 1 annotation of groups (iscrowd 1): all pixels of their outlines count as the class",
    )
    assert (data.mask("train", "a") == 1).any()


def test_an_excluded_image_is_not_called_unlisted(tmp_path: Path) -> None:
    put(tmp_path, "a.json", "a.png", "cat")
    assert CocoDataset(tmp_path, exclude=frozenset({"train/a"})).notes == ()


def test_a_run_length_code_within_a_list() -> None:
    with pytest.raises(UserError, match="it has its RLE within a list; expected it without the brackets"):
        check_outline([{"counts": [1, 599], "size": [20, 30]}], "it")


def test_more_categories_than_a_mask_has_numbers(tmp_path: Path) -> None:
    put(tmp_path, "a.json", "a.png", "cat")
    content = json.loads((tmp_path / "a.json").read_text())
    content["categories"] += [{"id": k, "name": f"c{k}"} for k in range(1, 65535)]
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="has 65535 categories, expected at most 65534; export fewer"):
        CocoDataset(tmp_path)
