"""Saliency maps: from a network in a file, where a data set looks for them, and in segrow add."""

import builtins
import random
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import SHARED
from onnx_files import network
from PIL import Image
from runs import only_line
from trees import folder_tree

from segrow import cli
from segrow.data.files import read_saliency
from segrow.data.folder import FolderDataset
from segrow.data.saliency import SaliencyMaker, write_map
from segrow.errors import UserError

U2NETP = SHARED / "weights" / "u2netp.onnx"
VOC = SHARED / "data" / "VOC2012"


class Session:
    """Stands for onnxruntime's: salient is what is red; the map is half as large as the input."""

    def __init__(self, path: str, options: SimpleNamespace, **given: Any) -> None:
        assert (options.log_severity_level, given["enable_fallback"]) == (4, 0)
        self.kind = Path(path).read_text()
        if self.kind == "broken":
            raise RuntimeError("[ONNXRuntimeError] INVALID_PROTOBUF\nsecond line")

    def get_inputs(self) -> list[Any]:
        channels, side = 4 if self.kind == "four" else 3, 1 << 20 if self.kind == "large" else 32
        entry = SimpleNamespace(name="input", shape=["batch", channels, side, 32])
        return {"none": [], "two": [entry, entry]}.get(self.kind, [entry])

    def run(self, outputs: None, given: dict[str, Any]) -> list[Any]:
        image = given["input"]
        if self.kind == "fails":
            raise RuntimeError("[ONNXRuntimeError] shapes\nsecond line")
        if self.kind in ("nan", "rows"):
            return [np.full((1, 2, 8, 8) if self.kind == "rows" else (1, 1, 8, 8), np.nan, np.float32)]
        assert image.dtype == np.float32
        assert image.shape == (1, 3, 32, 32)
        assert abs(float(image.max())) < 3  # normalised
        return [(image[:, :1] - image[:, 2:])[:, :, ::2, ::2] * 0.05 + 0.1, "another output"]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An onnxruntime that is not there, and a file for it."""
    module = ModuleType("onnxruntime")
    module.InferenceSession = Session  # type: ignore[attr-defined]
    module.SessionOptions = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    path = tmp_path / "net.onnx"
    path.write_bytes(b"good")
    return path


def halves(path: Path, size: tuple[int, int] = (60, 40)) -> Path:
    """Red on the left, blue on the right."""
    image = np.zeros((size[1], size[0], 3), np.uint8)
    image[:, : size[0] // 2, 0] = 200
    image[:, size[0] // 2 :, 2] = 200
    Image.fromarray(image).save(path)
    return path


def test_a_map_has_the_size_of_the_image(fake: Path, tmp_path: Path) -> None:
    salient = SaliencyMaker(str(fake)).map(halves(tmp_path / "a.png"))
    assert salient.shape == (40, 60)
    assert salient[:, :28].all()
    assert not salient[:, 32:].any()
    write_map(salient, tmp_path / "map.png")
    assert np.array_equal(read_saliency(tmp_path / "map.png"), salient)
    assert Image.open(tmp_path / "map.png").mode == "1"


def test_the_command_writes_what_is_missing(
    fake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder_tree(tmp_path / "data", train=3, val=1, saliency=True).root
    there = (root / "saliency/train/train0000.png").read_bytes()
    (root / "saliency/train/train0001.png").unlink()
    (root / "saliency/val/val0000.png").unlink()
    assert cli.main(["data", "saliency", str(root), "--model", str(fake)]) == 0
    assert "2 saliency maps written, 2 were there" in " ".join(capsys.readouterr().out.split())
    data = FolderDataset(root)
    data.require_saliency()
    assert data.saliency("train", "train0001").shape == (24, 32)
    assert (root / "saliency/train/train0000.png").read_bytes() == there
    assert cli.main(["data", "saliency", str(root), "--model", str(fake), "--again"]) == 0
    assert (root / "saliency/train/train0000.png").read_bytes() != there


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no saliency model"),
        (
            b"broken",
            "is not an ONNX file that onnxruntime reads ([ONNXRuntimeError] INVALID_PROTOBUF second line)",
        ),
        (b"four", "takes an input ['batch', 4, 32, 32], expected 1 x 3 x height x width; copy the file"),
        (b"none", "takes an input [], expected 1 x 3 x height x width; copy the file again"),
        (b"two", "takes an input [['batch', 3, 32, 32], ['batch', 3, 32, 32]], expected 1 x 3 x height"),
        (b"large", "takes images of 1048576 x 32, expected sides of 1 to 4096; copy the file again"),
        (b"fails", "cannot be run ([ONNXRuntimeError] shapes second line); copy the file again, or give"),
        (b"nan", "gives numbers that are not finite; copy the file again, or give another"),
        (b"rows", "gives (1, 2, 8, 8), expected one map; copy the file again, or give another network"),
    ],
)
def test_a_file_that_is_none(
    fake: Path, tmp_path: Path, content: bytes | None, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is None:
        fake.unlink()
    else:
        fake.write_bytes(content)
    root = folder_tree(tmp_path / "data", train=2, val=0).root
    assert cli.main(["data", "saliency", str(root), "--model", str(fake)]) == 2
    assert expected in only_line(capsys.readouterr().err)
    assert not (root / "saliency").exists()


def test_a_folder_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "saliency", "nowhere", "--model", "u2net"]) == 2
    assert "segrow: folder nowhere is not there; expected" in only_line(capsys.readouterr().err)


@pytest.mark.parametrize(("model", "package"), [("net.onnx", "onnxruntime"), ("u2net", "rembg")])
def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, package: str) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **named: Any) -> Any:
        if name == package:
            raise ImportError(name)
        return real(name, *args, **named)

    (tmp_path / "net.onnx").write_bytes(b"good")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=rf'need {package}.*pip install "segrow\[saliency\]"'):
        SaliencyMaker(model)


@pytest.mark.usefixtures("rembg")
def test_a_rembg_model(tmp_path: Path) -> None:
    salient = SaliencyMaker("u2net").map(halves(tmp_path / "a.png"))
    assert salient[:, :28].all()
    assert not salient[:, 32:].any()
    with pytest.raises(UserError, match='rembg has no model "nothing" at hand'):
        SaliencyMaker("nothing")


def test_rembg_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "rembg")
    pytest.importorskip("rembg", reason='needs pip install "segrow[saliency]"')
    if not (U2NETP.is_file() and VOC.is_dir()):
        pytest.skip("needs u2netp.onnx and the VOC 2012 part")
    shutil.copy(U2NETP, tmp_path / "u2netp.onnx")
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))  # where rembg looks before it fetches
    path = min((VOC / "saliency_map").glob("*.png"))
    ours = SaliencyMaker("u2netp").map(VOC / "JPEGImages" / f"{path.stem}.jpg")
    assert (ours == read_saliency(path).astype(bool)).mean() > 0.97


@pytest.mark.skipif(not (U2NETP.is_file() and VOC.is_dir()), reason="needs u2netp.onnx and the VOC 2012 part")
def test_u2netp_makes_the_maps_of_the_data(tmp_path: Path) -> None:
    """Those maps were made with the same network from the same images."""
    pytest.importorskip("onnxruntime", reason='needs pip install "segrow[saliency]"')
    maker = SaliencyMaker(str(U2NETP))
    agree = []
    for path in sorted((VOC / "saliency_map").glob("*.png"))[:4]:
        theirs = read_saliency(path).astype(bool)
        ours = maker.map(VOC / "JPEGImages" / f"{path.stem}.jpg")
        agree.append(float((ours == theirs).mean()))
    assert min(agree) > 0.97, agree


def test_a_damaged_network_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What onnxruntime makes of cut, changed and foreign files; a changed weight is another network."""
    pytest.importorskip("onnxruntime", reason='needs pip install "segrow[saliency]"')
    whole, path = network(), tmp_path / "net.onnx"
    rng = random.Random(1)
    path.write_bytes(whole)
    assert SaliencyMaker(str(path)).map(halves(tmp_path / "a.png"))[:, :28].all()
    said: list[str] = []
    for number in range(60):
        damaged = bytearray(whole)
        if number % 3:
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        else:
            del damaged[rng.randrange(len(whole)) :]
        path.write_bytes(damaged)
        try:
            SaliencyMaker(str(path))
        except UserError as error:
            said.append(str(error))
    assert len(said) > 30
    assert all(line.startswith(f"{path} ") and "\n" not in line and "; " in line for line in said)
    assert capfd.readouterr() == ("", "")  # nothing but that line
