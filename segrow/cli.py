"""The command line. Each command imports what it needs only when it runs, so that help is instant.

segrow demo
segrow train --data.name voc --data.root VOCdevkit/VOC2012 --task 15-1 --method ssul
segrow results runs/*
"""

import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from . import __version__
from .errors import LeakError, NonFiniteLossError, UserError, near, shown
from .outputs import drop_refused, named_outputs
from .processes import before_torch
from .resources import (
    LOST,
    NO_ROOM,
    TOO_MANY_FILES,
    error_number,
    lacks_memory,
    lost_process,
    without_memory,
)
from .stops import Stopped, stoppable

USAGE = """\
segrow: grow a semantic segmentation model class by class, without forgetting.

usage: segrow COMMAND [options]

  demo          learn handwritten digits in steps on the embedded data: a table, pictures, a page
  train         train a scenario step by step; the same command again continues
  scenario      which classes and images each step of a task has
  results       mIoU of old, new and all classes after every step of one or more runs
  report        one self-contained page about one or more runs: curves, confusion, pictures, cost
  eval          evaluate a model on a data set
  predict       label maps and overlays for images
  add           one more step on your own images; the model is replaced only if it has not forgotten
  lineage       the versions of a model
  rollback      an earlier version becomes the model again
  rename-class  give a class of a model another name
  remove-class  take a class out of a model
  data          check a data folder: all that is wrong, what it holds; or make its saliency maps
  recipes       every cell of the published tables with its mIoU, and measured experiments
  reproduce     train a recipe of the tables; measured beside published
  methods       the methods: paper, exchangeable parts, hyper-parameters
  import-ssul   a checkpoint of the SSUL reference code as a model directory

segrow COMMAND --help says more. Example:
  segrow train --data.root VOCdevkit/VOC2012 --task 15-1 --method ssul --out runs/first
"""


def _train(argv: Sequence[str]) -> int:
    from .commands.train import main as command

    return command(argv)


def _demo(argv: Sequence[str]) -> int:
    from .commands.demo import main as command

    return command(argv)


def _scenario(argv: Sequence[str]) -> int:
    from .commands.scenario import main as command

    return command(argv)


def _results(argv: Sequence[str]) -> int:
    from .commands.results import main as command

    return command(argv)


def _report(argv: Sequence[str]) -> int:
    from .commands.report import main as command

    return command(argv)


def _eval(argv: Sequence[str]) -> int:
    from .commands.eval import main as command

    return command(argv)


def _predict(argv: Sequence[str]) -> int:
    from .commands.predict import main as command

    return command(argv)


def _add(argv: Sequence[str]) -> int:
    from .commands.add import main as command

    return command(argv)


def _lineage(argv: Sequence[str]) -> int:
    from .commands.lineage import lineage as command

    return command(argv)


def _rollback(argv: Sequence[str]) -> int:
    from .commands.lineage import roll_back as command

    return command(argv)


def _rename_class(argv: Sequence[str]) -> int:
    from .commands.lineage import rename as command

    return command(argv)


def _remove_class(argv: Sequence[str]) -> int:
    from .commands.lineage import remove as command

    return command(argv)


def _data(argv: Sequence[str]) -> int:
    from .commands.data import main as command

    return command(argv)


def _import_ssul(argv: Sequence[str]) -> int:
    from .commands.import_ssul import main as command

    return command(argv)


def _recipes(argv: Sequence[str]) -> int:
    from .commands.recipes import main as command

    return command(argv)


def _reproduce(argv: Sequence[str]) -> int:
    from .commands.reproduce import main as command

    return command(argv)


def _methods(argv: Sequence[str]) -> int:
    from .commands.methods import main as command

    return command(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "demo": _demo,
    "train": _train,
    "scenario": _scenario,
    "results": _results,
    "report": _report,
    "eval": _eval,
    "predict": _predict,
    "add": _add,
    "lineage": _lineage,
    "rollback": _rollback,
    "rename-class": _rename_class,
    "remove-class": _remove_class,
    "data": _data,
    "recipes": _recipes,
    "reproduce": _reproduce,
    "methods": _methods,
    "import-ssul": _import_ssul,
}
RESUMABLE = frozenset({"demo", "train", "add", "reproduce"})
"""Commands that, given again, continue where they were stopped."""

LONGEST = 4000
"""Most characters of an error's line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0, 1 (the run failed), 2 (a mistake the user can mend) or 3 (add rejected the model).
    """
    args = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    return guarded(lambda: _dispatch(args), resumable=args[0] in RESUMABLE)


