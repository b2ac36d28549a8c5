"""Options of the commands that take a whole run: recipe, then --config, then flags."""

import argparse
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from ..config import RunConfig
from ..errors import UserError, near
from ..methods.base import Method, make_method, method_class, method_names

DEFAULT_METHOD = "ssul"
LISTS: dict[str, type] = {"--data.classes": str, "--model.rates": int, "--train.scale": float}


@dataclass(frozen=True)
class RunOptions:
    """What a command line asked for."""

    config: RunConfig
    method: Method
    out: Path | None
    base: Path | None


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that come with segrow."""
    folder = resources.files("segrow") / "recipes"
    return tuple(sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")))


def read_recipe(name: str) -> dict[str, Any]:
    """A recipe as plain values, without its `about`.

    Raises:
        UserError: When there is no such recipe.
    """
    if name not in recipe_names():
        known = ", ".join(recipe_names())
        raise UserError(f'no recipe "{name}"; there is {known}.{near(name, recipe_names())}')
    text = (resources.files("segrow") / "recipes" / f"{name}.yaml").read_text()
    values: dict[str, Any] = yaml.safe_load(text)
    values.pop("about", None)
    return values


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise UserError(f"cannot read --config {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UserError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"--config {path} should hold options by name, got {type(values).__name__}")
    values.pop("segrow", None)  # a run's own config.yaml can be given
    return values


def _merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def parse_run(argv: Sequence[str], command: str, description: str, example: str) -> RunOptions:
    """Recipe, then config file, then flags -> a run. `--help` exits with 0.

    Args:
        argv: Options behind the command.
        command: Name of the command, for `--help`.
        description: What it does.
        example: A line one can copy.

    Raises:
        UserError: For everything that does not fit, in one line.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in ("--recipe", "--config", "--method"):
        first.add_argument(flag)
    try:
        early, rest = first.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None
    values = read_recipe(early.recipe) if early.recipe else {}
    if early.config:
        values = _merge(values, _read_yaml(early.config))
    stored = values.pop("method", {})
    if not isinstance(stored, Mapping):
        stored = {"name": stored}
    name = early.method or stored.get("name") or DEFAULT_METHOD
    # hyper-parameters of another method than the one asked for mean nothing
    fields = {k: v for k, v in stored.items() if k != "name"} if stored.get("name", name) == name else {}
    _check_method_options(name, [*(f"--method.{key}" for key in fields), *rest])
    parser = _parser(name, f"{description}\n\nExample: {example}", command)
    # by their whole names: `method` itself would take the mapping as it is, unchecked
    values |= {f"method.{key}": value for key, value in fields.items()}
    if values:
        rest = ["--config", json.dumps(values), *rest]
    printing = any(arg.split("=")[0] == "--print_config" for arg in rest)
    parsed = _parse(parser, [arg for arg in rest if arg.split("=")[0] != "--print_config"])
    chosen = parsed.get("method")
    method = make_method(name, vars(chosen) if isinstance(chosen, Namespace) else {})
    config = RunConfig(**{f.name: parsed[f.name] for f in dataclasses.fields(RunConfig)})
    base = Path(parsed.base) if parsed.base else None
    if printing:  # the parser's own would leave out the method's name
        from ..engine.setup import configuration

        print(yaml.safe_dump(configuration(config, method, base), sort_keys=False), end="")
        raise SystemExit(0)
    return RunOptions(config, method, Path(parsed.out) if parsed.out else None, base)


def option_names(method: str) -> tuple[str, ...]:
    """Every option of `segrow train` with that method."""
    actions = _parser(method, "", "train")._actions
    return tuple(option for action in actions for option in action.option_strings)


def _check_method_options(name: str, args: Sequence[str]) -> None:
    """The parser below would take any `--method.WORD` for a part of `--method` and drop it."""
    known = [f"--method.{f.name}" for f in dataclasses.fields(method_class(name))]  # type: ignore[arg-type]
    for arg in args:
        flag = arg.partition("=")[0]
        if flag.startswith("--method.") and flag not in known:
            raise UserError(f"no option {flag}; method {name} has {', '.join(known)}.{near(flag, known)}")


def _parser(method: str, description: str, command: str) -> ArgumentParser:
    kind = method_class(method)
    parser = ArgumentParser(prog=f"segrow {command}", description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file of options, such as a run's config.yaml")
    parser.add_argument("--recipe", help=f"options of an experiment: {', '.join(recipe_names())}")
    parser.add_argument("--method", help=f"{', '.join(method_names())}, or package.module (default: ssul)")
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
    except ArgumentError as error:
        line = " ".join(str(error).split())
        group = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", line)
        unknown = re.search(r"(?:unrecognized arguments: |Option ')(?:--)?([\w.]+)", line)
        if group or unknown:
            name = f"{group[1]}.{group[2]}" if group else unknown[1] if unknown else ""
            names = [option for action in parser._actions for option in action.option_strings]
            raise UserError(f"{line.rstrip('.')}.{near('--' + name, names)}") from None
        options = re.search(r"Literal\[(.*?)\]. Got value: (\S+)", line)
        hint = near(options[2], re.findall(r"'(.*?)'", options[1])) if options else ""
        raise UserError(f"{line}.{hint}") from None


def _bracket(argv: Sequence[str]) -> list[str]:
    """`--data.classes cat,dog` -> `["cat", "dog"]`, which the parser wants for lists."""
    args: list[str] = []
    for arg in argv:
        flag, equals, value = arg.partition("=")
        if flag in LISTS and equals:
            arg = f"{flag}={_as_list(value, LISTS[flag])}"
        elif args and args[-1] in LISTS:
            arg = _as_list(arg, LISTS[args[-1]])
        args.append(arg)
    return args


def _as_list(value: str, kind: type) -> str:
    if value.startswith("["):
        return value
    items = [item.strip() for item in value.split(",")]
    try:
        return json.dumps([kind(item) for item in items])
    except ValueError:
        raise UserError(f"expected {kind.__name__}s separated by commas, got {value}") from None
