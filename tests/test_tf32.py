"""float32 that is float32: what is evaluated, judged or predicted on a GPU does not multiply in TF32."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import build_tree, model, start

from segrow import cli, load, precision
from segrow.engine.folder import read_results
from segrow.model.segmenter import Trunk


def allowed() -> tuple[bool, bool]:
    """Whether products of matrices, and convolutions, may be computed in TF32."""
    return (
        torch.backends.cuda.matmul.fp32_precision == "tf32",
        torch.backends.cudnn.conv.fp32_precision == "tf32",
    )


pytestmark = pytest.mark.skipif(torch.__version__ < "2.9", reason="reads the switches by their new names")


@pytest.fixture(autouse=True)
def _tf32_everywhere() -> Iterator[None]:
    """As users set it who want speed; put back afterwards."""
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = before


def test_the_switches_are_put_back_after_an_error_too() -> None:
    @precision.true_float32()
    def fails() -> None:
        raise ZeroDivisionError(allowed())

    with pytest.raises(ZeroDivisionError) as error:
        fails()
    assert error.value.args == ((False, False),)
    assert allowed() == (True, True)


def test_readers_of_a_model_compute_in_float32_and_training_as_torch_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen from inside the network, while each command runs."""
    seen: list[tuple[str, bool]] = []
    forward = Trunk.forward

    def spy(self: Trunk, *args: object, **options: object) -> object:
        seen.append(("training" if self.training else "reading", any(allowed())))
        return forward(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Trunk, "forward", spy)
    root, run = tmp_path / "data", tmp_path / "run"
    build_tree(root)
    assert start(root, run, "--steps", "1", "--train.epochs", "1") == 0
    assert cli.main(["eval", str(model(run, 0)), "--data.root", str(root), "--workers", "0"]) == 0
    assert set(seen) == {("training", True), ("reading", False)}
    predictor = load(run)  # which tries out on the CPU what it fuses
    seen.clear()
    predictor(np.zeros((32, 32, 3), np.uint8))
    assert set(seen) == {("reading", False)}


@pytest.mark.parametrize(
    ("device", "switch", "expected"),
    [("cpu", "tf32", False), ("cuda", "tf32", True), ("cuda", "ieee", False)],
)
def test_whether_training_uses_it(device: str, switch: str, expected: bool) -> None:
    torch.backends.cudnn.conv.fp32_precision = switch
    assert precision.uses_tf32(device) is expected


def test_results_say_on_what_a_step_was_trained(tmp_path: Path) -> None:
    build_tree(tmp_path / "data")
    assert start(tmp_path / "data", tmp_path / "run", "--steps", "1", "--train.epochs", "1") == 0
    cost = read_results(tmp_path / "run")["steps"][0]["cost"]
    assert (cost["device"], cost["tf32"], cost["precision"]) == ("cpu", False, "32")
