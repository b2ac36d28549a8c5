"""main.py and eval.py with checkpoint files of the SSUL reference code."""

import json
import shlex
from pathlib import Path

import pytest
import reference_net
import torch
from runs import only_line, results, tensors
from seed_tables import cells, naive_report
from trees import voc_tree

from segrow import cli
from segrow.data.voc import NAMES

MODEL = ["--model", "deeplabv3_mobilenet", "--task", "19-1", "--overlap", "--unknown"]
SMALL = ["--train_epoch", "1", "--batch_size", "4", "--crop_size", "32", "--train.workers", "0"]
SMALL += ["--report", "false"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return voc_tree(tmp_path_factory.mktemp("data") / "VOC2012", train=80, val=20, size=(40, 48)).root


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # main.py sets it: put it back


def checkpoint(step: int) -> Path:
    """What the reference code would have saved after a step of 19-1, under its own name."""
    folder = Path("checkpoints")
    folder.mkdir(exist_ok=True)
    net = reference_net.build(steps=(19, 1)[: step + 1], width=256, seed=step)
    return reference_net.save(net, folder / f"deeplabv3_mobilenet_voc_19-1_step_{step}_overlap.pth")


def test_the_base_step_of_the_reference_code_is_taken_over(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint(0)
    words = ["--data_root", str(root), *MODEL, *SMALL, "--freeze", "--bn_freeze", "--ckpt", str(path)]
    assert cli.seed_main(words) == 0
    shown = capsys.readouterr()
    assert "main.py: --ckpt is taken for the trained base step" in shown.err
    run = tmp_path / "checkpoints" / "deeplabv3_mobilenet_voc_19-1_overlap"
    imported = run.with_name(f"{run.name}_step_0")
    assert [step["known"] for step in results(run)["steps"]] == [20, 21]
    theirs = torch.load(path, weights_only=False)["model_state"]
    ours = tensors(run, 1)
    assert torch.equal(ours["heads.1.out.weight"], theirs["classifier.head.2.3.weight"])  # frozen ever since
    # both printed commands do it again, the second one finds it done
    lines = [line for line in shown.out.splitlines() if line.startswith("segrow ")]
    assert [line.split()[1] for line in lines] == ["import-ssul", "train"]
    before = (imported / "model.json").read_bytes()
    assert json.loads(before)["protocol"]["crop_val"] is False  # there was no --crop_val
    for line in lines:
        assert cli.main(shlex.split(line)[1:]) == 0
    assert (imported / "model.json").read_bytes() == before
    assert "step 1  done before" in capsys.readouterr().err
    (imported / "model.json").unlink()  # a run that has begun needs the file no more
    assert cli.seed_main(words) == 0
    assert not (imported / "model.json").exists()


@pytest.mark.parametrize("words", ["", "--crop_val --loss_type ce_loss", "--curr_step 0"])
def test_eval_finds_the_files_of_the_reference_code(
    words: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The newest unless a step is said; the numbers are those of importing it and `segrow eval`."""
    for step in (0, 1):
        checkpoint(step)
    given = ["--data_root", str(root), *MODEL, "--crop_size", "32", "--train.workers", "0"]
    assert cli.seed_eval([*given, *shlex.split(words)]) == 0
    shown = capsys.readouterr().out
    step = 0 if "--curr_step" in words else 1
    path = Path("checkpoints") / f"deeplabv3_mobilenet_voc_19-1_step_{step}_overlap.pth"
    assert f"evaluates {path}" in shown
    crop = [] if "--crop_val" in words else ["--no_crop_val"]
    loss = ["--loss_type", "ce_loss"] if "ce_loss" in words else []
    more = ["--model", "deeplabv3_mobilenet", "--task", "19-1", "--step", str(step), "--crop_size", "32"]
    assert cli.main(["import-ssul", str(path), *more, *crop, *loss, "--out", "model"]) == 0
    assert cli.main(["eval", "model", "--data.root", str(root), "--workers", "0", "--out", "e.json"]) == 0
    matrix = json.loads(Path("e.json").read_text())["steps"][0]["matrix"]
    assert cells(shown) == naive_report(matrix, 20 + step, 20, NAMES)
    capsys.readouterr()
    assert cli.seed_main([*given, *shlex.split(words), "--test_only", "--ckpt", str(path)]) == 0
    assert cells(capsys.readouterr().out) == naive_report(matrix, 20 + step, 20, NAMES)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoints", "e.json", "model"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--ckpt", "checkpoints/broken.pth"], "broken.pth"),
        (["--ckpt", "checkpoints/deeplabv3_mobilenet_voc_19-1_step_1_overlap.pth"], "step_1_overlap.pth"),
    ],
)
def test_a_file_that_does_not_fit_leaves_nothing(
    words: list[str], expected: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A truncated one, and that of a later step for the base step."""
    (checkpoint(1).with_name("broken.pth")).write_bytes(checkpoint(0).read_bytes()[:1000])
    before = sorted(Path.cwd().rglob("*"))
    assert cli.seed_main(["--data_root", str(root), *MODEL, *SMALL, *words]) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("main.py: ")]
    assert expected in only_line(err[-1])
    assert sorted(Path.cwd().rglob("*")) == before
