"""One more step on somebody's own images: what is written, what is refused, what a kill leaves."""

import copy
import itertools
import json
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from locks import locked_elsewhere
from PIL import Image
from runs import build_tree, only_line, snapshot, start
from trees import folder_tree, random_mask, save_mask, voc_tree

import segrow
from segrow import cli
from segrow.commands.eval import EvalOptions, evaluate_model
from segrow.data import open_dataset
from segrow.data.augment import centre_view, cut_image, cut_map
from segrow.engine.checkpoint import Checkpoint
from segrow.engine.log import Display
from segrow.engine.run import Run
from segrow.errors import NonFiniteLossError, UserError
from segrow.grow import AddOptions, carry_out, plan_addition
from segrow.grow import plan as plan_module
from segrow.grow.plan import _hold_out, for_the_gate
from segrow.grow.step import _fingerprint, _gather, _judge, scenario_of
from segrow.memory import Exemplar, from_json, to_json
from segrow.methods.base import make_method
from segrow.model.lineage import remove_class, rename_class, rollback, versions
from segrow.model.store import OURS, load_model, save_model
from segrow.predict import Predictor
from segrow.stored import data_names, load_with_method, origin_names

NAMES = ("background", "aeroplane", "bicycle", "bird", "boat", "zebra", "okapi")
SIZE = (40, 48)
FAST = ("--workers", "0", "--device", "cpu", "--epochs", "4")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VOC of four classes, of which a model knows two."""
    return build_tree(tmp_path_factory.mktemp("data") / "VOC2012").root


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base step that has learnt aeroplane and bicycle, with exemplars."""
    out = tmp_path_factory.mktemp("runs") / "run"
    rates = ("--train.step0_lr", "0.05", "--train.step0_backbone_lr", "0.05", "--train.step0_epochs", "30")
    more = ("--model.output_stride", "8", "--memory.size", "6")
    assert start(root, out, "--task", "2-2", "--steps", "1", *rates, *more) == 0
    return out


@pytest.fixture
def model(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run / "steps/00/model", tmp_path / "models/animals")
    return tmp_path / "models/animals"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of zebra and okapi; an old class in some is not annotated."""
    root = tmp_path_factory.mktemp("photos") / "photos"
    folder_tree(root, NAMES, train=[{5}, {6}, {5, 6}, {5, 1}] * 4, val=0, size=SIZE)
    for path in (root / "masks/train").glob("*.png"):
        mask = np.array(Image.open(path))
        mask[mask == 1] = 0
        save_mask(mask, path)
    return root


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of the old classes, for the gate."""
    root = tmp_path_factory.mktemp("old") / "old"
    folder_tree(root, NAMES[:5], train=[{1}, {2}, {1, 2}] * 8, val=0, size=SIZE)
    return root


def add(model: Path, data: Path, *more: str, classes: str = "zebra,okapi") -> int:
    return cli.main(["add", str(model), "--data", str(data), "--classes", classes, *FAST, *more])


def record(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "model.json").read_text())
    return loaded


def changes_of(folder: Path, photos: Path) -> list[list[str]]:
    """Every command that changes a model in its place."""
    return [
        ["add", str(folder), "--data", str(photos), "--classes", "okapi"],
        ["rename-class", str(folder), "bicycle", "bike"],
        ["remove-class", str(folder), "bicycle"],
        ["rollback", str(folder), "--to-step", "0"],
    ]


def names_in(folder: Path) -> set[str]:
    return {f.name for f in folder.iterdir()}


# --- what is written ----------------------------------------------------------------------------------------


def test_the_new_model_takes_the_place_of_the_old_one(
    model: Path, photos: Path, old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, files = record(model), {f.name: f.read_bytes() for f in model.iterdir()}
    tensors = safetensors.torch.load_file(model / "model.safetensors")
    assert add(model, photos, "--check", str(old), "--max-drop", "5") == 0
    shown = capsys.readouterr()
    assert "aeroplane" in shown.out
    assert "the new model, 4 classes" in " ".join(shown.out.split())
    assert names_in(model) == {"history", "memory.json", "model.json", "model.safetensors"}
    assert names_in(model.parent) == {"animals"}

    after = record(model)
    assert after["class_names"] == ["background", "aeroplane", "bicycle", "zebra", "okapi"]
    assert after["class_steps"] == [0, 0, 0, 1, 1]
    assert after["scenario"]["classes"] == after["class_names"]
    assert after["parent"] == before["hashes"]["model"]
    assert (after["step"], after["protocol"]) == (1, before["protocol"])
    fields = before["method"]["fields"] | {"gives_way": [3]}  # saliency again, where there is some
    assert after["method"] == {"name": "ssul", "fields": fields}
    assert after["grown"]["method"]["fields"]["unknown"] == "background"
    assert after["grown"]["images"] == 16
    assert after["grown"]["gate"]["passes"]
    assert [c["name"] for c in after["grown"]["gate"]["old"]] == ["background", "aeroplane", "bicycle"]
    assert (model / "memory.json").read_bytes() == files["memory.json"]

    grown = safetensors.torch.load_file(model / "model.safetensors")
    kept = [name for name in tensors if name.startswith(("trunk.", "heads.1."))]
    assert kept
    assert all(torch.equal(tensors[name], grown[name]) for name in kept)
    assert any(name.startswith("heads.2.") for name in grown)

    assert [v.step for v in versions(model)] == [0, 1]
    rollback(model, 0)
    assert {f.name: f.read_bytes() for f in model.iterdir() if f.is_file()} == files


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        # of each name of the folder the class of the model: aeroplane, bicycle, stripes (zebra), okapi
        (("background", "okapi", "boat", "aeroplane"), (0, 4, 0, 1)),
        (("background", "zebra", "bicycle"), (0, 3, 2)),  # as it was learnt
        (("background", "boat", "stripes", "zebra"), (0, 0, 3, 0)),  # as it is called now comes first
    ],
)
def test_evaluation_on_a_folder_with_some_classes_in_another_order(
    model: Path, photos: Path, tmp_path: Path, names: tuple[str, ...], columns: tuple[int, ...]
) -> None:
    """Against a matrix counted from the masks, a pixel at a time."""
    assert add(model, photos) == 0
    rename_class(model, "zebra", "stripes")
    every = [{k} for k in range(1, len(names))]
    data = folder_tree(tmp_path / "others", names, train=every, val=[*every, {1, 2}], size=SIZE).root
    options = EvalOptions(name="folder", root=str(data), workers=0, crop=None, device="cpu")
    found = evaluate_model(model, options, progress=False)
    assert found["classes"] == ["background", "aeroplane", "bicycle", "stripes", "okapi"]
    assert found["unlabelled"] == [n for k, n in enumerate(found["classes"]) if k and k not in columns]
    network, _, method = load_with_method(model, False)
    expected = np.zeros((5, 5), int)
    for file in sorted((data / "images/val").iterdir()):
        pixels = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)[None]
        mask = np.array(Image.open(data / "masks/val" / f"{file.stem}.png"))
        with torch.no_grad():
            out = network.eval()(pixels)
        large = [F.interpolate(m, size=mask.shape, mode="bilinear") for m in (out.logits, out.unknown)]
        predicted = method.scores(*large)[0].argmax(0).numpy()
        for truth, guess in zip(mask.flat, predicted.flat, strict=True):
            if truth != 255:
                expected[columns[truth], guess] += 1
    assert found["steps"][0]["matrix"] == expected.tolist()


