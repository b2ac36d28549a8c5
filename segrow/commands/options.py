"""Options of the commands that take a whole run.

From weak to strong: what was published for the method on the data set, recipe, --config, --reference, flags.
"""

import argparse
import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from ..class_lists import split_names
from ..config import RunConfig
from ..errors import UserError, near
from ..methods.base import Method, make_method, method_class, method_names
from ..recipes import Reference, merge, published_settings, read_recipe, references
from .config_file import read_config_file

DEFAULT_METHOD = "ssul"
QUICK_HELP = "the same code path shortened; composes tiny data without --data.root; not comparable, no page"
REFERENCE_HELP = "follow the method's released code where it differs (segrow recipes NAME says in what)"
CODE_HELP = "import a method from outside segrow that the file of --config names"
REPORT_HELP = "write report.html into the run's folder after each step"
STRICT_HELP = "stop where an image is in training and validation, or in training twice; else a line says so"
LISTS: dict[str, type] = {
    "--data.classes": str,
    "--data.ignore": str,
    "--model.rates": int,
    "--train.scale": float,
}


@dataclass(frozen=True)
class RunOptions:
    """What a command line asked for.

    Attributes:
        reference: What --reference switched on, None without it.
        report: Write the page about the run after each step.
        strict: Refuse data in which images are in training and validation, or in training twice.
    """

    config: RunConfig
    method: Method
    out: Path | None
    base: Path | None
    reference: tuple[Reference, ...] | None = None
    report: bool = True
    strict: bool = False


def parse_run(
    argv: Sequence[str],
    command: str,
    description: str,
    example: str,
    recipe: str | None = None,
    shorten: Mapping[str, Any] | None = None,
) -> RunOptions:
    """Published settings, then recipe, config file and flags -> a run. `--help` exits with 0.

    Args:
        argv: Options behind the command.
        command: Name of the command, for `--help`.
        description: What it does.
        example: A line one can copy.
        recipe: The recipe that the command is about; None where `--recipe` and `--method` may choose.
        shorten: Options that stand above the recipe's and below the user's.

    Raises:
        UserError: For everything that does not fit, in one line.
    """
    early, rest = _read_early(argv, choose=recipe is None)
    named = recipe or early.recipe
    low = merge(read_recipe(named) if named else {}, shorten or {})
    high = read_config_file(Path(early.config)) if early.config else {}
    values, name, fields = _join(low, high, early.method)
    if "." in name and name != early.method and not early.allow_code:
        raise UserError(
            f"--config {early.config} names a method that is code outside segrow ({name}); give --allow_code "
            f"or --method {name}, if it is to be run"
        )
    _check_method_options(name, [*(f"--method.{key}" for key in fields), *rest])
    printing = any(arg.split("=")[0] == "--print_config" for arg in rest)
    rest = [arg for arg in rest if arg.split("=")[0] != "--print_config"]
    parser = _parser(name, f"{description}\n\nExample: {example}", command)
    # once without what was published, to learn of which data set, task and memory it is wanted
    draft, _, _ = _build(parser, name, values, rest)
    if low.get("train", {}).get("precision") == "16" and not _on_gpu(draft):
        # float16 trains on a GPU only; whoever asks for it in a file or by a flag is told so by the engine
        values, _, _ = _join(merge(low, {"train": {"precision": "auto"}}), high, early.method)
    values = merge(published_settings(name, draft.data.name, draft.task), values)
    chosen = None
    if early.reference:
        chosen = references(name, draft.data.name, draft.task, draft.memory.size > 0)
    for reference in chosen or ():
        values = merge(values, reference.set)
    config, method, parsed = _build(parser, name, values, rest)
    base = Path(parsed.base) if parsed.base else None
    if printing:  # the parser's own would leave out the method's name
        from ..engine.folder import configuration

        print(yaml.safe_dump(configuration(config, method, base), sort_keys=False), end="")
        raise SystemExit(0)
    out = Path(parsed.out) if parsed.out else None
    return RunOptions(config, method, out, base, chosen, bool(parsed.get("report", True)), parsed.strict)


