"""A model.json with any value replaced, and hashes that fit: what goes on from it works, or says why not."""

import random
from pathlib import Path

import pytest
import sweep_record

TRIES = 60  # all of them are 12,000: python tests/sweep_record.py FOLDER


@pytest.mark.slow
def test_some_values_and_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tried = sweep_record.sweep(tmp_path, lambda cases: random.Random(1).sample(cases, TRIES))
    found = dict(tried)
    assert len(found) == TRIES
    assert {what: fault for what, fault in found.items() if fault} == {}


def test_the_sweep_sees_what_it_looks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(code: int, line: str = "") -> str:
        def command(words: list[str]) -> int:
            if line == "raise":
                raise ValueError("x")
            if line:
                print(line, file=sweep_record.sys.stderr)
            return code

        monkeypatch.setattr(sweep_record.cli, "main", command)
        return sweep_record.tried("rollback")

    assert ends(0) == ends(2, "segrow: it is wrong; copy it again") == ""
    assert ends(0, "raise").startswith("traceback: ")
    for code, line in ((2, ""), (1, ""), (2, "segrow: it is wrong"), (2, "segrow: a; b\nsegrow: a; b")):
        assert ends(code, line).startswith(f"exit code {code}")
