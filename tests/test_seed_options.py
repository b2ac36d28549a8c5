"""The SSUL reference code's options: what each changes in the configuration, which are named as idle."""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import only_line

from segrow import cli
from segrow.commands import seed, seed_options
from segrow.commands.options import RunOptions, option_names, parse_run
from segrow.commands.seed_options import PUBLISHED, Seed, parse_seed
from segrow.commands.seed_translate import Place, rates, remarks, translate
from segrow.engine.folder import configuration
from segrow.errors import UserError

CPU = Place("cpu", 1, "0")
VOC = shlex.split(PUBLISHED)[2:]
ADE = [
    *VOC,
    *shlex.split(
        "--data_root ADEChallengeData2016 --lr 0.05 --batch_size 24 --train_epoch 100 --dataset ade"
    ),
    *shlex.split("--task 100-5 --lr_policy warm_poly --mem_size 300"),
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # main.py sets it: put it back


def parsed(words: list[str], place: Place = CPU) -> RunOptions:
    return parse_run(translate(parse_seed(words, "main.py"), place), "train", "", "")


def flat(words: list[str], place: Place = CPU) -> dict[str, Any]:
    """The configuration as config.yaml would hold it, by dotted names, and the folder."""
    options = parsed(words, place)
    plain = configuration(options.config, options.method, None)
    found = {"out": str(options.out)}
    for key, value in plain.items():
        found |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    del found["segrow"]
    return found


def test_the_published_command_for_voc_says_every_setting() -> None:
    assert flat(VOC, Place("cuda", 2, "0,1")) == {
        "out": "checkpoints/deeplabv3_resnet101_voc_15-1_overlap",
        "base": None,
        "task": "15-1",
        "setting": "overlap",
        "seed": 1,
        "steps": None,
        "data.name": "voc",
        "data.root": "VOC2012",
        "data.classes": None,
        "data.order_seed": None,
        "data.ignore": None,
        "data.exclude": None,
        "data.scenes": 1200,
        "model.name": "deeplabv3_resnet101",
        "model.weights": "timm",
        "model.output_stride": 16,
        "model.width": 256,
        "model.rates": None,  # by output stride: 6,12,18 or 12,24,36, as in the reference code
        "model.head": "conv",
        "model.separable": False,
        "model.dropout": 0.1,
        "model.norm_momentum": 0.01,
        "model.reference_padding": False,
        "model.dilate_first": False,
        "model.norm_eps": None,
        "model.refine": False,
        "memory.size": 100,
        "memory.labels": "known",
        "memory.unshifted": False,
        "method.name": "ssul",
        "method.unknown": "saliency",
        "method.init": "unknown",
        "method.freeze": "old_heads",
        "method.bn_freeze": True,
        "method.pseudo": "threshold",
        "method.threshold": 0.7,
        "method.floor": 0.001,
        "method.median": "exact",
        "method.gives_way": [],
        "method.loss_type": "bce",
        "method.background_lr": 1e-4,
        "train.epochs": 50,
        "train.step0_epochs": None,
        "train.batch_size": 32,
        "train.accumulate": 1,
        "train.lr": 0.01,
        "train.backbone_lr": 0.001,
        "train.step0_lr": 0.01,
        "train.step0_backbone_lr": 0.001,
        "train.policy": "poly",
        "train.step_size": 10000,
        "train.lr_floor": 1e-6,
        "train.momentum": 0.9,
        "train.weight_decay": 1e-4,
        "train.clip": 0.0,
        "train.crop": 513,
        "train.crop_mode": "scale",
        "train.scale": [0.5, 2.0],
        "train.padding": "ignore",
        "train.void": "ignore",
        "train.flip": 0.5,
        "train.select": "last",
        "train.crop_val": True,
        "train.val_batch_size": 4,
        "train.precision": "16",
        "train.device": "cuda",
        "train.devices": 2,
        "train.workers": 2,
        "train.feature_views": 0,
        "train.feature_budget": 4.0,
        "train.feature_store": "ram",
        "train.channels_last": True,
        "train.log_every": 10,
    }


def test_the_published_command_for_ade20k() -> None:
    voc, ade = flat(VOC), flat(ADE)
    assert {key: value for key, value in ade.items() if voc[key] != value} == {
        "out": "checkpoints/deeplabv3_resnet101_ade_100-5_overlap",
        "task": "100-5",
        "data.name": "ade20k",
        "data.root": "ADEChallengeData2016",
        "memory.size": 300,
        "method.unknown": "background",
        "train.epochs": 100,
        "train.batch_size": 24,
        "train.lr": 0.05,
        "train.policy": "warm_poly",
    }


def test_every_setting_that_could_be_another_is_said() -> None:
    """Defaults elsewhere may change without changing what main.py does."""
    said = set(translate(parse_seed(VOC, "main.py"), CPU)[::2])
    silent = {f"--{key}" for key in flat(VOC)} - said
    assert silent == {
        "--base",
        "--steps",
        "--data.classes",
        "--data.order_seed",
        "--data.ignore",
        "--data.exclude",
        "--data.scenes",
        "--model.rates",  # follow from the output stride; said, they would not equal an imported base step's
        *("--model.dilate_first", "--model.norm_eps", "--model.refine"),  # of segrow add --from alone
        "--method.name",  # said as --method
        "--method.floor",
        "--method.median",  # of pseudo entropy alone
        "--method.gives_way",  # of segrow add alone
        "--train.step0_epochs",
        "--train.accumulate",
        "--train.channels_last",
        "--train.feature_budget",
        "--train.feature_store",
    }


# what an option changes, beside the options that stand before it
CHANGES: dict[str, dict[str, Any]] = {
    "--data_root D": {"data.root": "D"},
    "--dataset ade": {"data.name": "ade20k", "out": "checkpoints/deeplabv3_resnet101_ade_15-1_disjoint"},
    "--dataset ade --unknown": {
        "data.name": "ade20k",
        "out": "checkpoints/deeplabv3_resnet101_ade_15-1_disjoint",
        "method.unknown": "background",
        "method.background_lr": 1e-4,
    },
    "--model deeplabv3plus_resnet50": {
        "model.name": "deeplabv3plus_resnet50",
        "out": "checkpoints/deeplabv3plus_resnet50_voc_15-1_disjoint",
    },
    "--model deeplabv3plus_mobilenet --separable_conv": {
        "model.name": "deeplabv3plus_mobilenet",
        "model.separable": True,
        "out": "checkpoints/deeplabv3plus_mobilenet_voc_15-1_disjoint",
    },
    "--separable_conv": {},
    "--output_stride 8": {"model.output_stride": 8},
    "--amp": {"train.precision": "auto"},
    "--train_epoch 7": {"train.epochs": 7},
    "--lr 0.05": {},  # everything trains at 0.001 and 0.01 without --freeze
    "--lr 1e-05 --freeze": {"train.lr": 1e-5, "method.freeze": "old_heads"},
    "--lr_policy poly": {"train.policy": "poly"},
    "--lr_policy step --step_size 30": {"train.policy": "step", "train.step_size": 30},
    "--crop_val": {"train.crop_val": True},
    "--batch_size 6": {"train.batch_size": 6},
    "--val_batch_size 9 --crop_val": {"train.val_batch_size": 9, "train.crop_val": True},
    "--crop_size 321": {"train.crop": 321},
    "--loss_type ce_loss": {"method.loss_type": "ce"},
    "--loss_type focal_loss": {"method.loss_type": "focal"},
    "--weight_decay 5e-5": {"train.weight_decay": 5e-5},
    "--random_seed 3": {"seed": 3},
    "--print_interval 4": {"train.log_every": 4},
    "--pseudo": {"method.pseudo": "threshold"},
    "--pseudo --pseudo_thresh 0.9": {"method.pseudo": "threshold", "method.threshold": 0.9},
    "--task 10-1": {"task": "10-1", "out": "checkpoints/deeplabv3_resnet101_voc_10-1_disjoint"},
    "--task 15-1_b": {"task": "15-1_b", "out": "checkpoints/deeplabv3_resnet101_voc_15-1_b_disjoint"},
    "--overlap": {"setting": "overlap", "out": "checkpoints/deeplabv3_resnet101_voc_15-1_overlap"},
    "--mem_size 50": {"memory.size": 50},
    "--mem_size 50 --task offline": {
        "task": "offline",
        "out": "checkpoints/deeplabv3_resnet101_voc_offline_disjoint",
    },
    "--freeze": {"method.freeze": "old_heads"},
    "--bn_freeze": {"method.bn_freeze": True},
    "--unknown": {"method.unknown": "saliency", "method.background_lr": 1e-4},
    "--w_transfer": {},  # from which head, without --unknown?
    "--unknown --w_transfer": {
        "method.unknown": "saliency",
        "method.background_lr": 1e-4,
        "method.init": "unknown",
    },
    "--num_classes 21": {},
    "--curr_itrs 5": {},
    "--curr_step 2": {},
    "--val_interval 10": {},
    "--out mine": {"out": "mine"},
    "--reference": {"train.padding": "background", "train.select": "best"},
    "--reference --unknown --mem_size 9": {
        "method.unknown": "saliency",
        "method.background_lr": 1e-4,
        "memory.size": 9,
        "memory.labels": "seen",
        "memory.unshifted": True,
        "train.padding": "background",
        "train.select": "best",
    },
    "--reference --mem_size 9": {  # without an unknown channel there is no shift to leave out
        "memory.size": 9,
        "memory.labels": "seen",
        "train.padding": "background",
        "train.select": "best",
    },
    "--reference --model deeplabv3_mobilenet --train.padding ignore": {
        "model.name": "deeplabv3_mobilenet",
        "model.reference_padding": True,
        "out": "checkpoints/deeplabv3_mobilenet_voc_15-1_disjoint",
        "train.select": "best",
    },
    # options of segrow win over those that are translated, wherever they stand
    "--train.epochs 3 --train_epoch 7": {"train.epochs": 3},
    "--setting=partitioned": {"setting": "partitioned"},
    "--data.classes cat,dog --steps 2": {"data.classes": ["cat", "dog"], "steps": 2},
}


@pytest.mark.parametrize("words", CHANGES)
def test_an_option_changes_this_and_nothing_else(words: str) -> None:
    before, after = flat([]), flat(shlex.split(words))
    assert {key: value for key, value in after.items() if before[key] != value} == CHANGES[words]


def test_no_option_is_said_twice() -> None:
    """An option of segrow stands in the place of the one that it overrules."""
    own = ["--train.epochs", "3", "--model.weights=none", "--memory.labels", "seen"]
    words = translate(parse_seed([*VOC, "--reference", *own], "main.py"), CPU)
    names = [word.partition("=")[0] for word in words if word.startswith("--")]
    assert len(names) == len(set(names))
    assert words[-len(own) :] == own


def test_a_gpu_makes_amp_fp16_and_two_ids_two_processes() -> None:
    on = flat(["--amp"], Place("cuda", 2, "0,1"))
    assert (on["train.precision"], on["train.device"], on["train.devices"]) == ("16", "cuda", 2)
    assert flat([], Place("cuda", 2, "0,1"))["train.precision"] == "32"


# --- options without effect, or with another one --------------------------------------------------------

REMARKS = {
    "--num_classes 21": "--num_classes has no effect: follows from the task",
    "--curr_itrs 4": "--curr_itrs has no effect: ",
    "--curr_step 1": "--curr_step has no effect: the reference code trained all steps",
    "--val_interval 10": "--val_interval has no effect: the reference code put max(100, updates / 100)",
    "--separable_conv": "--separable_conv has no effect: the reference code has it for deeplabv3plus",
    "--val_batch_size 8": "--val_batch_size has no effect: without --crop_val whole images are evaluated",
    "--step_size 8": "--step_size has no effect: --lr_policy is warm_poly, not step",
    "--pseudo_thresh 0.5": "--pseudo_thresh has no effect: there are no pseudo-labels without --pseudo",
    "--w_transfer": "--w_transfer has no effect: there is no unknown head to start from without --unknown",
    "--lr 0.1": "--lr has no effect: without --freeze the reference code trains all at 0.001 and 0.01",
    "--unknown --task offline --mem_size 3": "--mem_size has no effect: task offline has one step",
    "--unknown --task offline --freeze": "--freeze has no effect: task offline has one step",
    "--unknown --task offline --bn_freeze": "--bn_freeze has no effect: task offline has one step",
    "--unknown --task offline --w_transfer": "--w_transfer has no effect: task offline has one step",
    "--unknown --task offline --pseudo": "--pseudo has no effect: task offline has one step",
    "--ckpt x": "--ckpt is taken for the trained base step",
    "--loss_type focal_loss": "--loss_type focal_loss has gamma 2 here; the reference code left gamma at 0",
    "--model deeplabv3_mobilenet": "the backbone starts from timm's MobileNetV2 weights",
    "--freeze": "background has a head of its own here (frozen); without --unknown",
    "--unknown --mem_size 9": "exemplars are chosen with pseudo-labels not at all, as in training",
    "--unknown --mem_size 9 --pseudo --pseudo_thresh 0.6": "exemplars are chosen with pseudo-labels at 0.6",
    "--mem_size 9 --reference": "--reference: without --unknown there is no shift",
}


@pytest.mark.parametrize("words", REMARKS)
def test_an_option_without_effect_or_another_one_is_named_when_it_is_given(words: str) -> None:
    lines = remarks(parse_seed(shlex.split(words), "main.py"))
    assert [line for line in lines if line.startswith(REMARKS[words])]
    assert all("\n" not in line for line in lines)
    silent = remarks(parse_seed(["--unknown"], "main.py"))
    assert silent == []


@pytest.mark.parametrize("words", [VOC, ADE], ids=["voc", "ade"])
def test_the_published_commands_need_no_remark(words: list[str]) -> None:
    assert remarks(parse_seed(words, "main.py")) == []


def test_no_option_is_dropped_without_a_word() -> None:
    """Every option of main.py is among those above that change something, or are named."""
    spoken = {word for words in [*CHANGES, *REMARKS] for word in words.split() if word.startswith("--")}
    elsewhere = {"--help", "--gpu_id", "--test_only"}  # tests of their own
    assert _flags("main.py") - elsewhere <= spoken


def _flags(prog: str) -> set[str]:
    actions: list[argparse.Action] = seed_options._parser(prog)._actions
    return {option for action in actions for option in action.option_strings if option.startswith("--")}


def test_the_options_are_those_of_the_reference_code() -> None:
    """Its names, written down from its argument parsers."""
    both = """data_root dataset num_classes model separable_conv output_stride amp test_only train_epoch
        curr_itrs lr lr_policy step_size crop_val batch_size val_batch_size crop_size ckpt loss_type gpu_id
        weight_decay random_seed print_interval val_interval pseudo pseudo_thresh task curr_step overlap
        mem_size freeze bn_freeze w_transfer unknown help out reference"""
    assert _flags("main.py") == {f"--{name}" for name in both.split()}
    assert _flags("eval.py") == _flags("main.py") | {"--total_itrs", "--download"}


def test_eval_has_other_defaults() -> None:
    one, other = parse_seed([], "main.py"), parse_seed([], "eval.py")
    differ = {name for name in vars(one) if getattr(one, name) != getattr(other, name)}
    assert differ == {"prog", "model", "batch_size", "train_epoch"}
    assert (other.model, other.batch_size, other.train_epoch) == ("deeplabv3plus_mobilenet", 16, 0)
    assert one == Seed("main.py", frozenset(), ())


# --- learning rates --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            VOC,
            ["new head and unknown head 0.01, background head 1e-06; the rest is frozen", "less than 1e-06"],
        ),
        (ADE, ["new head and unknown head 0.05, background head 5e-06; the rest is frozen", "warm_poly"]),
        (["--freeze", "--lr", "0.03"], ["later steps: new head 0.03; the rest is frozen"]),
        (["--unknown"], ["later steps: backbone 0.001, decoder and heads 0.01 (without --freeze"]),
        (["--lr_policy", "step", "--step_size", "70"], ["a tenth every 70 updates"]),
        (["--train.step0_lr", "0.02"], ["step 0: backbone 0.001, decoder and heads 0.02"]),
    ],
)
def test_each_learning_rate_is_said(words: list[str], expected: list[str]) -> None:
    options = parsed(words)
    text = "\n".join(rates(options.config, options.method))
    assert "step 0: backbone 0.001, decoder and heads 0.0" in text
    for part in expected:
        assert part in text


