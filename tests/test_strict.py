"""`segrow add --strict`: what nobody can be sure of is no success for a script."""

import json
import shutil
from pathlib import Path

import pytest
from runs import build_tree, model, only_line, snapshot, start
from trees import folder_tree

from segrow import cli
from segrow.grow.gate import NewClass, OldClass, Verdicts

NAMES = ("background", "aeroplane", "bicycle", "zebra")
SIZE = (40, 48)
NAN = float("nan")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = build_tree(tmp_path_factory.mktemp("data") / "VOC2012").root
    out = tmp_path_factory.mktemp("runs") / "run"
    assert start(root, out, "--task", "2-2", "--steps", "1", "--train.epochs", "1") == 0
    return model(out, 0)


@pytest.fixture
def animals(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "animals"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos") / "photos"
    return folder_tree(root, NAMES, train=[{3}] * 8, val=0, size=SIZE).root


def check(place: Path, images: int) -> Path:
    """Images of the old classes, so many of each."""
    return folder_tree(place, NAMES[:3], train=[{1, 2}] * images, val=0, size=SIZE).root


def add(folder: Path, photos: Path, *more: str) -> int:
    words = [
        "--data",
        str(photos),
        "--classes",
        "zebra",
        "--workers",
        "0",
        "--device",
        "cpu",
        "--epochs",
        "1",
    ]
    return cli.main(["add", str(folder), *words, "--max-drop", "100", *more])


def old(verdict: str, images: int = 3) -> OldClass:
    return OldClass("cat", images, 50.0, 50.0, 0.0, (0.0, 0.0), verdict, None)  # type: ignore[arg-type]


def new(verdict: str, images: int = 12) -> NewClass:
    return NewClass("zebra", images, 50.0, (0.0, 0.0), verdict, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("olds", "news", "plain", "strict"),
    [
        (["kept", "kept"], ["passes"], True, True),
        (["kept", "few"], ["passes"], True, False),
        (["few", "few"], [], True, False),
        (["kept", "unsure"], [], True, False),
        (["kept"], ["few"], True, False),
        (["kept"], ["unsure"], True, False),
        (["fails"], ["passes"], False, False),
        ([], [], True, True),
    ],
)
def test_what_stops_a_model(olds: list[str], news: list[str], plain: bool, strict: bool) -> None:
    parts = tuple(map(old, olds)), tuple(map(new, news))
    for asked, passes in ((False, plain), (True, strict)):
        verdicts = Verdicts(*parts, strict=asked)
        assert verdicts.passes is passes
        assert bool(verdicts.reasons) is not passes
        assert verdicts.as_json()["reasons"] == verdicts.reasons


def test_the_reasons_say_how_many_images_are_needed() -> None:
    found = Verdicts((old("few", 1), old("unsure", 7)), (new("few", 3),), strict=True).reasons
    assert found == [
        "cat is few: 1 image shows it, 5 are needed (--strict)",
        "cat is unsure: 7 images show it, 20 are needed (--strict)",
        "zebra is few: 3 images show it, 5 are needed (--strict)",
    ]


def test_a_gate_that_can_judge_nobody(
    animals: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--check", str(check(tmp_path / "check", 3)))
    before = snapshot(animals)
    assert add(animals, photos, *few, "--strict") == 3
    out = " ".join(capsys.readouterr().out.split())
    assert "aeroplane is few: 3 images show it, 5 are needed (--strict)" in out
    assert f"{animals} is unchanged" in out
    assert snapshot(animals) == before
    assert add(animals, photos, *few, "--strict", "--json") == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["passed"], told["strict"]) == (False, True)
    assert "bicycle is few: 3 images show it, 5 are needed (--strict)" in told["reasons"]
    assert add(animals, photos, *few) == 0
    assert "no old class could be judged" in " ".join(capsys.readouterr().out.split())


def test_enough_images_pass(animals: Path, photos: Path, tmp_path: Path) -> None:
    assert add(animals, photos, "--check", str(check(tmp_path / "check", 20)), "--strict") == 0


def test_strict_without_a_gate(animals: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert add(animals, photos, "--strict") == 2
    assert "--strict wants a verdict on every old class" in only_line(capsys.readouterr().err)