def _dispatch(args: Sequence[str]) -> int:
    check_typed(args)
    if args[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if args[0] == "--version":
        print(f"segrow {__version__}")
        return 0
    command = COMMANDS.get(args[0])
    if command is None:
        raise UserError(f'no command "{args[0]}"; there is {", ".join(COMMANDS)}.{near(args[0], COMMANDS)}')
    return command(args[1:])


def check_typed(args: Iterable[str]) -> None:
    """What was typed can be written into a run's files and read again.

    Raises:
        UserError: Naming the first that cannot: bytes that are no text, or a NUL.
    """
    for text in args:
        if "\0" in text:
            raise UserError(f"{text} holds a NUL, expected a name without; take it out")
        if any("\ud800" <= character <= "\udfff" for character in text):
            encoding = sys.getfilesystemencoding().upper()
            raise UserError(
                f"{text} is not {encoding}, expected text; rename the file or folder"
                + ("" if sys.flags.utf8_mode else ", or set PYTHONUTF8=1 if it is UTF-8")
            )


def guarded(command: Callable[[], int], name: str = "segrow", resumable: bool = False) -> int:
    """Run something; an error of the user, the run or the system becomes a line on stderr and an exit code.

    Args:
        command: Gives an exit code.
        name: Begins the line.
        resumable: The command, given again, continues where it was stopped.
    """
    before_torch()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot write, as stderr
    warnings.formatwarning = _one_line
    again = "; the same command then continues" if resumable else "; then give the command again"
    try:
        with stoppable(), _quiet_threads(), named_outputs():
            return _ended(command)
    except UserError as error:
        _complain(name, str(error), error)
        return 2
    except LeakError as error:
        _complain(name, f"label leak: {error}", error)
        return 1
    except NonFiniteLossError as error:
        more = "; with it the same command continues after the last good epoch" if resumable else ""
        _complain(name, f"{error}; use a smaller learning rate, or --train.precision 32{more}", error)
        return 1
    except (OSError, MemoryError, RuntimeError) as error:
        line, code = _of_the_machine(error, again)
        if not line:
            raise
        _complain(name, line, error)
        return code
    except KeyboardInterrupt as stop:
        left = "; the same command continues from the last finished epoch" if resumable else ""
        by = (
            f" by {signal.Signals(stop.number).name}"
            if isinstance(stop, Stopped) and stop.code != 130
            else ""
        )
        _complain(name, f"stopped{by}{left}", stop)
        return stop.code if isinstance(stop, Stopped) else 130


def _ended(command: Callable[[], int]) -> int:
    try:
        return command()
    except SystemExit as stop:  # argparse, after --help
        return stop.code if isinstance(stop.code, int) else 0


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Within, TensorBoard's thread prints no traceback where it cannot write: its next call here says so."""
    show = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        from_tensorboard = type(failed.thread).__module__.startswith("tensorboard.")
        if not (from_tensorboard and isinstance(failed.exc_value, OSError)):
            show(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = show


def _of_the_machine(error: OSError | MemoryError | RuntimeError, again: str) -> tuple[str, int]:
    """The line and the exit code of what the machine refused; no line for what is a mistake of the program.

    Args:
        again: What can be done when the cause is gone.
    """
    if lost_process(error):
        return LOST, 1
    if lacks_memory(error):
        much = "smaller images, fewer of them at a time, or a machine with more memory, would do"
        return f"{without_memory(error)}: {much}", 2
    if not isinstance(error, OSError):
        return "", 1
    what = " and ".join(str(part) for part in (error.filename, error.filename2) if part is not None)
    said = str(error).strip().splitlines() or [
        type(error).__name__
    ]  # from a loader process: with a traceback
    reason = f"{what or 'the system says'}: {error.strerror or said[-1]}"
    number = error_number(error)
    if number in NO_ROOM:
        return f"{reason}; what was written before is whole; make room{again}", 2
    if number in TOO_MANY_FILES:
        return f"{reason}; allow more (ulimit -n 4096), or use fewer workers{again}", 2
    return f"{reason}; mend that and try again", 2


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as Python prints it, without the line of code that gave it."""
    return f"warning: {shown(str(message))}\n"


def _complain(name: str, text: str, error: BaseException) -> None:
    """One line on stderr, whatever names stand in it; of several processes that end together one says it."""
    if not {"WORLD_SIZE", "SLURM_NTASKS"}.isdisjoint(os.environ):
        from .engine.group import speaks

        if not speaks(error):
            return
    if len(text) > LONGEST:  # of a name as long as a file: how it begins, and what to do
        text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    with suppress(OSError):  # a full disk behind it too: the exit code says it
        print(f"{name}: {shown(text)}", file=sys.stderr)


def seed_main(argv: Sequence[str] | None = None) -> int:
    """main.py: the reference code's training; exit codes as `main`."""

    def command() -> int:
        from .commands.seed import main

        args = sys.argv[1:] if argv is None else argv
        check_typed(args)
        return main(args)

    return guarded(command, "main.py", resumable=True)


def seed_eval(argv: Sequence[str] | None = None) -> int:
    """eval.py: the reference code's evaluation; exit codes as `main`."""

    def command() -> int:
        from .commands.seed import evaluate

        args = sys.argv[1:] if argv is None else argv
        check_typed(args)
        return evaluate(args)

    return guarded(command, "eval.py")


def entry(program: Callable[[], int] = main) -> None:
    """Run a program and end this process."""
    code = program()
    drop_refused()
    sys.exit(code)
