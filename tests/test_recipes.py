"""Published settings and numbers: typed here once more, by hand, and compared with the one file."""

import json
from typing import Any

import pytest
import yaml
from runs import only_line

from segrow import cli
from segrow.commands.options import RunOptions, parse_run
from segrow.commands.remarks import reference_lines, remarks
from segrow.config import RunConfig
from segrow.errors import UserError
from segrow.methods.base import make_method
from segrow.protocol import DEFINITIONS
from segrow.recipes import (
    cell,
    cells,
    deviations,
    files,
    merge,
    published_settings,
    read_recipe,
    recipe_names,
    references,
)

VOC = ("10-1", "15-1", "5-3", "19-1", "15-5", "5-1", "2-1")
ADE = ("100-5", "100-10", "100-50", "50-50")
PUBLISHED = """
mib     12.65 29.29 46.71 69.15 70.08 10.03  9.88   25.96 29.24 32.79 29.31
plop    30.45 54.64 18.68 73.54 70.09  6.46  4.47   28.75 31.59 32.94 30.40
ssul    59.25 67.61 56.89 75.44 71.22 48.65 38.32   32.48 33.10 33.58 29.56
ssul-m  64.12 71.37 58.37 76.49 73.02 55.11 44.74   34.56 34.46 34.37 29.77
"""


def run(*words: str) -> RunOptions:
    return parse_run(words, "train", "", "")


# --- the tables -------------------------------------------------------------------------------------------


def test_every_cell_has_its_published_number_or_none() -> None:
    wanted: dict[str, float | None] = {}
    for line in PUBLISHED.strip().splitlines():
        row, *numbers = line.split()
        tasks = [*(f"voc-{task}" for task in VOC), *(f"ade-{task}" for task in ADE)]
        wanted |= {f"{t}-{row}": float(number) for t, number in zip(tasks, numbers, strict=True)}
        wanted[f"voc-2-2-{row}"] = None
    wanted |= {f"{name}-disjoint": None for name in wanted}
    assert {found.name: found.published for found in cells()} == wanted
    assert len(wanted) == 96


@pytest.mark.parametrize("found", cells(), ids=lambda found: found.name)
def test_a_cell_says_what_it_is(found: Any) -> None:
    assert found.definition == ("ssul" if found.row.startswith("ssul") else "plop")
    assert found.definition in DEFINITIONS
    assert "2106.11562" in found.source if found.row.startswith("ssul") else "2011.11390" in found.source
    assert ("re-run" in found.source) == (found.row == "mib")
    assert found.name.endswith("-disjoint") == (found.setting == "disjoint")
    assert cell(found.name) is found


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_a_run_of_legal_options(name: str) -> None:
    found, options = cell(name), run("--recipe", name)
    assert options.config.train.feature_views == 0  # what is published was reached with new views
    if found is None:
        assert options.config.task == "4-1"
        return
    config = options.config
    assert (config.data.name, config.task, config.setting) == (found.data, found.task, found.setting)
    assert options.method.name == found.method == found.row.removesuffix("-m")
    size = {"voc": 100, "ade20k": 300}[found.data] if found.row == "ssul-m" else 0
    assert config.memory.size == size
    assert config.train.crop_val
    assert config.model.name == "deeplabv3_resnet101"


def test_values_are_what_yaml_makes_of_them() -> None:
    """10-1 is text and 1e-4 in YAML would be text too."""
    for found in cells():
        assert isinstance(found.task, str)
    for name in recipe_names():
        train = read_recipe(name)["train"]
        for key in ("lr", "step0_lr", "step0_backbone_lr", "weight_decay", "lr_floor"):
            assert isinstance(train.get(key, 0.0), float), (name, key)


# --- settings as published --------------------------------------------------------------------------------


def train_of(*words: str) -> tuple[Any, ...]:
    train = run(*words).config.train
    return (train.epochs, train.batch_size, train.lr, train.policy)


