"""Masks of 0 and 255: 255 means "ignore", so nothing is annotated, and every command says so in one line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import build_tree, options, start
from trees import Tree, folder_tree

from segrow.cli import main
from segrow.data.folder import FolderDataset

SAYS = "hold 0 and 255 only, and 255 means"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "VOC2012"
    build_tree(root)
    out = tmp_path_factory.mktemp("runs") / "first"
    assert start(root, out, "--train.epochs", "1", "--task", "offline") == 0
    return out


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """One class, whose masks still hold 0 and 1."""
    tree = folder_tree(tmp_path / "d", ("background", "crack"), suffix="jpg")
    rewrite(tree, lambda mask: Image.fromarray(np.where(mask == 255, 0, mask).astype(np.uint8)))
    return tree


def rewrite(tree: Tree, change: Callable[[np.ndarray], Image.Image], files: str = "*") -> None:
    for file in (tree.root / "masks").rglob(f"{files}.png"):
        change(np.array(Image.open(file))).save(file)


def white(mask: np.ndarray) -> Image.Image:
    return Image.fromarray((mask * 255).astype(np.uint8))


@pytest.mark.parametrize(
    "form",
    [
        white,
        lambda mask: white(mask).convert("RGB"),
        lambda mask: white(mask).convert("LA"),
        lambda mask: Image.fromarray(mask.astype(np.uint16) * 255),
    ],
    ids=["grey", "rgb", "alpha", "16 bits"],
)
def test_every_command_says_so(
    run: Path,
    tree: Tree,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    form: Callable[[np.ndarray], Image.Image],
) -> None:
    rewrite(tree, form)
    root = str(tree.root)
    folder = ("--data.name", "folder", "--data.classes", "crack", "--task", "offline", "--method", "finetune")
    commands = [
        options(tree.root, tmp_path / "run", *folder),
        ["scenario", "--data.name", "folder", "--data.root", root, "--task", "offline"],
        ["add", str(run), "--data", root, "--classes", "crack", "--dry-run"],
        ["eval", str(run), "--data.name", "folder", "--data.root", root, "--workers", "0"],
    ]
    for command in commands:
        assert main(command) == 2
        err = capsys.readouterr().err
        assert SAYS in err
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_one_bit_and_0_and_1_are_classes(tree: Tree) -> None:
    for form in (
        lambda mask: Image.fromarray(mask),
        lambda mask: Image.fromarray(mask > 0),
        lambda mask: white(mask).convert("1"),
    ):
        rewrite(tree, form)
        data = FolderDataset(tree.root)
        assert data.presence("train", progress=False).present[:, 1].all()
        assert data.notes == ()


def test_some_masks_of_0_and_255_are_a_note(tree: Tree) -> None:
    rewrite(tree, white, "train000[3-6]")
    data = FolderDataset(tree.root)
    present = data.presence("train", progress=False)
    assert present.present[:, 1].sum() == 8
    (note,) = data.notes
    assert note.startswith('train: 4 of 12 masks hold only 0 and the value that means "ignore"')
    assert note.endswith("(first train0003)")


def test_background_alone_says_nothing(tree: Tree) -> None:
    rewrite(tree, lambda mask: Image.fromarray(mask * 0), "train000[3-6]")
    data = FolderDataset(tree.root)
    data.presence("train", progress=False)
    assert data.notes == ()


def test_greys_to_look_at_are_named(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(
        tree, lambda mask: Image.fromarray(np.where(np.arange(mask.size).reshape(mask.shape) % 5, mask, 128))
    )
    root = str(tree.root)
    assert main(["scenario", "--data.name", "folder", "--data.root", root, "--task", "offline"]) == 2
    assert "has value 128, but the data set has the classes 0 (background) to 1" in capsys.readouterr().err
