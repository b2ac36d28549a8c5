"""Annotations in formats that segrow does not read: one line names the format and what to convert it to."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import only_line

from segrow import cli
from segrow.data import open_dataset
from segrow.data.given import open_given
from segrow.data.other_formats import recognise
from segrow.errors import UserError


def put(path: Path, content: str | bytes = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 9, 3), 90, np.uint8)).save(path)


def yolo(root: Path, line: str) -> None:
    put(root / "data.yaml", "names: [zebra]\n")
    image(root / "train/images/a.jpg")
    put(root / "train/labels/a.txt", f"{line}\n{line}\n")


def labelme(root: Path) -> None:
    shape = {"label": "zebra", "points": [[1, 1], [5, 1], [5, 5]], "shape_type": "polygon"}
    for name in "abc":
        image(root / f"{name}.jpg")
        put(root / f"{name}.json", json.dumps({"shapes": [shape], "imagePath": f"{name}.jpg"}))


def label_studio(root: Path) -> None:
    task = {"id": 1, "data": {"image": "/data/upload/1/a.jpg"}, "annotations": [{"result": []}]}
    put(root / "project-1-at-2024.json", json.dumps([task]))


def via(root: Path, project: bool) -> None:
    region = {"shape_attributes": {"name": "polygon"}, "region_attributes": {}}
    images = {"a.jpg123": {"filename": "a.jpg", "size": 123, "regions": [region]}}
    put(root / "via.json", json.dumps({"_via_img_metadata": images} if project else images))


def cityscapes(root: Path) -> None:
    image(root / "leftImg8bit/train/bonn/bonn_000000_leftImg8bit.png")
    put(root / "gtFine/train/bonn/bonn_000000_gtFine_labelIds.png")
    put(
        root / "gtFine/train/bonn/bonn_000000_gtFine_polygons.json",
        json.dumps({"imgHeight": 8, "objects": []}),
    )


def supervisely(root: Path) -> None:
    put(root / "meta.json", json.dumps({"classes": []}))
    put(root / "ds/ann/a.jpg.json", json.dumps({"objects": [{"classTitle": "zebra"}]}))
    image(root / "ds/img/a.jpg")


def panoptic(root: Path) -> None:
    annotation = {"image_id": 1, "file_name": "a.png", "segments_info": []}
    put(
        root / "panoptic.json",
        json.dumps({"images": [{"id": 1}], "annotations": [annotation], "categories": []}),
    )


def zipped(root: Path) -> None:
    root.mkdir()
    with zipfile.ZipFile(root / "export.zip", "w") as archive:
        archive.writestr("a.txt", "x")


CVAT = '<?xml version="1.0"?><annotations><version>1.1</version><image id="0"></image></annotations>'
VOC = "<annotation><filename>a.jpg</filename><object><bndbox><xmin>1</xmin></bndbox></object></annotation>"
ONLINE = "<annotation><object><polygon><pt></pt></polygon></object></annotation>"

FORMATS: list[tuple[str, Callable[[Path], None], str]] = [
    (
        "yolo boxes",
        lambda r: yolo(r, "0 0.5 0.5 0.1 0.2"),
        "YOLO annotations (d/train/labels/a.txt: boxes, which are",
    ),
    (
        "yolo outlines",
        lambda r: yolo(r, "0 0.5 0.5 0.1 0.2 1 0.3"),
        "outlines); convert it to COCO with polygons",
    ),
    (
        "label studio",
        label_studio,
        "Label Studio's own JSON (project-1-at-2024.json); export it there as COCO",
    ),
    (
        "datumaro",
        lambda r: put(r / "annotations/default.json", json.dumps({"categories": {"label": {}}, "items": []})),
        "Datumaro's own JSON (default.json); export it there as COCO",
    ),
    (
        "results",
        lambda r: put(r / "x.json", json.dumps([{"image_id": 1, "segmentation": [], "category_id": 1}])),
        "annotations of COCO without their images and categories, as detectors write results (x.json); give",
    ),
    ("labelbox", lambda r: put(r / "x.ndjson.json", json.dumps([{"data_row": {}}])), "Labelbox's JSON"),
    ("labelme", labelme, "LabelMe's JSON, one per image (a.json); convert it with labelme2coco"),
    ("via project", lambda r: via(r, True), "VIA's own JSON (via.json); export it there as COCO"),
    ("via", lambda r: via(r, False), "VIA's own JSON (via.json); export it there as COCO"),
    (
        "via csv",
        lambda r: put(r / "via.csv", "filename,region_shape_attributes\n"),
        "VIA's own CSV (via.csv)",
    ),
    (
        "cityscapes",
        cityscapes,
        "Cityscapes; copy *_leftImg8bit.png to images/train and *_gtFine_labelTrainIds",
    ),
    ("supervisely", supervisely, "a project of Supervisely; export it as COCO"),
    (
        "panoptic",
        panoptic,
        "COCO's panoptic format (panoptic.json); use COCO with polygons or RLE (instances)",
    ),
    (
        "cvat",
        lambda r: put(r / "annotations.xml", CVAT),
        'CVAT\'s own XML (annotations.xml); export it there as "COCO 1.0"',
    ),
    (
        "voc boxes",
        lambda r: put(r / "Annotations/a.xml", VOC),
        "boxes of Pascal VOC (a.xml), which are not outlines",
    ),
    (
        "online",
        lambda r: put(r / "Annotations/a.xml", ONLINE),
        "XML of the online LabelMe (a.xml); convert it",
    ),
    ("rle", lambda r: put(r / "train.csv", "ImageId,EncodedPixels\n"), "a table of run lengths (train.csv)"),
    (
        "boxes",
        lambda r: put(r / "b.csv", "image,xmin,ymin,xmax,ymax\n"),
        "a table of boxes (b.csv), which are no",
    ),
    ("mat", lambda r: put(r / "a.mat", b"MATLAB 5.0"), "MATLAB arrays (a.mat); save them as masks as PNG"),
    (
        "npy",
        lambda r: put(r / "masks_all.npy", b"\x93NUMPY"),
        "arrays of numpy (masks_all.npy); save them as",
    ),
    ("zip", zipped, "a zip archive (export.zip); unpack it and give the folder"),
    (
        "nifti",
        lambda r: (put(r / "dataset.json", "{}"), put(r / "labelsTr/a.nii.gz"))[0],
        "volumes of nnU-Net (NIfTI)",
    ),
]


@pytest.mark.parametrize(("name", "build", "expected"), FORMATS, ids=[case[0] for case in FORMATS])
def test_each_is_named(tmp_path: Path, name: str, build: Callable[[Path], None], expected: str) -> None:
    root = tmp_path / "d"
    build(root)
    for act in (lambda: open_given(root, "--data"), lambda: open_dataset("folder", str(root))):
        with pytest.raises(UserError) as caught:
            act()
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)
        assert str(root) in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "0 .5 .5 .1 .2",
        "0\t0.5\t0.5\t0.1\t0.2",
        "12  0.5 0.5   0.1 0.2",
        "0 -0.01 0.5 1.02 0.2",
        "0 5e-1 +0.5 1. 1",
        "0.000e+00 5.000e-01 5.000e-01 1.000e-01 2.000e-01",
    ],
)
def test_numbers_of_yolo_in_any_writing(tmp_path: Path, line: str) -> None:
    yolo(tmp_path / "d", line)
    assert "YOLO annotations (d/train/labels/a.txt: boxes" in str(recognise(tmp_path / "d"))


@pytest.mark.parametrize(
    "line",
    ["0 12 30 40 50", "0 0.5 0.5 0.1", "cat 0.5 0.5 0.1 0.2", "1.5 0 0 0 1", "-1 0 0 0 1", "0 nan 0 0 1"],
)
def test_other_numbers_are_not_yolo(tmp_path: Path, line: str) -> None:
    yolo(tmp_path / "d", line)
    assert recognise(tmp_path / "d") is None


def test_boxes_beside_the_images_of_voc(tmp_path: Path) -> None:
    image(tmp_path / "JPEGImages/a.jpg")
    put(tmp_path / "Annotations/a.xml", VOC)
    with pytest.raises(
        UserError, match=r"has no folder SegmentationClass with masks; it holds boxes of Pascal VOC"
    ):
        open_given(tmp_path, "--data")


def test_a_file_instead_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zipped(tmp_path / "d")
    assert cli.main(["data", "saliency", str(tmp_path / "d/export.zip"), "--model", "x.onnx"]) == 2
    assert "holds a zip archive (export.zip); unpack it" in only_line(capsys.readouterr().err)


def test_what_is_not_known(tmp_path: Path) -> None:
    put(tmp_path / "d/readme.md", "hello")
    put(tmp_path / "d/numbers.json", "[1, 2]")
    put(tmp_path / "d/list.txt", "a 1\nb 2\n")
    assert recognise(tmp_path / "d") is None
