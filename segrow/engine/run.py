"""A run: all steps of a scenario with one method, in one folder that can be continued at any time."""

import copy
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from safetensors.torch import save as tensors_to_bytes

from ..atomic import locked
from ..config import RunConfig, RunPaths
from ..data.augment import Augmentation
from ..data.loader import StepImages
from ..errors import NonFiniteLossError, UserError
from ..memory import (
    Exemplar,
    check_memory,
    to_json,
)
from ..methods.base import Method, StepContext
from ..model.norm import synchronise_norms
from ..model.record import read_file_beside, read_record
from ..model.segmenter import Segmenter, build_segmenter
from ..model.store import load_whole, save_model
from ..precision import MIXED, last, uses_tf32
from ..resources import enough_memory, named
from ..sealed import write_sealed_json, write_sealed_yaml
from ..stored import MEMORY, METHOD_STATE, load_stored, memory_in, restore_state, state_of
from ..wording import count
from .changes import changed_remarks, note_change, note_lost, read_changes
from .checkpoint import Checkpoint, last_good
from .cost import Stopwatch, device_name, parameter_counts, peak_memory, reset_peak_memory, stored_bytes
from .exemplars import Chooser
from .feature_store import FeatureStore
from .features import keep_features
from .fitting import Gauge, evaluation_advice, training_advice
from .folder import (
    META,
    changed_options,
    check_base,
    check_data,
    check_folder,
    check_step,
    configuration,
    images_hash,
    is_begun,
    is_model_directory,
    read_config,
    read_results,
)
from .group import Group, together
from .left import TimeLeft, Work, pieces
from .log import Display
from .machine import Machine
from .records import KEPT, SHARED, all_remarks, base_remark, empty_results, model_meta, step_remarks
from .resume import fits
from .scan import scan
from .select import Selection, new_classes_score
from .setup import Prepared, check_ranges, check_started, is_first_process, make_fabric, prepare
from .step import StepTrainer, epoch_plan, mix_seed
from .val_features import GIB, KeptFeatures
from .validate import Validation


def train(
    config: RunConfig,
    method: Method,
    out: Path,
    base: Path | None = None,
    remarks: tuple[str, ...] = (),
    after_step: Callable[[Callable[[str], None]], None] | None = None,
    strict: bool = False,
    left: TimeLeft | None = None,
) -> dict[str, Any]:
    """Train every step that is not done yet, evaluate after each; returns the content of results.json.

    The same call again continues where the last one stopped.

    Args:
        config: What to do.
        method: How.
        out: The run's folder.
        base: Another run whose base step is shared; its network and protocol must match. Or a model
            directory of step 0, which is evaluated here.
        remarks: Sentences that every table of the results shows, such as how the run differs from a paper.
        after_step: Called by the first process when the results of a step are written; gets what says a line.
        strict: Refuse data in which images are in training and validation, or in training twice.
        left: Where the run is one of several; it knows the later ones, and what was measured in earlier ones.

    Raises:
        UserError: For every mistake in the options, the data or the folder, before anything is written.
    """
    check_ranges(config)
    check_started(config.train.devices)
    # the other processes of a data-parallel run write nothing of their own
    lock = locked(out, "segrow train") if is_first_process() else nullcontext()
    with together() as group, named(out), lock:
        return _train(config, method, out, base, remarks, after_step, strict, left or TimeLeft(), group)


def _train(
    config: RunConfig,
    method: Method,
    out: Path,
    base: Path | None,
    remarks: tuple[str, ...],
    after_step: Callable[[Callable[[str], None]], None] | None,
    strict: bool,
    left: TimeLeft,
    group: Group,
) -> dict[str, Any]:
    plain = configuration(config, method, base)
    moved = check_folder(out, plain)
    # before the other processes of a data-parallel run are started, so that a mistake is reported once
    first = is_first_process()
    if moved and first:
        Display(quiet=False).say(moved)
    prepared = prepare(config, method, progress=first, say=Display(quiet=not first).say, strict=strict)
    fabric, precision = make_fabric(config.train, group)
    with Display(quiet=not fabric.is_global_zero) as display:
        machine = Machine(fabric, precision, config.train, config.seed, out, display, left)
        run = Run(config, method, prepared, machine, pages=after_step is not None)
        run.begin(plain, base, (*remarks, *prepared.data.notes))
        run.say_precision()
        for step in prepared.scenario.steps[: config.steps]:
            news = run.step(step.index)
            if news and after_step and fabric.is_global_zero:
                with Stopwatch() as watch:
                    after_step(display.say)
                left.finished(Work("page", 1), watch.seconds)
        run.say_what_is_left()
    return run.results