def _read_early(argv: Sequence[str], choose: bool) -> tuple[argparse.Namespace, list[str]]:
    """What decides which other options there are, and the rest of the words."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in ("--config", "--recipe", "--method") if choose else ("--config",):
        first.add_argument(flag)
    first.add_argument("--reference", action="store_true")
    first.add_argument("--allow_code", action="store_true")
    first.set_defaults(recipe=None, method=None)
    try:
        return first.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None


def _join(
    low: Mapping[str, Any], high: Mapping[str, Any], asked: str | None
) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Two layers as one: options of the run, the method's name, and the method's options (in the first, too).

    Args:
        asked: The method of `--method`.
    """
    below, above = _stored_method(low), _stored_method(high)
    name = asked or above.get("name") or below.get("name") or DEFAULT_METHOD
    # hyper-parameters of another method than the one chosen mean nothing
    fields: dict[str, Any] = {}
    for stored in (below, above):
        if stored.get("name", name) == name:
            fields |= {key: value for key, value in stored.items() if key != "name"}
    return {**merge(low, high), "method": fields}, name, fields


def _stored_method(values: Mapping[str, Any]) -> Mapping[str, Any]:
    stored = values.get("method", {})
    return stored if isinstance(stored, Mapping) else {"name": stored}


def _build(
    parser: ArgumentParser, name: str, values: Mapping[str, Any], flags: Sequence[str]
) -> tuple[RunConfig, Method, Namespace]:
    """The run of these options with the flags on top."""
    # a method's by their whole names: `method` itself would take the mapping as it is, unchecked
    flat = {key: value for key, value in values.items() if key != "method"}
    flat |= {f"method.{key}": value for key, value in values.get("method", {}).items()}
    parsed = _parse(parser, ["--config", json.dumps(flat), *flags] if flat else flags)
    chosen = parsed.get("method")
    method = make_method(name, vars(chosen) if isinstance(chosen, Namespace) else {})
    return RunConfig(**{f.name: parsed[f.name] for f in dataclasses.fields(RunConfig)}), method, parsed


def _on_gpu(config: RunConfig) -> bool:
    return config.train.device == "cuda" or (config.train.device == "auto" and torch.cuda.is_available())


def option_names(method: str) -> tuple[str, ...]:
    """Every option of `segrow train` with that method."""
    actions = _parser(method, "", "train")._actions
    return tuple(option for action in actions for option in action.option_strings)


def option_help(method: str) -> dict[str, str]:
    """What every option of `segrow train` with that method does, by its name without dashes."""
    actions = _parser(method, "", "train")._actions
    return {a.dest: " ".join(str(a.help or "").split()) for a in actions if a.option_strings}


def _check_method_options(name: str, args: Sequence[str]) -> None:
    """The parser below would take any `--method.WORD` for a part of `--method` and drop it."""
    known = [f"--method.{f.name}" for f in dataclasses.fields(method_class(name))]  # type: ignore[arg-type]
    for arg in args:
        flag = arg.partition("=")[0]
        if flag.startswith("--method.") and flag not in known:
            raise UserError(f"no option {flag}; method {name} has {', '.join(known)}.{near(flag, known)}")


def _parser(method: str, description: str, command: str) -> ArgumentParser:
    return _parser_of(method_class(method), description, command)


