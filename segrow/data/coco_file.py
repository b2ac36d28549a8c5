"""What a COCO file says: images, classes, outlines; and what of it is left out."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..class_lists import BACKGROUND, is_background, not_counted, plain_name, unseen_notes
from ..documents import read_json
from ..errors import UserError
from ..wording import are, count, have
from .coco_shapes import Outline, check_outline

LIMIT = 2 << 30  # bytes; COCO's own instances_train2017.json has 448 MB

Id = int | str
Object = tuple[Outline, str, str]
"""Outline, name of the category ("" where its pixels count nowhere), and the annotation for errors."""

_NUMBERS = ("id", "image_id", "category_id", "height", "width")
_NEEDED: dict[str, dict[str, tuple[type, ...]]] = {
    "images": {"id": (int, str)},
    "categories": {"id": (int, str), "name": (str,)},
    "annotations": {},
}
_YES = (1, "1", "true", "True")
_MOST = 5  # faults of one image in its sentence
_OUTLINES = "segrow learns from outlines (polygons or RLE); annotate them, or export with segmentation"


@dataclass(frozen=True)
class Entry:
    """An image of the file.

    Attributes:
        name: Its file_name; "" where it has none.
        size: Height and width as the file says them; None where it does not.
        outlines: Its objects.
        wrong: Why it cannot be used; "" where it can.
    """

    name: str
    size: tuple[Any, Any]
    outlines: list[Object]
    wrong: str


@dataclass(frozen=True)
class CocoFile:
    """A COCO file, checked.

    Attributes:
        path: The file.
        classes: Names of its classes in the order of their ids; neither background nor what is ignored.
        ignored: Names of the categories that count nowhere.
        written: Its names as the file writes them, by name.
        entries: Its images.
        notes: What was left out or decided, a sentence each.
    """

    path: Path
    classes: tuple[str, ...]
    ignored: tuple[str, ...]
    written: Mapping[str, str]
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]


def read_coco(path: Path, ignore: Collection[str] | None) -> CocoFile:
    """Read and check a COCO file.

    Args:
        path: The file.
        ignore: Names of categories that count nowhere; None: those that are called so (class_lists.py).

    Raises:
        UserError: It is not a COCO file, or damaged as a whole; or no annotation has an outline.
    """
    content = _content(path)
    used = Counter(n for annotation in content["annotations"] if _is_id(n := annotation.get("category_id")))
    names, notes = _categories(path, content["categories"], used)
    ignored = not_counted(dict.fromkeys(names.values()), ignore)
    objects, wrong, said = _objects(path, content, names, flags=ignore is None or bool(ignore))
    notes += said
    for name in ignored:
        n = sum(used[number] for number, called in names.items() if called == name)
        how = "as --ignore says"
        if ignore is None:
            how = "--ignore none (segrow train: --data.ignore none) makes it a class"
        notes.append(f'{path.name}: pixels of "{name}" ({count(n, "annotation")}) count nowhere; {how}')
    classes = [name for name in dict.fromkeys(names.values()) if name not in (*ignored, BACKGROUND)]
    if not classes:
        raise UserError(
            f"{path} has no category besides background and what is ignored; export it with classes"
        )
    entries = tuple(
        _entry(f"{path}: images[{k}]", image, objects[image["id"]], wrong.get(image["id"], []))
        for k, image in enumerate(content["images"])
    )
    written = {plain_name(category["name"]): category["name"] for category in content["categories"]}
    return CocoFile(path, tuple(classes), tuple(ignored), written, entries, tuple(notes))


def _entry(where: str, image: Mapping[str, Any], objects: list[Object], wrong: Sequence[str]) -> Entry:
    name = image.get("file_name")
    if not isinstance(name, str) or not name:
        wrong, name = [f"{where} has file_name {str(name)[:40]}, expected a text", *wrong], ""
    said = "; ".join(wrong[:_MOST]) + (f"; and {len(wrong) - _MOST} more" if len(wrong) > _MOST else "")
    return Entry(name, (image.get("height"), image.get("width")), objects, said)


def _objects(
    path: Path, content: Mapping[str, Sequence[Mapping[str, Any]]], names: Mapping[Id, str], flags: bool
) -> tuple[dict[Id, list[Object]], dict[Id, list[str]], list[str]]:
    """The objects of every image, what is wrong with some, and notes on annotations that are none.

    Args:
        flags: What an annotation marks with `ignore` counts nowhere.
    """
    objects: dict[Id, list[Object]] = {image["id"]: [] for image in content["images"]}
    wrong: dict[Id, list[str]] = defaultdict(list)
    annotated: set[Id] = set()
    bare: Counter[str] = Counter()
    elsewhere: list[str] = []
    parts = crowds = marked = 0
    for k, annotation in enumerate(content["annotations"]):
        number, image = annotation.get("id"), annotation.get("image_id")
        where = f"{path}: annotation {f'[{k}]' if number is None else number}"
        if not _is_id(image) or image not in objects:
            elsewhere.append(where)
            continue
        annotated.add(image)
        try:
            name = _name(annotation.get("category_id"), names, where)
            outline, bad = check_outline(annotation.get("segmentation"), where)
        except UserError as error:
            wrong[image].append(str(error))
            continue
        if outline is None and bad:
            bare["a polygon of fewer than three corners or with half a corner"] += 1
            continue
        if outline is None:
            kinds = (("keypoints", "keypoints"), ("bbox", "a box"))
            bare[next((said for key, said in kinds if annotation.get(key)), "nothing")] += 1
            continue
        parts += bad
        crowds += annotation.get("iscrowd") in _YES
        ignored = flags and _says_ignore(annotation)
        marked += ignored
        objects[image].append((outline, "" if ignored else name, where))
    if bare and not wrong and not any(objects.values()):
        kinds_said = ", ".join(f"{n} with {kind}" for kind, n in bare.items())
        raise UserError(
            f"{path} has no outline in its {count(bare.total(), 'annotation')} ({kinds_said} alone); "
            f"{_OUTLINES}"
        )
    _check_unit(path, [outline for some in objects.values() for outline, *_ in some])
    remarks = _remarks(path, bare, parts, elsewhere, len(objects) - len(annotated), len(objects))
    if crowds:
        remarks.append(
            f"{path.name}: {count(crowds, 'annotation')} of groups (iscrowd 1): all pixels of their outlines "
            "count as the class"
        )
    if marked:
        remarks.append(
            f'{path.name}: {count(marked, "annotation")} marked "ignore": 1: pixels of their outlines count '
            "nowhere; --ignore none (segrow train: --data.ignore none) makes them their category's"
        )
    return objects, wrong, remarks


def _name(category: Any, names: Mapping[Id, str], where: str) -> str:
    """The name of an annotation's category.

    Raises:
        UserError: The file lists no such category.
    """
    if _is_id(category) and category in names:
        return names[category]
    known = ", ".join(f"{number!r} {name}" for number, name in list(names.items())[:10])
    raise UserError(
        f"{where} has category {str(category)[:40]}, which is not in the file's categories ({known}); add it "
        "there with its name, correct the annotation or remove it, or export the file again"
    )


def _says_ignore(annotation: Mapping[str, Any]) -> bool:
    """Whether it is marked as one that must not count, by itself or, as in CVAT, by an attribute."""
    more = annotation.get("attributes")
    return annotation.get("ignore") in _YES or (isinstance(more, Mapping) and more.get("ignore") in _YES)


def _is_id(value: object) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _check_unit(path: Path, outlines: Sequence[Outline]) -> None:
    """Coordinates are pixels; where none is above 1 they are parts of the sides, as in YOLO's files."""
    polygons = [polygon for outline in outlines if not isinstance(outline, Mapping) for polygon in outline]
    if polygons and all(0 <= value <= 1 for polygon in polygons for value in polygon):
        raise UserError(
            f"{path} has no coordinate above 1, so its outlines are within one pixel, or in parts of "
            "width and height; COCO counts in pixels: multiply x by the width and y by the height"
        )


