"""The state of a user's method: tensors of any kind come back bit for bit, or are refused before training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from outside.keeping import Keeping
from runs import build_tree, last_line, model, start
from torch import Tensor

from segrow.engine.checkpoint import Checkpoint
from segrow.errors import UserError
from segrow.stored import METHOD_STATE, state_of
from segrow.tensor_files import read_safetensors

OUTSIDE = ("--method", "outside.keeping", "--allow_code", "--steps", "1")


def unusual() -> dict[str, Tensor]:
    whole = torch.arange(12, dtype=torch.float32).view(3, 4)
    return {
        "whole": whole,
        "the same": whole,
        "a part": whole[1:, ::2],
        "turned": whole.t(),
        "one number, repeated": torch.ones(1).expand(1 << 10, 1 << 10),
        "none": torch.zeros(0, 3),
        "one": torch.tensor(2.5, dtype=torch.float64),
        "trained": torch.nn.Parameter(torch.ones(2)),
        "NaN": torch.tensor([float("nan"), -0.0, float("inf")]),
        "bool": torch.tensor([True, False]),
        "int8": torch.tensor([-3], dtype=torch.int8),
        "int64": torch.tensor([1 << 60]),
        "bf16": torch.tensor([0.1], dtype=torch.bfloat16),
        "complex": torch.tensor([1 + 2j]).conj(),
        "a/../b": torch.ones(1),
        "../../x": torch.ones(1),
        "": torch.ones(1),
        "\n$[/red]": torch.ones(1),
    }


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    """To the last bit, kinds and shapes too."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        there, here = (t.detach().resolve_conj().contiguous() for t in (found[name], value))
        assert (there.dtype, there.shape) == (here.dtype, here.shape), name
        assert (
            there.numpy(force=True).tobytes() == here.numpy(force=True).tobytes()
            if (here.dtype != torch.bfloat16)
            else torch.equal(there, here)
        ), name
    return True


def test_tensors_of_any_kind_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the checkpoint, when the step is continued, and from the model."""
    root, out, given = build_tree(tmp_path / "VOC2012").root, tmp_path / "run", list[Any]()
    monkeypatch.setattr(Keeping, "kept", unusual())
    monkeypatch.setattr(Keeping, "given", given)
    with monkeypatch.context() as patch:  # stopped before the model is written
        patch.setattr("segrow.engine.run.save_model", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        assert start(root, out, *OUTSIDE, "--train.epochs", "1") == 130
    stored = Checkpoint.load(out / "last.ckpt")
    assert stored is not None
    assert same(stored.method, unusual())
    assert start(root, out, *OUTSIDE, "--train.epochs", "1") == 0
    assert same(given[0], unusual())
    assert same(read_safetensors(model(out, 0) / METHOD_STATE, "state"), unusual())
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (None, "gave NoneType, expected a mapping of names to tensors"),
        ([torch.ones(1)], "gave list, expected a mapping of names to tensors"),
        ({3: torch.ones(1)}, "gave the name 3, expected text"),
        ({"count": 3}, '"count" of int, expected a tensor, as torch.tensor(value)'),
        ({"a": {"b": torch.ones(1)}}, '"a" of dict, expected a tensor'),
        ({"a": torch.ones(2, device="meta")}, '"a" on meta, without values, which no file can hold'),
        ({"a": torch.eye(2).to_sparse()}, '"a" of torch.sparse_coo, torch.float32, which no file can hold'),
        ({"a": torch.zeros(1, dtype=torch.complex128)}, '"a" of torch.strided, torch.complex128, which no'),
        ({"__metadata__": torch.ones(1)}, '"__metadata__" of torch.strided, torch.float32, which no file'),
        (
            {"\ud800": torch.ones(1)},
            "which no file can hold; give a dense tensor of another type, or under an",
        ),
    ],
    ids=str,
)
def test_what_no_file_can_hold(kept: Any, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Keeping, "kept", kept)
    with pytest.raises(UserError) as caught:
        state_of(Keeping())
    assert expected in str(caught.value)
    assert str(caught.value).startswith("method outside.keeping: state_dict() gave ")


def test_it_is_refused_before_the_first_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Keeping, "kept", {"count": 3})
    monkeypatch.setattr("segrow.engine.step.StepTrainer._update", lambda *a: pytest.fail("trained"))
    assert start(build_tree(tmp_path / "VOC2012").root, tmp_path / "run", *OUTSIDE) == 2
    assert '"count" of int, expected a tensor' in last_line(capsys.readouterr().err)
