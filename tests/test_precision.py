"""Precision auto: bf16 where the device computes in it, else 32; what is asked for is obeyed."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from runs import build_tree, options, record, results, start
from runs import model as model_of

import segrow
from segrow import cli, precision
from segrow.config import TrainConfig
from segrow.engine.setup import make_fabric
from segrow.precision import PrecisionWarning, choose, continued, last, mixed_remark


@pytest.fixture
def processor(machine_bf16: None, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The real question, of a processor that has neither of the two and no limit in its environment."""
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return monkeypatch


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tree(tmp_path_factory.mktemp("voc")).root


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    assert start(root, out, "--steps", "1", "--train.epochs", "1") == 0
    return out


def answer(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    """What the device can do."""
    clause = "it can" if native else "it cannot"
    monkeypatch.setattr(precision, "native_bf16", lambda device: (native, clause))


# --- what a device can do ---------------------------------------------------------------------------------


@pytest.mark.parametrize("has", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_a_processor_with_either_computes_in_bf16(processor: pytest.MonkeyPatch, has: str) -> None:
    assert choose("auto", "cpu").used == "32"
    processor.setattr(torch.cpu, has, lambda: True)
    assert choose("auto", "cpu") == choose("auto", "cpu:0")
    assert choose("auto", "cpu").line == "precision bf16 (auto): this processor computes in bf16"


@pytest.mark.parametrize(
    ("name", "cap", "used"),
    [
        ("ONEDNN_MAX_CPU_ISA", "AVX2", "32"),
        ("ONEDNN_MAX_CPU_ISA", "avx512_core", "32"),
        ("DNNL_MAX_CPU_ISA", "AVX512_CORE_VNNI", "32"),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16", "bf16"),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX", "bf16"),
        ("DNNL_MAX_CPU_ISA", "DEFAULT", "bf16"),
        ("ONEDNN_MAX_CPU_ISA", "", "bf16"),
    ],
)
def test_a_limit_of_onednn_is_heeded(processor: pytest.MonkeyPatch, name: str, cap: str, used: str) -> None:
    processor.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    processor.setenv(name, cap)
    chosen = choose("auto", "cpu")
    assert chosen.used == used
    assert (f"{name}={cap}" in chosen.reason) == (used == "32")


def test_of_two_limits_onednn_reads_its_own_name_first(processor: pytest.MonkeyPatch) -> None:
    processor.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    processor.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    processor.setenv("ONEDNN_MAX_CPU_ISA", "ALL")
    assert choose("auto", "cpu").used == "bf16"


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_is_asked_without_emulation(processor: pytest.MonkeyPatch, native: bool) -> None:
    asked: list[bool] = []

    def supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return native

    processor.setattr(torch.cuda, "is_bf16_supported", supported)
    assert choose("auto", "cuda:1").used == ("bf16" if native else "32")
    assert asked == [False]


def test_this_machine_answers(machine_bf16: None) -> None:
    """The names are those of the installed torch."""
    native, clause = precision.native_bf16("cpu")
    assert choose("auto", "cpu").used == ("bf16" if native else "32")
    assert "processor" in clause


# --- what comes of it -------------------------------------------------------------------------------------


def test_auto_is_the_default_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for native, used, name in ((True, "bf16", "bf16-mixed"), (False, "32", "32-true")):
        answer(monkeypatch, native)
        assert choose(TrainConfig().precision, "cpu").used == used
        assert make_fabric(TrainConfig(device="cpu"))[1].precision == name


def test_an_explicit_bf16_is_obeyed_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, False)
    chosen = choose("bf16", "cpu")
    assert (chosen.used, chosen.emulated) == ("bf16", True)
    assert chosen.line == "warning: precision bf16, as asked, though it cannot; precision auto takes 32"
    answer(monkeypatch, True)
    assert choose("bf16", "cpu").line is None
    assert choose("32", "cpu").line is None
    assert choose("16", "cuda").line is None


@pytest.mark.parametrize("native", [True, False])
def test_a_run_says_and_records_it(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    native: bool,
) -> None:
    answer(monkeypatch, native)
    used = "bf16" if native else "32"
    assert start(root, tmp_path / "run", "--steps", "1", "--train.epochs", "1") == 0
    said = capsys.readouterr().err
    assert said.count("precision") == 1
    assert f"precision {used} (auto): it can" in said
    assert record(tmp_path / "run", 0)["training"]["precision"] == used
    assert results(tmp_path / "run")["steps"][0]["cost"]["precision"] == used
    assert "precision: auto" in (tmp_path / "run" / "config.yaml").read_text()
    assert not [line for line in results(tmp_path / "run")["remarks"] if "precision" in line]


def test_a_warning_of_a_run(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, False)
    words = ("--steps", "1", "--train.epochs", "1", "--train.precision", "bf16")
    assert start(root, tmp_path / "run", *words) == 0
    assert capsys.readouterr().err.count("warning: precision bf16, as asked") == 1