def _content(path: Path) -> dict[str, list[dict[str, Any]]]:
    read = read_json(path, "COCO file", limit=LIMIT, fix="export the annotations again")
    content: dict[str, list[dict[str, Any]]] = read if isinstance(read, dict) else {}
    parts = ("images", "annotations", "categories")
    if lacking := [part for part in parts if not isinstance(content.get(part), list)]:
        raise UserError(
            f"{path} is not a COCO file: expected lists {', '.join(parts)} in it, got no {lacking[0]}; "
            "export the annotations as COCO with polygons or RLE"
        )
    if not content["images"] or not content["categories"]:
        raise UserError(f"{path} lists no image or no category; export the annotations again")
    for part, needed in _NEEDED.items():
        for entry in content[part]:
            if isinstance(entry, dict):
                entry |= {key: _plain_number(entry[key]) for key in _NUMBERS if key in entry}
        _check_entries(f"{path}: {part}", content[part], needed)
    return content


def _plain_number(value: object) -> object:
    """A number that was written as text or with a decimal point, as tables and VIA do, as a whole number."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and (digits := re.fullmatch(r"([0-9]{1,18})(\.0*)?", value)):
        return int(digits[1])
    return value


def _check_entries(name: str, entries: Sequence[Any], needed: Mapping[str, tuple[type, ...]]) -> None:
    """Each is an object with what is needed; no id stands twice."""
    for k, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise UserError(f"{name}[{k}] is not an object ({str(entry)[:40]}); export the annotations again")
        for key, kinds in needed.items():
            value = entry.get(key)
            if not isinstance(value, kinds) or isinstance(value, bool) or value == "":
                expected = "a whole number or a text" if int in kinds else "a text"
                raise UserError(f"{name}[{k}] has {key} {str(value)[:40]}, expected {expected}")
    ids = Counter(entry["id"] for entry in entries if "id" in needed)
    if twice := [number for number, n in ids.items() if n > 1]:
        raise UserError(f"{name} has id {twice[0]} twice; every entry needs its own")


def _categories(
    path: Path, categories: Sequence[Mapping[str, Any]], used: Mapping[Any, int]
) -> tuple[dict[Id, str], list[str]]:
    """Names of the categories by id, in the order of the ids; and what was left out.

    Left out is what tools add by themselves and no annotation uses: the root of Roboflow, which other
    categories name as theirs, and a second category of a name.
    """
    roots = {root for category in categories if isinstance(root := category.get("supercategory"), str)}
    by_name: dict[str, list[Id]] = defaultdict(list)
    background: list[str] = []
    names: dict[Id, str] = {}
    notes: list[str] = []
    for category in sorted(categories, key=lambda c: (isinstance(c["id"], str), c["id"])):
        name, number = plain_name(category["name"]), category["id"]
        if not name:
            raise UserError(f"{path}: category {number} has an empty name; every class needs one")
        if is_background(name):
            background.append(name)
            name = BACKGROUND
        elif not used.get(number) and category.get("supercategory") in ("none", None) and name in roots:
            notes.append(f'{path.name}: category {number} "{name}" is the root of others and left out')
            continue
        by_name[name].append(number)
        names[number] = name
    for name, numbers in by_name.items():
        annotated = [number for number in numbers if used.get(number)]
        if len(annotated) > 1 and name != BACKGROUND:
            raise UserError(
                f'{path} has two categories "{name}" (ids {annotated[0]} and {annotated[1]}), both with '
                "annotations; every class needs its own name"
            )
        keep = annotated or numbers[:1]
        for number in [n for n in numbers if n not in keep and name != BACKGROUND]:
            notes.append(
                f'{path.name}: category {number} "{name}" is there twice; the unused one is left out'
            )
            del names[number]
    if background not in ([], [BACKGROUND]):
        called = " and ".join(f'"{name}"' for name in background)
        notes.append(f"{path.name}: {called} {are(len(background))} taken as background, which is no class")
    kept = [category["name"] for category in categories if category["id"] in names]
    return names, [*notes, *unseen_notes(path.name, kept)]


def _remarks(
    path: Path, bare: Counter[str], parts: int, elsewhere: Sequence[str], empty: int, images: int
) -> list[str]:
    notes = []
    if elsewhere:
        notes.append(
            f"{path.name}: {count(len(elsewhere), 'annotation')} of images that it does not list "
            f"{are(len(elsewhere))} left out (first {elsewhere[0]})"
        )
    if n := bare.total():
        kinds = ", ".join(f"{count} with {kind} alone" for kind, count in bare.items())
        they = "it marks" if n == 1 else "they mark"
        notes.append(
            f"{path.name}: {count(n, 'annotation')} without an outline ({kinds}) {are(n)} left out; what "
            f"{they} counts as background"
        )
    if parts:
        notes.append(
            f"{path.name}: {count(parts, 'polygon')} of fewer than three corners or with half a corner "
            f"{are(parts)} left out"
        )
    if empty:
        show = "shows" if empty == 1 else "show"
        notes.append(
            f"{path.name}: {empty} of {count(images, 'image')} {have(empty)} no annotation and {show} "
            "background alone"
        )
    return notes
