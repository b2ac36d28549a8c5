"""What a method measures before a step (PLOP's thresholds), through the engine; and resuming."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from runs import STEPS, matrices, model, results, start, tensors, weights
from test_resume import Stopper

from segrow.batch import Batch
from segrow.config import ModelConfig
from segrow.data import loader
from segrow.engine.checkpoint import Checkpoint
from segrow.engine.step import StepTrainer
from segrow.errors import LeakError
from segrow.methods.base import StepContext
from segrow.methods.plop import Plop
from segrow.model.segmenter import build_segmenter

PLOP = ("--method", "plop", "--model.head", "linear", "--train.crop", "64", "--train.log_every", "1")


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted PLOP run with exemplars, which its paper does not have."""
    out = tmp_path_factory.mktemp("runs") / "plop"
    assert start(root, out, *PLOP, "--memory.size", "6") == 0
    return out


def thresholds(out: Path, step: int) -> torch.Tensor:
    return safetensors.torch.load_file(model(out, step) / "method.safetensors")["thresholds"]


def test_thresholds_are_kept_with_the_model(whole: Path) -> None:
    assert not (model(whole, 0) / "method.safetensors").exists()
    assert [len(thresholds(whole, step)) for step in range(1, STEPS)] == [3, 4]  # old classes and background
    for step in range(1, STEPS):
        assert ((thresholds(whole, step) >= 0.001) & (thresholds(whole, step) <= 1)).all()


@pytest.mark.parametrize(
    ("owner", "name", "n", "gathered"),
    [
        (Checkpoint, "save", 3, 1),  # the first epoch of step 1 is stored: step 2 alone measures again
        (StepTrainer, "_update", 1, 2),  # the first update of step 1 is lost: it is measured again
    ],
)
def test_a_continued_step_does_not_measure_again(
    root: Path, whole: Path, tmp_path: Path, owner: type, name: str, n: int, gathered: int
) -> None:
    out, more = tmp_path / "run", (*PLOP, "--memory.size", "6")
    if name == "_update":
        n += results(whole)["steps"][0]["cost"]["iterations"]
    with pytest.MonkeyPatch.context() as patch:
        Stopper(patch, owner, name, n, after=True)
        assert start(root, out, *more) == 130
    seen: list[int] = []
    inner = Plop.gather

    def gather(self: Plop, ctx: StepContext) -> None:
        seen.append(ctx.step)
        inner(self, ctx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plop, "gather", gather)
        assert start(root, out, *more) == 0
    assert seen == [1, 2][-gathered:]
    assert weights(out) == weights(whole)
    assert matrices(out) == matrices(whole)


def test_what_a_scan_shows(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All images of the step in order, twice the same, with the labels of its new classes alone."""
    passes: dict[int, list[list[Batch]]] = {}

    def gather(self: Plop, ctx: StepContext) -> None:
        passes[ctx.step] = [list(ctx.scan()) for _ in range(2)]
        assert not ctx.model.training
        before = torch.random.get_rng_state()
        next(ctx.scan())
        assert torch.equal(before, torch.random.get_rng_state())

    monkeypatch.setattr(Plop, "gather", gather)
    monkeypatch.setattr(Plop, "pseudo", "none")
    assert start(root, tmp_path / "run", *PLOP, "--method.pseudo", "none", "--train.epochs", "1") == 0
    assert sorted(passes) == [0, 1, 2]
    tree_masks = sorted((root / "SegmentationClassAug").glob("2007*.png"))
    for step, classes in ((0, {1, 2}), (1, {3}), (2, {4})):
        first, second = passes[step]
        labels = torch.cat([b.labels for b in first])
        assert all(torch.equal(a.images, b.images) for a, b in zip(first, second, strict=True))
        assert set(labels.unique().tolist()) - {-1, 0} == classes
        shown = [m for m in tree_masks if classes & set(np.unique(np.asarray(Image.open(m))).tolist())]
        assert len(labels) == len(shown)
        assert [len(b.labels) for b in first[:-1]] == [4] * (len(first) - 1)
        assert labels.shape[1:] == (64, 64)
        for mask, row in zip(shown, labels, strict=True):  # in order: the classes of each image agree
            there = set(np.unique(np.asarray(Image.open(mask))).tolist()) & classes
            assert set(row.unique().tolist()) - {-1, 0} <= there


def test_a_context_without_images_cannot_be_scanned() -> None:
    config = ModelConfig(name="deeplabv3_test_resnet", weights="none", width=8)
    ctx = StepContext(0, build_segmenter(config, 2, False, lambda line: None), None, 3, 1)
    with pytest.raises(RuntimeError, match="built without `scan`: it has no images to pass over"):
        ctx.scan()
    assert ctx.sum(torch.tensor([1, 2])).tolist() == [1, 2]


def test_a_scan_is_guarded_against_leaks(root: Path, tmp_path: Path) -> None:
    """The labels of a scan pass the same guard as those of training."""

    def leaky(labels: np.ndarray, visible: frozenset[int], image_id: str, step: int) -> None:
        if step == 1:
            raise LeakError(f"image {image_id} shows classes")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "guard", leaky)
        patch.setattr(StepTrainer, "fit", lambda self: 0.0)
        assert start(root, tmp_path / "run", *PLOP) == 1


@pytest.mark.parametrize("name", ["mib", "lwf", "ilt", "plop", "ssul", "finetune"])
@pytest.mark.parametrize("head", ["linear", "conv"])
def test_every_method_trains_every_head_with_a_memory(
    name: str, head: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also frozen, and with pseudo-labels that it does not have by itself."""
    more = ("--memory.size", "6", "--train.epochs", "1", "--train.crop", "64", "--model.head", head)
    mixed = () if name == "finetune" else ("--method.freeze", "trunk", "--method.pseudo", "entropy")
    code = start(root, tmp_path / "run", "--method", name, *more, *mixed)
    if (name, head) == ("ssul", "linear"):
        assert code == 2
        assert "needs a background head of its own" in capsys.readouterr().err
        return
    assert code == 0
    found = results(tmp_path / "run")
    assert [step["exemplars"] for step in found["steps"]] == [0, 6, 6]
    if mixed:
        assert len(thresholds(tmp_path / "run", 2)) == 4
        a, b = tensors(tmp_path / "run", 0), tensors(tmp_path / "run", 2)
        trunk = [key for key in a if key.startswith("trunk.")]
        assert trunk
        assert all(torch.equal(a[key], b[key]) for key in trunk)