def test_a_run_goes_on_on_another_machine(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    answer(monkeypatch, True)
    assert start(root, out, "--steps", "1", "--train.epochs", "1") == 0
    answer(monkeypatch, False)
    capsys.readouterr()
    assert start(root, out, "--train.epochs", "1") == 0
    said = capsys.readouterr().err
    assert said.count("the steps so far were trained in bf16; this machine goes on in 32, for it cannot") == 1
    assert [step["cost"]["precision"] for step in results(out)["steps"]] == ["bf16", "32", "32"]
    remark = "the steps were trained in different precision: step 0 in bf16; steps 1, 2 in 32"
    assert results(out)["remarks"].count(remark) == 1
    assert cli.main(["results", str(out)]) == 0
    assert start(root, out, "--train.epochs", "1") == 0  # all is done: nothing to say
    assert "so far" not in capsys.readouterr().err


def test_a_step_goes_on_on_another_machine(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed between two epochs of its first step."""
    out = tmp_path / "run"
    answer(monkeypatch, True)
    from segrow.engine.step import StepTrainer

    epoch = StepTrainer._epoch

    def killed(self: StepTrainer, number: int, *more: object) -> dict[str, float]:
        if number == 1:
            raise KeyboardInterrupt
        return epoch(self, number, *more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(StepTrainer, "_epoch", killed)
        assert cli.main(options(root, out, "--steps", "1")) == 130
    answer(monkeypatch, False)
    capsys.readouterr()
    assert start(root, out, "--steps", "1") == 0
    assert "step 0 was trained in bf16; this machine goes on in 32, for it cannot" in capsys.readouterr().err
    assert results(out)["steps"][0]["cost"]["precision"] == "bf16, then 32"
    assert any("step 0 in bf16, then 32" in line for line in results(out)["remarks"])


def test_words_of_a_change() -> None:
    assert continued("", "32") == "32"
    assert continued("32", "32") == "32"
    assert continued("bf16", "32") == "bf16, then 32"
    assert continued("bf16, then 32", "32") == "bf16, then 32"
    assert (last("bf16"), last("bf16, then 32")) == ("bf16", "32")
    old = {"step": 0, "cost": {}}  # of a version that did not say
    assert mixed_remark([old, {"step": 1, "cost": {"precision": "32"}}]) == []


@pytest.mark.parametrize(("native", "asked"), [(True, "auto"), (False, "auto"), (False, "bf16")])
def test_predict_says_it_once(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    native: bool,
    asked: str,
) -> None:
    answer(monkeypatch, native)
    image = tmp_path / "a.png"
    Image.new("RGB", (40, 40)).save(image)
    words = ["predict", str(trained), str(image), "--out", str(tmp_path / "out"), "--precision", asked]
    assert cli.main(words) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "precision" in line]
    wanted = {"auto": f"precision {'bf16' if native else '32'} (auto)", "bf16": "warning: precision bf16"}
    assert len(said) == 1
    assert said[0].startswith(wanted[asked])


def test_load_warns(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, False)
    folder = model_of(trained, 0)
    assert segrow.load(folder).precision.used == "32"
    with pytest.warns(PrecisionWarning, match="warning: precision bf16, as asked, though it cannot"):
        assert segrow.load(folder, precision="bf16").precision.used == "bf16"
    answer(monkeypatch, True)
    assert segrow.load(folder, device="cpu").precision.used == "bf16"


def test_add_says_and_records_it(
    root: Path,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer(monkeypatch, True)
    data = tmp_path / "photos"
    (data / "images").mkdir(parents=True)
    (data / "masks").mkdir()
    (data / "classes.txt").write_text("background\nblob\n")
    for k in range(4):
        Image.new("RGB", (40, 40), (60 * k, 0, 0)).save(data / "images" / f"{k}.png")
        Image.new("L", (40, 40), 1).save(data / "masks" / f"{k}.png")
    out = tmp_path / "model"
    words = ["--classes", "blob", "--epochs", "1", "--device", "cpu", "--workers", "0", "--out", str(out)]
    assert cli.main(["add", str(trained), "--data", str(data), *words]) == 0
    assert capsys.readouterr().err.count("precision bf16 (auto): it can") == 1
    assert json.loads((out / "model.json").read_text())["training"]["precision"] == "bf16"


def test_auto_on_a_finished_run_is_what_it_was_trained_in(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An earlier segrow had another default, so the same command then asked for something else."""
    out, words = tmp_path / "run", ("--train.epochs", "1")
    answer(monkeypatch, False)
    assert start(root, out, *words, "--train.precision", "32") == 0
    there = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for native in (True, False):
        answer(monkeypatch, native)
        assert start(root, out, *words) == 0
        assert "step 2  done before" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == there
    assert start(root, out, *words, "--train.precision", "bf16") == 2
    assert "train.precision: 32 there, bf16 here" in capsys.readouterr().err
