"""Options of the SSUL reference code's main.py and eval.py: names, defaults, and which were given."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..errors import UserError, near
from .parser import OneLineParser

MODELS = tuple(
    f"deeplabv3{plus}_{backbone}"
    for backbone in ("resnet50", "resnet101", "mobilenet")
    for plus in ("", "plus")
)
PUBLISHED = (
    "python main.py --data_root VOC2012 --model deeplabv3_resnet101 --gpu_id 0,1 --crop_val --lr 0.01 "
    "--batch_size 32 --train_epoch 50 --loss_type bce_loss --dataset voc --task 15-1 --overlap "
    "--lr_policy poly --pseudo --pseudo_thresh 0.7 --freeze --bn_freeze --unknown --w_transfer --amp "
    "--mem_size 100"
)
TRAINING = (
    "Train a class-incremental task with the command line of the SSUL reference code. It is translated to "
    "a run of segrow, whose command is printed. Any option of `segrow train` may stand beside these."
)
EVALUATION = (
    "Evaluate a trained task with the command line of the SSUL reference code: the last step that is there, "
    "or --curr_step, of what main.py trained, or of the reference code's own file in checkpoints/."
)
EXAMPLE = (
    "python eval.py --data_root VOC2012 --model deeplabv3_resnet101 --gpu_id 0 --crop_val --dataset voc "
    "--task 15-1 --overlap --unknown"
)


@dataclass(frozen=True)
class Seed:
    """A command line of the reference code. Options have its names, types and defaults.

    Attributes:
        prog: main.py or eval.py.
        given: Names of the options that stood on the command line.
        rest: Options of `segrow train` that stood beside them.
        out: The run's folder, an option of segrow; default: `checkpoints/` and the task.
        reference: Reproduce the reference code where segrow corrects it, an option of segrow.
    """

    prog: str
    given: frozenset[str]
    rest: tuple[str, ...]
    out: str | None = None
    reference: bool = False
    data_root: str = "/data/DB/VOC2012"
    dataset: str = "voc"
    num_classes: int | None = None
    model: str = "deeplabv3_resnet101"
    separable_conv: bool = False
    output_stride: int = 16
    amp: bool = False
    test_only: bool = False
    train_epoch: int = 50
    total_itrs: int = 30000
    curr_itrs: int = 0
    lr: float = 0.01
    lr_policy: str = "warm_poly"
    step_size: int = 10000
    crop_val: bool = False
    batch_size: int = 32
    val_batch_size: int = 4
    crop_size: int = 513
    ckpt: str | None = None
    loss_type: str = "bce_loss"
    gpu_id: str = "0"
    weight_decay: float = 1e-4
    random_seed: int = 1
    print_interval: int = 10
    val_interval: int = 100
    download: bool = False
    pseudo: bool = False
    pseudo_thresh: float = 0.7
    task: str = "15-1"
    curr_step: int = 0
    overlap: bool = False
    mem_size: int = 0
    freeze: bool = False
    bn_freeze: bool = False
    w_transfer: bool = False
    unknown: bool = False

    @property
    def setting(self) -> str:
        """overlap or disjoint."""
        return "overlap" if self.overlap else "disjoint"

    @property
    def plus(self) -> bool:
        """Whether the model is a DeepLabV3+."""
        return self.model.startswith("deeplabv3plus")

    def segrow(self, flag: str) -> str | None:
        """The last value of an option of segrow that stood beside the reference's, or None."""
        value = None
        for word, following in pairwise([*self.rest, ""]):
            name, equals, tail = word.partition("=")
            if name == flag:
                value = tail if equals else following
        return value


def parse_seed(argv: Sequence[str], prog: str) -> Seed:
    """A command line of main.py or eval.py.

    As in the reference code, an option may be shortened to a beginning that no other one shares.

    Args:
        argv: Words behind the file's name.
        prog: main.py or eval.py, whose defaults differ.

    Raises:
        UserError: For an unknown option, choice or number.
    """
    parser = _parser(prog)
    found, rest = parser.parse_known_args(list(argv))
    values = vars(found)
    _check_rest(parser, rest)
    if values.get("out") in ("8", "16"):
        short = values["out"]
        raise UserError(
            f"--out {short}: the run's folder, or short for --output_stride? "
            f"Write --out ./{short}, or --output_stride {short}"
        )
    if prog == "eval.py":
        values = {"model": "deeplabv3plus_mobilenet", "batch_size": 16, "train_epoch": 0} | values
    return Seed(prog=prog, given=frozenset(vars(found)), rest=tuple(rest), **values)


def _check_rest(parser: argparse.ArgumentParser, rest: Sequence[str]) -> None:
    """What the reference does not know must be an option of `segrow train` with method ssul."""
    from .options import option_names  # imports torch, which --help need not wait for

    theirs = [option for action in parser._actions for option in action.option_strings]
    ours = option_names("ssul")
    for word in rest:
        name = word.partition("=")[0]
        if name in ("--config", "--recipe", "--method"):
            raise UserError(
                f"{name} does not go with the options of the SSUL reference code; use segrow train {name} "
                f"{'NAME' if name != '--config' else 'FILE'} without them"
            )
        if name.startswith("--") and name not in ours:
            options = [*theirs, *ours]
            raise UserError(
                f"no option {name}, neither of the SSUL reference code nor of segrow train."
                f"{near(name, options)}"
            )