def test_a_single_step_has_no_rates_of_later_ones() -> None:
    options = parsed(["--task", "offline", "--freeze"])
    assert "later" not in "\n".join(rates(options.config, options.method))


# --- devices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu_id", "count", "said"),
    [
        ("0,1", 2, "no GPU here: on the CPU, 2 processes"),
        ("0", 1, "no GPU here: on the CPU"),
        (" 2 ,", 1, "no GPU here: on the CPU"),
        ("-1", 1, "--gpu_id -1: on the CPU"),
        ("", 1, "--gpu_id '': on the CPU"),
    ],
)
def test_gpu_ids_become_processes(
    gpu_id: str, count: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    place = seed.find_place(parse_seed([f"--gpu_id={gpu_id}"], "main.py"))
    assert (place.device, place.count, place.describe()) == ("cpu", count, said)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == (gpu_id.strip(" ,") or "-1")


def test_the_cpu_can_be_asked_for() -> None:
    place = seed.find_place(parse_seed(["--gpu_id", "0,1", "--train.device", "cpu"], "main.py"))
    assert place.describe() == "--train.device cpu: on the CPU, 2 processes"
    assert Place("cuda", 2, "0,1").describe() == "on GPU 0,1, 2 processes"


# --- short forms and mistakes ----------------------------------------------------------------------------


def test_an_option_may_be_shortened_as_in_the_reference_code() -> None:
    assert parse_seed(["--over", "--lr_p", "poly", "--step", "5"], "main.py") == Seed(
        "main.py",
        frozenset({"overlap", "lr_policy", "step_size"}),
        (),
        overlap=True,
        lr_policy="poly",
        step_size=5,
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--p"], "ambiguous option: --p could match --print_interval, --pseudo, --pseudo_thresh"),
        (["--ou", "8"], "ambiguous option: --ou could match --output_stride, --out"),
        (["--out", "8"], "--out 8: the run's folder, or short for --output_stride?"),
        (["--overlapp"], 'nor of segrow train. Did you mean "--overlap"?'),
        (["--train.epoch", "3"], 'Did you mean "--train.epochs"?'),
        (["--pseudo-thresh", "0.7"], 'Did you mean "--pseudo_thresh"?'),
        (["--model", "deeplabv3_resnet11"], 'Did you mean "deeplabv3_resnet101"?'),
        (["--dataset", "voc2012"], 'Did you mean "voc"?'),
        (["--lr_policy", "polly"], 'Did you mean "poly"?'),
        (["--output_stride", "32"], "invalid choice: 32 (choose from"),
        (["--lr", "fast"], "argument --lr: invalid float value: 'fast'"),
        (["--batch_size"], "argument --batch_size: expected one argument"),
        (["--method", "plop"], "--method does not go with the options of the SSUL reference code"),
        (["--config", "x.yaml"], "use segrow train --config FILE without them"),
        (["--recipe=voc"], "--recipe does not go with"),
        ([], "--data_root /data/DB/VOC2012 (the default) is not a folder; give the one of VOC2012"),
        (["--data_root", "D", "--dataset", "ade"], "is not a folder; give the one of ADEChallengeData2016"),
        (["--data_root", ".", "--gpu_id", "first"], "--gpu_id first: expected different numbers of GPUs"),
        (["--data_root", ".", "--gpu_id", "0,0"], "--gpu_id 0,0: expected different numbers of GPUs"),
        (["--data_root", ".", "stray"], "unrecognized arguments: stray"),
        (["--data_root", ".", "--train.lr", "fast"], "--train.lr is fast, expected a number"),
        (["--data_root", ".", "--ckpt", "gone.pth"], "--ckpt gone.pth is not there; give the base"),
        (["--data_root", ".", "--ckpt", "."], "--ckpt . is neither a model directory nor a run folder"),
        (["--data_root", ".", "--ckpt", "a", "--base", "b"], "--ckpt a and --base b both name a base step"),
        (["--data_root", "."], "VOC2012"),
        (["--data_root", ".", "--dataset", "ade"], "ADEChallengeData2016"),
        (["--data_root", ".", "--train_epoch", "0"], "--train_epoch should be at least 1, got 0"),
        (["--data_root", ".", "--train.epochs", "0"], "--train.epochs should be at least 1, got 0"),
        (["--data_root", ".", "--crop_size", "0"], "--crop_size should be at least 1, got 0"),
        (["--data_root", ".", "--pseudo_thresh", "7"], "--method.threshold is 7.0, expected a score"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.seed_main(words) == 2
    err = capsys.readouterr().err
    assert expected in err.splitlines()[-1]
    rest = [line for line in err.splitlines() if " has no effect: " not in line and "has a head" not in line]
    only_line("\n".join(rest))
    assert err.startswith("main.py: ")
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("prog", ["main.py", "eval.py"])
def test_help_has_an_example(prog: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = {"main.py": cli.seed_main, "eval.py": cli.seed_eval}[prog]
    assert command(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"Example: python {prog} --data_root VOC2012" in text
    example = shlex.split(text.partition("Example: ")[2])
    assert not parse_seed(example[2:], prog).rest


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from segrow import cli; cli.seed_main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'segrow.commands.seed'" in done.stdout
    assert not {"'torch'", "'timm'", "'jsonargparse'"} & set(
        done.stdout.splitlines()[-1].strip("[]").split(", ")
    )


def test_options_of_segrow_are_listed_with_those_of_the_method() -> None:
    names = option_names("ssul")
    assert {"--train.epochs", "--method.unknown", "--data.classes", "--out"} <= set(names)
    with pytest.raises(UserError, match="no method"):
        option_names("sul")
