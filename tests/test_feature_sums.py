"""Features that are kept on a disk carry checksums; the file is nobody else's."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from segrow.engine.feature_store import FeatureStore, Layout, Rows, View
from segrow.engine.machine import Machine
from segrow.errors import UserError

LAYOUT = Layout(((2, 3, 4),), (8, 6), "uint8", saliency=True, verdict="uint8")
VIEWS = [View("a", 0), View("b", 0), View("b", 1)]


def machine() -> Machine:
    return cast(Machine, SimpleNamespace(fabric=SimpleNamespace(is_global_zero=True, barrier=lambda: None)))


def filled(file: Path | None) -> FeatureStore:
    store = FeatureStore(1 << 20, file)
    rng = np.random.default_rng(0)
    for view in store.prepare(VIEWS, LAYOUT, "trunk", machine()):
        mask = rng.integers(0, 9, (8, 6)).astype(np.uint8)
        store.write(view, [torch.rand(4, 2, 3)], mask, rng.random((8, 6)) > 0.5)
        store.write_verdict(view, torch.from_numpy(rng.integers(-2, 5, (8, 6)).astype(np.int16)))
    return store


def read(store: FeatureStore) -> Rows:
    return store.read(store.gather(VIEWS))


def values(rows: Any) -> list[Any]:
    return [rows.parts[0].float().tolist(), rows.mask.tolist(), rows.saliency.tolist(), rows.verdict.tolist()]


def test_a_file_holds_what_memory_holds(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one = read(filled(None))
    torch.manual_seed(0)
    assert values(read(filled(tmp_path / "features.bin"))) == values(one)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [0, 100, -70, -64])
def test_damage_of_a_row_is_one_line(tmp_path: Path, place: int) -> None:
    store = filled(tmp_path / "features.bin")
    store._rows[1, place] ^= 1
    store.gather([VIEWS[0], VIEWS[2]])
    with pytest.raises(UserError, match=r"features of b were changed on the disk"):
        store.gather(VIEWS)


def test_rows_that_are_taken_over_keep_their_sums(tmp_path: Path) -> None:
    store = filled(tmp_path / "features.bin")
    assert store.prepare([VIEWS[2], View("c", 0)], LAYOUT, "trunk", machine()) == [View("c", 0)]
    store.gather([VIEWS[2]])


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"mine")
    (tmp_path / "features.bin").symlink_to(tmp_path / "victim")
    filled(tmp_path / "features.bin").gather(VIEWS)
    assert (tmp_path / "victim").read_bytes() == b"mine"
