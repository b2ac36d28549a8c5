"""What a reader of a run's numbers should know: how it differs from the paper of its method."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..recipes import deviations, flatten, merge, published_settings, show
from .options import RunOptions


def remarks(options: RunOptions, expected: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """Sentences on a run: standing deviations, what --reference switched on, settings that differ.

    Args:
        expected: The settings that the run should have; default: those published for its method.
    """
    config, method = options.config, options.method
    data, task, memory = config.data.name, config.task, config.memory.size > 0
    found = list(deviations(method.name, data, task, memory))
    switched = [r for r in options.reference or () if r.otherwise and not differing(options, r.set)]
    found += [reference.says for reference in switched]
    if expected is None and (expected := published_settings(method.name, data, task)):
        expected = merge({"method": type(method)().fields()}, expected)
    wanted = expected or {}
    for reference in switched:
        wanted = merge(wanted, reference.set)
    if changed := differing(options, wanted):
        found.append(f"settings differ from the published ones: {', '.join(changed)}")
    return tuple(found)


def differing(options: RunOptions, expected: Mapping[str, Any]) -> list[str]:
    """`train.epochs 3 instead of 30` for every setting of a run that is not as expected."""
    here = dict(flatten(all_settings(options)))
    return [
        f"{key} {show(here[key])} instead of {show(value)}"
        for key, value in flatten(expected)
        if show(here[key]) != show(value)
    ]


def all_settings(options: RunOptions) -> dict[str, Any]:
    """Every option of a run, the method's with its name."""
    method = {"name": options.method.name, **options.method.fields()}
    return {**dataclasses.asdict(options.config), "method": method}


def reference_lines(options: RunOptions) -> list[str]:
    """What --reference switched on, a line an option; empty without it."""
    if options.reference is None:
        return []
    if not options.reference:
        return [f"--reference: nothing to switch on for method {options.method.name} here"]
    lines = []
    for reference in options.reference:
        flags = " ".join(f"--{key} {show(value)}" for key, value in flatten(reference.set))
        overruled = differing(options, reference.set)
        says = f"overruled: {', '.join(overruled)}" if overruled else reference.says
        lines.append(f"--reference: {flags}: {says}")
    return lines