def test_a_renamed_class_of_a_folder_is_evaluated_on_it_and_on_others(tmp_path: Path) -> None:
    """All folders are called so: the one it was trained on is known by its classes."""
    out = tmp_path / "run"
    words = ["train", "--data.name", "folder", "--data.root", str(tmp_path / "fruit"), "--task", "offline"]
    fruit = folder_tree(tmp_path / "fruit", train=[{1}, {2}, {3}, {1, 2}] * 4, val=[{1}, {2}, {3}]).root
    small = ["--model.name", "deeplabv3_test_resnet", "--model.weights", "none", "--model.width", "8"]
    fast = [
        "--train.crop",
        "32",
        "--train.batch_size",
        "4",
        "--train.epochs",
        "1",
        "--train.workers",
        "0",
        "--train.device",
        "cpu",
    ]
    fast += ["--method.unknown", "none", "--report", "false"]
    assert cli.main([*words, *small, *fast, "--out", str(out)]) == 0
    fm = Path(shutil.copytree(out / "steps/00/model", tmp_path / "fm"))
    options = EvalOptions(root=str(fruit), workers=0, crop=None, device="cpu")
    before = evaluate_model(fm, options, progress=False)
    for old, new in (("apple", "x"), ("pear", "apple"), ("x", "manzana")):
        rename_class(fm, old, new)
    after = evaluate_model(fm, options, progress=False)
    assert after["classes"] == ["background", "manzana", "apple", "plum"]
    assert after["unlabelled"] == []
    assert after["steps"][0]["matrix"] == before["steps"][0]["matrix"]
    other = folder_tree(tmp_path / "other", ("background", "manzana"), train=[{1}] * 2, val=[{1}] * 3).root
    alone = evaluate_model(fm, replace(options, root=str(other)), progress=False)
    assert alone["unlabelled"] == ["apple", "plum"]
    assert sum(alone["steps"][0]["matrix"][1]) > 0


