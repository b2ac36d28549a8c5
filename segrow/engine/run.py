"""A run: all steps of a scenario with one method, in one folder that can be continued at any time."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning_fabric import Fabric
from safetensors.torch import save as tensors_to_bytes

from .. import __version__
from ..config import RunConfig, RunPaths
from ..data.loader import StepImages, iterate, to_device
from ..errors import UserError
from ..evaluate import Matrices, eval_loader, evaluate
from ..memory import (
    Exemplar,
    check_memory,
    from_json,
    merge_candidates,
    select_exemplars,
    to_json,
)
from ..methods.base import Method, StepContext
from ..model.norm import synchronise_norms
from ..model.segmenter import Segmenter, build_segmenter
from ..model.store import load_model, save_model
from .checkpoint import Checkpoint, write_atomic, write_json
from .cost import Stopwatch, parameter_counts, peak_memory, reset_peak_memory, stored_bytes
from .log import Display
from .setup import (
    Prepared,
    check_folder,
    check_ranges,
    configuration,
    differences,
    images_hash,
    make_fabric,
    prepare,
    read_config,
)
from .step import Machine, StepTrainer, mix_seed

# what the engine writes into model.json; the rest is the model's own
META = ("step", "class_names", "scenario", "method", "protocol", "training", "parent")


def train(config: RunConfig, method: Method, out: Path, base: Path | None = None) -> dict[str, Any]:
    """Train every step that is not done yet, evaluate after each; returns the content of results.json.

    The same call again continues where the last one stopped.

    Args:
        config: What to do.
        method: How.
        out: The run's folder.
        base: Another run whose base step is shared; its network and protocol must match.

    Raises:
        UserError: For every mistake in the options, the data or the folder, before anything is written.
    """
    check_ranges(config)
    plain = configuration(config, method)
    check_folder(out, plain)
    fabric, precision = make_fabric(config.train)
    with Display(quiet=not fabric.is_global_zero) as display:
        prepared = prepare(config, method, progress=fabric.is_global_zero)
        machine = Machine(fabric, precision, config.train, config.seed, out, display)
        run = Run(config, method, prepared, machine)
        run.begin(plain, base)
        for step in range(len(prepared.scenario.steps)):
            run.step(step)
    run.end()
    return run.results


def read_results(folder: Path) -> dict[str, Any]:
    """results.json of a run folder.

    Raises:
        UserError: When there is none.
    """
    path = RunPaths(folder).results
    if not path.exists():
        raise UserError(f"{folder} has no results.json; give the folder of a run that finished a step")
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


class Run:
    """The state of a run between steps: its folder and its results."""

    def __init__(self, config: RunConfig, method: Method, prepared: Prepared, machine: Machine) -> None:
        self.config, self.method, self.machine = config, method, machine
        self.data, self.scenario = prepared.data, prepared.scenario
        self.present = {"train": prepared.train, "val": prepared.val}
        self._rows = {image: k for k, image in enumerate(prepared.train.ids)}
        self.paths = RunPaths(machine.root)
        self.fabric: Fabric = machine.fabric
        self.results: dict[str, Any] = {}
        self._fresh: Segmenter | None = None

    # ---- the folder

    def begin(self, plain: Mapping[str, Any], base: Path | None) -> None:
        """Read what is there, or start the folder (with the base step of another run)."""
        there = self.paths.results.exists()
        self.fabric.barrier()  # all processes have looked before the first one writes
        if there:
            self.results = read_results(self.paths.root)
            return
        self.results = self._empty_results()
        adopted = None if base is None else self._check_base(base, plain)
        if adopted is None:
            self._fresh = self._base_model()  # fails here, before anything is written, if it must fail
        if self.fabric.is_global_zero:
            self.paths.root.mkdir(parents=True, exist_ok=True)
            write_atomic(self.paths.config, yaml.safe_dump(dict(plain), sort_keys=False).encode())
        if base is not None and adopted is not None:
            self._adopt(base, adopted)

    def end(self) -> None:
        """Leave the process group in order."""
        if torch.distributed.is_initialized():
            self.fabric.barrier()
            torch.distributed.destroy_process_group()

    def _empty_results(self) -> dict[str, Any]:
        return {
            "format": 1,
            "segrow": __version__,
            "data": self.scenario.data,
            "task": self.scenario.task,
            "setting": self.scenario.setting,
            "method": self.method.name,
            "memory": self.config.memory.size,
            "seed": self.config.seed,
            "classes": list(self.scenario.classes),
            "evaluation": {
                "crop_val": self.config.train.crop_val,
                "crop": self.config.train.crop,
                "images": len(self.present["val"].ids),
            },
            "steps": [],
        }

    def _check_base(self, base: Path, plain: Mapping[str, Any]) -> dict[str, Any]:
        """The base step's record of another run, if its network, classes, images and protocol match."""
        there = read_results(base)
        if not there["steps"]:
            raise UserError(f"{base} has not finished its base step yet")
        record: dict[str, Any] = there["steps"][0]
        config = read_config(base)
        found = [f"model.{row}" for row in differences(config["model"], plain["model"], frozenset())]
        for key in ("data", "classes", "evaluation"):
            if there[key] != self.results[key]:
                found.append(f"{key}: {there[key]} there, {self.results[key]} here")
        ours = self.scenario.steps[0]
        if record["classes"] != list(ours.classes) or record["images_hash"] != images_hash(ours.images):
            found.append(f"base step: {len(record['classes'])} classes and {record['images']} images there, ")
            found[-1] += f"{len(ours.classes)} classes and {len(ours.images)} images here, or other images"
        model, _ = load_model(RunPaths(base).model(0))
        if self.method.unknown_head and model.unknown is None:
            found.append(f"unknown head: none there, method {self.method.name} needs one")
        if found:
            raise UserError(f"the base step of {base} cannot be shared: {'; '.join(found)}")
        return record

    def _adopt(self, base: Path, record: dict[str, Any]) -> None:
        if self.fabric.is_global_zero:
            model, meta = load_model(RunPaths(base).model(0))
            exemplars = self._select(0, model, ())
            ours = {key: meta[key] for key in META}
            save_model(model, self.paths.model(0), ours, {"memory.json": to_json(exemplars)})
        self.results["steps"] = [{**record, "from_base": str(base)}]
        self._write_results()

    def _write_results(self) -> None:
        if self.fabric.is_global_zero:
            write_json(self.paths.results, self.results)
        self.fabric.barrier()

    # ---- one step

    def step(self, step: int) -> None:
        """Train and evaluate one step, or what is left of it."""
        if step < len(self.results["steps"]):
            self.machine.display.say(f"step {step}  done before")
            return
        reset_peak_memory(self.fabric.device)
        if not self.paths.model(step).exists():
            self._train_step(step)
            self.fabric.barrier()
        self._evaluate_step(step)

    def _train_step(self, step: int) -> None:
        config, scenario, machine = self.config, self.scenario, self.machine
        torch.manual_seed(mix_seed(config.seed, step))
        model, teacher, parent, exemplars = self._models(step)
        ctx = StepContext(
            step,
            model,
            teacher,
            known=scenario.known(step),
            known_before=scenario.known(step - 1) if step else 1,
        )
        self.method.begin_step(ctx)
        ctx.share_frozen_trunk()
        if self.fabric.world_size > 1:
            synchronise_norms(model, self.fabric.device.type)
        images = self._views(step, model, exemplars)
        resume = Checkpoint.load(self.paths.checkpoint)
        if resume and resume.step != step:
            resume = None
        self._announce(step, images)
        epochs = config.train.epochs
        if step == 0 and config.train.step0_epochs is not None:
            epochs = config.train.step0_epochs
        trainer = StepTrainer(machine, self.method, ctx, images, epochs, resume)
        seconds = trainer.fit()
        trainable, total = parameter_counts(model)
        self.method.end_step(ctx)
        if self.fabric.is_global_zero:
            stored = self._select(step, model, exemplars)
            training = {
                "train_s": seconds,
                "iterations": epochs * len(trainer.batches),
                "peak_memory_bytes": peak_memory(self.fabric.device),
                "trainable": trainable,
                "parameters": total,
                "exemplars": len(exemplars),
            }
            extra = {"memory.json": to_json(stored)}
            if state := dict(self.method.state_dict()):
                extra["method.safetensors"] = tensors_to_bytes(state)
            save_model(model, self.paths.model(step), self._meta(step, parent, training), extra)

    def _models(self, step: int) -> tuple[Segmenter, Segmenter | None, str | None, tuple[Exemplar, ...]]:
        """Student and teacher on the device, the teacher's hash, and the exemplars to replay."""
        if step == 0:
            model, self._fresh = self._fresh or self._base_model(), None
            return model.to(self.fabric.device), None, None, ()
        folder = self.paths.model(step - 1)
        model, meta = load_model(folder)
        exemplars = from_json(folder / "memory.json")
        check_memory(exemplars, self.scenario, step)
        model.to(self.fabric.device)
        teacher = copy.deepcopy(model).eval().requires_grad_(False)
        model.grow(len(self.scenario.steps[step].classes), step)
        return model.to(self.fabric.device), teacher, str(meta["hashes"]["model"]), exemplars

    def _base_model(self) -> Segmenter:
        torch.manual_seed(mix_seed(self.config.seed, 0))
        n_base = len(self.scenario.steps[0].classes)
        model = build_segmenter(self.config.model, n_base, self.method.unknown_head, self.machine.display.say)
        if self.config.train.channels_last:
            model.to(memory_format=torch.channels_last)
        return model

    def _views(self, step: int, model: Segmenter, exemplars: tuple[Exemplar, ...]) -> StepImages:
        train = self.config.train
        red, green, blue = (round(255 * value) for value in model.mean.flatten().tolist())
        return StepImages(
            self.data,
            self.scenario,
            step,
            self.method.sees,
            exemplars,
            exemplar_labels=self.config.memory.labels,
            unshifted=self.config.memory.unshifted,
            aux=self.method.aux,
            crop=train.crop,
            scale=train.scale,
            flip=train.flip,
            mean_colour=(red, green, blue),
        )

    def _announce(self, step: int, images: StepImages) -> None:
        replay = f" + {len(images.exemplars)} exemplars" if images.exemplars else ""
        classes = ", ".join(self.scenario.steps[step].classes)
        self.machine.display.say(f"step {step}  learns {classes} from {len(images)} images{replay}")

    def _meta(self, step: int, parent: str | None, training: dict[str, Any]) -> dict[str, Any]:
        scenario = self.scenario
        return {
            "step": step,
            "class_names": list(scenario.classes[: scenario.known(step)]),
            "scenario": {
                "data": scenario.data,
                "task": scenario.task,
                "setting": scenario.setting,
                "classes": list(scenario.classes),
            },
            "method": {"name": self.method.name, "fields": self.method.fields()},
            "protocol": {"crop_val": self.config.train.crop_val, "crop": self.config.train.crop},
            "training": training,
            "parent": parent,
        }

    # ---- memory

    def _select(self, step: int, model: Segmenter, previous: tuple[Exemplar, ...]) -> tuple[Exemplar, ...]:
        """The exemplars to keep after a step; none after the last, which nothing follows."""
        size = self.config.memory.size
        if not size or step + 1 == len(self.scenario.steps):
            return ()
        taught = self.scenario.steps[step]
        pseudo = self._pseudo_classes(step, model, previous)
        old = [(e, self._present(e.image, e.classes) | pseudo.get(e.image, frozenset())) for e in previous]
        new = [(i, self._present(i, taught.indices) | pseudo.get(i, frozenset())) for i in taught.images]
        candidates = merge_candidates(old, new, step, taught.indices)
        classes = range(1, self.scenario.known(step))
        return select_exemplars(candidates, classes, size, (self.config.seed, step, 3))

    def _present(self, image: str, classes: tuple[int, ...] | range) -> frozenset[int]:
        """Which of `classes` the annotation of a training image shows."""
        row = self.present["train"].present[self._rows[image]]
        return frozenset(c for c in classes if row[self.scenario.raw_ids[c]])

    @torch.inference_mode()
    def _pseudo_classes(
        self, step: int, model: Segmenter, previous: tuple[Exemplar, ...]
    ) -> dict[str, frozenset[int]]:
        """Older classes that the model is certain of in the step's images (METHODS 2, SSUL-M)."""
        if step == 0 or not self.method.pseudo_labelling:
            return {}
        train, model = self.config.train, model.eval()
        images = tuple(dict.fromkeys([*self.scenario.steps[step].images, *(e.image for e in previous)]))
        # every foreground class hidden: what the model then labels is its own doing
        table = self.scenario.table(())
        loader = eval_loader(
            self.data, "train", images, table, train.crop, train.val_batch_size, train.workers
        )
        found: dict[str, frozenset[int]] = {}
        for loaded, ids in self.machine.display.track(
            iterate(loader), "exemplars", -(-len(images) // train.val_batch_size)
        ):
            batch = to_device(loaded, self.fabric.device, train.channels_last)
            labels = self.method.pseudo_labels(model(batch.images), batch.labels)
            for image, row in zip(ids, labels.cpu(), strict=True):
                found[image] = frozenset(c for c in row.unique().tolist() if c > 0)
        return found

    # ---- evaluation

    def _evaluate_step(self, step: int) -> None:
        scenario = self.scenario
        model, meta = load_model(self.paths.model(step))
        watch = Stopwatch()
        with watch:
            matrices = self._matrices(step, model.to(self.fabric.device))
        val = self.present["val"]
        taught = scenario.steps[step]
        training = meta["training"]
        kept = from_json(self.paths.model(step) / "memory.json")
        files = [self.data.image_path("train", e.image) for e in kept]
        files += [self.data.mask_path("train", e.image) for e in kept]
        self.results["steps"].append(
            {
                "step": step,
                "classes": list(taught.classes),
                "known": scenario.known(step),
                "images": len(scenario.images(step, self.method.sees)),
                "images_hash": images_hash(taught.images),
                "exemplars": training["exemplars"],
                "matrix": matrices.all.tolist(),
                "matrix_known": matrices.known.tolist(),
                "n_images": len(val.ids),
                "n_images_known": len(self._with_known(step)),
                "cost": {
                    **{k: v for k, v in training.items() if k != "exemplars"},
                    "eval_s": watch.seconds,
                    "stored_bytes": stored_bytes(self.paths.model(step), files),
                },
                "from_base": None,
            }
        )
        self._write_results()

    def _with_known(self, step: int) -> frozenset[str]:
        """Validation images with at least one known foreground class."""
        known = [self.scenario.raw_ids[c] for c in range(1, self.scenario.known(step))]
        val = self.present["val"]
        return frozenset(i for i, row in zip(val.ids, val.present, strict=True) if row[known].any())

    def _matrices(self, step: int, model: Segmenter) -> Matrices:
        train, scenario = self.config.train, self.scenario
        images = self.present["val"].ids[self.fabric.global_rank :: self.fabric.world_size]
        crop = train.crop if train.crop_val else None
        loader = eval_loader(
            self.data, "val", images, scenario.eval_table(), crop, train.val_batch_size, train.workers
        )
        return evaluate(
            model,
            self.method.scores,
            loader,
            len(scenario.classes),
            self._with_known(step),
            self.fabric.device,
            channels_last=train.channels_last,
            track=lambda items: self.machine.display.track(items, f"step {step} evaluation", len(loader)),
        )