def test_ssul_trains_as_published() -> None:
    assert train_of("--method", "ssul") == (50, 32, 0.01, "poly")
    assert train_of("--method", "ssul", "--data.name", "ade20k") == (100, 24, 0.05, "warm_poly")
    for data, unknown in (("voc", "saliency"), ("ade20k", "background")):
        options = run("--method", "ssul", "--data.name", data)
        train, model = options.config.train, options.config.model
        assert (train.step0_lr, train.step0_backbone_lr) == (0.01, 0.001)
        assert (train.crop, train.crop_mode, train.scale) == (513, "scale", (0.5, 2.0))
        assert (train.weight_decay, train.momentum) == (1e-4, 0.9)
        assert (model.head, model.dropout, model.norm_momentum) == ("conv", 0.1, 0.01)
        assert options.method.fields()["unknown"] == unknown
        assert options.config.memory.size == 0
    assert run("--method", "ssul").config.train.lr_floor == 1e-6


@pytest.mark.parametrize("method", ["mib", "plop", "lwf", "ilt"])
@pytest.mark.parametrize(("data", "epochs"), [("voc", 30), ("ade20k", 60)])
def test_the_others_train_as_mib(method: str, data: str, epochs: int) -> None:
    options = run("--method", method, "--data.name", data, "--task", "15-5")
    train, model = options.config.train, options.config.model
    assert (train.epochs, train.step0_epochs, train.batch_size) == (epochs, None, 24)
    assert (train.step0_lr, train.step0_backbone_lr, train.lr, train.backbone_lr) == (0.01, 0.01, 1e-3, 1e-3)
    assert (train.policy, train.lr_floor, train.weight_decay, train.momentum) == ("poly", 0, 1e-4, 0.9)
    assert (train.crop, train.crop_mode, train.scale, train.flip) == (512, "area", (0.5, 2.0), 0.5)
    assert (model.head, model.dropout, model.norm_momentum) == ("linear", 0, 0.1)


def test_exceptions_of_plop() -> None:
    short = run("--method", "plop", "--task", "10-1").config.train
    assert (short.epochs, short.step0_epochs) == (10, 30)
    ade = run("--method", "plop", "--data.name", "ade20k", "--task", "100-5")
    assert ade.config.train.step0_epochs is None
    fields = run("--method", "plop").method.fields()
    assert (fields["pod"], fields["pod_logits"]) == (0.01, 0.0005)
    fields = ade.method.fields()
    assert (fields["pod"], fields["pod_logits"]) == (0.001, 0.00001)
    assert run("--method", "mib", "--data.name", "ade20k").method.fields()["kd"] == 10


def test_ssul_recipes_are_published_with_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, which cannot train with it, the recipe alone gives way."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    words = ["--recipe", "voc-15-1-ssul"]
    assert run(*words).config.train.precision == "16"
    assert run(*words, "--train.device", "cpu").config.train.precision == "auto"
    assert run(*words, "--train.device", "cpu", "--train.precision", "16").config.train.precision == "16"
    assert run("--method", "ssul").config.train.precision == "auto"
    assert run("--recipe", "voc-15-1-mib").config.train.precision == "auto"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run(*words).config.train.precision == "auto"


# --- the lowest of four layers ----------------------------------------------------------------------------


def test_flags_over_config_over_recipe_over_published(tmp_path: Any) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: {name: ade20k}\nmethod: plop\n")
    words = ["--config", str(file)]
    published = run(*words)
    assert (published.config.train.epochs, published.config.train.crop) == (60, 512)
    assert published.method.fields()["pod"] == 0.001
    file.write_text("method: {name: plop, pod: 0.5}\ntrain: {crop: 100}\n")
    both = run(*words, "--recipe", "animals-4-1")
    assert (both.config.train.epochs, both.config.train.crop, both.config.train.lr) == (3, 100, 0.01)
    assert both.config.model.head == "linear"
    assert both.method.fields()["pod"] == 0.5
    top = run(*words, "--recipe", "animals-4-1", "--train.crop=48", "--method.pod", "0.25")
    assert (top.config.train.crop, top.method.fields()["pod"]) == (48, 0.25)


