"""log.csv of a run that is continued."""

from pathlib import Path

import pytest

from segrow.engine.log import COLUMNS, RunLog
from segrow.errors import UserError

HEAD = ",".join(COLUMNS)
ROW = "0,{},1,0.01,2.0,0.5,ce=0.5"


def lines(folder: Path) -> list[str]:
    return (folder / "log.csv").read_text().splitlines()


def test_rows_that_will_be_repeated_are_dropped_and_a_half_row_too(tmp_path: Path) -> None:
    rows = [ROW.format(epoch) for epoch in range(3)]
    (tmp_path / "log.csv").write_text("\n".join([HEAD, *rows, "0,1,2"]))
    RunLog(tmp_path, 0, 2, 10).close()
    assert lines(tmp_path) == [HEAD, *rows[:2]]


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
