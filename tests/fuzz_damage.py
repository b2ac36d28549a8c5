"""Ways to damage a file: its bytes, what it holds (JSON, YAML, tensors), or that it is a file at all."""

import io
import json
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
import yaml

from segrow.engine.checkpoint import _Summed
from segrow.model.record import RECORD, hashes_of, sha256_of_file

Damage = Callable[[random.Random, Path], None]


class _Call:
    """Runs code where it is unpickled without care."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch RAN",)


# ---- bytes


def flip(rng: random.Random, data: bytearray) -> bytearray:
    """A few bits."""
    for _ in range(rng.choice((1, 1, 2, 8))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def zeros(rng: random.Random, data: bytearray) -> bytearray:
    """A block of 512 zero bytes, as a disk leaves them after a loss of power."""
    at = rng.randrange(max(len(data), 1)) // 512 * 512
    data[at : at + 512] = bytes(min(512, len(data) - at))
    return data


def insert(rng: random.Random, data: bytearray) -> bytearray:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.choice(
        (rng.randbytes(rng.randrange(1, 40)), b"\x00", b"\xff\xfe", b"\x1b[31m", b'"', b"\n")
    )
    return data


def cut_out(rng: random.Random, data: bytearray) -> bytearray:
    at = rng.randrange(len(data) + 1)
    del data[at : at + rng.randrange(1, 2 + len(data) // 4)]
    return data


def truncate(rng: random.Random, data: bytearray) -> bytearray:
    return data[: rng.choice((0, 1, rng.randrange(len(data) + 1), max(0, len(data) - 1)))]


def double(rng: random.Random, data: bytearray) -> bytearray:
    return data + data[rng.randrange(len(data) + 1) :]


def numbers(rng: random.Random, data: bytearray) -> bytearray:
    """A field of four or eight bytes becomes a large number, such as a length."""
    at = rng.randrange(max(len(data) - 8, 1)) if rng.random() < 0.5 else rng.randrange(min(len(data), 64) + 1)
    value = rng.choice((0x7FFFFFFF, 0xFFFFFFFF, 0x10000, 0))
    data[at : at + 4] = struct.pack(rng.choice("<>") + "I", value)
    return data


def other_text(rng: random.Random, data: bytearray) -> bytearray:
    """Another encoding, or a text that is dear to parse."""
    deep = rng.choice((b"[", b'{"a":', b"{a: ", b"- ")) * 10_000
    bomb = b"a: &a [x, x]\n" + b"".join(
        f"{c}: &{c} [*{b}, *{b}, *{b}, *{b}, *{b}]\n".encode()
        for b, c in zip("abcdefghij", "bcdefghijk", strict=True)
    )
    made = [
        deep,
        bomb,
        b"!!python/object/apply:os.system ['touch RAN']",
        b"a: !!set {b}",
        b"9" * 5000,
        b"\x00" * 99,
    ]
    for encoding in ("utf-16", "utf-16-le", "utf-8-sig", "utf-32"):
        made.append(bytes(data).decode("latin-1").encode(encoding))
    made += [b"\n" * 10_000, b"NaN", b"-1", b"null", b"[]", b"{}", b'""', bytes(data).replace(b"\n", b"\r")]
    return bytearray(rng.choice(made))


BYTES = (flip, flip, flip, zeros, insert, cut_out, truncate, double, numbers)


def png_header(rng: random.Random, data: bytearray) -> bytearray:
    """Another size, depth or kind in a PNG's header, with its checksum; or a huge picture of zeros."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return flip(rng, data)
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    change = rng.randrange(4)
    if change == 0:
        width, height = rng.choice(
            ((1 << 16, 1 << 16), (0, 1), (1 << 31, 1), (30_000, 30_000), (width * 2, height))
        )
    elif change == 1:
        depth, kind = rng.choice(((16, 0), (8, 2), (8, 6), (16, 6), (1, 3), (4, 0), (3, 3), (8, 4)))
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, rng.choice((0, 0, 1)))
    data[12:33] = head + struct.pack(">I", zlib.crc32(head))
    if change == 3:
        size = 20_000
        head = b"IHDR" + struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
        body = b"IDAT" + zlib.compress(bytes(size * (size + 1)), 1)
        parts = (head, body, b"IEND")
        chunks = (struct.pack(">I", len(p) - 4) + p + struct.pack(">I", zlib.crc32(p)) for p in parts)
        return bytearray(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return data


# ---- values


def odd_value(rng: random.Random) -> Any:
    deep: Any = 1
    for _ in range(rng.choice((3, 100))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return rng.choice(
        (
            *(
                None,
                True,
                False,
                0,
                1,
                -1,
                2,
                -7,
                255,
                65536,
                10**6,
                2**31,
                2**63,
                10**30,
                0.5,
                -0.5,
                1e308,
                1e-320,
            ),
            *(
                float("nan"),
                float("inf"),
                "",
                "x",
                "0",
                "../../x",
                "/etc/passwd",
                "\x1b[31mred",
                "a\nb",
                "$x$",
                "evil",
            ),
            *(
                "evil.method",
                "[/red]",
                "=1+1",
                "😀",
                "x" * 10_000,
                "a\u0000b",
                "\ud800",
                [],
                {},
                [[]],
                [None],
                [1, "x"],
            ),
            *({"a": 1}, deep, list(range(1000)), {"name": "evil.method", "fields": {}}),
        )
    )


def change_value(rng: random.Random, value: Any) -> Any:
    """One place in nested values becomes something else."""
    places: list[tuple[Any, Any]] = []
    todo = [value]
    while todo and len(places) < 20_000:
        node = todo.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, item in items:
            places.append((node, key))
            todo.append(item)
    if not places or rng.random() < 0.03:
        return odd_value(rng)
    # one of a matrix' thousand numbers is as good as another
    heads = [(node, key) for node, key in places if not (isinstance(node, list) and len(node) > 8)]
    node, key = rng.choice(heads if heads and rng.random() < 0.8 else places)
    old = node[key]
    how = rng.randrange(7)
    if how == 0:
        del node[key]
    elif how == 1:
        node[key] = [old]
    elif how == 2:
        node[key] = str(old) if not isinstance(old, str) else rng.choice((0, 7, -1))
    elif how == 3 and isinstance(old, int | float) and not isinstance(old, bool):
        node[key] = rng.choice((-old, old + 1, old - 1, old * 1000, float(old), old / 3))
    elif how == 4:
        other, place = rng.choice(places)
        if place in other if isinstance(other, dict) else place < len(other):
            node[key] = json.loads(json.dumps(other[place]))
    elif how == 5 and isinstance(old, list):
        node[key] = rng.choice((old + old, old[:-1], old[::-1], old * 300))
    else:
        node[key] = odd_value(rng)
    return value


def change_json(rng: random.Random, path: Path) -> None:
    value = json.loads(path.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 3))):
        value = change_value(rng, value)
    if isinstance(value, dict) and rng.random() < 0.8:
        value.pop("checksum", None)  # then the rest counts as it is
    path.write_text(json.dumps(value, indent=1))