def test_another_data_set_has_the_settings_of_voc() -> None:
    for name in ("folder", "digits", "voc"):
        assert run("--method", "mib", "--data.name", name).config.train.epochs == 30


def test_what_nothing_was_published_of_has_the_plain_defaults() -> None:
    for method in ("finetune", "joint"):
        assert run("--method", method).config == RunConfig()
    assert run("--method", "outside.counting").config == RunConfig()
    assert (
        RunConfig() == run("--method", "ssul").config
    )  # so the defaults of the Python API are SSUL's on VOC


def test_print_config_shows_what_was_published(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--method", "plop", "--data.name", "ade20k", "--print_config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["train"]["epochs"], shown["method"]["pod"]) == (60, 0.001)


def test_a_config_of_another_method_drops_the_recipes_hyper_parameters(tmp_path: Any) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("method: {name: mib, kd: 3.0}\n")
    found = run("--recipe", "animals-4-1-ssul", "--config", str(file)).method
    assert (found.name, found.fields()["kd"], found.fields()["threshold"]) == ("mib", 3.0, 0.7)


def test_the_neutral_animals_leave_the_head_to_the_method_and_fix_the_rest() -> None:
    recipe = read_recipe("animals-4-1")
    assert "method" not in recipe
    assert "head" not in recipe["model"]
    for method, head in (("mib", "linear"), ("plop", "linear"), ("ssul", "conv"), ("finetune", "conv")):
        config = run("--recipe", "animals-4-1", "--method", method).config
        assert config.model.head == head
        assert (config.train.lr, config.train.backbone_lr, config.train.lr_floor) == (0.01, 0.001, 1e-6)
        assert (config.model.name, config.model.dropout) == ("deeplabv3_mobilenet", 0.1)
        assert (config.train.crop, config.train.crop_mode, config.train.epochs) == (193, "scale", 3)
        assert (config.train.step0_lr, config.train.step0_backbone_lr) == (0.01, 0.001)


def test_merging_changes_neither_side() -> None:
    low, high = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": 4}
    assert merge(low, high) == {"a": {"b": 3, "c": 2}, "d": 4}
    assert (low, high) == ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": 4})


# --- the reference's behaviour ----------------------------------------------------------------------------


def reference_of(*words: str) -> tuple[Any, ...]:
    config = run(*words).config
    memory, train = config.memory, config.train
    return memory.labels, memory.unshifted, train.padding, train.select, train.void


@pytest.mark.parametrize("data", ["voc", "ade20k"])
def test_reference_switches_what_belongs_to_the_method(data: str) -> None:
    off = ("known", False, "ignore", "last", "ignore")
    ssul = ["--method", "ssul", "--data.name", data]
    mib, plop = ["--method", "mib", "--data.name", data], ["--method", "plop", "--data.name", data]
    assert reference_of(*ssul) == reference_of(*mib) == reference_of(*plop) == off
    on = "--reference"
    assert reference_of(*ssul, on, "--memory.size", "5") == ("seen", True, "background", "best", "ignore")
    assert reference_of(*ssul, on) == ("known", False, "background", "best", "ignore")
    void = "background" if data == "voc" else "ignore"
    assert reference_of(*mib, on, "--memory.size", "5") == ("known", False, "ignore", "last", void)
    assert reference_of(*plop, on) == off
    assert run(*plop).method.fields()["median"] == "exact"
    assert run(*plop, on).method.fields()["median"] == "reference"


def test_reference_stands_above_a_config_and_below_flags(tmp_path: Any) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train: {padding: ignore, step0_lr: 0.5}\n")
    train = run("--config", str(file), "--reference").config.train
    assert (train.padding, train.step0_lr, train.step0_backbone_lr) == ("background", 0.01, 0.001)
    options = run("--reference", "--train.padding", "ignore")
    assert options.config.train.padding == "ignore"
    lines = reference_lines(options)
    assert "--train.padding background: overruled: train.padding ignore instead of background" in lines[0]
    assert not [line for line in remarks(options) if line.startswith("padding is trained")]


