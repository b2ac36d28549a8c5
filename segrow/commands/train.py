"""`segrow train`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..protocol import summarise
from ..terminal import Terminal
from .options import RunOptions, parse_run
from .pages import finish_page, write_page
from .remarks import reference_lines, remarks

EXAMPLE = "segrow train --data.root VOCdevkit/VOC2012 --task 15-1 --method ssul --memory.size 100"
DESCRIPTION = (
    "Train a scenario step by step and evaluate after every step. "
    "The same command again continues where the last one stopped."
)


def main(argv: Sequence[str]) -> int:
    """Train, then print the table."""
    options = parse_run(argv, "train", DESCRIPTION, EXAMPLE)
    from ..engine.run import train
    from ..engine.setup import is_first_process
    from ..report.tables import results_table

    out = options.out or default_folder(options)
    console = Terminal()
    if is_first_process():
        for line in reference_lines(options):
            console.say(line)
    draw = partial(write_page, out, options.method) if options.report else None
    results = train(options.config, options.method, out, options.base, remarks(options), draw, options.strict)
    if not is_first_process():
        return 0
    if options.report:
        finish_page(out, options.method, console.say)
    console.print(results_table([(out.name, summarise(results, "ssul"))]))
    console.say(f"run folder: {out}")
    return 0


def default_folder(options: RunOptions) -> Path:
    """runs/DATA_TASK_SETTING_METHOD[-mSIZE]_SEED."""
    config, method = options.config, options.method
    memory = f"-m{config.memory.size}" if config.memory.size else ""
    return (
        Path("runs")
        / f"{config.data.name}_{config.task}_{config.setting}_{method.name}{memory}_{config.seed}"
    )
