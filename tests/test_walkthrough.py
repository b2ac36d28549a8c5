"""The page that teaches a class: its commands are those that were typed, its folders hold what it says."""

import re
from pathlib import Path

import numpy as np

from benchmarks.walkthrough import COMMANDS, NEW, OLD, WRONG, folders
from segrow.data.folder import FolderDataset
from segrow.data.given import open_given

PAGE = Path(__file__).parents[1] / "docs" / "teach-your-own-class.md"


def test_the_page_has_every_command_in_order() -> None:
    text = PAGE.read_text()
    before_saliency = text[: text.index("## From Python")]
    typed = re.findall(r"^    (segrow .*?)(?:\s{2,}#.*)?$", before_saliency, re.MULTILINE)
    assert typed == [command for _, command in COMMANDS]


def test_pictures_are_there_and_small() -> None:
    named = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGE.read_text())
    assert len(named) == 2
    for name in named:
        assert (PAGE.parent / name).stat().st_size < 200_000


def test_folders(tmp_path: Path) -> None:
    folders(tmp_path, scenes=300, val_scenes=60)
    base = FolderDataset(tmp_path / "base")
    assert base.class_names == ("background", *OLD)
    assert len(base.ids("train")) > 50
    assert base.ids("val")
    photos, old, wrong = (open_given(tmp_path / name, "--data") for name in ("photos", "old_photos", "wrong"))
    assert (photos.class_names[1:], wrong.class_names[1:]) == ((NEW,), (WRONG,))
    assert not {*photos.ids("train"), *wrong.ids("train")} & set(base.ids("train"))
    assert not set(old.ids("train")) & set(base.ids("val"))
    for data in (photos, wrong):
        assert len(data.ids("train")) > 20
        assert data.presence("train", progress=False).present[:, 1].all()
    corners = [wrong.mask("train", i)[[0, 0, -1, -1], [0, -1, 0, -1]] for i in wrong.ids("train")]
    assert np.mean(corners) > 0.5  # inverted: the background is drawn
    assert len(list((tmp_path / "new_photos").iterdir())) > 2
    folders(tmp_path, scenes=300, val_scenes=60)  # again, over what is there