def test_each_switch_is_a_line() -> None:
    options = run("--recipe", "voc-15-1-ssul-m", "--reference")
    lines = reference_lines(options)
    for flag in (
        "--memory.labels seen",
        "--memory.unshifted true",
        "--train.padding background",
        "--train.select best",
        "--train.step0_lr 0.01 --train.step0_backbone_lr 0.001",
    ):
        assert len([line for line in lines if line.startswith(f"--reference: {flag}: ")]) == 1
    assert len(lines) == 5
    assert reference_lines(run()) == []
    assert reference_lines(run("--method", "finetune", "--reference")) == [
        "--reference: nothing to switch on for method finetune here"
    ]


@pytest.mark.parametrize("row", ["mib", "plop", "ssul", "ssul-m", "lwf", "ilt"])
@pytest.mark.parametrize("data", ["voc", "ade20k"])
def test_what_reference_sets_is_legal_and_named(row: str, data: str) -> None:
    for memory in (False, True):
        for reference in references(row, data, "15-1", memory):
            for group, values in reference.set.items():
                if group == "method":
                    make_method(row, values)
                for key, value in values.items() if group != "method" else ():
                    part = getattr(RunConfig(), group)
                    assert hasattr(part, key)
                    assert value == getattr(part, key) or reference.otherwise
            assert reference.says


# --- deviations and remarks -------------------------------------------------------------------------------


def test_deviations_name_what_the_methods_file_names() -> None:
    for method in ("mib", "plop", "lwf", "ilt"):
        text = " ".join(deviations(method, "voc", "15-1", False))
        assert "in-place ABN with leaky ReLU" in text
        assert "decoder" in text
    text = " ".join(deviations("ssul", "voc", "15-1", False))
    assert "synchronised over devices" in text
    assert "saliency" in text
    assert "exemplar" not in text
    assert "exemplar" in " ".join(deviations("ssul-m", "voc", "15-1", True))
    assert "saliency" not in " ".join(deviations("ssul", "ade20k", "100-5", False))
    assert deviations("finetune", "voc", "15-1", True) == ()


def test_a_changed_setting_is_a_remark() -> None:
    assert not [line for line in remarks(run("--method", "mib")) if "settings differ" in line]
    words = [
        "--method",
        "mib",
        "--train.epochs",
        "3",
        "--method.kd",
        "5",
        "--model.name",
        "deeplabv3_mobilenet",
    ]
    changed = remarks(run(*words))[-1]
    assert changed.startswith("settings differ from the published ones: ")
    for part in (
        "train.epochs 3 instead of 30",
        "method.kd 5 instead of 10",
        "model.name deeplabv3_mobilenet instead of deeplabv3_resnet101",
    ):
        assert part in changed
    assert remarks(run("--method", "finetune", "--train.epochs", "3")) == ()


# --- the commands -----------------------------------------------------------------------------------------


