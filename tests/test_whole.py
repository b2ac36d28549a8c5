"""A file appears whole or not at all."""

import os
from pathlib import Path

import pytest

from segrow.whole import write_whole


def test_a_file_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file"
    write_whole(path, b"old")
    assert path.read_bytes() == b"old"
    written: list[bytes] = []
    replace = os.replace

    def look(source: Path, target: Path) -> None:
        assert path.read_bytes() == b"old"  # until the new one is complete
        written.append(Path(source).read_bytes())
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    write_whole(path, b"new")
    assert written == [b"new"]
    assert path.read_bytes() == b"new"

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"newer")
    assert path.read_bytes() == b"new"
    assert [f.name for f in path.parent.iterdir()] == ["file"]
