"""`null` in a file of options, where an option needs a value; numbers that are far too large."""

from pathlib import Path

import pytest
from runs import only_line, options

from segrow import cli

NAMES = ("train.epochs", "train.batch_size", "train.lr", "train.scale", "model.width", "memory.size", "seed")


@pytest.mark.parametrize("name", NAMES)
def test_null_is_no_value(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = options(tmp_path, tmp_path / "run")
    while f"--{name}" in words:  # flags go over the file
        place = words.index(f"--{name}")
        del words[place : place + 2]
    file = tmp_path / "options.yaml"
    file.write_text(f"{name}: null\n")
    assert cli.main([*words, "--config", str(file)]) == 2
    said = f"segrow: --config {file}: {name} is null; give it a value, or leave it out"
    assert only_line(capsys.readouterr().err) == said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["train.val_batch_size", "train.epochs", "model.width"])
def test_a_number_that_is_far_too_large(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(options(tmp_path, tmp_path / "run", f"--{name}", str(10**19))) == 2
    said = f"segrow: --{name} should be at most 2147483647, got {10**19}"
    assert only_line(capsys.readouterr().err) == said