def change_yaml(rng: random.Random, path: Path) -> None:
    value = change_value(rng, yaml.safe_load(path.read_text()))
    try:
        text = yaml.safe_dump(value, sort_keys=False)
    except UnicodeEncodeError:
        text = "a: b"
    path.write_text(text, errors="replace")


def change_safetensors(rng: random.Random, path: Path) -> None:
    """Another header (shapes, kinds of numbers, offsets), or other numbers."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    body = data[8 + length :]
    if rng.random() < 0.3:
        body = np.full(len(body) // 4, rng.choice((np.nan, np.inf, 1e30, 0)), np.float32).tobytes()
    else:
        header = change_value(rng, header)
    text = json.dumps(header).encode()
    path.write_bytes(rng.choice((len(text),) * 9 + (1 << 62,)).to_bytes(8, "little") + text + body)


def odd_tensor(rng: random.Random, old: torch.Tensor) -> Any:
    wide = torch.zeros(1).expand(1 << 16, 1 << 16)  # 16 GiB of four bytes
    made = (
        old.double(),
        old.flatten(),
        old.flatten()[:0],
        old.new_full(old.shape, 7),
        old.new_zeros(()),
        wide,
        None,
        "x",
    )
    return rng.choice(
        (*made, old.float() * float("nan"), torch.zeros(3, dtype=torch.bool), old.unsqueeze(0), _Call())
    )


def change_torch(rng: random.Random, path: Path) -> None:
    """A value or a tensor in a file of torch.save becomes another one."""
    value = torch.load(path, weights_only=True)
    places: list[tuple[Any, Any]] = []
    todo: list[Any] = [value]
    while todo:
        node = todo.pop()
        for key, item in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(item, dict | list):
                todo.append(item)
    node, key = rng.choice([p for p in places if rng.random() < 0.2 or len(p[0]) < 30] or places)
    if isinstance(node[key], torch.Tensor):
        node[key] = odd_tensor(rng, node[key])
    elif rng.random() < 0.2:
        del node[key]
    else:
        node[key] = rng.choice((odd_value(rng), _Call(), value))  # the last holds itself
    if path.suffix == ".ckpt" and rng.random() < 0.9:
        with path.open("wb") as file:
            summed = _Summed(file)
            torch.save(value, cast("IO[bytes]", summed))
            summed.end()
    else:
        torch.save(value, path, _use_new_zipfile_serialization=rng.random() < 0.8)


def change_npz(rng: random.Random, path: Path) -> None:
    """Another array in an index of the masks, or one that unpacks to a GiB."""
    with np.load(path) as stored:
        arrays = dict(stored)
    name = rng.choice(sorted(arrays))
    old = arrays[name]
    arrays[name] = rng.choice(
        (
            old[:0],
            old.astype(np.float32) if old.dtype.kind in "iu" else old[:1],
            old.ravel(),
            np.array(3),
            old[:-1],
        )
    )
    if rng.random() < 0.2:
        del arrays[name]
    if rng.random() < 0.1:
        arrays[name] = np.zeros(1 << 30, np.uint8)
    buffer = io.BytesIO()
    (
        np.savez_compressed
        if rng.random() < 0.3 or len(arrays[name].ravel() if name in arrays else ()) > 1e6
        else np.savez
    )(buffer, **arrays)
    path.write_bytes(buffer.getvalue())


# ---- no file any more


def apart(path: Path) -> None:
    """The material's files are links to one another: give this one content of its own."""
    if path.is_file():
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)


