"""Formats of annotations that segrow does not read: each is named, with what to convert it to."""

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..documents import read_json
from ..errors import UserError

_MASKS = "masks as PNG (classes.txt, images/, masks/)"
_COCO = "COCO with polygons or RLE"
_MOST = 200  # files that are looked at
_BEGINNING = 1 << 16  # bytes of one
_LARGEST = 1 << 20  # bytes of a JSON file that is parsed; COCO's are left to `coco_file.py`

_BY_SUFFIX = {
    ".zip": "a zip archive; unpack it and give the folder",
    ".tar": "a tar archive; unpack it and give the folder",
    ".gz": "a gzip archive; unpack it and give the folder",
    ".tgz": "a tar archive; unpack it and give the folder",
    ".7z": "a 7z archive; unpack it and give the folder",
    ".rar": "a RAR archive; unpack it and give the folder",
    ".mat": f"MATLAB arrays; save them as {_MASKS}",
    ".npy": f"arrays of numpy; save them as {_MASKS}",
    ".npz": f"arrays of numpy; save them as {_MASKS}",
    ".h5": f"HDF5; save its arrays as {_MASKS}",
    ".hdf5": f"HDF5; save its arrays as {_MASKS}",
    ".tfrecord": f"TFRecord; save its masks as {_MASKS}",
    ".parquet": f"a Parquet table; save its masks as {_MASKS}",
    ".arrow": f"tables of Arrow, as Hugging Face's datasets write them; save their masks as {_MASKS}",
    ".ndjson": f"JSON lines, as Labelbox and others export; export masks there, as {_MASKS}, or {_COCO}",
    ".jsonl": f"JSON lines, as Labelbox and others export; export masks there, as {_MASKS}, or {_COCO}",
    ".manifest": f"a manifest of SageMaker Ground Truth; save its masks as {_MASKS}",
    ".dcm": f"DICOM; save images as PNG, and what is annotated as {_MASKS}",
    ".nii": f"volumes of NIfTI; save slices as {_MASKS}",
    ".geojson": f"GeoJSON, whose outlines are in coordinates of the earth; burn them into {_MASKS}",
    ".shp": f"a shapefile, whose outlines are in coordinates of the earth; burn them into {_MASKS}",
}


def recognise(root: Path) -> str | None:
    """What the annotations in a folder are, and what to convert them to; None where that is not known.

    Args:
        root: The folder, or one file of annotations.
    """
    files = [root] if root.is_file() else list(_files(root))
    for say in (_yolo, _of_labels, _of_json, _of_xml, _of_tables, _of_suffix):
        if said := say(root, files):
            return said
    return None


def _files(root: Path) -> Iterator[Path]:
    """Some files of a folder and of three levels of folders below it, as Cityscapes has them."""
    for pattern in ("*", "*/*", "*/*/*", "*/*/*/*"):
        for number, path in enumerate(sorted(root.glob(pattern))):
            if number == _MOST:
                break
            if path.is_file() and not path.name.startswith("."):
                yield path


