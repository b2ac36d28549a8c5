"""Small runs through the command line, in this process.

build_tree(root); start(root, out, "--memory.size", "6") == 0; weights(out)
"""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from PIL import Image
from torch import Tensor
from trees import Tree, voc_tree

from segrow import cli

NAMES = ("aeroplane", "bicycle", "bird", "boat")
STEPS = 3  # of the task 2-1 on four classes
EVERY_EPOCH = str(Path(__file__).parent / "every_epoch.py")
LIMIT_S = 150  # of a run in processes of its own

Tensors = dict[str, Tensor]


def build_tree(root: Path) -> Tree:
    """24 training and 8 validation images of four classes."""
    return voc_tree(root, train=24, val=8, size=(40, 48), classes=(1, 2, 3, 4))


def without_ignored(root: Path) -> None:
    """Replace the ignored border row of every mask by its neighbour."""
    for path in (root / "SegmentationClassAug").glob("*.png"):
        mask = np.array(Image.open(path))
        mask[-1] = mask[-2]
        Image.fromarray(mask).save(path)


def options(root: Path, out: Path, *more: str) -> list[str]:
    """Arguments of `segrow train` for the smallest whole run; a later option overrides."""
    given = {
        "--data.root": str(root),
        "--data.classes": ",".join(NAMES),
        "--task": "2-1",
        "--model.name": "deeplabv3_test_resnet",
        "--model.weights": "none",
        "--model.width": "8",
        "--train.epochs": "2",
        "--train.batch_size": "4",
        "--train.crop": "32",
        "--train.workers": "0",
        "--train.device": "cpu",
        "--report": "false",  # a page after each step costs more than these steps
        "--out": str(out),
    }
    return ["train", *(word for pair in given.items() for word in pair), *more]


def start(root: Path, out: Path, *more: str) -> int:
    """Run it; the exit code."""
    return cli.main(options(root, out, *more))


def no_signal_ignored() -> None:
    """In a process that begins: whoever runs the tests may ignore signals, as `nohup` and shells do."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def run_processes(
    arguments: list[str], program: tuple[str, ...] = ("-m", "segrow")
) -> subprocess.CompletedProcess[str]:
    """`python -m segrow …`; a hang fails the test and leaves no process behind.

    Training is in 32, which `conftest.py` makes auto in this process.
    """
    if arguments[:1] == ["train"] and "--train.precision" not in arguments:
        arguments = [*arguments, "--train.precision", "32"]
    process = subprocess.Popen(
        [sys.executable, *program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"still running after {LIMIT_S} s: {err[-2000:]}")
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def model(out: Path, step: int) -> Path:
    return out / "steps" / f"{step:02d}" / "model"


def record(out: Path, step: int) -> dict[str, Any]:
    """model.json of a step."""
    loaded: dict[str, Any] = json.loads((model(out, step) / "model.json").read_text())
    return loaded


def tensors(out: Path, step: int) -> Tensors:
    """Every stored tensor of a step."""
    loaded: Tensors = safetensors.torch.load_file(model(out, step) / "model.safetensors")
    return loaded


def weights(out: Path) -> list[tuple[str, str]]:
    """Hashes of weights and exemplars of every step that was saved."""
    found = [record(out, step)["hashes"]["files"] for step in range(len(list((out / "steps").iterdir())))]
    return [(files["model.safetensors"], files["memory.json"]) for files in found]


def results(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "results.json").read_text())
    loaded.pop("checksum", None)  # a test that changes it means to
    return loaded


def matrices(out: Path) -> list[Any]:
    return [(step["matrix"], step["matrix_known"]) for step in results(out)["steps"]]


def log(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and content of every file."""
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    return {str(f.relative_to(folder)): (f.stat().st_mtime_ns, f.read_bytes()) for f in files}


def last_line(text: str) -> str:
    """The error line on stderr; there must be no traceback above it."""
    assert "Traceback" not in text, text
    return [line for line in text.splitlines() if line.strip()][-1]


def only_line(text: str) -> str:
    """The error line when nothing but it may be on stderr."""
    assert len([line for line in text.splitlines() if line.strip()]) == 1, text
    return last_line(text)
