"""Two checkpoints are kept; damage is noticed, and the last good one is used."""

import os
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from segrow.engine.checkpoint import Checkpoint, last_good
from segrow.errors import UserError


def made(epoch: int, step: int = 1) -> Checkpoint:
    torch.manual_seed(epoch)
    model = {"weight": torch.randn(40, 30), "seen": torch.tensor(epoch)}
    momentum = {"state": {0: {"momentum_buffer": torch.randn(40, 30)}}}
    return Checkpoint(step, epoch, model, momentum, {}, {"thresholds": torch.rand(5)}, 1.5)


def equal(one: object, two: object) -> bool:
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(equal(value, two[key]) for key, value in one.items())
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return torch.equal(one, two)
    return one == two


def saved(folder: Path, *checkpoints: Checkpoint) -> tuple[Path, Path]:
    last, before = folder / "last.ckpt", folder / "before.ckpt"
    for checkpoint in checkpoints:
        checkpoint.save(last, before)
    return last, before


def recall(last: Path, before: Path, step: int = 1) -> tuple[Checkpoint | None, bool, list[str]]:
    said: list[str] = []
    return *last_good(last, before, step, said.append), said


def damage(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place : place + 512] = bytes(len(content[place : place + 512]))
    path.write_bytes(content)


def test_the_last_one_is_used(tmp_path: Path) -> None:
    last, before = saved(tmp_path, made(1), made(2), made(3))
    found, older, said = recall(last, before)
    assert found is not None
    assert equal(vars(found), vars(made(3)))
    assert (older, said) == (False, [])
    one_before = Checkpoint.load(before)
    assert one_before is not None
    assert one_before.epoch == 2
    assert sorted(os.listdir(tmp_path)) == ["before.ckpt", "last.ckpt"]


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path, _ = saved(tmp_path, made(1))
    content, missed = path.read_bytes(), []
    places = [*range(0, len(content), 13), *range(len(content) - 60, len(content))]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with suppress(UserError):
            found = Checkpoint.load(path)
            assert found is not None
            assert equal(vars(found), vars(made(1)))
            missed.append(place)
    print(f"{len(places)} bits tried, {len(missed)} not noticed")
    assert set(missed) <= set(range(len(content) - 23, len(content)))  # in the mark that there is a sum


@pytest.mark.parametrize("place", [0, 2000, 6000, -512])
def test_zeros_in_the_last_one(tmp_path: Path, place: int) -> None:
    last, before = saved(tmp_path, made(1), made(2))
    damage(last, place % last.stat().st_size)
    found, older, (line,) = recall(last, before)
    assert found is not None
    assert (found.epoch, older) == (1, True)
    assert line.startswith(f"{last} ")
    assert line.endswith("; going on from before.ckpt, after epoch 1")


def test_a_last_one_that_is_lost(tmp_path: Path) -> None:
    """As between the two renames."""
    last, before = saved(tmp_path, made(1), made(2))
    last.unlink()
    found, older, said = recall(last, before)
    assert found is not None
    assert (found.epoch, older) == (1, True)
    assert said == [f"{last} is missing; going on from before.ckpt, after epoch 1"]


def test_one_of_another_step(tmp_path: Path) -> None:
    last, before = saved(tmp_path, made(9, step=0), made(1))
    damage(last, 2000)
    found, older, (line,) = recall(last, before)
    assert (found, older) == (None, True)
    assert line.endswith("; step 1 begins again")
    assert recall(*saved(tmp_path, made(9, step=0)))[::2] == (None, [])


def test_none_that_is_good(tmp_path: Path) -> None:
    last, before = saved(tmp_path, made(1))
    assert recall(tmp_path / "a", tmp_path / "b") == (None, False, [])
    damage(last, 2000)
    with pytest.raises(UserError, match=r"last\.ckpt .*; delete it to start the step again"):
        recall(last, before)
    last, before = saved(tmp_path, made(2), made(3))
    damage(last, 2000)
    damage(before, 2000)
    with pytest.raises(UserError) as caught:  # one line for both: the second is not met after the first
        recall(last, before)
    changed = "was changed or cut off after it was written"
    assert str(caught.value) == (
        f"{last} {changed}, and {before} {changed}; delete last.ckpt and before.ckpt to start the step again"
    )
    last.unlink()
    with pytest.raises(UserError, match=r"before\.ckpt was changed .*; delete it to start the step again"):
        recall(last, before)


def test_a_full_disk_leaves_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last, before = saved(tmp_path, made(1), made(2))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        made(3).save(last, before)
    found, older, _ = recall(last, before)
    assert found is not None
    assert (found.epoch, older) == (2, False)
    assert sorted(os.listdir(tmp_path)) == ["before.ckpt", "last.ckpt"]


def test_checkpoints_of_an_earlier_segrow_have_sums_too(tmp_path: Path) -> None:
    torch.save(vars(made(1)), tmp_path / "last.ckpt")
    with zipfile.ZipFile(tmp_path / "last.ckpt") as archive:
        assert all(member.CRC for member in archive.infolist())
    assert Checkpoint.load(tmp_path / "last.ckpt") is not None