def _parser(prog: str) -> OneLineParser:
    evaluates = prog == "eval.py"
    parser = OneLineParser(
        prog=f"python {prog}",
        description=EVALUATION if evaluates else TRAINING,
        epilog=f"Example: {EXAMPLE if evaluates else PUBLISHED}",
        argument_default=argparse.SUPPRESS,
    )
    _data_and_model(parser, "deeplabv3plus_mobilenet" if evaluates else "deeplabv3_resnet101")
    _training(parser, *((0, 16) if evaluates else (50, 32)))
    _increments(parser)
    own = parser.add_argument_group("options of segrow")
    own.add_argument("--out", help="the run's folder (default: checkpoints/MODEL_DATASET_TASK_SETTING)")
    own.add_argument(
        "--reference",
        action="store_true",
        help="do as that code where segrow corrects it (exemplar labels, padding, choice of weights)",
    )
    if evaluates:
        old = parser.add_argument_group("without effect")
        old.add_argument("--total_itrs", type=int, help="nothing is trained here")
        old.add_argument("--download", action="store_true", help="the data sets have to be there")
    return parser


def _data_and_model(parser: argparse.ArgumentParser, model: str) -> None:
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data_root",
        help="VOC2012 or ADEChallengeData2016, or a folder above it (default: /data/DB/VOC2012)",
    )
    data.add_argument("--dataset", choices=("voc", "ade"), help="default: voc")
    data.add_argument("--num_classes", type=int, help="without effect: follows from the task")
    network = parser.add_argument_group("network")
    network.add_argument("--model", choices=MODELS, help=f"default: {model}")
    network.add_argument(
        "--separable_conv", action="store_true", help="separable convolutions behind the backbone (only plus)"
    )
    network.add_argument("--output_stride", type=int, choices=(8, 16), help="default: 16")


def _training(parser: argparse.ArgumentParser, epochs: int, batch: int) -> None:
    train = parser.add_argument_group("training")
    flag = "store_true"
    train.add_argument("--amp", action=flag, help="mixed precision: fp16 on a GPU, bf16 on a CPU that has it")
    train.add_argument("--test_only", action=flag, help="evaluate what has been trained, train nothing")
    train.add_argument("--train_epoch", type=int, help=f"epochs of every step (default: {epochs})")
    train.add_argument("--curr_itrs", type=int, help="without effect: a stopped run goes on by itself")
    train.add_argument("--lr", type=float, help="rate of the increments; step 0 is fixed (default: 0.01)")
    train.add_argument("--lr_policy", choices=("poly", "step", "warm_poly"), help="default: warm_poly")
    train.add_argument("--step_size", type=int, help="updates between two cuts, policy step (default: 10000)")
    train.add_argument("--crop_val", action=flag, help="evaluate on centre crops instead of whole images")
    train.add_argument("--batch_size", type=int, help=f"over all GPUs (default: {batch})")
    train.add_argument("--val_batch_size", type=int, help="with --crop_val, else 1 (default: 4)")
    train.add_argument("--crop_size", type=int, help="pixels (default: 513)")
    train.add_argument(
        "--ckpt", help="the trained base step, or what to evaluate: a model, a run, or the reference's .pth"
    )
    train.add_argument("--loss_type", choices=("ce_loss", "focal_loss", "bce_loss"), help="default: bce_loss")
    train.add_argument("--gpu_id", help="numbers separated by commas, one process each (default: 0)")
    train.add_argument("--weight_decay", type=float, help="default: 1e-4")
    train.add_argument("--random_seed", type=int, help="default: 1")
    train.add_argument("--print_interval", type=int, help="updates between two log lines (default: 10)")
    train.add_argument("--val_interval", type=int, help="without effect: every step is evaluated at its end")


def _increments(parser: argparse.ArgumentParser) -> None:
    later = parser.add_argument_group("class-incremental learning")
    flag = "store_true"
    later.add_argument("--task", help="BASE-INCREMENT, an order of it (15-1_b), or offline (default: 15-1)")
    later.add_argument("--curr_step", type=int, help="the step to evaluate (default: the last there)")
    later.add_argument("--overlap", action=flag, help="setting overlap (default: disjoint)")
    later.add_argument("--mem_size", type=int, help="number of exemplars (default: 0)")
    later.add_argument("--freeze", action=flag, help="freeze trunk and old heads from step 1 on")
    later.add_argument("--bn_freeze", action=flag, help="freeze batch normalisation from step 1 on")
    later.add_argument("--w_transfer", action=flag, help="start a new head from the unknown head")
    later.add_argument("--unknown", action=flag, help="an unknown class beside background")
    later.add_argument("--pseudo", action=flag, help="label background with the old model's certain classes")
    later.add_argument("--pseudo_thresh", type=float, help="least score of a pseudo-label (default: 0.7)")
