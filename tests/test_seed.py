"""main.py and eval.py through to trained tiny models, in this process and as real ones."""

import os
import runpy
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from runs import NAMES, build_tree, matrices, only_line, results, snapshot, start, tensors, weights
from runs import model as model_dir
from seed_tables import cells, naive_report
from trees import ade_tree, voc_tree

from segrow import cli
from segrow.commands import seed_eval
from segrow.commands.options import parse_run
from segrow.commands.seed_options import PUBLISHED
from segrow.engine.folder import configuration
from segrow.model.store import load_model

ROOT = Path(__file__).parents[1]
FOUR = ["--task", "2-1", "--data.classes", ",".join(NAMES)]
TINY = [
    "--model.name",
    "deeplabv3_test_resnet",
    "--model.weights",
    "none",
    "--train.workers",
    "0",
    "--report",
    "false",
]
VARIED = ["--overlap", "--crop_val", "--train_epoch", "4"]
SMALL = ["--train_epoch", "1", "--batch_size", "4", "--crop_size", "32", "--model.width", "8", *TINY]
ALL = ["--overlap", "--pseudo", "--freeze", "--bn_freeze", "--unknown", "--w_transfer", "--crop_val"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tree(tmp_path_factory.mktemp("my data") / "VOC2012").root


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # main.py sets it: put it back


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every switch of the method on, and its folder."""
    out = tmp_path_factory.mktemp("runs") / "all"
    assert train(root, *ALL, "--mem_size", "6", "--out", str(out)) == 0
    return out


@pytest.fixture(scope="module")
def varied(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose predictions are not all background, for what is counted."""
    out = tmp_path_factory.mktemp("runs") / "varied"
    assert train(root, *VARIED, "--out", str(out)) == 0
    for matrix, _ in matrices(out):
        assert len(np.flatnonzero(np.sum(matrix, axis=0))) > 1
    return out


def train(root: Path, *words: str) -> int:
    return cli.seed_main(["--data_root", str(root), *FOUR, *SMALL, *words])


def evaluate(root: Path, *words: str) -> int:
    """eval.py; the network is that of main.py unless another is said."""
    model = ["--model", "deeplabv3_resnet101"]
    return cli.seed_eval(["--data_root", str(root), *model, *FOUR, "--crop_size", "32", *words])


def stored(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((out / "config.yaml").read_text())
    return loaded


# --- each option, trained -------------------------------------------------------------------------------

TRAINED: dict[str, dict[str, Any]] = {
    "--num_classes 5 --curr_itrs 3 --curr_step 1 --val_interval 2": {},
    "--model deeplabv3plus_mobilenet --separable_conv --model.name deeplabv3plus_test_resnet": {
        "model.separable": True
    },
    "--output_stride 8 --weight_decay 0.01 --random_seed 3": {
        "model.output_stride": 8,
        "train.weight_decay": 0.01,
        "seed": 3,
    },
    "--amp --print_interval 1": {"train.precision": "auto", "train.log_every": 1},
    "--freeze --lr 0.02 --lr_policy poly": {"train.lr": 0.02, "train.policy": "poly"},
    "--lr_policy step --step_size 2": {"train.policy": "step", "train.step_size": 2},
    "--crop_val --val_batch_size 3": {"train.crop_val": True, "train.val_batch_size": 3},
    "--train_epoch 2 --batch_size 6 --crop_size 24": {
        "train.epochs": 2,
        "train.batch_size": 6,
        "train.crop": 24,
    },
    "--loss_type ce_loss --unknown": {"method.loss_type": "ce", "method.unknown": "saliency"},
    "--loss_type focal_loss": {"method.loss_type": "focal"},
    "--pseudo --pseudo_thresh 0.4": {"method.pseudo": "threshold", "method.threshold": 0.4},
    "--task offline": {"task": "offline"},
    "--overlap --mem_size 5": {"setting": "overlap", "memory.size": 5},
    "--gpu_id -1 --freeze --bn_freeze": {"train.device": "cpu", "method.bn_freeze": True},
    "--unknown --w_transfer": {"method.init": "unknown", "method.unknown": "saliency"},
}


@pytest.mark.parametrize("words", TRAINED)
def test_options_reach_a_trained_model(words: str, root: Path, tmp_path: Path) -> None:
    assert train(root, *shlex.split(words), "--out", "run") == 0
    config = stored(tmp_path / "run")
    for key, value in TRAINED[words].items():
        part, _, name = key.rpartition(".")
        assert (config[part][name] if part else config[name]) == value, key
    steps = results(tmp_path / "run")["steps"]
    assert len(steps) == (1 if "offline" in words else 3)
    assert all(np.isfinite(t.numpy()).all() for t in tensors(tmp_path / "run", len(steps) - 1).values())


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet", "deeplabv3plus_mobilenet"])
def test_the_small_models_train_in_their_folders(name: str, root: Path, tmp_path: Path) -> None:
    words = ["--data_root", str(root), *FOUR, "--task", "offline", "--overlap", "--model", name]
    small = ["--train_epoch", "1", "--batch_size", "8", "--crop_size", "32", "--model.weights", "none"]
    assert cli.seed_main([*words, *small, "--train.workers", "0", "--report", "false"]) == 0
    out = tmp_path / "checkpoints" / f"{name}_voc_offline_overlap"
    assert load_model(model_dir(out, 0))[0].config.name == name


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet50", "resnet101"])
@pytest.mark.parametrize("family", ["deeplabv3", "deeplabv3plus"])
def test_the_large_models_train_in_their_folders(
    family: str, backbone: str, root: Path, tmp_path: Path
) -> None:
    test_the_small_models_train_in_their_folders(f"{family}_{backbone}", root, tmp_path)


def test_ade20k_trains_with_background_as_unknown(tmp_path: Path) -> None:
    """From the folder above the data set's, too."""
    ade_tree(tmp_path / "data" / "ADEChallengeData2016", train=16, val=6, size=(40, 48), classes=(1, 2, 3, 4))
    words = ["--data_root", str(tmp_path / "data"), "--dataset", "ade", "--task", "2-1", "--unknown"]
    assert (
        cli.seed_main([*words, "--data.classes", "wall,building,sky,floor", *SMALL, "--batch_size", "2"]) == 0
    )
    out = tmp_path / "checkpoints" / "deeplabv3_resnet101_ade_2-1_disjoint"
    assert stored(out)["method"]["unknown"] == "background"
    assert stored(out)["data"]["name"] == "ade20k"


def test_freezing_is_the_switch_it_was(root: Path, trained: Path, tmp_path: Path) -> None:
    """With --freeze only the new, unknown and background heads move; without it everything does."""
    assert train(root, "--unknown", "--overlap", "--out", "moving") == 0
    for out, frozen in ((trained, True), (tmp_path / "moving", False)):
        before, after = tensors(out, 0), tensors(out, 1)
        same = {name for name in before if torch.equal(before[name], after[name])}
        moved = {".".join(name.split(".")[:2]) for name in before if name not in same}
        if frozen:
            assert moved == {"heads.0", "unknown.body", "unknown.out"}
        else:
            assert {"trunk.backbone", "trunk.decoder", "heads.0", "heads.1"} <= moved


# --- what is said ----------------------------------------------------------------------------------------


def test_the_printed_command_is_the_same_run(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Copied into a shell: the folder's name has a space in it."""
    assert " " in str(root)
    assert train(root, *ALL, "--mem_size", "6", "--amp", "--lr", "1e-05", "--num_classes", "5") == 0
    shown = capsys.readouterr()
    line = next(line for line in shown.out.splitlines() if line.startswith("segrow train"))
    options = parse_run(shlex.split(line)[2:], "train", "", "")
    out = tmp_path / "checkpoints" / "deeplabv3_resnet101_voc_2-1_overlap"
    config = configuration(options.config, options.method, options.base)
    assert {key: value for key, value in config.items() if key != "steps"} == stored(out)
    assert options.out == out.relative_to(tmp_path)
    assert "main.py: no GPU here: on the CPU" in shown.out or torch.cuda.is_available()
    assert "--amp is --train.precision auto" in shown.out or torch.cuda.is_available()
    assert "learning rate, step 0: backbone 0.001, decoder and heads 0.01" in shown.out
    assert "new head and unknown head 1e-05, background head 1e-09" in shown.out
    assert shown.err.startswith("main.py: --num_classes has no effect: follows from the task\n")
    before = snapshot(out / "steps")
    assert cli.main(shlex.split(line)[1:]) == 0  # and continues it
    assert "step 2  done before" in capsys.readouterr().err
    assert snapshot(out / "steps") == before


def test_the_same_weights_as_the_method_of_segrow(root: Path, trained: Path, tmp_path: Path) -> None:
    """Every switch on is SSUL: nothing but the translation stands between."""
    more = ["--memory.size", "6", "--train.epochs", "1", "--train.policy", "warm_poly"]
    assert start(root, tmp_path / "ours", *more, "--model.dropout", "0.1") == 0
    assert weights(tmp_path / "ours") == weights(trained)


def test_a_second_run_with_other_options_is_refused(
    root: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(root, *ALL, "--mem_size", "5", "--out", str(trained)) == 2
    assert "memory.size: 6 there, 5 here" in only_line(capsys.readouterr().err)


# --- evaluation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 1, 2, None])
def test_eval_prints_before_and_after_of_a_step(
    step: int | None, root: Path, varied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [] if step is None else ["--curr_step", str(step)]
    last = 2 if step is None else step
    matrix = matrices(varied)[last][0]
    expected = naive_report(matrix, 3 + last, 3)
    assert evaluate(root, "--overlap", "--crop_val", "--out", str(varied), *chosen) == 0
    shown = capsys.readouterr().out
    assert cells(shown) == expected
    assert f"step {last}, definition ssul" in shown
    assert f"evaluates {model_dir(varied, last)}" in shown.replace("\n", "")
    assert train(root, "--test_only", "--overlap", "--crop_val", "--out", str(varied), *chosen) == 0
    assert cells(capsys.readouterr().out) == expected


def test_training_ends_with_the_same_table(
    root: Path, varied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(root, *VARIED, "--out", str(varied)) == 0
    assert cells(capsys.readouterr().out) == naive_report(matrices(varied)[2][0], 5, 3)


def test_whole_images_without_crop_val(root: Path, varied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The options say how to evaluate, not the model: 40 x 48 pixels instead of 32 x 32."""
    assert evaluate(root, "--out", str(varied)) == 0
    whole = cells(capsys.readouterr().out)
    assert whole.keys() == naive_report(matrices(varied)[2][0], 5, 3).keys()
    assert whole != naive_report(matrices(varied)[2][0], 5, 3)


def test_a_class_that_the_data_lack_has_no_accuracy() -> None:
    matrix = [[6, 0, 2], [1, 3, 0], [0, 0, 0]]
    step = {"step": 1, "known": 3, "matrix": matrix, "matrix_known": matrix}
    results = {"format": 1, "data": "voc", "classes": ["background", "cat", "zebra"], "base_known": 2}
    table = seed_eval.report({**results, "unlabelled": ["zebra"], "steps": [step]})
    cells = {row[0]: row[1:] for row in zip(*(column.cells for column in table.columns), strict=True)}
    assert cells["background"] == ("66.67", "75.00")
    assert cells["zebra"] == cells["after: 2 to 2"] == ("n/a", "n/a")
    assert cells["all"] == ("70.83", "75.00")  # of background and cat: IoU 6 / 9 and 3 / 4
    table = seed_eval.report({**results, "steps": [step]})
    cells = {row[0]: row[1:] for row in zip(*(column.cells for column in table.columns), strict=True)}
    assert cells["zebra"] == ("0.00", "0.00")


def test_what_is_evaluated_can_be_named(root: Path, varied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = naive_report(matrices(varied)[1][0], 4, 3)
    for ckpt, more in ((varied, ["--curr_step", "1"]), (model_dir(varied, 1), [])):
        assert evaluate(root, "--crop_val", "--ckpt", str(ckpt), *more) == 0
        assert cells(capsys.readouterr().out) == expected


def test_options_of_training_are_named_in_an_evaluation(
    root: Path, varied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = """--num_classes 5 --amp --train_epoch 5 --curr_itrs 5 --lr 0.1 --lr_policy poly --step_size 3
        --batch_size 8 --weight_decay 0 --random_seed 5 --print_interval 5 --val_interval 5 --pseudo
        --pseudo_thresh 0.5 --mem_size 5 --freeze --bn_freeze --w_transfer --total_itrs 5 --download
        --reference --model.weights none --train.epochs 3"""
    idle = shlex.split(text)
    assert evaluate(root, *idle, "--out", str(varied), "--test_only", "--gpu_id", "0,1") == 0
    lines = capsys.readouterr().err.splitlines()
    named = lines[0].removeprefix("eval.py: ").partition(":")[0].split(", ")
    assert sorted(named) == sorted(word for word in idle if word.startswith("--"))
    assert lines[0].endswith(": no effect, nothing is trained")
    assert lines[1].startswith("eval.py: --test_only: no effect")
    assert lines[2] == "eval.py: --gpu_id 0,1: one device evaluates, the first"
    words = ["--val_batch_size", "3", "--separable_conv", "--train.workers", "0", "--unknown"]
    assert evaluate(root, *words, "--out", str(varied)) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == [
        "--val_batch_size:",
        "--separable_conv:",
        "--model",
        "--unknown",
    ]
    assert lines[2].endswith("; that is used")


def test_an_evaluation_of_another_task_is_refused(
    root: Path, varied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(root, "--task", "5-1", "--ckpt", str(varied)) == 2
    line = only_line(capsys.readouterr().err)
    assert "--task 5-1, but " in line
    assert line.endswith("; leave it out")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "there is neither a run in checkpoints/deeplabv3_resnet101_voc_2-1_disjoint"),
        (["--out", "{run}", "--curr_step", "5"], "--curr_step 5 is not in {run}; there is 0, 1, 2"),
        (["--ckpt", "gone"], "--ckpt gone: expected a model directory, a run folder"),
        (["--ckpt", "{run}/steps/01/model", "--curr_step", "2"], "is a model of step 1"),
        (["--ckpt", "{run}/log.csv"], "its name does not say which step it is of; add --curr_step"),
        (["--ckpt", "{run}/log.csv", "--curr_step", "1"], "log.csv"),
    ],
)  # fmt: skip
def test_a_mistake_in_an_evaluation_is_one_line(
    words: list[str], expected: str, root: Path, varied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(root, *(word.format(run=varied) for word in words)) == 2
    assert expected.format(run=varied) in only_line(capsys.readouterr().err)
    assert list(Path.cwd().iterdir()) == []


# --- a base step that is there ---------------------------------------------------------------------------


def test_ckpt_takes_over_the_base_step_of_a_run(root: Path, trained: Path, tmp_path: Path) -> None:
    assert train(root, *ALL, "--ckpt", str(trained), "--out", "more") == 0
    assert weights(tmp_path / "more")[0][0] == weights(trained)[0][0]
    assert results(tmp_path / "more")["steps"][0]["from_base"] == str(trained)


def test_ckpt_takes_over_a_model_directory(root: Path, trained: Path, tmp_path: Path) -> None:
    assert train(root, *ALL, "--ckpt", str(model_dir(trained, 0)), "--out", "more") == 0
    assert weights(tmp_path / "more")[0][0] == weights(trained)[0][0]
    assert len(results(tmp_path / "more")["steps"]) == 3


# --- as real processes -----------------------------------------------------------------------------------


def process(script: str, words: list[str], folder: Path, limit_s: int) -> tuple[int, str, str]:
    """`python main.py …` in a folder; a hang fails the test and leaves no process behind."""
    with subprocess.Popen(
        [sys.executable, str(ROOT / script), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as running:
        try:
            out, err = running.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            pytest.fail(f"still running after {limit_s} s: {running.communicate()[1][-2000:]}")
    return running.returncode, out, err


@pytest.mark.slow
def test_main_py_and_eval_py_run_from_a_clone(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second one without a process of its own: its file is written as the first one's."""
    words = ["--data_root", str(root), *FOUR, "--crop_size", "32", *ALL]
    code, out, err = process("main.py", [*words, *SMALL, "--steps", "1"], tmp_path, 120)
    assert code == 0, err
    assert "\nsegrow train --data.name voc " in out
    monkeypatch.setattr(sys, "argv", ["eval.py", *words, "--model", "deeplabv3_resnet101"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "eval.py"), run_name="__main__")
    assert stop.value.code == 0
    assert cells(capsys.readouterr().out) == cells(out)


def test_the_scripts_run_in_this_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for script in ("main.py", "eval.py"):
        monkeypatch.setattr(sys, "argv", [script, "--modle", "x"])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        assert stop.value.code == 2
        assert f"{script}: no option --modle" in only_line(capsys.readouterr().err)
        assert runpy.run_path(str(ROOT / script))["__name__"] != "__main__"  # importing runs nothing


VOC = shlex.split(PUBLISHED)[2:]
ADE = (
    "--lr 0.05 --batch_size 24 --train_epoch 100 --dataset ade --task 100-5 --lr_policy warm_poly "
    "--mem_size 300"
)
CUT = ["--train_epoch", "1", "--crop_size", "33", "--model.weights", "none", "--steps", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["voc", "ade"])
def test_the_published_command_runs(dataset: str, tmp_path: Path) -> None:
    """Verbatim, with the real network; shortened to two steps of one epoch of small crops."""
    words = [*VOC, *(shlex.split(ADE) if dataset == "ade" else [])]
    # more images in the base step than exemplars; a batch's worth in every step, though only two are trained
    if dataset == "voc":
        root, batch = voc_tree(tmp_path / "VOC2012", train=160, val=22).root, "8"
    else:
        root, batch = ade_tree(tmp_path / "ADEChallengeData2016", train=450, val=10).root, "12"
    cut = ["--data_root", str(root), "--batch_size", batch, *CUT]
    code, out, err = process("main.py", [*words, *cut], tmp_path, 900)
    assert code == 0, err
    task, size = {"voc": ("15-1", 100), "ade": ("100-5", 300)}[dataset]
    run = tmp_path / "checkpoints" / f"deeplabv3_resnet101_{dataset}_{task}_overlap"
    config, found = stored(run), results(run)
    assert (config["task"], config["memory"]["size"], config["train"]["devices"]) == (task, size, 2)
    assert config["train"]["lr"] == {"voc": 0.01, "ade": 0.05}[dataset]
    assert config["train"]["policy"] == {"voc": "poly", "ade": "warm_poly"}[dataset]
    assert config["model"]["name"] == "deeplabv3_resnet101"
    assert [step["exemplars"] for step in found["steps"]] == [0, size]
    assert len(found["classes"]) == {"voc": 21, "ade": 151}[dataset]
    assert out.count("run folder: ") == 1  # one process speaks
    assert out.count("the same with segrow:") == 1
    assert torch.cuda.is_available() or "no GPU here: on the CPU, 2 processes" in out