class Run:
    """The state of a run between steps: its folder and its results."""

    def __init__(
        self, config: RunConfig, method: Method, prepared: Prepared, machine: Machine, pages: bool = False
    ) -> None:
        self.config, self.method, self.machine, self._pages = config, method, machine, pages
        self.data, self.scenario = prepared.data, prepared.scenario
        self.present = prepared.train
        self.validation = Validation(
            prepared.data, prepared.scenario, prepared.val, machine, self._kept_features(prepared)
        )
        self.paths = RunPaths(machine.root)
        self.fabric: Fabric = machine.fabric
        self.results: dict[str, Any] = {}
        in_file = self.config.train.feature_store == "disk" or self.fabric.world_size > 1
        self.store = FeatureStore(
            int(self.config.train.feature_budget * GIB),
            self.paths.features if in_file else None,
            self.fabric.device if self.config.train.feature_store == "device" else "cpu",
        )
        self._fresh: Segmenter | None = None
        self._base: Path | None = None  # a model directory that stands for the base step

    def _kept_features(self, prepared: Prepared) -> KeptFeatures | None:
        """Of validation images, when more than one step will meet the same trunk."""
        steps, budget = prepared.scenario.steps[: self.config.steps], self.config.train.feature_budget
        if not self.method.freezes_trunk or len(steps) == 1 or not budget:
            return None
        processes = self.machine.fabric.world_size
        return KeptFeatures(
            budget=budget * GIB / processes,
            images=-(-len(prepared.val.ids) // processes),
            say=self.machine.display.say,
        )

    # ---- the folder

    def begin(self, plain: Mapping[str, Any], base: Path | None, remarks: tuple[str, ...] = ()) -> None:
        """Read what is there, or start the folder (with the base step of another run)."""
        empty = empty_results(
            self.config, self.method, self.scenario, self.validation.present, self.data.excluded
        )
        empty["remarks"] = all_remarks(remarks, self.config, self.method)
        if base is not None and is_model_directory(base):
            self._base = base
        there, changed = self.paths.results.exists(), changed_options(self.paths.root, plain)
        self.fabric.barrier()  # all processes have looked before the first one writes
        if there:
            if self.fabric.is_global_zero:
                self.paths.features.unlink(missing_ok=True)  # of a process that was killed
            self.results = read_results(self.paths.root)
            check_data(self.results, empty, self.scenario)
            shared = [line for line in self.results.get("remarks", ()) if line.startswith(SHARED)]
            self.results["remarks"] = [*empty["remarks"], *shared, *step_remarks(self.results["steps"])]
            self._change(changed, plain)
            return
        self.results = empty
        adopted, hashes = None, ""
        if base is not None:
            adopted, hashes = check_base(base, plain, self.results, self.method, self.scenario)
        if base is not None:
            self.results["remarks"].append(base_remark(base, plain))
        else:
            self._fresh = self._base_model()  # fails here, before anything is written, if it must fail
            self.method.check(self._fresh, self.config.train.crop)
        if self.fabric.is_global_zero:
            try:
                self.paths.root.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"{self.paths.root} cannot be made ({error.strerror}); use another --out"
                ) from None
        self._change(changed, plain)
        if base is not None:
            self._adopt(base, adopted, hashes)

    def _change(self, changed: Mapping[str, tuple[Any, Any]], plain: Mapping[str, Any]) -> None:
        """Write the configuration, and before it what of it changes for a run that has begun."""
        root = self.paths.root
        if changed and self.fabric.is_global_zero:
            step = len(self.results["steps"])
            files = self.paths.checkpoint, self.paths.checkpoint_before
            last, _ = last_good(*files, step, lambda line: None)  # it is said when it is used
            note_change(root, step, last.epoch if last else 0, changed)
        if self.fabric.is_global_zero and (changed or not self.paths.results.exists()):
            # how far one call goes is no part of what the run is: the next call may go further
            stored = {key: value for key, value in plain.items() if key != "steps"}
            write_sealed_yaml(self.paths.config, stored)
        elif self.fabric.is_global_zero:
            self._note_place(plain["data"])
        self.fabric.barrier()
        changes = read_changes(root)
        if changes:
            self.results["changes"] = changes
            self.results["remarks"] += changed_remarks(changes)
        if changed:
            self.machine.display.say(changed_remarks(changes)[-1])

    def _note_place(self, data: Mapping[str, Any]) -> None:
        """Write where the data are now: a report opens them there."""
        stored = read_config(self.paths.root)
        place = {key: data[key] for key in ("root", "exclude")}
        moved = {**stored["data"], **place}
        if moved != {**dict.fromkeys(place), **stored["data"]}:
            write_sealed_yaml(self.paths.config, {**stored, "data": moved})

    def say_precision(self) -> None:
        """Which precision the steps to come are trained in, when that was not said by the user."""
        done = self.results["steps"]
        if len(done) >= len(self.scenario.steps[: self.config.steps]):
            return
        changed = done and self._say_change("the steps so far were", done[-1]["cost"].get("precision", ""))
        line = self.machine.numbers.line
        if line and not changed:
            self.machine.display.say(line)

    def _say_change(self, what: str, before: str) -> bool:
        """A line when the run goes on in another precision: `auto`, on another machine."""
        numbers = self.machine.numbers
        changed = bool(before) and last(before) != numbers.used
        if changed:
            self.machine.display.say(
                f"{what} trained in {before}; this machine goes on in {numbers.used}, for {numbers.reason}"
            )
        return changed

    def say_what_is_left(self) -> None:
        """A line when the task goes further than the run."""
        done, all_steps = len(self.results["steps"]), len(self.scenario.steps)
        if done < all_steps:
            self.machine.display.say(
                f"{done} of {count(all_steps, 'step')} done, as --steps {self.config.steps} asked; "
                "the same command with more, or without it, continues"
            )

    def _adopt(self, base: Path, record: dict[str, Any] | None, checked: str) -> None:
        """Copy the base step; without a record it still has to be evaluated.

        Args:
            checked: Hash of the model that was found to fit.
        """
        if self.fabric.is_global_zero:
            folder = base if record is None else RunPaths(base).model(0)
            model, meta, beside = load_whole(folder)
            if meta["hashes"]["model"] != checked:
                raise UserError(f"{folder} was changed while this command began; give the command again")
            extra = {MEMORY: to_json(self._keep(0, model, ()))}
            if state := beside.get(METHOD_STATE):
                extra[METHOD_STATE] = state
            save_model(model, self.paths.model(0), {key: meta[key] for key in META}, extra)
        if record is None:
            self.fabric.barrier()
            return
        self.results["steps"] = [{**record, "from_base": str(base)}]
        self._write_results()

    def _write_results(self) -> None:
        if self.fabric.is_global_zero:
            write_sealed_json(self.paths.results, self.results)
        self.fabric.barrier()

    # ---- one step

    def step(self, step: int) -> bool:
        """Train and evaluate one step, or what is left of it; False when all was done before."""
        if step < len(self.results["steps"]):
            self.machine.display.say(f"step {step}  done before")
            return False
        val = len(self.validation.present.ids)
        training, *self.machine.left.ahead = pieces(
            self.config, self.method, self.scenario, val, step, self._pages
        )
        if step:
            from_base = self.results["steps"][step - 1].get("from_base") is not None
            self._check_stored(step - 1, read_record(self.paths.model(step - 1)), from_base)
        if not self.paths.model(step).exists():
            self.machine.left.finished(training, self._train_or_note(step))
            self.fabric.barrier()
        self._evaluate_step(step)
        return True

    def _train_or_note(self, step: int) -> float:
        """`train_step`; when memory runs out it is said what may fit, and a lost loss is written down."""
        try:
            with enough_memory(partial(training_advice, self.config.train, Gauge(self.fabric.device))):
                return self.train_step(step)
        except NonFiniteLossError as error:
            if self.fabric.is_global_zero and is_begun(self.paths.root):
                note_lost(self.paths.root, step, str(error))
            raise

    def train_step(self, step: int) -> float:
        """Train one step on the model directory in the place of the step before, without evaluation.

        Returns:
            Seconds that it took, those before a resume included.
        """
        reset_peak_memory(self.fabric.device)
        torch.manual_seed(mix_seed(self.config.seed, step))
        model, teacher, parent, exemplars = self._models(step)
        images = self._views(step, model, exemplars)
        ctx = self._context(step, model, teacher, images)
        train = self.config.train
        epochs = train.epochs if step or train.step0_epochs is None else train.step0_epochs
        updates = epochs * (len(images) // train.batch_size)
        resume = self._resume(step, fits(self.method, ctx, train, epochs, updates))
        if resume:
            self._say_change(f"step {step} was", resume.precision)
        self._announce(step, images)
        if resume is None:
            model.eval()
            self.method.gather(ctx)
        else:
            self.method.load_state_dict({k: v.to(self.fabric.device) for k, v in resume.method.items()})
        selection = self._selection(step, model, updates, resume) if train.select == "best" else None
        plan = epoch_plan(self.machine, step, images)
        features = keep_features(self.store, self.machine, self.method, ctx, images, plan, epochs)
        if features is None:
            ctx.fold_frozen_trunk()
        trainer = StepTrainer(self.machine, self.method, ctx, images, epochs, resume, selection, features)
        seconds = trainer.fit()
        trainable, total = parameter_counts(model)
        self.method.end_step(ctx)
        if self.fabric.is_global_zero:
            stored = self._keep(step, model, exemplars)
            training: dict[str, Any] = {
                "train_s": seconds,
                "iterations": epochs * trainer.plan.iterations,
                "peak_memory_bytes": peak_memory(self.fabric.device),
                "trainable": trainable,
                "parameters": total,
                "exemplars": len(exemplars),
                "features": features.record() if features else None,
                "precision": trainer.precision,
                "device": device_name(self.fabric.device),
                "tf32": trainer.precision == "32" and uses_tf32(self.fabric.device.type),
            }
            if selection:
                training["selected"] = selection.record()
            extra = {MEMORY: to_json(stored)}
            if state := state_of(self.method):
                extra[METHOD_STATE] = tensors_to_bytes(state)
            meta = model_meta(self.config, self.method, self.scenario, step, parent, training)
            save_model(model, self.paths.model(step), meta, extra)
        return seconds

    def _resume(self, step: int, check: Callable[[Checkpoint, str], None]) -> Checkpoint | None:
        """Where to go on with a step; what is left is the last good checkpoint as the last one."""
        last, before = self.paths.checkpoint, self.paths.checkpoint_before
        resume, older = last_good(last, before, step, self.machine.display.say, check)
        self.fabric.barrier()  # all processes have read
        if older and self.fabric.is_global_zero:
            os.replace(before, last)
        return resume

    def _selection(self, step: int, model: Segmenter, updates: int, resume: Checkpoint | None) -> Selection:
        """Chooses the step's weights on the validation images that show one of its new classes."""
        taught = self.scenario.steps[step]
        images = self.validation.showing(taught.indices)

        def judge() -> float:
            # the base step trains the trunk between two looks
            matrices = self.validation.matrices(step, model, self.method, images, "selection", step > 0)
            return new_classes_score(matrices.all, taught)

        return Selection(model, judge, updates, resume.selected if resume else None)

    def _context(
        self, step: int, model: Segmenter, teacher: Segmenter | None, images: StepImages
    ) -> StepContext:
        """The step as the method sees it, begun: initialised, frozen, ready to train."""
        before = self.scenario.known(step - 1) if step else 1
        again = partial(scan, images, self.machine)
        known = self.scenario.known(step)
        ctx = StepContext(step, model, teacher, known, before, again, self.fabric.world_size)
        self._restore_method(step)
        self.method.begin_step(ctx)
        ctx.share_frozen_trunk()
        if self.fabric.world_size > 1:
            synchronise_norms(model, self.fabric.device.type, model.frozen_norms)
        return ctx

    def _restore_method(self, step: int) -> None:
        """What the method knew at the end of the previous step, also when this process did not train it.

        Of a base step that another method trained it takes nothing over.
        """
        if not step:
            return
        folder = self.paths.model(step - 1)
        trained_by = read_record(folder).get("method", {}).get("name")
        if trained_by == self.method.name:
            restore_state(self.method, read_file_beside(folder, METHOD_STATE), folder, self.fabric.device)

    def _models(self, step: int) -> tuple[Segmenter, Segmenter | None, str | None, tuple[Exemplar, ...]]:
        """Student and teacher on the device, the teacher's hash, and the exemplars to replay."""
        if step == 0:
            model, self._fresh = self._fresh or self._base_model(), None
            return self.machine.place(model), None, None, ()
        folder = self.paths.model(step - 1)
        model, meta, beside = load_whole(folder)
        exemplars = memory_in(beside.get(MEMORY), folder)
        check_memory(exemplars, self.scenario, step)
        self.machine.place(model)
        # a trunk that will not change need not be there twice
        shared = {id(model.trunk): model.trunk} if self.method.freezes_trunk else {}
        teacher = copy.deepcopy(model, shared).eval().requires_grad_(False)
        model.grow(len(self.scenario.steps[step].classes), step)
        return self.machine.place(model), teacher, str(meta["hashes"]["model"]), exemplars

    def _check_stored(self, step: int, record: Mapping[str, Any], from_base: bool) -> None:
        """The model of a step, which may have been stored by an earlier call, is of this run."""
        method = None if from_base else self.method.name
        check_step(record, self.paths.model(step), step, self.config, self.scenario, method)

    def _base_model(self) -> Segmenter:
        torch.manual_seed(mix_seed(self.config.seed, 0))
        n_base = len(self.scenario.steps[0].classes)
        return build_segmenter(self.config.model, n_base, self.method.unknown_head, self.machine.display.say)

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
            augmentation=Augmentation(
                train.crop, train.crop_mode, train.scale, train.flip, train.padding, (red, green, blue)
            ),
            void=train.void,
        )

    def _announce(self, step: int, images: StepImages) -> None:
        replay = f" + {count(len(images.exemplars), 'exemplar')}" if images.exemplars else ""
        classes = ", ".join(self.scenario.steps[step].classes)
        self.machine.display.say(f"step {step}  learns {classes} from {count(len(images), 'image')}{replay}")

    def _keep(self, step: int, model: Segmenter, previous: tuple[Exemplar, ...]) -> tuple[Exemplar, ...]:
        """The exemplars to keep after a step; after the last too, for `segrow add`."""
        if not self.config.memory.size:
            return ()
        chooser = Chooser(self.data, self.scenario, self.present, self.config, self.machine.display)
        with enough_memory(partial(evaluation_advice, self.config.train, Gauge(self.fabric.device))):
            return chooser.choose(step, model, self.method, previous, self.fabric.device)

    # ---- evaluation

    def _evaluate_step(self, step: int) -> None:
        scenario = self.scenario
        # a base step from elsewhere is read with its own method; a killed run's with the state that it stored
        stored = load_stored(self.paths.model(step), False, self.fabric.device, trusted=self.method)
        model, meta, reader = stored.model, stored.meta, stored.method
        self._check_stored(step, meta, self._base is not None and step == 0)
        watch = Stopwatch()
        with watch:
            self.machine.place(model)
            val = self.validation.present.ids
            matrices = self.validation.matrices(step, model, reader, val, "evaluation")
        self.machine.left.finished(Work("evaluation", len(val)), watch.seconds)
        taught = scenario.steps[step]
        training = meta["training"]
        kept = stored.memory()
        files = [self.data.image_path("train", e.image) for e in kept]
        files += [self.data.mask_path("train", e.image) for e in kept]
        selected = {"selected": training["selected"]} if "selected" in training else {}
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
                "n_images": len(val),
                "n_images_known": len(self.validation.known(step)),
                "cost": {
                    **{k: v for k, v in training.items() if k not in ("exemplars", "selected")},
                    "eval_s": watch.seconds,
                    "stored_bytes": stored_bytes(self.paths.model(step), files),
                },
                "from_base": str(self._base) if self._base and step == 0 else None,
                **selected,
            }
        )
        remarks = [line for line in self.results["remarks"] if KEPT not in line and MIXED not in line]
        self.results["remarks"] = [*remarks, *step_remarks(self.results["steps"])]
        self._write_results()
