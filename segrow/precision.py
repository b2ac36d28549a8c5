"""The number format that a network computes in: what `auto` means on a device, and why.

    choose("auto", "cpu")      # used "bf16" or "32", and the line that says why

bf16 halves memory and, where the processor multiplies in it, time. Elsewhere it is emulated: a training
iteration on an AVX2 processor took fifteen times as long as in float32.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# what oneDNN may be limited to by its environment, of all that has no bf16 instructions
_CAPS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_WITHOUT_BF16 = frozenset(
    {"sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni"}
)
_THEN = ", then "


class PrecisionWarning(UserWarning):
    """A number format was asked for that the device emulates."""


@dataclass(frozen=True)
class Choice:
    """A precision that was decided on.

    Attributes:
        used: 32, bf16 or 16.
        reason: What the device can do, as a clause.
        line: What to tell the user; None: the precision was asked for, and the device has it.
        emulated: bf16 was asked for where the device has to emulate it; the line is a warning.
    """

    used: str
    reason: str
    line: str | None = None
    emulated: bool = False


def choose(asked: str, device: str) -> Choice:
    """The precision to compute in.

    Args:
        asked: auto, 32, bf16 or 16; whatever is not auto is obeyed.
        device: cpu, cuda or cuda:N.
    """
    native, reason = native_bf16(device)
    if asked == "auto":
        used = "bf16" if native else "32"
        return Choice(used, reason, f"precision {used} (auto): {reason}")
    if asked == "bf16" and not native:
        line = f"warning: precision bf16, as asked, though {reason}; precision auto takes 32"
        return Choice(asked, reason, line, emulated=True)
    return Choice(asked, reason)


def native_bf16(device: str) -> tuple[bool, str]:
    """Whether a device multiplies in bfloat16 itself, and a clause that says so."""
    import torch  # here, so that the command line can name the choices without it

    if device.partition(":")[0] == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return True, "this GPU computes in bf16"
        return False, "this GPU emulates bf16, which is slow"
    # asked in all versions of torch since 2.6; both are False on ARM
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return False, "this processor emulates bf16 (no AVX-512 BF16, no AMX), which is many times slower"
    set_to = next(((name, os.environ[name]) for name in _CAPS if os.environ.get(name)), None)
    if set_to and set_to[1].lower() in _WITHOUT_BF16:
        return False, f"{'='.join(set_to)} makes this processor emulate bf16, which is many times slower"
    return True, "this processor computes in bf16"


@contextmanager
def true_float32() -> Iterator[None]:
    """Within, or in a function so decorated, float32 on a GPU is float32.

    There torch multiplies float32 in convolutions with 10 bits by default (TF32), which is fine for training.
    What is evaluated, judged or shown should not depend on the device.
    """
    import torch

    new = torch.__version__ >= "2.9"  # its switches and the older ones must not be mixed
    products = torch.backends.cuda.matmul
    convolutions = torch.backends.cudnn.conv if new else torch.backends.cudnn  # type: ignore[attr-defined]
    name, exact = ("fp32_precision", "ieee") if new else ("allow_tf32", False)
    before = [(switch, getattr(switch, name)) for switch in (products, convolutions)]
    try:
        for switch, _ in before:
            setattr(switch, name, exact)
        yield
    finally:
        for switch, value in before:
            setattr(switch, name, value)


def uses_tf32(device: str) -> bool:
    """Whether float32 convolutions on a device are computed in TF32, as torch does by default on a GPU."""
    import torch

    if device != "cuda":
        return False
    if torch.__version__ >= "2.9":
        return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")  # type: ignore[attr-defined]
    return torch.backends.cudnn.allow_tf32


def continued(before: str, used: str) -> str:
    """What a step was trained in: `before` it was interrupted (empty: it was not), and now.

    Returns:
        "bf16", or, where the step went on in another precision, "bf16, then 32".
    """
    if not before:
        return used
    return before if last(before) == used else f"{before}{_THEN}{used}"


def last(trained: str) -> str:
    """The precision in which training that `continued` describes ended."""
    return trained.rpartition(_THEN)[2]


def mixed_remark(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which steps were trained in which precision, if it was not one.

    Args:
        steps: As results.json holds them; those of older versions do not say.
    """
    by_precision: dict[str, list[str]] = {}
    for step in steps:
        if trained := step["cost"].get("precision"):
            by_precision.setdefault(trained, []).append(str(step["step"]))
    if len(by_precision) < 2 and not any(_THEN in trained for trained in by_precision):
        return []
    parts = [
        f"step{'s' if len(which) > 1 else ''} {', '.join(which)} in {trained}"
        for trained, which in by_precision.items()
    ]
    return [f"{MIXED}{'; '.join(parts)}"]


MIXED = "the steps were trained in different precision: "