@functools.lru_cache(maxsize=16)  # by the class: a module of the user's may be another one next time
def _parser_of(kind: type[Method], description: str, command: str) -> ArgumentParser:
    prog = f"segrow {command}{' NAME' if command == 'reproduce' else ''}"
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file of options, such as a run's config.yaml")
    if command == "train":
        parser.add_argument("--recipe", help="options of an experiment (segrow recipes lists them)")
        names = f"{', '.join(method_names())}, or package.module"
        parser.add_argument("--method", help=f"{names} (default: {DEFAULT_METHOD}; segrow methods)")
    if command == "reproduce":
        parser.add_argument("--quick", action="store_true", help=QUICK_HELP)
        parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--reference", action="store_true", help=REFERENCE_HELP)
    parser.add_argument("--allow_code", action="store_true", help=CODE_HELP)
    parser.add_argument("--strict", action="store_true", help=STRICT_HELP)
    parser.add_argument("--report", type=bool, default=True, help=REPORT_HELP)
    parser.add_argument("--out", type=str | None, default=None, help="the run's folder")
    parser.add_argument(
        "--base", type=str | None, default=None, help="share the base step of this run or model"
    )
    parser.add_class_arguments(RunConfig)
    if dataclasses.fields(kind):  # type: ignore[arg-type]
        # not as a group: --method itself is the name, read before this parser is built
        parser.add_class_arguments(kind, "method", as_group=False)
    return parser


def _parse(parser: ArgumentParser, argv: Sequence[str]) -> Namespace:
    try:
        built: Namespace = parser.instantiate(parser.parse_args(_bracket(argv)))
        return built
    except TypeError as error:  # the parser's own, where a group of options is no mapping
        reason = _shortened(" ".join(str(error).split()))
        raise UserError(f"the options make no run ({reason}); segrow train --help lists them") from None
    except ArgumentError as error:
        line = _shortened(" ".join(str(error).split()))
        group = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", line)
        unknown = re.search(r"(?:unrecognized arguments: |Option ')(?:--)?([\w.]+)", line)
        if group or unknown:
            name = f"{group[1]}.{group[2]}" if group else unknown[1] if unknown else ""
            names = [option for action in parser._actions for option in action.option_strings]
            raise UserError(f"{line.rstrip('.')}.{near('--' + name, names)}") from None
        raise UserError(_plain(line) or f"{line}.") from None


_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "NoneType": "null",
}


def _plain(line: str) -> str:
    """What the parser says of a value of another type, in our words: what was got and what is expected."""
    key = re.match(r'Parser key "([\w.]+)": ', line)
    value = re.search(r"(?:Got value|Given value): (.*?)\.?$", line)
    if key is None or value is None:
        return ""
    kinds = dict.fromkeys(re.findall(r"Expected a (.*?)(?=\. Got value| - Expected| Given value|$)", line))
    said, choices = [], []
    for kind in kinds:
        if named := re.fullmatch(r"<class '(\w+)'>", kind):
            said.append(_WORDS.get(named[1], named[1]))
        elif literal := re.search(r"Literal\[(.*?)\]", kind):
            choices += re.findall(r"'(.*?)'", literal[1])
            said += choices
        else:
            return ""
    expected = said[0] if len(said) == 1 else f"{', '.join(said[:-1])} or {said[-1]}"
    return f"--{key[1]} is {value[1]}, expected {expected}.{near(value[1], choices)}" if said else ""


def _shortened(line: str) -> str:
    """Without the middle of what nobody reads to the end, such as a list of a thousand values."""
    return line if len(line) <= 600 else f"{line[:400]} ... {line[-100:]}"


def _bracket(argv: Sequence[str]) -> list[str]:
    """`--data.classes cat,dog` -> `["cat", "dog"]`, which the parser wants for lists."""
    args: list[str] = []
    for arg in argv:
        flag, equals, value = arg.partition("=")
        if flag in LISTS and equals:
            arg = f"{flag}={_as_list(flag, value)}"
        elif args and args[-1] in LISTS:
            arg = _as_list(args[-1], arg)
        args.append(arg)
    return args


def _as_list(flag: str, value: str) -> str:
    kind = LISTS[flag]
    if kind is str:
        return json.dumps(split_names(value, flag))
    if value.startswith("["):
        return value
    items = [item.strip() for item in value.split(",")]
    try:
        return json.dumps([kind(item) for item in items])
    except ValueError:
        raise UserError(f"expected {kind.__name__}s separated by commas, got {value}") from None