def replace(rng: random.Random, path: Path) -> None:
    """Something else stands in its place."""
    content = path.read_bytes()
    path.unlink()
    how = rng.randrange(9)
    if how == 0:
        path.mkdir()
    elif how == 1:
        os.mkfifo(path)
    elif how == 2:
        path.symlink_to(path.name)
    elif how == 3:
        path.symlink_to(rng.choice(("nowhere", "/dev/zero", "/dev/null", ".", "/")))
    elif how == 4:
        pass  # lost
    elif how == 5:
        moved = path.with_name(path.name + ".moved")
        moved.write_bytes(content)
        path.symlink_to(moved.name)
    elif how == 6:
        others = sorted(p for p in path.parent.iterdir() if p.is_file())
        path.write_bytes(rng.choice(others).read_bytes() if others else b"")
    elif how == 7:
        path.write_bytes(rng.randbytes(rng.choice((1, 100, 10_000))))
    else:
        path.touch()
        os.truncate(path, 1 << 33)  # sparse: no room on the disk is taken


def replace_folder(rng: random.Random, path: Path) -> None:
    """A folder is lost, empty, a file, or a link."""
    how = rng.randrange(5)
    shutil.rmtree(path)
    if how == 1:
        path.mkdir()
    elif how == 2:
        path.write_text("x")
    elif how == 3:
        path.symlink_to("..")
    elif how == 4:
        path.symlink_to(path.name)


# ---- checksums that fit again


def hash_again(folder: Path) -> None:
    """Write the checksums of a model directory anew, as somebody with bad intentions would."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_bytes())
        names = list(record["hashes"]["files"])
        files = {name: sha256_of_file(folder / name) for name in names if (folder / name).is_file()}
        record["hashes"] = hashes_of(record, files)
    except (ValueError, KeyError, TypeError, OSError, AttributeError):
        return
    path.write_text(json.dumps(record, indent=1))
