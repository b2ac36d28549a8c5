"""The tensors of a file that some training script left, whatever they are wrapped in; nothing of it is run.

    {"state_dict": {"model.conv1.weight": …, "criterion.weight": …}, "epoch": 3, "args": Namespace(…)}

The network is looked for by names that it must have: at any place of the content, behind any prefix. What
stands beside it is left out, and a line says which tensors.
"""

import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from ..documents import check_archive
from ..errors import UserError
from ..resources import machine_refuses
from ..tensor_files import check_tensors, read_safetensors

SAVE = 'save torch.save(model.state_dict(), "weights.pth") where the model is'

_BESIDE = {
    "their average": re.compile(r"(^|[._])(ema|swa|averaged?)([._]|$)", re.IGNORECASE),
    "a teacher": re.compile(r"(^|[._])teacher([._]|$)", re.IGNORECASE),
}
"""What stands beside trained weights, by a word in its name; the first that fits."""
_DEEPEST = 3  # levels of a checkpoint that are looked through

_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (rb"version https://git-lfs", "is a pointer of Git LFS, not the file; run git lfs pull"),
    (rb"<", "is a web page or XML, not weights; download the file itself"),
    (rb"\x89HDF", f"is HDF5 (Keras or MATLAB), not PyTorch; {SAVE}"),
    (rb"GGUF", f"is GGUF, not PyTorch; {SAVE}"),
    (rb"....TFL3", f"is TensorFlow Lite, not PyTorch; {SAVE}"),
    (rb"ftrt", f"is an engine of TensorRT, not weights; {SAVE}"),
    # version of the format, then any of the model's fields
    (rb"\x08[\x01-\x1f][\x12\x1a\x22\x2a\x32\x3a\x42]", f"is ONNX, a program and not weights; {SAVE}"),
    (
        rb"\s*[{\[]",
        "is JSON, such as an index of weights in several files, and not weights; give the file with all of "
        f"them, or {SAVE}",
    ),
    (rb"\x93NUMPY", f"is one array of numpy, not PyTorch; {SAVE}"),
    (rb"\x1f\x8b", "is compressed with gzip; unpack it first"),
    (rb"BZh", "is compressed with bzip2; unpack it first"),
    (rb"\xfd7zXZ", "is compressed with xz; unpack it first"),
    (rb"\x28\xb5\x2f\xfd", "is compressed with zstd; unpack it first"),
    (rb"7z\xbc\xaf", "is a 7z archive; unpack it first"),
    (rb"Rar!", "is a RAR archive; unpack it first"),
)
"""How files of other kinds begin, and what to say of them."""

_SUFFIXES = {
    ".onnx": "ONNX",
    ".pb": "TensorFlow",
    ".tflite": "TensorFlow Lite",
    ".h5": "Keras",
    ".keras": "Keras",
    ".mlmodel": "Core ML",
    ".engine": "TensorRT",
    ".trt": "TensorRT",
    ".msgpack": "Flax",
    ".pdparams": "Paddle",
}
"""What files are called that cannot be told by how they begin, or are damaged."""

# Classes of settings that training scripts pickle beside the weights, by the first part of their module.
# A stand-in takes their place, so nothing of these packages is imported.
_SETTINGS = frozenset(
    {
        *(
            "addict",
            "argparse",
            "box",
            "collections",
            "datetime",
            "easydict",
            "lightning",
            "lightning_fabric",
        ),
        *(
            "ml_collections",
            "mmcv",
            "mmengine",
            "omegaconf",
            "pathlib",
            "pytorch_lightning",
            "types",
            "typing",
        ),
        "yacs",
    }
)
_PLAIN = ("bool", "complex", "dict", "float", "int", "list", "object", "set", "str", "tuple")
_BUILTINS = frozenset(f"builtins.{name}" for name in _PLAIN)
_MAPPINGS = ("AttributeDict", "Box", "CfgNode", "ConfigDict", "Dict", "EasyDict", "defaultdict")


