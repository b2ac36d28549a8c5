"""What a section of the benchmark hands back, and how it is printed, written and guarded."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

GUARD = Path(__file__).with_name("guard.json")


@dataclass(frozen=True)
class Options:
    """What every section gets.

    Attributes:
        root: A folder of VOC 2012; None = embedded data.
        work: An empty folder for files, removed afterwards.
        out: Folder of the JSON file; plots go there too.
        full: The long form; else all sections together stay under 10 minutes on 2 cores.
        seed: Of everything random.
        rounds: How often each variant is measured; 0 = as often as the form has it.
        base: A run of animals-4-1-ssul whose base step `quality` shares; None = it is trained.
        weights: Of the backbone where a section trains on real photographs (`--model.weights`).
        compare: Whether `quality` also trains with other numbers of views and by the reference loop.
        say: Gets a line of progress.
        device: Where increments and the base step are measured.
    """

    root: Path | None
    work: Path
    out: Path
    full: bool = False
    seed: int = 1
    rounds: int = 0
    base: Path | None = None
    weights: str = "timm"
    compare: bool = False
    say: Callable[[str], None] = print
    device: Literal["cpu", "cuda"] = "cpu"

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU: there both sides train in mixed precision."""
        return self.device == "cuda"


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        key: "section.what.variant", as the guard names it.
        measure: What is measured.
        variant: Which of ours.
        reference: The reference's figure (or what else ours is held against); None = there is none.
        ours: Our figure.
        unit: Of both: "s", "images/s", "MiB", "%".
        ratio: What is judged: the gain, or what `of` says.
        target: What `ratio` should reach; None = no target.
        direction: Whether the ratio should be at least or at most the target.
        of: Unit of `ratio`: "x", or "" for an exponent, "points" for a difference.
        note: How it was measured, where the reader must know.
    """

    key: str
    measure: str
    variant: str
    reference: float | None
    ours: float
    unit: str
    ratio: float | None
    target: float | None = None
    direction: Literal["at least", "at most"] = "at least"
    of: str = "x"
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None or self.ratio is None:
            return None
        return self.ratio >= self.target if self.direction == "at least" else self.ratio <= self.target


def less(
    key: str,
    measure: str,
    variant: str,
    reference: float,
    ours: float,
    unit: str,
    target: float | None = None,
    note: str = "",
) -> Row:
    """A row of something that should be small (seconds, bytes): ratio = reference / ours."""
    return Row(key, measure, variant, reference, ours, unit, reference / ours, target, note=note)


def more(
    key: str,
    measure: str,
    variant: str,
    reference: float,
    ours: float,
    unit: str,
    target: float | None = None,
    note: str = "",
) -> Row:
    """A row of something that should be large (images a second): ratio = ours / reference."""
    return Row(key, measure, variant, reference, ours, unit, ours / reference, target, note=note)


def table(rows: Sequence[Row], title: str) -> Table:
    """All rows, one section under the other."""
    out = Table(title=title, title_justify="left")
    for name, side in (("measure", "left"), ("reference", "right"), ("ours", "left"), ("value", "right")):
        out.add_column(name, justify=side)  # type: ignore[arg-type]
    for name in ("ratio", "target", "met"):
        out.add_column(name, justify="right")
    before = ""
    for row in rows:
        section = row.key.partition(".")[0]
        if before and section != before:
            out.add_section()
        before = section
        sign = {"at least": "≥", "at most": "≤"}[row.direction]
        out.add_row(
            row.measure,
            "" if row.reference is None else _figure(row.reference, row.unit),
            row.variant,
            _figure(row.ours, row.unit),
            "" if row.ratio is None else _ratio(row.ratio, row.of),
            "" if row.target is None else f"{sign} {_ratio(row.target, row.of)}",
            {True: "yes", False: "[bold]no[/bold]", None: ""}[row.met],
        )
    return out


def notes(rows: Sequence[Row]) -> list[str]:
    """What must be known to read the rows, each once."""
    return list(dict.fromkeys(row.note for row in rows if row.note))


def _figure(value: float, unit: str) -> str:
    return f"{_digits(value)} {unit}".rstrip()


def _ratio(value: float, of: str) -> str:
    return f"{_digits(value)}{of}" if of in ("x", "%") else f"{_digits(value)} {of}".rstrip()


def _digits(value: float) -> str:
    """Three significant digits; of large numbers no fraction, of shares near 100 % all that matters."""
    if abs(value) >= 99.9 and abs(value) <= 100 and value != 100:
        return f"{value:.4f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def write(path: Path, rows: Sequence[Row], about: Mapping[str, Any]) -> None:
    """The rows and what they were measured on, as JSON."""
    content = {**about, "rows": [{**asdict(row), "met": row.met} for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    unfinished.rename(path)


def guard(
    rows: Sequence[Row], sections: Sequence[str], floors: Mapping[str, Any], has_bf16: bool
) -> list[str]:
    """What fell: a line for each ratio that is worse than its floor allows, or was not measured.

    Args:
        rows: What was measured.
        sections: Sections that ran; floors of others are not looked at.
        floors: key -> {"ratio": R, "tolerance": T}: the least a ratio may be is R (1 - T); for rows whose
            direction is "at most" the most is R (1 + T).
        has_bf16: Whether the machine computes in bfloat16; floors whose key says bf16 are left out if not.
    """
    found = {row.key: row for row in rows}
    lines = []
    for key, floor in floors.items():
        if key.partition(".")[0] not in sections or ("bf16" in key and not has_bf16):
            continue
        row = found.get(key)
        if row is None or row.ratio is None:
            lines.append(f"guard: {key} was not measured; mend the section or benchmarks/guard.json")
            continue
        least = row.direction == "at least"
        bound = floor["ratio"] * (1 - floor["tolerance"] if least else 1 + floor["tolerance"])
        if (row.ratio < bound) if least else (row.ratio > bound):
            word = "below its floor" if least else "above its ceiling"
            lines.append(f"guard: {key} is {_ratio(row.ratio, row.of)}, {word} {_ratio(bound, row.of)}")
    return lines


def show(rows: Sequence[Row], console: Console, title: str = "segrow beside the reference loop") -> None:
    """Print the table and its notes."""
    console.print(table(rows, title))
    for line in notes(rows):
        console.print(f"- {line}", highlight=False)


def read_guard(path: Path) -> dict[str, Any]:
    """Floors by key."""
    content: dict[str, Any] = json.loads(path.read_text())
    floors: dict[str, Any] = content["floors"]
    return floors
