"""The wheel holds all that a run needs."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from runs import build_tree, options

ROOT = Path(__file__).parents[1]


def _call(command: list[str], folder: Path) -> str:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_runs_elsewhere(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path / "dist"), "."]
    source = tmp_path / "source"
    _copy_tracked(source)
    _call(build, source)
    wheel = next((tmp_path / "dist").glob("segrow-*.whl"))

    # a new environment that borrows the libraries of this one; its own packages come first
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    _call([*pip, "install", "--ignore-installed", "--no-deps", "--prefix", str(home), str(wheel)], tmp_path)
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = str(home / "bin" / "python")
    script = [python, str(home / "bin" / "segrow")]  # its first line names the environment of pip

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = _call([python, "-c", "import segrow; print(segrow.__file__)"], elsewhere)
    assert Path(where.strip()).is_relative_to(home)
    assert _call([*script, "--version"], elsewhere).startswith("segrow ")
    where = _call([*script, "recipes", "voc-15-1-ssul-m", "--json"], elsewhere)
    assert json.loads(where)["published"] == 71.37  # the wheel holds the published table
    printed = _call([*script, "train", "--recipe", "animals-4-1-ssul", "--print_config"], elsewhere)
    assert "deeplabv3_mobilenet" in printed
    assert "person" in printed

    tree = build_tree(tmp_path / "VOC2012")
    more = ("--train.epochs", "1")
    _call([*script, *options(tree.root, elsewhere / "run", *more)], elsewhere)
    steps = json.loads(_call([*script, "results", "run", "--json"], elsewhere))["steps"]
    assert len(steps) == 3


def _copy_tracked(target: Path) -> None:
    """What is needed to build, without the build folders that lie beside it."""
    import shutil

    shutil.copytree(ROOT / "segrow", target / "segrow", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, target / name)
    if not (target / "README.md").exists():
        (target / "README.md").write_text("segrow\n")
