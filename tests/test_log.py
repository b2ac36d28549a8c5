"""log.csv of a run that is continued."""

from pathlib import Path

import pytest

from segrow.engine.log import COLUMNS, RunLog, _rows
from segrow.errors import UserError

HEAD = ",".join(COLUMNS[:-1])  # as an earlier segrow wrote it, without checksums
ROW = "0,{},1,0.01,2.0,0.5,ce=0.5"


def lines(folder: Path) -> list[str]:
    return (folder / "log.csv").read_text().splitlines()


def test_rows_that_will_be_repeated_are_dropped_and_a_half_row_too(tmp_path: Path) -> None:
    rows = [ROW.format(epoch) for epoch in range(3)]
    (tmp_path / "log.csv").write_text("\n".join([HEAD, *rows, "0,1,2"]))
    RunLog(tmp_path, 0, 2, 10).close()
    assert [line.rsplit(",", 1)[0] for line in lines(tmp_path)] == [HEAD, *rows[:2]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Two rows, and one after a resume."""
    folder = tmp_path_factory.mktemp("log")
    for first in (0, 2):
        log = RunLog(folder, 0, first, 10)
        for epoch in range(first, 2 + first // 2):
            log.write(epoch, 9, 0.01, 2.0, {"ce": 0.5 + epoch})
        log.close()
    assert len(lines(folder)) == 4
    return (folder / "log.csv").read_bytes()


def test_any_changed_digit_is_noticed(tmp_path: Path, written: bytes) -> None:
    """And any other byte that is changed, all along the file, but for the line ends."""
    path = tmp_path / "log.csv"
    for k, byte in enumerate(written):
        if byte not in b"\r\n":
            path.write_bytes(written[:k] + bytes([byte ^ 1]) + written[k + 1 :])
            with pytest.raises(UserError, match=r"damaged in line|is not text|is not UTF-8"):
                _rows(path)
    assert path.write_bytes(written)
    assert len(_rows(path)) == 3


def test_a_row_that_is_gone_or_moved_is_noticed(tmp_path: Path, written: bytes) -> None:
    head, *rows = written.splitlines(keepends=True)
    for damaged in (rows[1:], [rows[0], rows[2]], [rows[1], rows[0], rows[2]], [*rows, rows[2]]):
        (tmp_path / "log.csv").write_bytes(b"".join([head, *damaged]))
        with pytest.raises(UserError, match=r"is damaged in line \d; restore it, or delete it"):
            RunLog(tmp_path, 0, 5, 10)


def test_a_kill_in_a_row_loses_that_row(tmp_path: Path, written: bytes) -> None:
    """Wherever it comes; what is left is read, and goes on."""
    for cut in range(written.index(b"\n") + 1, len(written)):
        (tmp_path / "log.csv").write_bytes(written[:cut])
        assert len(_rows(tmp_path / "log.csv")) == written[:cut].count(b"\r") - 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (f"{HEAD}\n{ROW.format(0)}\n{ROW.format('x')}\n", "is damaged in line 3; restore it, or delete it"),
        (f"{HEAD}\n{ROW.format(-1)}\n", "is damaged in line 2"),
        (f"{HEAD}\n{ROW.format('9' * 5000)}\n", "is damaged in line 2"),
        (f"{HEAD}\n0,1\n", "is damaged in line 2"),
        (f"{HEAD}\n0,{'1' * 200_000},1\n", "is damaged in line 2"),
        (f"{HEAD}\n\n", "is damaged in line 2"),
        ("\0", "is not text (zero byte in line 1)"),
        ("ä".encode("latin-1"), "is not UTF-8 text"),
    ],
)
def test_a_damaged_log_is_one_line(tmp_path: Path, content: str | bytes, expected: str) -> None:
    (tmp_path / "log.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as caught:
        RunLog(tmp_path, 0, 2, 10)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
