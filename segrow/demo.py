"""The demo: finetune, ssul and joint on the embedded digits, a table, pictures, a page, and floors.

The three share trunk, head form, schedule and epochs; only the method's own fields differ. The floors say
what must be seen for the demo to mean anything; a run that misses one fails.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .config import DataConfig, ModelConfig, RunConfig, RunPaths, TrainConfig
from .data import open_dataset
from .engine.folder import read_results
from .engine.left import TimeLeft, Work, pieces
from .engine.run import train
from .engine.setup import prepare
from .methods.base import make_method
from .predict import Predictor
from .protocol import Summary, summarise
from .report.demo_page import write_page
from .report.figures import Example, curves, qualitative
from .scenario import build_scenario
from .stored import load_with_method

DEFINITION = "foreground"


@dataclass(frozen=True)
class DemoSize:
    """How much the demo does.

    Attributes:
        scenes: Training scenes.
        base_epochs: Epochs of the base step, and of joint.
        epochs: Epochs of every increment.
    """

    scenes: int
    base_epochs: int
    epochs: int


SIZE = DemoSize(scenes=800, base_epochs=10, epochs=6)


@dataclass(frozen=True)
class Floor:
    """One thing that the demo must show, and whether it did."""

    passed: bool
    text: str


@dataclass(frozen=True)
class Demo:
    """What a demo produced.

    Attributes:
        results: results.json of each method.
        summaries: The same, counted by DEFINITION.
        floors: What the demo must show.
        page: The HTML page.
    """

    results: dict[str, dict[str, Any]]
    summaries: list[tuple[str, Summary]]
    floors: list[Floor]
    page: Path


def demo_config(size: DemoSize, seed: int, task: str) -> RunConfig:
    """The options that the three runs share."""
    return RunConfig(
        task=task,
        seed=seed,
        data=DataConfig(name="digits", scenes=size.scenes),
        # a small residual trunk from scratch: nothing to download, little to compute
        model=ModelConfig(
            name="deeplabv3_test_resnet",
            weights="none",
            output_stride=8,
            width=64,
            rates=(2, 4),
            norm_momentum=0.1,
        ),
        train=TrainConfig(
            epochs=size.epochs,
            step0_epochs=size.base_epochs,
            # many small updates: the trunk starts from nothing (twice its rate learns less with some seeds in
            # bf16), and the new heads take five times the rate, which saves epochs
            batch_size=8,
            lr=0.5,
            backbone_lr=0.1,
            step0_lr=0.1,
            step0_backbone_lr=0.1,
            crop=96,
            scale=(0.8, 1.25),
            flip=0.0,  # a mirrored digit is none
            feature_views=0,  # the three methods see the same views
            workers=1,
        ),
    )


TASK = "4-1"


def run_demo(out: Path, seed: int, size: DemoSize, command: str, say: Callable[[str], None]) -> Demo:
    """Train (or continue) the three runs, draw, and check the floors.

    Args:
        out: Folder for the runs, the pictures and the page.
        seed: Of all three runs.
        size: How much they train; SIZE is what the floors are made for.
        command: What makes the page again, for its last line.
        say: Gets a heading for each run.
    """
    config, offline = demo_config(size, seed, TASK), demo_config(size, seed, "offline")
    configs = {"ssul": config, "finetune": config, "joint": offline}
    results: dict[str, dict[str, Any]] = {}
    left = TimeLeft("the demo")
    for k, (name, chosen) in enumerate(configs.items()):
        say(f"{name}:")
        left.later = [work for later in list(configs)[k + 1 :] for work in _work(configs[later], later, out)]
        base = out / "ssul" if name == "finetune" else None
        results[name] = train(chosen, make_method(name, {}), out / name, base, left=left)
    order = ("finetune", "ssul", "joint")
    summaries = [(name, summarise(results[name], DEFINITION)) for name in order]
    figures = _draw(out, results, summaries, config)
    page = out / "index.html"
    write_page(page, "Learning digits one after another", summaries, results, figures, command)
    return Demo(results, summaries, floors(dict(summaries)), page)


def _work(config: RunConfig, name: str, out: Path) -> Iterator[Work]:
    """What a run of the demo still has to do; the base step of finetune is that of ssul."""
    method = make_method(name, {})
    prepared = prepare(config, method, progress=False)
    done = len(read_results(out / name)["steps"]) if RunPaths(out / name).results.exists() else 0
    first = max(done, 1) if name == "finetune" else done
    return pieces(config, method, prepared.scenario, len(prepared.val.ids), first)


def floors(summaries: Mapping[str, Summary]) -> list[Floor]:
    """What the demo must show (foreground mIoU).

    joint reaches 55 %; finetune's old classes end below 10 %; ssul keeps 80 % of its base-step mIoU on the
    base classes, and its new classes reach half of joint's on the same classes.
    """
    joint = summaries["joint"]["steps"][-1]
    first, last = summaries["ssul"]["steps"][0], summaries["ssul"]["steps"][-1]
    forgotten = summaries["finetune"]["steps"][-1]["old"] or 0.0
    added = [name for name in last["per_class"] if name not in first["per_class"]]
    bound = float(np.mean([joint["per_class"][name] or 0.0 for name in added]))
    best, kept, start, new = (x or 0.0 for x in (joint["all"], last["old"], first["old"], last["new"]))
    return [
        Floor(best >= 0.55, f"joint reaches {_p(best)} on all classes (floor: 55 %)"),
        Floor(forgotten < 0.10, f"finetune ends at {_p(forgotten)} on its old classes (ceiling: 10 %)"),
        Floor(
            kept >= 0.8 * start,
            f"ssul keeps {_p(kept)} of {_p(start)} on its base classes (floor: {_p(0.8 * start)})",
        ),
        Floor(
            new >= 0.5 * bound,
            f"ssul reaches {_p(new)} on its new classes, joint {_p(bound)} (floor: {_p(0.5 * bound)})",
        ),
    ]


def _p(value: float) -> str:
    return f"{100 * value:.1f} %"


def _predictors(folder: Path, steps: int) -> list[Predictor]:
    """One a step; a shared base step is read as the method that trained it reads it."""
    predictors = []
    for step in range(steps):
        model, meta, method = load_with_method(RunPaths(folder).model(step), allow_code=False)
        crop = meta["protocol"]["crop"]
        predictors.append(Predictor(model, method.scores, meta["class_names"], crop=crop, precision="32"))
    return predictors


def _draw(
    out: Path, results: Mapping[str, Any], summaries: list[tuple[str, Summary]], config: RunConfig
) -> dict[str, Path]:
    """Curves, the grid of predictions after every step, and one overlay a method and image."""
    data = open_dataset("digits", None, config.data.scenes)
    presence = data.presence("val", progress=False)
    scenario = build_scenario(
        data.name, data.class_names, data.ignore_id, presence, "offline", "overlap", None
    )
    # scenes that show a base class and as many classes as possible
    base = list(scenario.raw_ids[1 : results["ssul"]["steps"][0]["known"]])
    score = presence.present[:, 1:].sum(1) * presence.present[:, base].any(1)
    chosen = [presence.ids[k] for k in np.argsort(-score, kind="stable")[:3]]
    predictors = {name: _predictors(out / name, len(results[name]["steps"])) for name in results}
    table = scenario.eval_table()
    examples = []
    for image_id in chosen:
        image = data.image("val", image_id)
        maps = {name: [p.labels(image) for p in predictors[name]] for name in ("finetune", "ssul", "joint")}
        examples.append(Example(image, table[data.mask("val", image_id)], maps))
    pictures = out / "pictures"
    figures = {"mIoU after every step": curves(summaries, pictures / "curves.png")}
    for k, example in enumerate(examples):
        caption = f"scene {k + 1}: prediction after every step"
        figures[caption] = qualitative([example], scenario.classes, pictures / f"scene_{k + 1}.png")
    return figures