@final
class _Setting:
    """Stands for a value of another package; holds nothing."""

    def __new__(cls, *_: object) -> "_Setting":
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Drop it."""


@final
class _Settings:
    """Stands for a mapping of another package: what it makes is a plain one."""

    def __new__(cls, *_: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


def read_file(path: Path, what: str) -> Mapping[str, object]:
    """Whatever mapping a file of safetensors or of torch.save holds, without running code from it.

    Args:
        what: How an error calls the file.

    Raises:
        UserError: For a file that is missing, cannot be read or holds something else.
    """
    if path.is_dir():
        raise UserError(f"{what} {path} is a folder; give the file with the weights in it")
    if not path.is_file():
        raise UserError(f"no {what} {path}; give an existing .safetensors or .pth file")
    with open(path, "rb") as file:
        beginning = file.read(64)
    if beginning[6:9] == b"\0\0{":  # safetensors: the length of a header in JSON, and the header
        return read_safetensors(path, what)
    if said := next((said for start, said in _BEGINNINGS if re.match(start, beginning, re.DOTALL)), None):
        raise UserError(f"{what} {path} {said}")
    if path.suffix == ".safetensors" and not beginning.startswith((b"PK", b"\x80")):  # a zip, or a pickle
        return read_safetensors(path, what)  # which says what is wrong
    content = read_torch_file(path, what)
    if isinstance(content, _Setting):
        raise UserError(f"{what} {path} holds a whole object, not names and tensors; {SAVE}")
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise UserError(f"{what} {path} holds a {kind}, expected names and tensors; {SAVE}")
    return content


def read_torch_file(path: Path, what: str) -> object:
    """Whatever tensors, plain values and numpy scalars a file of torch.save holds; no code of it is run.

    Args:
        what: How an error calls the file.

    Raises:
        UserError: For a file that cannot be read or holds anything else.
    """
    _refuse_other_archives(path, what)
    check_archive(path, what)
    names: dict[str, type] = {}
    while True:
        try:
            # torch warns of what it then refuses
            allowed = [*_safe_numpy(), *((stand_in, name) for name, stand_in in names.items())]
            quiet = warnings.catch_warnings(action="ignore")
            # of a path torch would go by its suffix
            with quiet, torch.serialization.safe_globals(allowed), open(path, "rb") as file:
                content: object = torch.load(file, map_location="cpu", weights_only=True)
            check_tensors(content, f"{what} {path}")
            return content
        except UserError:
            raise
        except Exception as error:  # torch raises half a dozen kinds for a damaged file
            if machine_refuses(error):
                raise
            code = re.search(r"GLOBAL ([\w.]+)", str(error))
            if code is None:
                if kind := _SUFFIXES.get(path.suffix.lower()):
                    raise UserError(
                        f"{what} {path} is called as a file of {kind} and is none of PyTorch; {SAVE}"
                    ) from None
                raise UserError(
                    f"cannot read {what} {path}: it is not a file of torch.save with tensors and numbers "
                    f"alone, or was cut off; copy it again, or {SAVE}"
                ) from None
            # torch leaves "builtins" out of some of the names
            name = code[1] if "." in code[1] else f"builtins.{code[1]}"
            if name in names or not _harmless(name):
                raise UserError(
                    f"{what} {path} holds {name}, which could run code and is not read; expected tensors and "
                    f"numbers only: {SAVE}"
                ) from None
            names[name] = _Settings if name.rpartition(".")[2] in _MAPPINGS else _Setting


def _harmless(name: str) -> bool:
    """Whether a name is of a class of settings, which a stand-in can take the place of."""
    return name.partition(".")[0] in _SETTINGS or name in _BUILTINS


def _refuse_other_archives(path: Path, what: str) -> None:
    """torch.save writes a zip, and so do others.

    Raises:
        UserError: TorchScript, an exported program, arrays of numpy, or any other zip.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return  # torch says what is wrong
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        raise UserError(f"{what} {path} is TorchScript, a program and not weights; {SAVE}")
    if any(name.endswith("archive_format") for name in names):
        raise UserError(f"{what} {path} is a program of torch.export and not weights; {SAVE}")
    if any(name.endswith(".npy") for name in names):
        raise UserError(f"{what} {path} holds arrays of numpy, not PyTorch; {SAVE}")
    if not any(name.endswith("/data.pkl") for name in names):
        raise UserError(f"{what} {path} is a zip archive; unpack it and give the file with the weights")