def test_recipes_lists_every_row(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    assert cli.main(["recipes"]) == 0
    out = capsys.readouterr().out
    lines = {line.split()[1]: line for line in out.splitlines() if line.startswith("│")}
    assert [cell.strip() for cell in lines["voc-15-1"].split("│")[2:6]] == [
        "29.29",
        "54.64",
        "67.61",
        "71.37",
    ]
    assert [cell.strip() for cell in lines["ade-50-50"].split("│")[2:6]] == [
        "29.31",
        "30.40",
        "29.56",
        "29.77",
    ]
    assert lines["voc-2-2"].count("none published") == 4
    assert len(lines) == 12
    assert "-disjoint: none published" in out
    assert "re-run" in out
    for name in files():
        assert f"segrow train --recipe {name}" in " ".join(out.split())


def test_recipes_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", "--json"]) == 0
    found = {item["name"]: item for item in json.loads(capsys.readouterr().out)}
    assert list(found) == list(recipe_names())
    assert found["voc-15-1-ssul-m"]["published"] == 71.37
    assert found["voc-15-1-ssul-m-disjoint"]["published"] is None
    assert cli.main(["recipes", "voc-15-1-mib", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert one["options"] == read_recipe("voc-15-1-mib")
    assert one["command"] == "segrow reproduce voc-15-1-mib --data.root DIR"


def test_recipes_shows_one_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", "voc-15-1-ssul-m"]) == 0
    out = capsys.readouterr().out
    for part in (
        "published   71.37 (SSUL's paper",
        "definition  ssul",
        "--train.epochs 50",
        "--memory.size 100",
        "--train.precision 16 (on a CPU, which cannot train with it: auto)",
        "synchronised over devices",
        "--memory.unshifted true: exemplar labels are not shifted",
        "segrow reproduce voc-15-1-ssul-m --data.root DIR",
    ):
        assert part in out
    assert cli.main(["recipes", "voc-15-1-mib-disjoint"]) == 0
    assert "published   none published\n" in capsys.readouterr().out
    assert cli.main(["recipes", "animals-4-1"]) == 0
    assert "segrow train --recipe animals-4-1 --data.root DIR" in capsys.readouterr().out


def test_the_settings_it_shows_are_those_that_run(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("voc-10-1-plop", "ade-100-5-ssul-m-disjoint"):
        assert cli.main(["recipes", name]) == 0
        block = capsys.readouterr().out.split("settings\n")[1].split("\n\n")[0]
        words = [word for line in block.splitlines() for word in line.split("(")[0].split()]
        words += ["--train.precision", "auto"]
        assert run(*words).config == run("--recipe", name).config
        assert run(*words).method == run("--recipe", name).method


def test_methods_lists_papers_and_parts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["methods"]) == 0
    out = capsys.readouterr().out
    assert "2002.00718" in out
    assert cli.main(["methods", "--json"]) == 0
    found = {item["name"]: item for item in json.loads(capsys.readouterr().out)}
    assert list(found) == ["finetune", "ilt", "joint", "lwf", "mib", "plop", "ssul"]
    parts = {name: [item["parts"][p] for p in ("init", "freeze", "pseudo")] for name, item in found.items()}
    assert parts["mib"] == ["background", "none", "none"]
    assert parts["plop"] == ["background", "none", "entropy"]
    assert parts["ssul"] == ["unknown", "old_heads", "threshold"]
    assert parts["finetune"] == [None, None, None]
    assert [name for name, item in found.items() if item["parts"]["memory"] == "in the paper"] == ["ssul"]
    for item in found.values():
        assert item["paper"]
        assert item["parts"]["losses"]
        assert all(h["doc"] for h in item["hyper_parameters"])


def test_methods_shows_one_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["methods", "plop"]) == 0
    out = capsys.readouterr().out
    for part in (
        "2011.11390",
        "--method.pod 0.01\n      Weight of local POD",
        "--method.pod 0.01 (VOC and others), 0.001 (ADE)",
        "--train.epochs 30 (VOC and others), 60 (ADE)",
        "--train.epochs 10 --train.step0_epochs 30 (VOC 10-1)",
        "segrow train --method plop",
    ):
        assert part in out


def test_published_settings_of_a_variant_have_its_memory() -> None:
    assert published_settings("ssul-m", "ade20k", "100-5")["memory"] == {"size": 300}
    assert "memory" not in published_settings("ssul", "ade20k", "100-5")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["recipes", "voc-15-1-sul"],
            'no recipe "voc-15-1-sul"; `segrow recipes` lists all 98. Did you mean',
        ),
        (["train", "--recipe", "voc-15-1-sul"], 'Did you mean "voc-15-1-ssul"?'),
        (
            ["methods", "mip"],
            'no method "mip"; there is finetune, ilt, joint, lwf, mib, plop, ssul. Did you mean',
        ),
        (["recipes", "a", "b"], "unrecognized arguments: b"),
        (["train", "--reference=yes"], "--reference"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert expected in only_line(capsys.readouterr().err)


def test_no_recipe_is_called_published() -> None:
    """The file that all of them come from is none."""
    with pytest.raises(UserError, match='no recipe "published"'):
        read_recipe("published")
