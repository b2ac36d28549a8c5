"""Thousands of damaged files: no traceback, no code of a file, no hang, no memory without bound.

    pytest tests/test_fuzz.py -m slow -s        # 3,000 tries and a table

A try that fails is repeated with `python tests/fuzz_run.py FOLDER --seed 1 --only NUMBER --keep`.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fuzz_material import TARGETS

FEW, MANY = 40, 3000
SEED = 1

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")


def fuzz(folder: Path, tries: int, seed: int) -> dict[str, Any]:
    """The report of a process that damages and forks."""
    program = Path(__file__).with_name("fuzz_run.py")
    command = [sys.executable, str(program), str(folder), "--tries", str(tries), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def table(report: dict[str, Any]) -> str:
    """Tries of each kind of file and how they ended."""
    rows = [
        f"{kind:24} {sum(ends.values()):5}  {', '.join(f'{end}: {n}' for end, n in ends.items())}"
        for kind, ends in sorted(report["kinds"].items())
    ]
    most = f"at most {report['slowest_s']} s of a processor and {report['largest_mib']} MiB above the start"
    return "\n".join([*rows, f"{report['tried']} tried, {report['lost']} lost, {most}"])


def check(report: dict[str, Any], tries: int) -> None:
    print(table(report))
    assert report["faults"] == []
    assert report["tried"] == tries
    assert not report["written_into"]  # files are exchanged, never changed in place


def test_forty_damaged_files(tmp_path: Path) -> None:
    check(fuzz(tmp_path, FEW, seed=7), FEW)


@pytest.mark.slow
def test_three_thousand_damaged_files(tmp_path: Path) -> None:
    report = fuzz(tmp_path, MANY, SEED)
    check(report, MANY)
    assert set(report["kinds"]) == {target.kind for target in TARGETS}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise ValueError('x')", "traceback: ValueError: x"),
        ("import os; os._exit(7)", "exit code 7"),
        ("import os; os.abort()", "killed by signal 6"),
        ("while True: pass", "killed by signal"),
        ("x = bytearray(b'1') * (700 << 20)", "MiB of memory"),
        ("import os; os.mkdir('RAN')", "code was run"),
        ("code = 2", "exit code 2 with 0 lines"),
        ("code = 2; print('segrow: a;\\nsegrow: b;', file=sys.stderr)", "exit code 2 with 2 lines"),
    ],
)
def test_the_fuzzer_sees_what_it_looks_for(tmp_path: Path, code: str, expected: str) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import fuzz_run, os, pathlib
def command(arguments):
    found = {{"code": 0}}
    exec({code!r}, globals(), found)
    return found["code"]
fuzz_run.cli.main = command
fuzz_run.CPU_S = {1 if "while" in code else 10}
lane = pathlib.Path({str(tmp_path)!r})
pid = os.fork()
if pid == 0:
    fuzz_run.child(lane, ())
_, status, usage = os.wait4(pid, 0)
print(fuzz_run.fault(lane, status, usage))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert expected in done.stdout, done.stderr[-2000:]
