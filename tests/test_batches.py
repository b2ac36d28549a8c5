"""Batches that a step's images cannot fill: one line, and what it advises is not refused in turn."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from runs import only_line, start
from trees import folder_tree

from segrow.config import TrainConfig
from segrow.data.given import open_given
from segrow.engine.setup import _check_batches
from segrow.errors import UserError
from segrow.grow.options import AddOptions
from segrow.grow.plan import _divide
from segrow.scenario import Step


def steps(*images: int) -> list[Step]:
    return [
        Step(k, (f"class {k}",), k + 1, tuple(f"{k}-{i}" for i in range(n))) for k, n in enumerate(images)
    ]


def refusal(train: TrainConfig, counts: tuple[int, ...]) -> str | None:
    try:
        _check_batches(train, steps(*counts))
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8, 32])
@pytest.mark.parametrize("devices", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2, 4, 16])
@pytest.mark.parametrize("counts", [(40, 40), (40, 7), (5, 12), (3, 3), (2, 40)])
def test_the_advice_is_never_refused(
    batch: int, devices: int, accumulate: int, counts: tuple[int, ...]
) -> None:
    train = TrainConfig(batch_size=batch, devices=devices, accumulate=accumulate)
    line = refusal(train, counts)
    if line is None:
        return
    advised = {
        name: int(value) for name, value in re.findall(r"--train\.(\w+) (\d+)", line.split("; use ")[1])
    }
    assert advised
    assert refusal(replace(train, **advised), counts) is None


@pytest.mark.parametrize(
    "options", [{}, {"accumulate": 4}, {"batch_size": 1}, {"batch_size": 3, "devices": 2}]
)
def test_a_class_of_one_image_is_said_first(options: dict[str, int]) -> None:
    line = refusal(replace(TrainConfig(), **options), (30, 1))
    assert line is not None
    assert "step 1 (class 1) has 1 image, expected 2 or more" in line
    assert "annotate more images of it, or leave it out" in line
    assert "use --train" not in line


def test_the_command_says_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))
    shown = [{1}] * 6 + [{2}]
    root = folder_tree(tmp_path / "d", ("background", "a", "b"), shown, 2).root
    words = ("--data.name", "folder", "--data.classes", "a,b", "--task", "1-1", "--method", "finetune")
    assert start(root, tmp_path / "run", *words) == 2
    assert "step 1 (b) has 1 image, expected 2 or more" in only_line(
        "\n".join(row for row in capsys.readouterr().err.splitlines() if "note:" not in row)
    )


def test_one_image_to_add_from_is_said_before_any_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))
    data = open_given(folder_tree(tmp_path / "d", ("background", "a", "b"), [{1}, {2}], 0).root, "--data")
    present = data.presence("train", progress=False)
    with pytest.raises(
        UserError, match=r"has 1 image to learn from, expected 2 or more that show b; annotate more$"
    ):
        _divide(data, present, [2], ["b"], AddOptions(min_new=5))
