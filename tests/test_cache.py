"""What the user's cache holds is damaged: it is made again, a line says so, and nothing wrong is read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runs import only_line
from trees import folder_tree

from segrow.data.contents import equal_files
from segrow.data.folder import FolderDataset

Capture = pytest.CaptureFixture[str]
Read = Callable[[], Any]


def masks(tmp_path: Path) -> tuple[Read, str]:
    root = folder_tree(tmp_path / "fruit", train=3, val=0).root
    return lambda: FolderDataset(root).presence("train").present.tolist(), "the index of the masks"


def images(tmp_path: Path) -> tuple[Read, str]:
    (tmp_path / "images").mkdir()
    files = [tmp_path / "images" / name for name in "abc"]
    for file, content in zip(files, (b"one", b"two", b"one"), strict=True):
        file.write_bytes(content)
    return lambda: equal_files(files), "the list of what images hold"


def drawn(tmp_path: Path) -> tuple[Read, str]:
    pytest.importorskip("pycocotools.mask", reason='needs pip install "segrow[coco]"')
    from segrow.data.coco import CocoDataset

    root = tmp_path / "coco"
    (root / "more").mkdir(parents=True)
    content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    content["categories"] = [{"id": 1, "name": "zebra"}]
    for k, name in enumerate(("a.png", "more/b.png")):
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(root / name)
        content["images"].append({"id": k, "file_name": name, "height": 20, "width": 30})
        corners = [2, 2, 9 + k, 2, 9 + k, 9, 2, 9]
        content["annotations"].append({"id": k, "image_id": k, "category_id": 1, "segmentation": [corners]})
    (root / "instances.json").write_text(json.dumps(content))

    def read() -> Any:
        data = CocoDataset(root / "instances.json")
        return [data.mask("train", i).tolist() for i in data.ids("train")]

    return read, "the folder of drawn masks"


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def zeroed(content: bytes, start: int) -> bytes:
    return (content[:start] + bytes(512) + content[start + 512 :])[: len(content)]


@pytest.mark.parametrize("kind", [masks, images, drawn])
def test_damage_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, kind: Callable[[Path], tuple[Read, str]]
) -> None:
    """Every 61st bit, blocks of 512 zero bytes, half a file, none."""
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))
    read, what = kind(tmp_path)
    expected = read()
    assert capsys.readouterr().err == ""
    kept = {p: p.read_bytes() for p in sorted((tmp_path / "cache").rglob("*")) if p.is_file()}
    tried = said = 0
    for path, content in kept.items():
        damages = [flipped(content, bit) for bit in range(0, 8 * len(content), 61)]
        damages += [zeroed(content, start) for start in range(0, len(content), 512)]
        for damaged in (*damages, content[: len(content) // 2], b""):
            path.write_bytes(damaged)
            tried += 1
            assert read() == expected
            if err := capsys.readouterr().err:  # else it was a byte that says nothing, such as a date
                assert f"note: {what} " in only_line(err)
                assert "is damaged; it is made again" in err
                said += 1
            assert read() == expected
            assert capsys.readouterr().err == ""
            for other, whole in kept.items():
                other.write_bytes(whole)
    print(f"{tried} tried, {said} noticed, none read wrongly")
    assert said > tried / 2


def test_a_mask_that_is_gone_is_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))
    read, what = drawn(tmp_path)
    expected = read()
    [mask] = (tmp_path / "cache").rglob("b.png")
    mask.unlink()
    assert read() == expected
    assert f"note: {what} " in only_line(capsys.readouterr().err)
    assert not list((tmp_path / "cache").rglob(".*"))