def test_a_class_of_a_runs_step_cannot_be_taken_out_first(
    run: Path, model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--out", str(tmp_path / "out"))
    assert add(run / "steps/00/model", photos, *more, classes="bicycle") == 2
    assert "remove-class" not in only_line(capsys.readouterr().err)
    assert add(model, photos, *more, classes="bicycle") == 2
    assert "remove-class" in only_line(capsys.readouterr().err)


@pytest.mark.parametrize("definition", ["ssul", "mib", "plop", "foreground"])
def test_a_grown_model_is_evaluated_on_the_data_of_the_old_one(
    model: Path, root: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], definition: str
) -> None:
    """They know nothing of its new classes, which are n/a; the others are counted as ever."""
    words = ["--data.root", str(root), "--workers", "0", "--definition", definition]
    files = [tmp_path / name for name in ("before.json", "after.json")]
    assert cli.main(["eval", str(model), *words, "--out", str(files[0])]) == 0
    assert add(model, photos) == 0
    assert cli.main(["eval", str(model), *words, "--out", str(files[1])]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "not labelled in these data, so n/a: zebra, okapi;" in said
    before, after = (json.loads(file.read_text()) for file in files)
    # bird and boat, which the model was to learn, are background for one that has grown otherwise
    assert before["classes"] == list(NAMES[:5])
    assert after["classes"] == ["background", "aeroplane", "bicycle", "zebra", "okapi"]
    theirs, ours = (np.array(found["steps"][0]["matrix"]) for found in (before, after))
    assert (ours[3:] == 0).all()
    assert ours[1:3].sum(1).tolist() == theirs[1:3].sum(1).tolist()
    assert ours[0].sum() == theirs[[0, 3, 4]].sum()
    assert ours[:3, 3:].any()  # mistakes, seen in the table of the others
    capsys.readouterr()
    assert cli.main(["eval", str(model), *words, "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)["steps"][0]
    ious = {k: v for k, v in counted["per_class"].items() if v is not None}
    assert set(counted["per_class"]) - set(ious) == {"zebra", "okapi"}
    for k, name in enumerate(NAMES[:3]):
        union = ours[k].sum() + ours[:, k].sum() - ours[k, k]
        if name in ious and definition in ("ssul", "foreground"):
            assert ious[name] == pytest.approx(ours[k, k] / union)
    assert counted["all"] == pytest.approx(np.mean(list(ious.values())))
    assert counted["new"] is None


def test_another_step_and_prediction(model: Path, photos: Path, tmp_path: Path) -> None:
    assert add(model, photos, classes="zebra") == 0
    assert add(model, photos, classes="okapi") == 0
    assert record(model)["class_names"][1:] == ["aeroplane", "bicycle", "zebra", "okapi"]
    assert record(model)["class_steps"] == [0, 0, 0, 1, 2]
    assert [v.step for v in versions(model)] == [0, 1, 2]
    image = next((photos / "images/train").iterdir())
    assert cli.main(["predict", str(model), str(image), "--out", str(tmp_path / "out")]) == 0


def test_out_leaves_the_model_alone(model: Path, photos: Path, tmp_path: Path) -> None:
    before, out = snapshot(model), tmp_path / "new/model"
    assert add(model, photos, "--out", str(out)) == 0
    assert snapshot(model) == before
    assert [v.step for v in versions(out)] == [0, 1]
    assert names_in(out.parent) == {"model"}


def test_a_run_folder_keeps_its_steps(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    before = snapshot(copy)
    assert add(copy, photos) == 0
    assert record(copy / "grown")["step"] == 1
    after = snapshot(copy)
    assert {name: after[name] for name in before} == before
    assert cli.main(["eval", str(copy), "--data.root", "x"]) == 2  # still the run's own last step
    capsys.readouterr()
    assert add(copy, photos) == 2
    assert "is there already; give " in only_line(capsys.readouterr().err)


def test_the_python_function(model: Path, photos: Path, old: Path) -> None:
    words = {"max_drop": 50, "min_new": 0.0, "epochs": 2, "workers": 0, "device": "cpu"}
    outcome = segrow.add_classes(str(model), str(photos), "zebra", check=str(old), quiet=True, **words)
    assert outcome.passed
    assert outcome.model == model
    assert len(repr(outcome)) < 2000  # not the whole network
    assert [c.name for c in outcome.verdicts.new] == ["zebra"]
    assert outcome.verdicts.new[0].images == len(outcome.plan.held.ids) == 2  # type: ignore[union-attr]


def test_the_same_call_gives_the_same_model(model: Path, photos: Path, tmp_path: Path) -> None:
    hashes = []
    for k in range(2):
        out = tmp_path / str(k)
        assert add(model, photos, "--out", str(out)) == 0
        hashes.append(record(out)["hashes"]["weights"])
    assert hashes[0] == hashes[1]


# --- the gate -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody drew the background as zebra, and nothing else."""
    root = tmp_path_factory.mktemp("wrong") / "wrong"
    folder_tree(root, NAMES, train=[{1}, {2}, {1, 2}] * 6, val=0, size=SIZE)
    for path in (root / "masks/train").glob("*.png"):
        mask = np.array(Image.open(path))
        mask = np.where(mask == 0, np.uint8(5), np.where(mask == 255, mask, np.uint8(0)))
        save_mask(mask, path)
    return root


def test_a_model_that_forgot_is_rejected(
    model: Path, wrong: Path, old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(model)
    (model.parent / "rejected").mkdir()
    shutil.copytree(model, model.parent / "rejected/animals-step-01")  # of an earlier call: it is replaced
    assert add(model, wrong, "--check", str(old), "--epochs", "60", classes="zebra") == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert "rejected: " in shown
    assert "background drops by" in shown
    assert "zebra" in shown
    assert f"{model} is unchanged" in shown
    assert snapshot(model) == before
    assert names_in(model.parent) == {"animals", "rejected"}
    rejected = model.parent / "rejected/animals-step-01"
    assert load_model(rejected)[1]["class_names"][-1] == "zebra"
    gate = record(rejected)["grown"]["gate"]
    assert not gate["passes"]
    assert any(c["verdict"] == "fails" and c["confused"][0] == "zebra" for c in gate["old"])
    assert record(rejected)["parent"] == record(model)["hashes"]["model"]


def test_a_class_that_was_not_learnt_is_rejected(
    model: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(model)
    assert add(model, photos, "--min-new", "100", "--epochs", "1", "--json") == 3
    found = json.loads(capsys.readouterr().out)
    assert not found["passed"]
    assert [c["verdict"] for c in found["new"]] == ["fails", "fails"]
    assert found["model"] == str(model.parent / "rejected/animals-step-01")
    assert snapshot(model) == before


def test_old_classes_that_the_gate_cannot_see_are_listed(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The images of the gate show aeroplane alone, or are too few."""
    some = folder_tree(tmp_path / "some", NAMES[:2], train=[{1}] * 6, val=0, size=SIZE).root
    assert add(model, photos, "--check", str(some), "--max-drop", "100", "--out", str(tmp_path / "a")) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "too few images to judge (fewer than 5 show it): bicycle" in shown
    assert "could be judged" not in shown
    listed = record(tmp_path / "a")["grown"]["gate"]["old"]
    assert [(c["name"], c["images"], c["verdict"]) for c in listed] == [
        ("background", 6, "kept"),
        ("aeroplane", 6, "kept"),
        ("bicycle", 0, "few"),
    ]
    one = folder_tree(tmp_path / "one", NAMES[:2], train=[{1}], val=0, size=SIZE).root
    assert add(model, photos, "--check", str(one), "--out", str(tmp_path / "b")) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "no old class could be judged: the gate has let the model through unseen" in shown
    words = ("--check", str(one), "--min-new", "100", "--out", str(tmp_path / "c"))
    assert add(model, photos, *words) == 3
    assert "unseen" not in capsys.readouterr().out


def test_the_gate_knows_the_new_class_where_its_images_show_it(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    """Its pixels count for no old class, so they are not held against background."""
    check = folder_tree(tmp_path / "check", NAMES, train=[{1, 5}] * 6, val=[{2, 5}] * 7, size=SIZE).root
    options = AddOptions(check=check, workers=0, device="cpu")
    plan = plan_addition(model, photos, ["zebra"], options)
    assert plan.check is not None
    assert (plan.check.split, len(plan.check.ids)) == ("val", 7)  # of a folder with both
    after = copy.deepcopy(plan.network)
    after.grow(1, 1)
    with Display(quiet=True) as display, torch.no_grad():
        data = _gather(plan, tmp_path, display)
        after.heads[-1].out.bias.fill_(20.0)  # type: ignore[union-attr]
        verdicts = _judge(plan, after, plan.folder, data, display)
    before = {c.name: c.before for c in verdicts.old}
    assert [c.name for c in verdicts.old] == ["background", "aeroplane", "bicycle"]
    # what the old model says, counted by hand without the pixels of zebra
    method = make_method(plan.meta["method"]["name"], plan.meta["method"]["fields"])
    both = np.zeros((2, 3))
    protocol = plan.meta["protocol"]
    predictor = Predictor(plan.network, method.scores, plan.meta["class_names"])
    for image_id in plan.check.ids:
        mask = plan.check.data.mask("val", image_id)
        view = centre_view(mask.shape, protocol["crop"])
        truth = cut_map(mask, view, 255)
        picture = cut_image(plan.check.data.picture("val", image_id), view, (0, 0, 0))
        seen = predictor(np.array(picture)).labels
        for c in range(3):
            counted = (truth != 5) & (truth != 255)
            both[0, c] += ((truth == c) & (seen == c) & counted).sum()
            both[1, c] += (((truth == c) | (seen == c)) & counted).sum()
    expected = 100 * both[0] / np.maximum(both[1], 1)
    found = [before[name] for name in ("background", "aeroplane", "bicycle")]
    assert [v for v in found if not np.isnan(v)] == pytest.approx(
        [e for e, v in zip(expected, found, strict=True) if not np.isnan(v)], abs=0.5
    )


def test_min_new_needs_validation_images_that_show_the_class(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folder_tree(tmp_path / "data", NAMES, train=[{5}] * 6, val=[{6}] * 2, size=SIZE).root
    assert add(model, data, "--min-new", "10", classes="zebra") == 2
    said = only_line(capsys.readouterr().err)
    assert 'measures "zebra" on the validation images' in said
    assert "none of which shows it" in said
    assert add(model, data, "--epochs", "1", "--json", classes="zebra") == 0
    assert [c["verdict"] for c in json.loads(capsys.readouterr().out)["new"]] == ["few"]


def test_validation_images_are_what_new_classes_are_measured_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = folder_tree(tmp_path / "data", NAMES, train=[{5}] * 6, val=[{5}, {5}, {6}], size=SIZE)
    assert add(model, tree.root, "--json", "--epochs", "1", classes="zebra") == 0
    (new,) = json.loads(capsys.readouterr().out)["new"]
    assert new["images"] == 2
    assert record(model)["grown"]["images"] == 6


def test_exemplars_are_replayed_and_judged(
    model: Path, root: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = from_json((model / "memory.json").read_bytes())
    assert len(kept) == 6
    assert add(model, photos, "--exemplars", str(root), "--max-drop", "90", "--json") == 0
    shown = capsys.readouterr()
    assert "replays 4 exemplars" in shown.err
    assert "gate: 2 exemplars" in shown.err
    found = json.loads(shown.out)
    assert [c["name"] for c in found["old"]] == ["background", "aeroplane", "bicycle"]
    assert record(model)["training"]["exemplars"] == 4
    assert from_json((model / "memory.json").read_bytes()) == kept  # ids as they were


def test_the_gate_looks_at_exemplars_that_are_not_replayed(
    model: Path, root: Path, photos: Path, tmp_path: Path
) -> None:
    """Background is judged there too: a new head that claims all that no old one is sure of is refused."""
    network, meta = load_model(model)
    ids = open_dataset("voc", str(root)).ids("train")
    memory = [Exemplar(i, 0, (1, 2)) for i in ids[:24]]
    many = tmp_path / "many"
    theirs = {key: value for key, value in meta.items() if key not in OURS}
    save_model(network, many, theirs, {"memory.json": to_json(memory)})
    plan = plan_addition(many, photos, ["zebra"], AddOptions(exemplars=root, workers=0, device="cpu"))
    assert [e.image for e in plan.judged] == [memory[k].image for k in (0, 5, 10, 15, 20)]
    assert {*plan.exemplars, *plan.judged} == set(memory)
    with Display(quiet=True) as display:
        data = _gather(plan, tmp_path, display)
        assert not {f".memory/{e.image}" for e in plan.judged} & set(
            scenario_of(plan, data).images(1, "seen")
        )
        after = copy.deepcopy(network)
        after.grow(1, 1)
        with torch.no_grad():
            after.heads[-1].out.bias.fill_(20.0)  # type: ignore[union-attr]
        verdicts = _judge(plan, after, plan.folder, data, display)
    assert [c.name for c in verdicts.old] == ["background", "aeroplane", "bicycle"]
    assert verdicts.old[0].images == 5
    assert verdicts.old[0].verdict == "fails"


@given(classes=st.integers(1, 30), each=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_the_gate_gets_exemplars_of_all_classes(classes: int, each: int, seed: int) -> None:
    """They are stored with the classes taking turns, as `memory.select_exemplars` does."""
    rng = np.random.default_rng(seed)
    order = (
        [rng.permutation(classes) + 1 for _ in range(each)] if seed % 2 else [range(1, classes + 1)] * each
    )
    stored = [Exemplar(f"{turn}-{c}", 0, (int(c),)) for turn, row in enumerate(order) for c in row]
    judged = for_the_gate(stored)
    if len(stored) == 1:
        assert judged == ()
        return
    assert len(judged) == -(-len(stored) // 5)
    assert set(judged) <= set(stored)
    counts = np.bincount([e.classes[0] for e in judged], minlength=classes + 1)[1:]
    assert counts.max() - counts.min() <= 1
    assert counts.max() <= -(-each // 5)  # so every class keeps four fifths for the replay
    assert each < 5 or counts.min() >= each // 5


def test_a_finished_run_has_exemplars_to_replay(root: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert start(root, out, "--task", "offline", "--model.output_stride", "8", "--memory.size", "5") == 0
    assert len(from_json((out / "steps/00/model/memory.json").read_bytes())) == 5
    words = ("--exemplars", str(root), "--max-drop", "100", "--epochs", "1")
    assert add(out, photos, *words, classes="okapi") == 0
    assert record(out / "grown")["training"]["exemplars"] == 4


def test_a_renamed_class_is_found_under_its_old_name(
    model: Path, root: Path, old: Path, photos: Path
) -> None:
    assert cli.main(["rename-class", str(model), "bicycle", "bike"]) == 0
    assert cli.main(["rename-class", str(model), "bike", "cycle"]) == 0
    options = AddOptions(exemplars=root, check=old, workers=0, device="cpu", epochs=1, max_drop=100)
    outcome = carry_out(plan_addition(model, photos, ["zebra"], options), quiet=True)
    assert [c.name for c in outcome.verdicts.old] == ["background", "aeroplane", "cycle"]
    assert outcome.verdicts.old[2].images > 0
    assert record(model)["learnt_as"] == {"cycle": "bicycle"}


def test_exemplars_know_a_renamed_class_by_the_name_of_their_data(
    model: Path, root: Path, photos: Path, tmp_path: Path
) -> None:
    """Two classes have exchanged names, and a third has taken one that the data use for something else."""
    for old, new in (("aeroplane", "x"), ("bicycle", "aeroplane"), ("x", "bicycle")):
        assert cli.main(["rename-class", str(model), old, new]) == 0
    assert record(model)["class_names"][1:] == ["bicycle", "aeroplane"]
    plan = plan_addition(model, photos, ["zebra"], AddOptions(exemplars=root, workers=0, device="cpu"))
    assert plan.old_data is not None
    with Display(quiet=True) as display:
        data = _gather(plan, tmp_path, display)
    for exemplar in plan.exemplars:
        ours = data.mask("train", f".memory/{exemplar.image}")
        theirs = plan.old_data.mask("train", exemplar.image)
        for raw in (1, 2):  # aeroplane is still class 1, whatever it is called
            assert ((ours == len(NAMES) + raw - 1) == (theirs == raw)).all()
    meta = {"class_names": ["background", "bird", "cow"], "learnt_as": {"bird": "bicycle"}}
    names = ("background", "bicycle", "bird", "cow")
    assert origin_names(meta, names) == {1: 1, 3: 2}
    assert data_names(meta, names) == {2: 1, 3: 2}  # in another data set the name says what it is
    assert data_names(meta, ("background", "bicycle", "cow")) == {1: 1, 2: 2}


def test_a_class_that_was_renamed_is_not_learnt_again(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["rename-class", str(model), "bicycle", "bike"]) == 0
    before = snapshot(model)
    data = folder_tree(tmp_path / "data", NAMES, train=[{2}] * 4, val=0, size=SIZE).root
    capsys.readouterr()
    assert add(model, data, classes="bicycle") == 2
    said = only_line(capsys.readouterr().err)
    assert 'has learnt "bicycle" already and calls it "bike" now' in said
    assert snapshot(model) == before


def test_a_version_of_the_history_stays(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(model, photos, "--epochs", "1", classes="zebra") == 0
    (version,) = (model / "history").iterdir()
    before = snapshot(model)
    capsys.readouterr()
    for words in changes_of(version, photos):
        assert cli.main(words) == 2
        said = only_line(capsys.readouterr().err)
        assert f"is an earlier version of {model}, which its history keeps as it was" in said
        assert f"segrow rollback {model} --to-version {version.name[4:]}" in said
    assert snapshot(model) == before
    assert add(version, photos, "--epochs", "1", "--out", str(tmp_path / "new"), classes="okapi") == 0
    assert snapshot(model) == before
    (model / "history" / "rejected").mkdir()  # what somebody keeps there
    (model / "history" / "rejected" / "note.txt").write_text("mine")
    assert [v.step for v in versions(model)] == [0, 1]
    assert cli.main(["rename-class", str(model), "bicycle", "bike"]) == 0
    assert (model / "history" / "rejected" / "note.txt").read_text() == "mine"
    (version / "model.json").unlink()  # an earlier version that is not whole is not thrown away in silence
    before = snapshot(model)
    capsys.readouterr()
    assert cli.main(["rename-class", str(model), "bike", "bicycle"]) == 2
    assert f"no model in {version}" in only_line(capsys.readouterr().err)
    assert add(model, photos, "--dry-run", classes="okapi") == 2
    assert snapshot(model) == before


def test_a_changed_file_of_the_history_is_found_in_the_plan(
    model: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(model, photos, "--epochs", "1", classes="zebra") == 0
    (version,) = (model / "history").iterdir()
    content = bytearray((version / "memory.json").read_bytes())
    content[-2] ^= 1
    (version / "memory.json").unlink()
    (version / "memory.json").write_bytes(bytes(content))
    capsys.readouterr()
    assert add(model, photos, "--dry-run", classes="okapi") == 2
    assert "was changed or cut off after it was written" in only_line(capsys.readouterr().err)


def test_the_place_of_a_rejected_model_is_looked_at_in_the_plan(
    model: Path, photos: Path, old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = model.parent / "rejected"
    place.write_text("")
    assert add(model, photos, "--check", str(old), "--dry-run") == 2
    assert "is a file where a rejected model would go" in only_line(capsys.readouterr().err)
    assert add(model, photos, "--dry-run") == 0  # no gate
    place.unlink()
    (place / "animals-step-01").mkdir(parents=True)
    assert add(model, photos, "--check", str(old), "--dry-run") == 0
    (place / "animals-step-01" / "mine.txt").write_text("")
    capsys.readouterr()
    assert add(model, photos, "--check", str(old), "--dry-run") == 2
    assert "is not a model, and a rejected one would go there" in only_line(capsys.readouterr().err)


def test_names_are_printed_as_they_are(
    model: Path, old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not as the markup of the library that prints tables."""
    names = (*NAMES[:5], "ze[/b]ra", "[red]okapi")
    data = folder_tree(tmp_path / "data", names, train=[{5}, {6}] * 6, val=[{5}, {6}] * 6, size=SIZE).root
    words = ("--check", str(old), "--max-drop", "100", "--epochs", "1")
    assert add(model, data, *words, classes="ze[/b]ra,[red]okapi") == 0
    shown = capsys.readouterr().out
    assert "ze[/b]ra (new)" in shown
    assert "[red]okapi (new)" in shown
    assert cli.main(["rename-class", str(model), "bicycle", "bi[/cy]cle"]) == 0
    assert cli.main(["lineage", str(model)]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("ze[/b]ra", "[red]okapi", "bi[/cy]cle"))


def test_the_weights_may_be_read_by_who_may_read_the_rest(model: Path, photos: Path) -> None:
    assert add(model, photos, "--epochs", "1") == 0
    modes = {path.name: path.stat().st_mode for path in model.iterdir() if path.is_file()}
    assert len(set(modes.values())) == 1, modes


def test_what_the_system_refuses_is_one_line(
    model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(model)

    def refuse(source: Any, target: Any) -> None:
        raise PermissionError(13, "Permission denied", str(source), None, str(target))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        for words in (
            ["rename-class", str(model), "bicycle", "bike"],
            ["remove-class", str(model), "bicycle"],
        ):
            assert cli.main(words) == 2
            said = only_line(capsys.readouterr().err)
            assert said.startswith(f"segrow: {model}")
            assert said.endswith(": Permission denied; mend that and try again")

    def full(*_: Any) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        assert cli.main(["rename-class", str(model), "bicycle", "bike"]) == 2
        said = only_line(capsys.readouterr().err)
        assert said.startswith(f"segrow: {model}: No space left on device; what was written before is whole")
    assert snapshot(model) == before
    assert names_in(model.parent) == {"animals"}


def test_a_step_of_a_run_stays(run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step, before = run / "steps/00/model", snapshot(run)
    for words in changes_of(step, photos):
        assert cli.main(words) == 2
        assert f"is a step of run {run}, which stays as it was trained" in only_line(capsys.readouterr().err)
    assert snapshot(run) == before


def test_a_model_that_was_changed_meanwhile_is_not_replaced(model: Path, photos: Path) -> None:
    plan = plan_addition(model, photos, ["zebra"], AddOptions(workers=0, device="cpu", epochs=1))
    assert cli.main(["rename-class", str(model), "bicycle", "bike"]) == 0
    before = snapshot(model.parent)
    with pytest.raises(UserError, match="was changed while the step was trained"):
        carry_out(plan, quiet=True)
    assert snapshot(model.parent) == before


def test_two_calls_at_once(model: Path, photos: Path) -> None:
    plan = plan_addition(model, photos, ["zebra"], AddOptions(workers=0, device="cpu", epochs=1))
    before = snapshot(model)
    with locked_elsewhere(model), pytest.raises(UserError, match="is being written by segrow test"):
        carry_out(plan, quiet=True)
    assert snapshot(model) == before
    assert carry_out(plan, quiet=True).passed
    assert names_in(model.parent) == {"animals"}


def test_other_masks_are_another_call(model: Path, photos: Path, tmp_path: Path) -> None:
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    options = AddOptions(workers=0, device="cpu")
    first = _fingerprint(plan_addition(model, copy, ["zebra"], options))
    assert _fingerprint(plan_addition(model, copy, ["zebra"], options)) == first
    mask = min((copy / "masks/train").glob("*.png"))
    os.utime(mask, ns=(1, 1))
    assert _fingerprint(plan_addition(model, copy, ["zebra"], options)) != first


def test_what_changes_the_result_is_another_call(
    model: Path, root: Path, photos: Path, tmp_path: Path
) -> None:
    """Else a killed call would go on with what was trained on something else."""
    plan = plan_addition(model, photos, ["zebra"], AddOptions(exemplars=root, workers=0, device="cpu"))
    first = _fingerprint(plan)
    assert _fingerprint(replace(plan)) == first
    method = make_method("ssul", {**plan.method.fields(), "unknown": "none"})
    for other in (
        replace(plan, exemplars=plan.exemplars[1:]),
        replace(plan, method=method),
        replace(plan, classes=("okapi",)),
        replace(plan, config=replace(plan.config, seed=2)),
    ):
        assert _fingerprint(other) != first
    data = folder_tree(tmp_path / "data", NAMES, train=[{5}] * 4, val=0, size=SIZE).root
    maps = data / "saliency/train"
    maps.mkdir(parents=True)
    for path in (data / "masks/train").iterdir():
        Image.fromarray(np.full(SIZE, 255, np.uint8)).save(maps / path.name)
    options = AddOptions(workers=0, device="cpu")
    with_maps = _fingerprint(plan_addition(model, data, ["zebra"], options))
    os.utime(min(maps.iterdir()), ns=(1, 1))
    assert _fingerprint(plan_addition(model, data, ["zebra"], options)) != with_maps


def test_a_place_that_cannot_be(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for more in ((), ("--dry-run",)):
        assert add(model, photos, "--out", str(tmp_path / "file/deep/er"), *more) == 2
        assert f"cannot be made, for {tmp_path / 'file'} is a file" in only_line(capsys.readouterr().err)


def test_an_exemplar_shows_what_it_may_and_nothing_else(
    model: Path, root: Path, photos: Path, tmp_path: Path
) -> None:
    options = AddOptions(exemplars=root, workers=0, device="cpu")
    plan = plan_addition(model, photos, ["zebra"], options)
    assert plan.old_data is not None
    with Display(quiet=True) as display:
        data = _gather(plan, tmp_path, display)
    for exemplar in plan.exemplars:
        ours = data.mask("train", f".memory/{exemplar.image}")
        theirs = plan.old_data.mask("train", exemplar.image)
        assert (ours == 255).sum() == (theirs == 255).sum() > 0
        for raw in range(1, 5):  # aeroplane, bicycle were annotated; bird, boat were not
            value = len(NAMES) + raw - 1
            assert ((ours == value) == (theirs == raw)).all() if raw <= 2 else not (ours == value).any()


def test_each_class_is_learnt_from_its_own_value(model: Path, photos: Path, tmp_path: Path) -> None:
    plan = plan_addition(model, photos, ["okapi", "zebra"], AddOptions(workers=0, device="cpu"))
    with Display(quiet=True) as display:
        scenario = scenario_of(plan, _gather(plan, tmp_path, display))
    assert scenario.classes == ("background", "aeroplane", "bicycle", "okapi", "zebra")
    assert [step.classes for step in scenario.steps] == [("aeroplane", "bicycle"), ("okapi", "zebra")]
    table = scenario.train_table(1)
    assert table[:7].tolist() == [0, 0, 0, 0, 0, 4, 3]
    assert set(table[7:].tolist()) == {-1}


def test_views_are_drawn_as_the_model_was_trained(
    root: Path, run: Path, photos: Path, tmp_path: Path
) -> None:
    out, model = tmp_path / "run", tmp_path / "model"
    views = ("--train.flip", "0", "--train.scale", "[0.8,1.25]")
    assert start(root, out, "--task", "2-2", "--steps", "1", "--model.output_stride", "8", *views) == 0
    assert add(out, photos, "--epochs", "1", "--out", str(model), classes="okapi") == 0
    assert record(model)["views"] == {
        "crop_mode": "scale",
        "scale": [0.8, 1.25],
        "flip": 0.0,
    }
    train = plan_addition(model, photos, ["zebra"], AddOptions(device="cpu")).config.train
    assert (train.crop_mode, train.scale, train.flip) == ("scale", (0.8, 1.25), 0.0)
    assert plan_addition(run, photos, ["zebra"], AddOptions(device="cpu")).config.train.flip == 0.5


# --- methods ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected", "method"),
    [
        (["--method", "joint", "--method.loss_type", "ce"], "method joint would forget", "ssul"),
        (["--method", "mib", "--model.head", "linear"], "the trunk is frozen", "mib"),
        (
            ["--method", "plop", "--method.pod", "0", "--method.pod_logits", "0", "--model.head", "linear"],
            "",
            "plop",
        ),
    ],
)
def test_other_methods(
    root: Path,
    photos: Path,
    tmp_path: Path,
    words: list[str],
    expected: str,
    method: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert start(root, tmp_path / "run", "--task", "2-2", "--steps", "1", *words) == 0
    out = tmp_path / "model"
    capsys.readouterr()
    assert add(tmp_path / "run", photos, "--out", str(out), "--epochs", "2") == 0
    assert expected in " ".join(capsys.readouterr().out.split())
    assert record(out)["method"]["name"] == method
    before = safetensors.torch.load_file(tmp_path / "run/steps/00/model/model.safetensors")
    after = safetensors.torch.load_file(out / "model.safetensors")
    kept = "" if method == "ssul" else "trunk."  # what gives way takes nothing from background either
    assert all(torch.equal(after[k], v) for k, v in before.items() if k.startswith(kept))
    assert add(out, photos, "--epochs", "1", classes="bird") == 2  # no mask shows it


# --- nothing is written -------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_happen(
    model: Path, photos: Path, old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(model.parent.parent)
    words = ["add", str(model), "--data", str(photos), "--classes", "zebra,okapi", "--check", str(old)]
    assert cli.main([*words, "--min-new", "30", "--dry-run"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in (
        "2 classes after step 0, method ssul",
        "step 1 learns zebra, okapi from 13 images",
        "300 epochs in batches of 8 = 300 updates, crops of 32 px, 4 views per image, lr 0.01",
        "no saliency maps",
        "24 images",
        "held out: 3 images",
        "must reach 30 points",
        f"will be written to {model}, its parent under history/",
    ):
        assert part in shown
    assert snapshot(model.parent.parent) == before


@pytest.mark.usefixtures("rembg")
def test_saliency_is_made_where_the_extra_is(model: Path, photos: Path) -> None:
    def planned(saliency: str) -> tuple[str, str | None, Any]:
        options = AddOptions(saliency=saliency, workers=0, device="cpu")
        plan = plan_addition(model, photos, ["zebra"], options)
        return plan.salient, plan.maker and plan.maker.model, plan.method.fields()["unknown"]

    assert planned("auto") == ("made", "u2netp", "saliency")
    assert planned("u2net") == ("made", "u2net", "saliency")
    assert planned("none") == ("none", None, "background")
    with pytest.raises(UserError, match='rembg has no model "other" at hand'):
        planned("other")


def test_a_dry_run_as_json(model: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert add(model, photos, "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert any(line.startswith("step 1 learns zebra, okapi from 16 images") for line in plan)


@pytest.mark.parametrize(("images", "updates"), [(8, 300), (9, 300), (57, 300), (90, 300)])
def test_enough_updates(model: Path, tmp_path: Path, images: int, updates: int) -> None:
    data = folder_tree(tmp_path / "data", NAMES, train=[{5}] * images, val=0, size=(16, 16)).root
    plan = plan_addition(model, data, ["zebra"], AddOptions(workers=0, device="cpu"))
    assert plan.updates >= updates > plan.updates - images // 8
    assert plan.config.train.lr == 0.01  # METHODS: rate of the increments as published


@pytest.mark.parametrize("maker", [True, False])
def test_maps_that_are_there_are_used_and_the_others_made(
    model: Path, tmp_path: Path, maker: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = folder_tree(tmp_path / "data", NAMES, train=[{5}] * 6, val=0, size=SIZE).root
    maps = data / "saliency/train"
    maps.mkdir(parents=True)
    paths = sorted((data / "masks/train").iterdir())
    for path in paths[1:]:
        Image.fromarray(np.full(SIZE, 255, np.uint8)).save(maps / path.name)
    made: list[Path] = []

    @dataclass(frozen=True)
    class Maker:
        model: str = "fake.onnx"

        def map(self, image: Path) -> np.ndarray:
            made.append(image)
            return np.zeros(SIZE, np.uint8)

    monkeypatch.setattr(plan_module, "_saliency_maker", lambda wanted: Maker() if maker else None)
    plan = plan_addition(model, data, ["zebra"], AddOptions(workers=0, device="cpu"))
    with Display(quiet=True) as display:
        gathered = _gather(plan, tmp_path / "work", display)
    if maker:
        assert "5 of 6 images have a saliency map; others get one" in plan.notes
        assert [path.stem for path in made] == [paths[0].stem]
        kept = [gathered.saliency_path("train", path.stem) for path in paths]
        assert kept[1:] == [maps / path.name for path in paths[1:]]
        assert kept[0] == tmp_path / "work/saliency/0.png"
        assert plan.method.fields()["unknown"] == "saliency"
    else:
        assert any(note.startswith("1 of 6 images has no saliency map") for note in plan.notes)
        assert plan.method.fields()["unknown"] == "background"


def test_without_the_extra_a_note_says_what_would_help(model: Path, photos: Path) -> None:
    for saliency, words in (
        ("auto", 'pip install "segrow[saliency]" does so by itself'),
        ("none", "objects"),
    ):
        options = AddOptions(saliency=saliency, workers=0, device="cpu")
        notes = plan_addition(model, photos, ["zebra"], options).notes
        assert sum(note.endswith((words, words + ")")) for note in notes) == 1


def test_a_name_that_is_nearly_one_of_the_models_is_told(model: Path, photos: Path, tmp_path: Path) -> None:
    data = shutil.copytree(photos, tmp_path / "photos")
    (data / "classes.txt").write_text((data / "classes.txt").read_text().replace("okapi", "Bicycle"))
    notes = plan_addition(model, data, ["Bicycle"], AddOptions(workers=0, device="cpu")).notes
    assert any(note.startswith(f'{data} and the model: "bicycle" and "Bicycle" are two') for note in notes)


BAD: list[tuple[dict[str, str], str]] = [
    ({"classes": "bicycle"}, 'knows "bicycle" already (learnt in step 0); leave it out'),
    ({"classes": "background"}, '"background" cannot be learnt'),
    ({"classes": "zebra,zebra"}, '--classes holds "zebra" twice'),
    ({"classes": " ,"}, "--classes , has an empty name in it"),
    ({"classes": "zebr"}, 'has no class "zebr"; its classes are aeroplane'),
    ({"classes": "zebr"}, 'Did you mean "zebra"?'),
    ({"classes": "bird"}, 'shows "bird": its value is in no mask'),
    ({"data": "nowhere"}, "--data nowhere is not there; expected classes.txt with images/ and masks/"),
    ({"--check": "nowhere"}, "--check nowhere is not there"),
    ({"--max-drop": "101"}, "--max-drop should be points of IoU from 0 to 100, got 101"),
    ({"--min-new": "-1"}, "--min-new should be points of IoU from 0 to 100"),
    ({"--batch-size": "99"}, "--batch-size 99 is more than the 16 images to learn from"),
    ({"--batch-size": "1"}, "--batch-size should be at least 2"),
    ({"--epochs": "0"}, "--epochs should be at least 1, got 0"),
    ({"--views": "0"}, "--views should be at least 1, got 0"),
    ({"--views": "-2"}, "--views should be at least 1, got -2"),
    ({"--batch-size": "0"}, "--batch-size should be at least 2, which batch normalisation needs, got 0"),
    ({"--crop": "3"}, "--crop should be at least 16, got 3"),
    ({"--crop": "1000000"}, "--crop should be at most 4096, got 1000000"),
    ({"--workers": "-1"}, "--workers should be at least 0, got -1"),
    ({"--seed": "-1"}, "--seed should be at least 0, got -1"),
    ({"--lr": "0"}, "--lr should be a number above 0, got 0"),
    ({"--lr": "-0.1"}, "--lr should be a number above 0, got -0.1"),
    ({"--lr": "nan"}, "--lr should be a number above 0, got nan"),
    ({"--exemplars": "nowhere"}, "--exemplars nowhere is not a folder; expected VOC2012 with"),
    ({"--out": "MODEL"}, "is there already; give another place"),
    ({"--saliency": "nowhere.onnx"}, "no saliency model nowhere.onnx"),
]


@pytest.mark.parametrize(("changed", "expected"), BAD)
def test_a_mistake_is_one_line_and_changes_nothing(
    model: Path,
    photos: Path,
    changed: dict[str, str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = snapshot(model.parent)
    options = {"data": str(photos), "classes": "zebra,okapi"} | changed
    flags = [w for k, v in options.items() if k.startswith("--") for w in (k, v.replace("MODEL", str(model)))]
    words = ["add", str(model), "--data", options["data"], "--classes", options["classes"], *FAST, *flags]
    assert cli.main(words) == 2
    assert expected in only_line(capsys.readouterr().err)
    assert snapshot(model.parent) == before
    assert names_in(model.parent) == {"animals"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_drop": "a"}, "--max-drop should be points of IoU from 0 to 100, got a"),
        ({"min_new": [1]}, "--min-new should be points"),
        ({"epochs": 2.5}, "--epochs should be a whole number, got 2.5"),
        ({"lr": "0.1"}, "--lr should be a number above 0, got 0.1"),
        ({"device": "foo"}, "--device is foo, expected auto (a GPU if there is one), cpu or cuda"),
        ({"saliency": None}, "--saliency should be a file, the name of a model, auto or none, got None"),
        ({"classes": [3]}, '"3" cannot be learnt'),
    ],
)
def test_odd_values_in_python(model: Path, photos: Path, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=re.escape(expected)):
        segrow.add_classes(model, photos, **{"classes": ["zebra"], **options})


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("size", "pixels (width x height), upright), its mask"),
        ("value", "has value 9, but the data set has the classes 0 (background) to 6"),
        ("no mask", "has no mask, expected"),
        ("no image", "has no image, expected"),
        ("no classes", "holds no annotated images; expected classes.txt"),
        ("one image", "has 1 image to learn from, expected 2 or more"),
    ],
)
def test_broken_data(
    model: Path, tmp_path: Path, what: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    images = 1 if what == "one image" else 4
    data = folder_tree(tmp_path / "data", NAMES, train=[{5}] * images, val=0, size=SIZE).root
    mask = data / "masks/train/train0000.png"
    if what == "size":
        save_mask(np.array(Image.open(mask))[:-2], mask)
    elif what == "value":
        values = np.array(Image.open(mask))
        values[0, 0] = 9
        save_mask(values, mask)
    elif what == "no mask":
        mask.unlink()
    elif what == "no image":
        (data / "images/train/train0000.png").unlink()
    elif what == "no classes":
        (data / "classes.txt").unlink()
    before = snapshot(model)
    assert add(model, data, classes="zebra") == 2
    assert expected.replace("(width x height), upright)", "(width x height, upright)") in only_line(
        capsys.readouterr().err
    )
    assert snapshot(model) == before
    assert names_in(model.parent) == {"animals"}


@pytest.mark.parametrize("dry", [True, False])
def test_a_device_that_is_not_there(
    model: Path,
    photos: Path,
    dry: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert add(model, photos, "--device", "cuda", *["--dry-run"] * dry) == 2
    shown = capsys.readouterr()
    assert "--device cuda, but torch sees no GPU; use --device cpu" in only_line(shown.err)
    assert shown.out == ""
    assert names_in(model.parent) == {"animals"}


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("cut off", "saliency map {} cannot be decoded"),
        ("size", "saliency map {} is 48x38 pixels (width x height), the image and its mask 48x40"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_a_broken_saliency_map_is_found_in_the_plan(
    model: Path, root: Path, photos: Path, tmp_path: Path, old: bool, what: str, expected: str
) -> None:
    """Of a new image, or of an exemplar."""
    photos = folder_tree(tmp_path / "photos", NAMES, train=[{5}] * 3, val=0, size=SIZE).root
    for path in (photos / "masks/train").iterdir():
        there = photos / "saliency/train" / path.name
        there.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full(SIZE, 255, np.uint8)).save(there)
    voc = shutil.copytree(root, tmp_path / "VOC2012")
    options = AddOptions(exemplars=voc, workers=0, device="cpu")
    plan = plan_addition(model, photos, ["zebra"], options)
    assert plan.salient == "folder"
    data, image = (plan.old_data, plan.exemplars[-1].image) if old else (plan.new.data, plan.new.ids[-1])
    assert data is not None
    path = data.saliency_path("train", image)
    if what == "size":
        height, width = data.mask("train", image).shape
        Image.fromarray(np.zeros((height - 2, width), np.uint8)).save(path)
        expected = expected.replace("48x38", f"{width}x{height - 2}").replace("48x40", f"{width}x{height}")
    else:
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError) as caught:
        plan_addition(model, photos, ["zebra"], options)
    assert expected.format(path) in str(caught.value)


def test_a_broken_validation_pair_is_found_in_the_plan(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folder_tree(tmp_path / "data", NAMES, train=[{5}] * 3, val=[{5}, {5}], size=SIZE).root
    mask = data / "masks/val/val0001.png"
    save_mask(np.array(Image.open(mask))[:-2], mask)
    assert add(model, data, "--dry-run", classes="zebra") == 2
    assert "pixels (width x height, upright), its mask" in only_line(capsys.readouterr().err)
    assert names_in(model.parent) == {"animals"}


@pytest.mark.parametrize("what", ["newer", "changed", "none", "outside", "bare"])
def test_a_model_that_cannot_be_used(
    model: Path, photos: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if what == "newer":
        text = (model / "model.json").read_text()
        (model / "model.json").write_text(text.replace('"format": 1', '"format": 2'))
    elif what == "changed":
        content = bytearray((model / "model.safetensors").read_bytes())
        content[-3] ^= 1
        (model / "model.safetensors").write_bytes(bytes(content))
    elif what == "none":
        (model / "model.json").unlink()
    elif what in ("outside", "bare"):
        network, meta = load_model(model)
        ours = ("format", "segrow", "timm", "class_steps", "model", "input", "hashes")
        rest = {key: value for key, value in meta.items() if key not in ours}
        rest["method"] = {"name": "outside.counting", "fields": {}}
        if what == "bare":
            rest = {"class_names": rest["class_names"]}
        save_model(network, model, rest)
    before = snapshot(model)
    assert add(model, photos) == 2
    expected = {
        "newer": "has format 2, this segrow",
        "changed": "was changed or cut off",
        "none": "holds no model",
        "outside": "code outside segrow",
        "bare": "lacks step, scenario, method, protocol; give a model that segrow train, add or import made",
    }
    assert expected[what] in only_line(capsys.readouterr().err)
    assert snapshot(model) == before


def test_no_exemplars_to_replay(
    model: Path, photos: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = voc_tree(tmp_path / "VOC2012", train=2, val=1).root
    assert add(model, photos, "--exemplars", str(other)) == 2
    assert "of the model's 6 exemplars, first 2007_" in only_line(capsys.readouterr().err)
    bare = tmp_path / "bare"
    network, meta = load_model(model)
    ours = ("format", "segrow", "timm", "class_steps", "model", "input", "hashes")
    save_model(network, bare, {key: value for key, value in meta.items() if key not in ours})
    assert add(bare, photos, "--exemplars", str(root)) == 2
    assert "has no exemplars; leave --exemplars out" in only_line(capsys.readouterr().err)


# --- kills and failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["epoch", "trained"])
def test_a_killed_call_goes_on_where_it_stopped(
    model: Path, photos: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert add(model, photos, "--out", str(tmp_path / "whole")) == 0
    before = snapshot(model)
    epochs: list[int] = []
    save, step = Checkpoint.save, Run.train_step

    def stop_after(self: Checkpoint, *paths: Path) -> None:
        save(self, *paths)
        epochs.append(self.epoch)
        if where == "epoch" and self.epoch == 2:
            raise KeyboardInterrupt

    def stop_trained(self: Run, index: int) -> None:
        step(self, index)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", stop_after)
        if where == "trained":
            patch.setattr(Run, "train_step", stop_trained)
        assert add(model, photos) == 130
    assert snapshot(model) == before
    left = [f.name for f in model.parent.iterdir() if f.name != "animals"]
    assert len(left) == 1
    assert left[0].startswith(".animals.add-")
    with monkeypatch.context() as patch:
        patch.setattr(
            Checkpoint, "save", stop_after if where == "trained" else lambda self, *paths: save(self, *paths)
        )
        assert add(model, photos) == 0
    assert epochs == (
        [1, 2] if where == "epoch" else [1, 2, 3, 4]
    )  # the second call trained only what was left
    assert names_in(model.parent) == {"animals"}
    assert record(model)["hashes"]["weights"] == record(tmp_path / "whole")["hashes"]["weights"]


def test_a_full_disk_does_not_cost_the_training(
    model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(model)
    trained: list[int] = []
    step = Run.train_step

    def count(self: Run, index: int) -> None:
        trained.append(index)
        step(self, index)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(Run, "train_step", count)
    with monkeypatch.context() as patch:
        patch.setattr("segrow.grow.step.succeed", full)
        assert add(model, photos) == 2
    said = only_line(capsys.readouterr().err.splitlines()[-1])
    assert said.startswith("segrow: somewhere: No space left on device; what was written before is whole")
    assert snapshot(model) == before
    assert add(model, photos) == 0
    assert trained == [1]
    assert names_in(model.parent) == {"animals"}


def test_another_call_does_not_take_over_what_was_left(
    model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Run, index: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "train_step", stop)
        assert add(model, photos) == 130
    assert add(model, photos, "--seed", "2") == 0
    assert names_in(model.parent) == {"animals"}


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("disk full"), 2), (NonFiniteLossError("loss is NaN"), 1)]
)
def test_a_failure_leaves_nothing_behind(
    model: Path, photos: Path, error: Exception, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Run, index: int) -> None:
        raise error

    before = snapshot(model.parent)
    monkeypatch.setattr(Run, "train_step", fail)
    assert add(model, photos) == code
    assert snapshot(model.parent) == before
    assert names_in(model.parent) == {"animals"}


# --- kinds of folders ---------------------------------------------------------------------------------------


def test_a_folder_without_splits(model: Path, photos: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    shutil.copy(photos / "classes.txt", flat)
    shutil.copytree(photos / "images/train", flat / "images")
    shutil.copytree(photos / "masks/train", flat / "masks")
    assert add(model, flat, "--epochs", "1") == 0
    assert record(model)["grown"]["images"] == 16


@pytest.mark.parametrize("named", [True, False])
def test_a_folder_of_palette_masks(
    model: Path, tmp_path: Path, named: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    data, rng = tmp_path / "data", np.random.default_rng(0)
    for k in range(4):
        mask = random_mask({5}, SIZE, rng)
        save_mask(mask, data / f"SegmentationClass/{k}.png")
        (data / "JPEGImages").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(data / f"JPEGImages/{k}.jpg")
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(data / "JPEGImages/without.jpg")
    if named:
        (data / "class_names.txt").write_text("".join(f"{name}\n" for name in NAMES))
    assert add(model, data, "--epochs", "1", classes="zebra" if named else "bottle") == 0  # VOC's fifth
    assert record(model)["grown"]["images"] == 4
    capsys.readouterr()
    (data / "JPEGImages/2.jpg").unlink()
    assert add(model, data, classes="okapi") == 2
    assert "has no image, expected" in only_line(capsys.readouterr().err)


# --- held-out images ----------------------------------------------------------------------------------------


def test_a_fifth_of_every_class_is_held_out() -> None:
    rng = np.random.default_rng(0)
    shows = rng.random((50, 3)) < 0.4
    held = _hold_out(shows, ["a", "b", "c"], 1)
    assert len(set(held)) == len(held)
    for k in range(3):
        assert shows[held, k].sum() >= shows[:, k].sum() // 5
        assert 0 < len(held) < 50
    assert held == _hold_out(shows, ["a", "b", "c"], 1) != _hold_out(shows, ["a", "b", "c"], 2)


def test_too_few_to_hold_any_out() -> None:
    with pytest.raises(UserError, match='measure "b" on, but only 1 image shows it'):
        _hold_out(np.array([[True, False], [True, True], [True, False]]), ["a", "b"], 1)


# --- new classes give way -----------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["bce", "ce"])
@pytest.mark.parametrize("unknown", [True, False])
def test_new_classes_score_where_background_was_chosen(loss: str, unknown: bool) -> None:
    """Against a restatement, pixel by pixel: indices 3 and 4 were added together, 5 later."""
    logits = torch.randn(2, 7, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    head = logits[:, 6:] if unknown else None
    plain = make_method(
        "ssul", {"unknown": "background" if unknown else "none", "init": "random", "loss_type": loss}
    )
    ours = make_method("ssul", {**plain.fields(), "gives_way": [3, 5]})
    found = ours.scores(logits[:, :6], head).numpy()
    assert found.shape == (2, 6, 5, 6)
    taken = 0
    for b, y, x in itertools.product(range(2), range(5), range(6)):
        z = logits[b, : 6 + unknown, y, x].numpy()
        p = np.exp(z) / np.exp(z).sum() if loss == "ce" else 1 / (1 + np.exp(-z))
        u = p[6] if unknown else 0.0
        expected = [p[0] + u, p[1], p[2]]
        for added, told in (([3, 4], [3, 4]), ([5], [3, 4, 5])):
            chosen = max(range(len(expected)), key=lambda c: expected[c])  # the first of the best
            expected[0] = p[0] + (u if loss == "ce" else u * (1 - max(p[c] for c in told)))
            if chosen == 0:
                expected = [min(e, expected[0]) for e in expected]
            expected += [p[c] if chosen == 0 else 0.0 for c in added]
            taken += chosen == 0
        np.testing.assert_allclose(found[b, :, y, x], expected, rtol=1e-9)
    assert 0 < taken < 120  # both cases were there


@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(4, 9),
    unknown=st.booleans(),
    softmax=st.booleans(),
    data=st.data(),
)
def test_only_background_becomes_a_new_class(
    seed: int, classes: int, unknown: bool, softmax: bool, data: st.DataObject
) -> None:
    """Whatever the new heads say, after one step and after another; an added class is an old one then."""
    first = data.draw(st.integers(1, classes - 1))  # 1: the classes before have been removed
    second = data.draw(st.integers(first + 1, classes)) if first + 1 <= classes else classes
    logits = 4 * np.random.default_rng(seed).standard_normal((classes + 1, 500))
    tensor = torch.from_numpy(logits)[None, :, None]
    head = tensor[:, -1:] if unknown else None
    fields = {"unknown": "background" if unknown else "none", "init": "random"}
    fields["loss_type"] = "ce" if softmax else "bce"

    def chosen(known: int, gives_way: list[int]) -> np.ndarray:
        method = make_method("ssul", {**fields, "gives_way": gives_way})
        return method.scores(tensor[:, :known], head)[0, :, 0].argmax(0).numpy()

    before, after = chosen(first, []), chosen(second, [first])
    assert (after[before > 0] == before[before > 0]).all()
    assert ((after >= first) | (after == 0))[before == 0].all()
    assert (before > 0).any() or first == 1
    if second < classes:
        last = chosen(classes, [first, second])
        assert (last[after > 0] == after[after > 0]).all()
        assert ((last >= second) | (last == 0))[after == 0].all()


def test_what_is_unknown_gives_way() -> None:
    logits = torch.randn(1, 5, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    unknown = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ours = make_method("ssul", {"unknown": "background", "gives_way": [3]})
    p, u = logits.sigmoid().numpy(), unknown.sigmoid().numpy()
    novel = ours.novelty(logits, unknown).numpy()
    np.testing.assert_allclose(novel[:, 0], u[:, 0] * (1 - p[:, 3:].max(1)), rtol=1e-12)


@pytest.mark.parametrize(("freeze", "bn"), [("old_heads", True), ("none", False)])
def test_only_the_new_head_trains(model: Path, photos: Path, freeze: str, bn: bool) -> None:
    network, meta = load_model(model)
    meta["method"]["fields"] |= {"freeze": freeze, "bn_freeze": bn}
    save_model(network, model, {key: value for key, value in meta.items() if key not in OURS})
    before = safetensors.torch.load_file(model / "model.safetensors")
    assert add(model, photos, "--epochs", "2", classes="zebra") == 0
    after = safetensors.torch.load_file(model / "model.safetensors")
    assert any(name.startswith("unknown.") for name in before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {name.split(".")[1] for name in after.keys() - before.keys()} == {"2"}


def test_the_model_says_from_where_on(model: Path, photos: Path) -> None:
    assert add(model, photos, "--epochs", "1", classes="zebra") == 0
    assert record(model)["method"]["fields"]["gives_way"] == [3]
    assert add(model, photos, "--epochs", "1", classes="okapi") == 0
    assert record(model)["method"]["fields"]["gives_way"] == [3, 4]
    remove_class(model, "bicycle")
    assert record(model)["method"]["fields"]["gives_way"] == [2, 3]
    remove_class(model, "okapi")
    assert record(model)["method"]["fields"]["gives_way"] == [2]
    remove_class(model, "zebra")  # the only one that gave way
    assert record(model)["method"]["fields"]["gives_way"] == []


def test_without_any_earlier_class_a_class_goes_on_giving_way(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    """To background: it scores everywhere, and unknown goes on giving way to it."""
    assert add(model, photos, "--epochs", "1", classes="zebra") == 0
    assert add(model, photos, "--epochs", "1", classes="okapi") == 0
    for name in ("aeroplane", "bicycle"):
        remove_class(model, name)
    assert record(model)["method"]["fields"]["gives_way"] == [1, 2]
    image = next((photos / "images/train").iterdir())
    assert cli.main(["predict", str(model), str(image), "--out", str(tmp_path / "out")]) == 0


def test_an_old_class_goes_and_those_behind_it_keep_their_way(model: Path, photos: Path) -> None:
    assert add(model, photos, "--epochs", "1", classes="zebra,okapi") == 0
    remove_class(model, "zebra")  # the first of its step: okapi has its place
    assert record(model)["method"]["fields"]["gives_way"] == [3]
    assert record(model)["class_names"][3] == "okapi"
