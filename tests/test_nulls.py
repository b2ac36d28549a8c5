"""`null` in a file of options, where an option needs a value."""

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
