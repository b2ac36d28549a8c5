"""The measurement of teaching one class: who is drawn, what a table says, and that the whole path runs."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import teach
from benchmarks.teach import BASE, Case, Parts, cells, draw, markdown, parts_of, photos, rows_of
from segrow.data.folder import FolderDataset
from segrow.data.tiny import compose
from segrow.data.voc import NAMES, VocDataset

HORSE = NAMES.index("horse")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> VocDataset:
    return VocDataset(compose(tmp_path_factory.mktemp("data") / "VOC2012", "voc"))


@pytest.fixture(scope="module")
def parts(data: VocDataset) -> Parts:
    return parts_of(data, unseen=True)


def shown(data: VocDataset, image_id: str) -> set[str]:
    return {NAMES[v] for v in np.unique(data.mask("train", image_id)) if v < 255} - {"background"}


def test_fewer_images_are_among_more_and_seeds_differ() -> None:
    ids = [str(k) for k in range(50)]
    assert draw(ids, 10, 1) == draw(ids, 20, 1)[:10]
    assert draw(ids, 10, 1) != draw(ids, 10, 2)
    assert len(set(draw(ids, 50, 3))) == 50


def test_no_image_of_the_base_or_of_the_gate_shows_the_new_class(data: VocDataset, parts: Parts) -> None:
    for i in (*parts.train, *parts.check):
        assert "horse" not in shown(data, i)
        assert shown(data, i) & set(BASE)
    assert all("horse" in shown(data, i) for i in parts.pool)
    with_horse = ["horse" in shown(data, i) for i in parts.test]
    assert sum(with_horse) * 2 == len(with_horse) > 0
    assert set(parts.check) <= set(data.ids("val"))
    assert set(parts.test) <= set(data.ids("val"))
    assert not {*parts.train, *parts.pool} & set(data.ids("val"))


def test_half_of_the_new_classes_images_may_stand_undrawn_in_the_base(data: VocDataset, parts: Parts) -> None:
    found = parts_of(data)
    assert found.check == parts.check
    assert found.test == parts.test
    assert len(found.pool) == len(parts.pool) // 2 > 0
    assert set(found.pool) <= set(parts.pool)
    assert not set(found.pool) & set(found.train)
    more = set(found.train) - set(parts.train)
    assert more == {i for i in parts.pool if i not in found.pool and shown(data, i) & set(BASE)}


def test_at_most_so_many_of_each(data: VocDataset) -> None:
    few = parts_of(data, most=2)
    assert (len(few.train), len(few.check), len(few.pool)) == (2, 2, 2)


def test_masks_of_the_photos_show_the_new_class_alone(data: VocDataset, parts: Parts, tmp_path: Path) -> None:
    folder = FolderDataset(photos(data, tmp_path / "photos", parts.pool, parts.test))
    assert folder.class_names == ("background", "horse")
    assert set(folder.ids("train")) == set(parts.pool)
    assert set(folder.ids("val")) == set(parts.test)
    for i in parts.pool:
        truth, drawn = data.mask("train", i), folder.mask("train", i)
        assert ((drawn == 1) == (truth == HORSE)).all()
        assert ((drawn == 255) == (truth == 255)).all()
        assert folder.image_path("train", i).samefile(data.image_path("train", i))
        assert folder.saliency("train", i).any()


CASES = [
    Case(50, 1, 40.0, 90.0, 50.0, {"background": -0.1, "cat": -0.5, "dog": 0.1}, True, []),
    Case(50, 2, 50.0, 110.0, 60.0, {"background": -0.3, "cat": -1.5, "dog": 0.3}, False, ["cat drops"]),
    Case(10, 1, 20.0, 30.0, 20.0, {"background": 0.0, "cat": 0.001, "dog": -0.001}, True, []),
]


def test_a_row_is_all_seeds_of_a_number_of_images() -> None:
    few, many = rows_of(CASES)
    assert (few.images, many.images) == (10, 50)
    assert math.isnan(few.spread)
    assert (many.new, many.seconds, many.train_s) == (45.0, 100.0, 55.0)
    assert many.spread == pytest.approx(math.sqrt(50))
    assert many.change == pytest.approx((-0.5 + 0.1 - 1.5 + 0.3) / 4)  # without background
    assert many.background == pytest.approx(-0.2)
    assert many.worst == ("cat", -1.5)
    assert (many.passed, many.seeds) == (1, 2)
    assert cells(few) == ("10", "20.0", "30", "20", "0.00", "0.00 (dog)", "0.00", "1 of 1")
    assert cells(many)[1:6] == ("45.0 ± 7.1", "100", "55", "-0.40", "-1.50 (cat)")
    assert markdown([few]).count("\n") == 3


def test_what_is_written_is_plain_json(tmp_path: Path) -> None:
    teach.write(tmp_path, [replace(CASES[0], seed=3)], {"command": "teach"})

    def refuse(name: str) -> None:
        raise AssertionError(name)

    found = json.loads((tmp_path / "teach.json").read_text(), parse_constant=refuse)
    assert found["rows"][0]["spread"] is None
    assert found["cases"][0]["change"]["cat"] == -0.5


def test_the_whole_path(data: VocDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--data.root",
        str(data.root),
        "--weights",
        "none",
        "--out",
        str(tmp_path),
        "--quick",
        "--unseen",
    ]
    assert teach.main(words) == 0
    assert "4 │" in capsys.readouterr().out
    found = json.loads((tmp_path / "quick/teach.json").read_text())
    assert [case["images"] for case in found["cases"]] == [4]
    assert set(found["cases"][0]["change"]) <= {"background", *BASE}
    assert not (tmp_path / "quick/work").exists()
    picture = next((tmp_path / "quick/data/JPEGImages").iterdir())
    assert Image.open(picture).size == (84, 72)
    assert teach.main([*words[:-1], "--images", "400"]) == 2
    assert "ask for fewer" in capsys.readouterr().err
