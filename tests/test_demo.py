"""The demo: what its floors demand, and (slow) that it meets them with seeds 2 and 3.

`make demo` is the same with seed 1, and fails when a floor is missed: `.ci/run` ends with it.
"""

import copy
import time
from pathlib import Path
from typing import Any

import pytest

from segrow import demo as demo_module
from segrow.cli import main
from segrow.demo import SIZE, Demo, Floor, floors, run_demo
from segrow.protocol import Summary
from segrow.report import tables


def summary(*steps: dict[str, Any]) -> Summary:
    return {"steps": list(steps)}  # type: ignore[typeddict-item]


def good() -> dict[str, Summary]:
    base = {"old": 0.5, "new": None, "all": 0.5, "per_class": {"zero": 0.5}}
    return {
        "joint": summary({"all": 0.56, "per_class": {"zero": 0.6, "one": 0.52}}),
        "finetune": summary(base, {"old": 0.09, "new": 0.4, "all": 0.2, "per_class": {}}),
        "ssul": summary(
            base, {"old": 0.41, "new": 0.27, "all": 0.3, "per_class": {"zero": 0.41, "one": 0.27}}
        ),
    }


def test_floors_hold_where_they_should() -> None:
    assert [f.passed for f in floors(good())] == [True] * 4


@pytest.mark.parametrize(
    ("method", "step", "key", "value", "which"),
    [
        ("joint", 0, "all", 0.54, 0),
        ("finetune", 1, "old", 0.10, 1),
        ("ssul", 1, "old", 0.39, 2),
        ("ssul", 1, "new", 0.25, 3),
    ],
)
def test_each_floor_can_be_missed(method: str, step: int, key: str, value: float, which: int) -> None:
    summaries: Any = copy.deepcopy(good())
    summaries[method]["steps"][step][key] = value
    assert [f.passed for f in floors(summaries)] == [k != which for k in range(4)]


@pytest.mark.parametrize(("passed", "code"), [((True, True), 0), ((True, False), 1)])
def test_the_command_fails_when_a_floor_is_missed(
    passed: tuple[bool, ...],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = [Floor(each, f"floor {k}") for k, each in enumerate(passed)]
    asked: list[object] = []

    def run(out: Path, seed: int, size: object, *_: object) -> Demo:
        asked.extend([seed, size])
        return Demo({}, [], found, out / "index.html")

    monkeypatch.setattr(demo_module, "run_demo", run)
    monkeypatch.setattr(tables, "results_table", lambda summaries: "a table")
    assert main(["demo", "--out", str(tmp_path)]) == code
    assert asked == [1, SIZE]
    assert ("MISSED floor 1" in capsys.readouterr().out) == bool(code)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_demo_meets_every_floor(seed: int, tmp_path: Path) -> None:
    demo = run_demo(tmp_path, seed, SIZE, "segrow demo", print)
    assert len(demo.results["ssul"]["steps"]) >= 4
    assert all(floor.passed for floor in demo.floors), [floor.text for floor in demo.floors]
    page = demo.page.read_text()
    assert "http://" not in page
    assert "https://" not in page
    for name in ("finetune", "ssul", "joint"):
        assert name in page
    if seed == 2:  # the command on the finished folder: nothing is trained again, the table is printed
        start = time.perf_counter()
        assert main(["demo", "--out", str(tmp_path), "--seed", "2"]) == 0
        assert time.perf_counter() - start < 60
