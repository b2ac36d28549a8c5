"""A model that was trained elsewhere as a model directory, ready for `segrow add`."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ..engine.cost import parameter_counts
from ..methods.base import make_method
from ..model.foreign import read_foreign
from ..model.own_names import BACKGROUND
from ..model.store import save_model

CROP = 513
"""Side of training crops; evaluated is on whole images."""


def adopt(
    path: Path,
    names: Sequence[str],
    out: Path,
    arch: str | None = None,
    output_stride: int | None = None,
    rates: Sequence[int] | None = None,
    report: Callable[[str], None] = print,
) -> int:
    """Write a model directory of step 0 with the logits of a state dict; returns the number of its classes.

    Args:
        path: Of safetensors or torch.save, in any wrapping (`model/state_dicts.py`).
        names: Class names in the order of the channels, with background first or without it.
        out: The model directory.
        arch: Which network the file holds; None: the one that its names show.
        output_stride: As it was built; None: its library's default.
        rates: The same of its ASPP.
        report: Gets a line about what of the file is left out.

    Raises:
        UserError: When the file cannot be read or does not fit; nothing is written then.
    """
    model = read_foreign(path, names, arch, output_stride, rates, report)
    classes = ["background", *(names[1:] if names[0] in BACKGROUND else names)]
    # its scores are a softmax, as finetune's; segrow add exchanges the training for one that does not forget
    method = make_method("finetune", {"loss_type": "ce"})
    unknown = dict.fromkeys(("train_s", "iterations", "peak_memory_bytes", "trainable"))
    meta = {
        "step": 0,
        "class_names": classes,
        "scenario": {"data": "elsewhere", "task": "offline", "setting": "overlap", "classes": classes},
        "method": {"name": method.name, "fields": method.fields()},
        "protocol": {"crop_val": False, "crop": CROP},
        "training": {**unknown, "parameters": parameter_counts(model)[1], "exemplars": 0},
        "parent": None,
        "imported": path.name,
    }
    save_model(model, out, meta)
    return len(classes) - 1
