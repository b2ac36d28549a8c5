"""A small ONNX file, written without the package: a 1 x 1 convolution of colours to one map.

Path("net.onnx").write_bytes(network())
"""

import struct


def _number(value: int) -> bytes:
    """A whole number in protobuf's base 128."""
    low, more = value & 127, value >> 7
    return bytes([low | 128]) + _number(more) if more else bytes([low])


def _field(key: int, value: int | str | bytes | list[bytes]) -> bytes:
    """A field of a message: a number, or text or a message with its length in front."""
    if isinstance(value, int):
        return _number(key << 3) + _number(value)
    content = (
        value.encode() if isinstance(value, str) else b"".join(value) if isinstance(value, list) else value
    )
    return _number(key << 3 | 2) + _number(len(content)) + content


def _entry(name: str, shape: tuple[int, ...]) -> bytes:
    """ValueInfoProto: a tensor of float32."""
    dims = [_field(1, [_field(1, side)]) for side in shape]
    tensor = _field(1, [_field(1, 1), _field(2, dims)])
    return _field(1, name) + _field(2, tensor)


def network(side: int = 32) -> bytes:
    """The file: the input is 1 3 SIDE SIDE, the output 1 1 SIDE SIDE."""
    weights = struct.pack("<3f", 1.0, 0.5, -1.0)
    tensor = [*(_field(1, n) for n in (1, 3, 1, 1)), _field(2, 1), _field(8, "w"), _field(9, weights)]
    node = [_field(1, "x"), _field(1, "w"), _field(2, "y"), _field(4, "Conv")]
    entries = _field(11, _entry("x", (1, 3, side, side))) + _field(12, _entry("y", (1, 1, side, side)))
    graph = _field(1, node) + _field(2, "g") + _field(5, tensor) + entries
    return _field(1, 8) + _field(7, graph) + _field(8, [_field(1, ""), _field(2, 13)])