def _text(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(_BEGINNING).decode("utf-8-sig", "replace")
    except OSError:
        return ""


def _yolo(root: Path, files: list[Path]) -> str | None:
    """A line of YOLO is a class number and coordinates from 0 to 1, or a little outside at the border."""
    for path in [path for path in files if path.suffix.lower() == ".txt"]:
        lines = [line.split() for line in _text(path).splitlines() if line.strip()][:20]
        if lines and all(map(_is_yolo, lines)):
            boxes = all(len(line) == 5 for line in lines)
            kind = "boxes, which are not outlines" if boxes else "outlines"
            advice = f"annotate outlines, as {_COCO}" if boxes else f"convert it to {_COCO}"
            return f"YOLO annotations ({path.relative_to(root.parent)}: {kind}); {advice}"
    return None


def _is_yolo(words: list[str]) -> bool:
    try:
        label, *coordinates = map(float, words)
    except ValueError:
        return False
    inside = all(-1 <= value <= 2 for value in coordinates)
    return len(coordinates) >= 4 and inside and label >= 0 and label.is_integer()


def _of_labels(root: Path, files: list[Path]) -> str | None:
    """Layouts that names of files tell."""
    names = {path.name for path in files}
    if any(re.search(r"_gt(Fine|Coarse)_(labelIds\.png|polygons\.json)$", name) for name in names):
        return (
            "Cityscapes; copy *_leftImg8bit.png to images/train and *_gtFine_labelTrainIds.png to "
            "masks/train under the same names, 1 added to each value below 19 (0 is background), and list "
            "the classes in classes.txt"
        )
    if "project.json" in names or ("meta.json" in names and any(path.parent.name == "ann" for path in files)):
        return f"a project of Supervisely; export it as {_COCO} or as {_MASKS}"
    if said := _of_folders(root, files):
        return said
    if "dataset.json" in names and any(path.name.endswith(".nii.gz") for path in files):
        return f"volumes of nnU-Net (NIfTI); save slices as {_MASKS}"
    return None


_MOVE = "move images to images/train and images/val, masks of the same names to masks/train and masks/val"
_LIST = "list the classes in classes.txt, background first"


def _of_folders(root: Path, files: list[Path]) -> str | None:
    """Images with masks, in other folders than segrow expects."""
    there = {entry.name.lower() for entry in root.iterdir() if entry.is_dir()} if root.is_dir() else set()
    parts = {"/".join(path.relative_to(root).parts[:2]).lower() for path in files} if root.is_dir() else set()
    if any(path.name == "_classes.csv" for path in files):
        return f"semantic masks of Roboflow (_classes.csv); {_MOVE} without _mask, and {_LIST}"
    if {"img_dir", "ann_dir"} <= there:
        return f"folders of MMSegmentation; rename img_dir to images and ann_dir to masks, and {_LIST}"
    for split in ("train", "training", "val", "valid", "test"):
        for masks in ("masks", "mask", "annotations", "gt"):
            if (root / split / "images").is_dir() and (root / split / masks).is_dir():
                return f"a folder per split ({split}/images, {split}/{masks}); {_MOVE}, and {_LIST}"
        if split in there and (found := there & {f"{split}_labels", f"{split}annot", f"{split}_masks"}):
            return f"folders as CamVid has them ({split}, {min(found)}); {_MOVE}, and {_LIST}"
    if {"images", "annotations"} <= there and any(_is_mask(p) for p in parts if p.startswith("annotations/")):
        return f"folders of PaddleSeg (images, annotations); rename annotations to masks, and {_LIST}"
    stems = {path.with_suffix("") for path in files if path.suffix.lower() in (".jpg", ".jpeg")}
    beside = [p for p in files if _is_mask(p.name) and (p.with_suffix("") in stems or _unmasked(p) in stems)]
    if beside:
        return f"masks beside their images ({beside[0].name}); {_MOVE}, and {_LIST}"
    return None


def _is_mask(name: str) -> bool:
    return name.endswith((".png", ".bmp", ".tif"))


def _unmasked(path: Path) -> Path:
    return path.with_name(re.sub(r"[_-](?:mask|label|seg|gt|L)$", "", path.stem))


def recognise_beside_json(root: Path) -> str | None:
    """The same where there are JSON files; None where one of them may be COCO's."""
    files = [root] if root.is_file() else list(_files(root))
    if any(isinstance(c, Mapping) and _is_coco(c) for _, c in _json(files)):
        return None
    return _of_labels(root, files) or _of_json(root, files)


def _is_coco(content: Mapping[str, Any]) -> bool:
    return {"images", "categories"} <= content.keys() and _json_kind(content) is None


def _json(files: list[Path]) -> Iterator[tuple[Path, Any]]:
    """What is in the first JSON files, but for large ones."""
    for path in [path for path in files if path.suffix.lower() == ".json"][:8]:
        try:
            content = read_json(path, "JSON", limit=_LARGEST)
        except UserError:
            continue
        yield path, content


def _of_json(root: Path, files: list[Path]) -> str | None:
    for path, content in _json(files):
        if said := _json_kind(content):
            return f"{said[0]} ({path.name}); {said[1]}"
    return None


def _json_kind(content: Any) -> tuple[str, str] | None:
    if isinstance(content, list) and content and isinstance(content[0], Mapping):
        task = content[0]
        if "data" in task and ("annotations" in task or "completions" in task):
            return (
                "Label Studio's own JSON",
                f"export it there as COCO with images (outlines), or as {_MASKS}",
            )
        if "segmentation" in task and "image_id" in task:
            return (
                "annotations of COCO without their images and categories, as detectors write results",
                "give the whole file, with lists images, annotations, categories",
            )
        if "image" in task and _has(task.get("annotations"), "coordinates"):
            return "CreateML's JSON: boxes, which are not outlines", f"annotate outlines, as {_COCO}"
        if "image" in task and any(_has(v, "rle", "points", "brushlabels", "width") for v in task.values()):
            return (
                "Label Studio's short JSON (JSON-MIN)",
                f"export it there as COCO with images (outlines), or as {_MASKS}",
            )
        if "Label" in task or "Labeled Data" in task or "data_row" in task:
            return "Labelbox's JSON", f"export its masks as {_MASKS}"
        return None
    if not isinstance(content, Mapping):
        return None
    if isinstance(content.get("items"), list) and isinstance(content.get("categories"), Mapping):
        return "Datumaro's own JSON", f"export it there as {_COCO}: datum convert -f coco_instances"
    if isinstance(content.get("item"), Mapping) and isinstance(content.get("annotations"), list):
        return "V7's (Darwin) JSON, one per image", f"export it there as {_COCO} or as masks"
    if isinstance(content.get("instances"), list) and isinstance(content.get("metadata"), Mapping):
        return "SuperAnnotate's JSON, one per image", f"export it there as {_COCO}"
    if "shapes" in content and "imagePath" in content:
        return (
            "LabelMe's JSON, one per image",
            "convert it with labelme2coco or with labelme's labelme2voc.py",
        )
    if "_via_img_metadata" in content or any(
        isinstance(entry, Mapping) and "regions" in entry and "filename" in entry
        for entry in content.values()
    ):
        return "VIA's own JSON", "export it there as COCO"
    if "segments_info" in str(content.get("annotations", ""))[:2000]:
        return "COCO's panoptic format", f"use {_COCO} (instances), or save the classes as {_MASKS}"
    if "imgHeight" in content and "objects" in content:
        return "polygons of Cityscapes", f"make label images of them, as {_MASKS}"
    if "classTitle" in str(content)[:4000] and "objects" in content:
        return "Supervisely's JSON", f"export it as {_COCO}"
    return None


def _has(entries: Any, *keys: str) -> bool:
    """Whether a value is a list whose first entry has one of the keys."""
    return bool(
        isinstance(entries, list)
        and entries
        and isinstance(entries[0], Mapping)
        and entries[0].keys() & {*keys}
    )


def _of_xml(root: Path, files: list[Path]) -> str | None:
    for path in [path for path in files if path.suffix == ".xml"][:8]:
        text = _text(path)
        if "<annotations" in text and ("<image " in text or "<track " in text or "<meta>" in text):
            return f'CVAT\'s own XML ({path.name}); export it there as "COCO 1.0" or "Segmentation mask 1.1"'
        if "<annotation" in text and "<bndbox>" in text:
            return f"boxes of Pascal VOC ({path.name}), which are not outlines; annotate outlines, as {_COCO}"
        if "<annotation" in text and "<polygon>" in text:
            return f"XML of the online LabelMe ({path.name}); convert it to {_COCO}"
    return None


def _of_tables(root: Path, files: list[Path]) -> str | None:
    for path in [path for path in files if path.suffix == ".csv"][:8]:
        heading = _text(path).partition("\n")[0]
        if "region_shape_attributes" in heading:
            return f"VIA's own CSV ({path.name}); export it there as COCO"
        if "EncodedPixels" in heading or "rle" in heading.lower():
            return f"a table of run lengths ({path.name}); convert it to {_COCO} or {_MASKS}"
        if {"xmin", "ymin"} <= {word.strip().lower() for word in heading.split(",")}:
            return f"a table of boxes ({path.name}), which are not outlines; annotate outlines, as {_COCO}"
    return None


def _of_suffix(root: Path, files: list[Path]) -> str | None:
    for path in files:
        if (said := _BY_SUFFIX.get(path.suffix.lower())) and (
            path.suffix != ".zip" or zipfile.is_zipfile(path)
        ):
            return f"{said.partition(';')[0]} ({path.name});{said.partition(';')[2]}"
    return None
