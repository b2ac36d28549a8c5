"""Memory that is freed is used again, and goes back when it is no longer needed."""

import json
import platform
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import importlib.util, json, resource, sys

spec = importlib.util.spec_from_file_location("heap", sys.argv[1])
heap = importlib.util.module_from_spec(spec)
spec.loader.exec_module(heap)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        large = b"x" * 40_000_000  # some 10,000 pages
        del large
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

found = [faults()]
heap.keep_freed_memory()
faults()
found.append(faults())
found.append(resident())
heap.give_memory_back()
found.append(resident())
print(json.dumps(found))
"""


def test_freed_memory_is_used_again() -> None:
    heap = Path(__file__).parents[1] / "segrow" / "engine" / "heap.py"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(heap)], capture_output=True, text=True, check=True, timeout=60
    )
    usual, kept, before, after = json.loads(done.stdout)
    if platform.libc_ver()[0] == "glibc":  # else nothing happens
        assert usual > 8 * 5_000
        assert kept < 500
        assert after < before - (30 << 20)
