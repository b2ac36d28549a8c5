"""The images of a split and their masks: which belong together."""

from dataclasses import dataclass, replace
from pathlib import Path

from .listing import HINTED, Listing, list_files, refuse_twins
from .unfit import Unfit


@dataclass(frozen=True)
class Pairs:
    """The files of a split.

    Attributes:
        ids: Of its images, but for those that are left out.
        images: Its images, those too that are left out but have a mask.
        masks: Their masks, with the same ids.
        maps: Saliency maps, of any of the ids and of others.
        excluded: What was there and is left out, each as SPLIT/ID.
        said: How they were matched, where their paths differ.
    """

    ids: tuple[str, ...]
    images: Listing
    masks: Listing
    maps: Listing
    excluded: tuple[str, ...] = ()
    said: tuple[str, ...] = ()

    def notes(self) -> tuple[str, ...]:
        """A sentence per folder of which something is left out."""
        return (*self.images.notes(), *self.masks.notes(), *self.maps.notes(), *self.said)


def by_name(images: Listing, masks: Listing) -> tuple[Listing, tuple[str, ...]]:
    """Masks under the ids of their images where only one of both has sub-folders, and a note that says so.

    They stay as they are where a name stands twice, or not on both sides: then it is not sure what belongs
    together. Of saliency maps, which not every image need have, one that has an image is enough.
    """
    flat = [side for side in (images, masks) if not any("/" in i for i in side.files)]
    if len(flat) != 1:
        return masks, ()
    ids = {i.rpartition("/")[2]: i for i in images.files}
    of_masks = {i.rpartition("/")[2]: i for i in masks.files}
    if len(ids) < len(images.files) or len(of_masks) < len(masks.files) or not ids.keys() & of_masks.keys():
        return masks, ()
    if masks.what != "saliency map" and ids.keys() != of_masks.keys():
        return masks, ()
    pairs = {image_id: of_masks[name] for name, image_id in ids.items() if name in of_masks}
    files = {image_id: masks.files[i] for image_id, i in pairs.items()}
    twins = {image_id: masks.twins[i] for image_id, i in pairs.items() if i in masks.twins}
    return replace(masks, files=files, twins=twins), (
        f"{flat[0].folder} has no sub-folders, so images and {masks.what}s are matched by their names alone "
        "(each stands there once)",
    )


def _mask_hint(masks: Listing, image_id: str) -> str:
    unread = "is of a kind that is not read as a mask or does not keep class numbers"
    hints = masks.unread(image_id, unread), masks.alike(image_id), masks.longer(image_id)
    return next(filter(None, hints), "") or masks.elsewhere(image_id)


def match_pairs(
    split: str, images: Path, masks: Path, maps: Path, exclude: frozenset[str] = frozenset()
) -> Pairs:
    """The images and the masks of a split, with the same ids.

    Args:
        split: train or val.
        images: Folder of images.
        masks: Folder of masks of the same names, in the same sub-folders.
        maps: Folder of saliency maps; it need not exist.
        exclude: Images that are left out with their masks, each as SPLIT/ID.

    Raises:
        Unfit: An image without a mask or the reverse, or several files of one.
        UserError: As `list_files`.
    """
    found, of_masks = list_files(images, "image"), list_files(masks, "mask")
    of_masks, said = by_name(found, of_masks)
    excluded = tuple(
        f"{split}/{i}" for i in found.files | of_masks.files if exclude and f"{split}/{i}" in exclude
    )
    whole = (found.files.keys() & of_masks.files.keys()) - found.twins.keys() - of_masks.twins.keys()
    gone = frozenset(name for name in excluded if name.partition("/")[2] not in whole)
    found, of_masks = found.without(split, gone), of_masks.without(split, gone)
    of_maps, more = by_name(found, list_files(maps, "saliency map"))
    used = [i for i in found.files | of_masks.files if f"{split}/{i}" not in exclude]
    refuse_twins(split, used, (found, of_masks, of_maps))
    if alone := sorted(found.files.keys() - of_masks.files.keys()):
        count = f" ({len(alone)} such images)" if len(alone) > 1 else ""
        hints = {i: _mask_hint(of_masks, i) for i in alone[:HINTED]}
        says = {f"{split}/{i}": f"image {found.path(i)} has no mask{hints.get(i, '')}" for i in alone}
        first = f"image {found.path(alone[0])} has no mask, expected {masks / f'{alone[0]}.png'}"
        raise Unfit(f"{first}{hints[alone[0]]}{count}", says, (*found.notes(), *of_masks.notes()))
    if alone := sorted(of_masks.files.keys() - found.files.keys()):
        count = f" ({len(alone)} such masks)" if len(alone) > 1 else ""
        unread = "is of a kind that is not read; convert it to JPEG or PNG"
        hints = {i: found.unread(i, unread) for i in alone[:HINTED]}
        says = {f"{split}/{i}": f"mask {of_masks.path(i)} has no image{hints.get(i, '')}" for i in alone}
        first = (
            f"mask {of_masks.path(alone[0])} has no image, expected {images / f'{alone[0]}.jpg'} (or .png)"
        )
        raise Unfit(f"{first}{hints[alone[0]]}{count}", says, (*found.notes(), *of_masks.notes()))
    ids = tuple(i for i in found.files if not exclude or f"{split}/{i}" not in exclude)
    return Pairs(ids, found, of_masks, of_maps, excluded, said + more)