def _safe_numpy() -> list[Any]:
    """What a pickled numpy scalar needs, under the names of old and new numpy."""
    scalar = np.float64(0).__reduce__()[0]  # numpy 1 and 2 keep it in different modules
    names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]
    numbers = {type(np.dtype(code)) for code in "?bhilqBHILQefd"}
    return [np.dtype, *numbers, *((scalar, name) for name in names)]


# --- the network in it --------------------------------------------------------------------------------------


def find_network(
    path: Path,
    content: Mapping[Any, Any],
    marks: Sequence[Sequence[str]],
    report: Callable[[str], None],
    beside: Sequence[str] = (),
) -> dict[str, Tensor]:
    """The tensors of the network in a checkpoint, by names without prefix.

    Args:
        path: The file, for errors.
        content: What it holds.
        marks: Ways to know a network: names of tensors that must all be there.
        report: Gets a line about what is left out beside the network: averaged weights, a teacher, a loss's
            tensors.
        beside: Names, without prefix, that come along wherever they stand.

    Returns:
        Those of the entry that has the marks; where none has them, all tensors of the first entry with any,
        so that the caller can say what it expected.

    Raises:
        UserError: Two networks, of which neither is called an average or a teacher.
    """
    entries = list(_entries(content))
    found = [(place, prefix, tensors) for place, tensors in entries for prefix in _prefixes(tensors, marks)]
    second = {what: [f for f in found if _beside(*f[:2]) == what] for what in _BESIDE}
    others = [f for some in second.values() for f in some]
    plain = [f for f in found if f not in others] or others
    if len(plain) > 1:
        places = " and ".join(_shown(place, prefix) for place, prefix, _ in plain[:2])
        raise UserError(f"{path} holds {len(plain)} networks, {places}; save a file with one of them alone")
    if not plain:
        return entries[0][1] if entries else {}
    place, prefix, tensors = plain[0]
    if others and others is not plain:
        told = " and ".join(
            f"{what} ({', '.join(_shown(*f[:2]) for f in some)})" for what, some in second.items() if some
        )
        rest = (
            "is not; save that alone to use it" if len(others) == 1 else "are not; save one alone to use it"
        )
        report(
            f"{path} holds the trained weights ({_shown(place, prefix)}), which are taken, and {told}, "
            f"which {rest}"
        )
    theirs = tuple(other[1] for other in others if other[0] == place and other[1] != prefix)
    ours = [name for name in tensors if name.startswith(prefix) and not name.startswith(theirs)]
    network = {name.removeprefix(prefix): tensors[name] for name in ours}
    network |= {name: tensors[name] for name in beside if name in tensors}
    more = [n for n in tensors if not n.startswith((prefix, *theirs)) and n not in beside]
    if more:
        report(f"{path}: left out beside the network: {listed(more)}")
    return network


def _beside(place: str, prefix: str) -> str | None:
    """What a network is beside the trained one, by its name; None where it may be the trained one."""
    return next((what for what, word in _BESIDE.items() if word.search(f"{place}.{prefix}")), None)


def _entries(
    content: Mapping[Any, Any], place: str = "", depth: int = 1
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping with tensors in it, and the keys that lead there."""
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield place, tensors
    if depth < _DEEPEST:
        for name, value in content.items():
            if isinstance(value, Mapping):
                yield from _entries(value, f"{place}.{name}" if place else str(name), depth + 1)


def _prefixes(tensors: Mapping[str, Tensor], marks: Sequence[Sequence[str]]) -> list[str]:
    """What stands before the names of a network, of each that is there."""
    found: list[str] = []
    for first, *more in marks:
        for name in tensors:
            prefix = name.removesuffix(first)
            fits = name.endswith(first) and (not prefix or prefix.endswith("."))
            if fits and prefix not in found and all(prefix + other in tensors for other in more):
                found.append(prefix)
    return found


def _shown(place: str, prefix: str) -> str:
    return ".".join(part for part in (place, prefix.rstrip(".")) if part) or "its names without prefix"


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more."""
    head = ", ".join(names[:4])
    return head if len(names) <= 4 else f"{head} and {len(names) - 4} more"
