"""`main.py` and `eval.py`: the command line of the SSUL reference code, run by segrow.

python main.py --data_root VOC2012 --task 15-1 --overlap --unknown --freeze --bn_freeze --pseudo --w_transfer
python eval.py --data_root VOC2012 --task 15-1 --overlap --unknown --model deeplabv3_resnet101
"""

import os
import re
import shlex
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..errors import UserError
from ..terminal import Terminal
from .seed_options import Seed, parse_seed
from .seed_translate import TYPED, Base, Place, folder, rates, remarks, translate


def main(argv: Sequence[str]) -> int:
    """main.py: translate, say how, train (or, with --test_only, evaluate what is there).

    Raises:
        UserError: For a mistake in the options, the data or the folder.
    """
    seed = parse_seed(argv, "main.py")
    check_root(seed)
    place = find_place(seed)
    if seed.test_only:
        from .seed_eval import run

        return run(seed, place)
    base = find_base(seed)
    words = translate(seed, place, base)
    from .options import parse_run

    options = parse_run(words, "train", "", "")
    from ..engine.run import train
    from ..engine.setup import is_first_process
    from ..protocol import summarise
    from ..report.tables import results_table
    from .pages import finish_page, write_page
    from .remarks import reference_lines
    from .remarks import remarks as notes
    from .seed_eval import report

    out = options.out or folder(seed)
    first = is_first_process()
    if first:
        _announce(seed, place, base, words)
        lines = [*rates(options.config, options.method), *reference_lines(options)]
        for line in lines:
            Terminal().say(line)
        take_over(seed, base, out)
    try:
        draw = partial(write_page, out, options.method) if options.report else None
        results = train(options.config, options.method, out, options.base, notes(options), draw)
    except UserError as error:
        if first:
            give_up(base, out)
        raise UserError(in_words_of(seed, str(error))) from None
    if first:
        console = Terminal()
        size = options.config.memory.size
        method = f"{options.method.name}, {size} exemplars" if size else options.method.name
        console.print(results_table([(method, summarise(results, "ssul"))]))
        console.print(report(results))
        if options.report:
            finish_page(out, options.method, console.say)
        console.say(f"run folder: {out}")
    return 0


def evaluate(argv: Sequence[str]) -> int:
    """eval.py: evaluate a step of what was trained.

    Raises:
        UserError: For a mistake in the options, or nothing to evaluate.
    """
    from .seed_eval import run

    seed = parse_seed(argv, "eval.py")
    check_root(seed)
    return run(seed, find_place(seed))


def check_root(seed: Seed) -> None:
    """A data folder that is not there is named as it was given.

    Raises:
        UserError: Where there is no folder.
    """
    if seed.segrow("--data.root") is None and not Path(seed.data_root).expanduser().is_dir():
        default = "" if "data_root" in seed.given else " (the default)"
        name = {"voc": "VOC2012", "ade": "ADEChallengeData2016"}[seed.dataset]
        raise UserError(f"--data_root {seed.data_root}{default} is not a folder; give the one of {name}")


def find_place(seed: Seed) -> Place:
    """Devices of `--gpu_id`; sets CUDA_VISIBLE_DEVICES as the reference code does.

    Without a GPU as many processes run on the CPU. No id, or -1, is the CPU, as CUDA reads them.

    Raises:
        UserError: For ids that are none, or of GPUs that are not there.
    """
    ids = [word.strip() for word in seed.gpu_id.split(",") if word.strip()]
    if ids in ([], ["-1"]):
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
        return Place("cpu", 1, "-1", f"--gpu_id {seed.gpu_id or repr('')}")
    wrong = [word for word in ids if not re.fullmatch(r"\d+|(GPU|MIG)-[\w/-]+", word)]
    if wrong or len(set(ids)) < len(ids):
        raise UserError(
            f"--gpu_id {seed.gpu_id}: expected different numbers of GPUs separated by commas, as 0,1; or -1"
        )
    visible = ",".join(ids)
    os.environ["CUDA_VISIBLE_DEVICES"] = visible
    import torch  # looks at the GPUs when it is first asked, so not before they have been chosen

    if seed.segrow("--train.device") == "cpu":
        return Place("cpu", len(ids), visible, "--train.device cpu")
    if not torch.cuda.is_available():
        return Place("cpu", len(ids), visible)
    if (there := torch.cuda.device_count()) < len(ids):
        raise UserError(
            f"--gpu_id {seed.gpu_id} names {len(ids)} GPUs, but only {there} of them are there; name fewer"
        )
    return Place("cuda", len(ids), visible)


def find_base(seed: Seed) -> Base | None:
    """What `--ckpt` stands for in training.

    Raises:
        UserError: When there is nothing, or `--base` says another.
    """
    if seed.ckpt is None:
        return None
    if other := seed.segrow("--base"):
        raise UserError(f"--ckpt {seed.ckpt} and --base {other} both name a base step; leave one of them out")
    from ..model.record import is_model  # which imports torch

    path = Path(seed.ckpt)
    if path.is_file():
        out = folder(seed)
        return Base(out.with_name(f"{out.name}_step_0"), path)
    if not path.exists() and not is_model(path):
        raise UserError(
            f"--ckpt {path} is not there; give the base step's model directory, a run folder, or the "
            "reference code's .pth, or leave it out to train the base step"
        )
    if not is_model(path) and not (path / "config.yaml").exists():
        raise UserError(f"--ckpt {path} is neither a model directory nor a run folder")
    return Base(path, None)


def take_over(seed: Seed, base: Base | None, out: Path) -> None:
    """Import the reference code's checkpoint of the base step, unless the run has begun with it.

    Raises:
        UserError: When it cannot be read, or does not fit.
    """
    if base is None or base.source is None or (out / "config.yaml").exists():
        return
    from .seed_eval import import_file

    import_file(seed, base.source, 0, base.folder)


def give_up(base: Base | None, out: Path) -> None:
    """Take the imported base step away when its run was refused before it began."""
    if base is not None and base.source is not None and not (out / "config.yaml").exists():
        shutil.rmtree(base.folder, ignore_errors=True)


def in_words_of(seed: Seed, line: str) -> str:
    """An error with the options that were typed: `--crop_size` for `--train.crop`, if that did not stand."""

    def typed(match: re.Match[str]) -> str:
        flag = match[0]
        return TYPED.get(flag, flag) if seed.segrow(flag) is None else flag

    return re.sub(r"--[a-z]\w*(?:\.\w+)?", typed, line)


def _announce(seed: Seed, place: Place, base: Base | None, words: Sequence[str]) -> None:
    """Remarks on stderr; where it runs and the equivalent commands on stdout."""
    for line in remarks(seed):
        Terminal(stderr=True).say(f"{seed.prog}: {line}")
    console = Terminal()
    console.say(f"{seed.prog}: {place.describe()}")
    if seed.amp:
        on_cpu = "--train.precision auto, since there is no fp16 training on a CPU"
        console.say(f"{seed.prog}: --amp is {'fp16' if place.device == 'cuda' else on_cpu}")
    console.say("the same with segrow:")
    if base is not None and base.source is not None:
        from .seed_eval import import_words

        console.say(shlex.join(["segrow", "import-ssul", *import_words(seed, base.source, 0, base.folder)]))
    visible = f"CUDA_VISIBLE_DEVICES={place.visible} " if place.device == "cuda" else ""
    console.say(visible + shlex.join(["segrow", "train", *words]))
