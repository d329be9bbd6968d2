"""Frames between a teacher's process and ours: JSON header, then raw little-endian arrays.

    frame  = b"MLFD" | uint32 size of header | header | array bytes, in the header's order
    header = JSON object; its "arrays" lists [name, dtype, shape]

No pickle, so a frame can hold nothing that runs. Every size is checked before memory is reserved.
Imports only the standard library and NumPy: the teacher's interpreter may have little else.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from io import RawIOBase
from typing import Any

import numpy as np

_MAGIC = b"MLFD"
_PREFIX = struct.Struct("<4sI")
_LARGEST_HEADER = 1 << 20
_LARGEST_RANK = 4
_DTYPES = {"<f8": 8, "<i8": 8, "|b1": 1}
"""dtype -> bytes per element."""

LARGEST_ARRAYS = 1 << 31
"""Bytes of all arrays of one frame, where the reader cannot say anything tighter."""


class FrameError(ValueError):
    """The bytes that arrived are not one of our frames."""


def write_frame(
    stream: RawIOBase, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None
) -> None:
    """Send one frame. Floats travel as float64, integers as int64, booleans as one byte."""
    write(stream, frame(header, arrays))


def frame(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> bytes:
    """The bytes of one frame; ``FrameError`` if an array cannot be sent."""
    described, payloads = [], []
    for name, array in (arrays or {}).items():
        plain = _plain(name, array)
        described.append([name, plain.dtype.str, list(plain.shape)])
        payloads.append(plain.tobytes())
    text = json.dumps({**header, "arrays": described}, allow_nan=False).encode()
    if len(text) > _LARGEST_HEADER:
        raise FrameError(f"header of {len(text)} bytes; at most {_LARGEST_HEADER} are allowed")
    return b"".join([_PREFIX.pack(_MAGIC, len(text)), text, *payloads])


def read_frame(
    stream: RawIOBase, largest_arrays: int = LARGEST_ARRAYS
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Receive one frame; ``EOFError`` if the other side is gone, ``FrameError`` if not ours."""
    prefix = bytearray(_PREFIX.size)
    _read(stream, memoryview(prefix))
    magic, size = _PREFIX.unpack(prefix)
    if magic != _MAGIC:
        raise FrameError(f"expected a frame to begin with {_MAGIC!r}, found {magic!r}")
    if size > _LARGEST_HEADER:
        raise FrameError(f"header of {size} bytes; at most {_LARGEST_HEADER} are allowed")
    text = bytearray(size)
    _read(stream, memoryview(text))
    try:
        header = json.loads(text)
    except ValueError as error:
        raise FrameError(f"the header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise FrameError(f"expected the header to be an object, found {type(header).__name__}")
    described = _checked(header.pop("arrays", None), largest_arrays)
    arrays = {}
    for name, dtype, shape in described:
        array = np.empty(shape, dtype=dtype)
        if array.size:
            _read(stream, array.reshape(-1).view(np.uint8).data)
        arrays[name] = array
    return header, arrays


def _plain(name: str, array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype.kind == "f":
        return array.astype("<f8")
    if array.dtype.kind in "iu":
        return array.astype("<i8")
    if array.dtype.kind == "b":
        return array
    raise FrameError(f"{name} has dtype {array.dtype}; real numbers are expected")


def _checked(described: object, largest: int) -> list[tuple[str, str, tuple[int, ...]]]:
    """The declared arrays, or ``FrameError`` if one is malformed or all are too large."""
    if not isinstance(described, list):
        raise FrameError("expected a list of arrays in the header")
    arrays, total = [], 0
    for entry in described:
        if not (isinstance(entry, list) and len(entry) == 3):
            raise FrameError(f"expected [name, dtype, shape], found {entry!r:.100}")
        name, dtype, shape = entry
        if not (isinstance(name, str) and isinstance(dtype, str) and dtype in _DTYPES):
            raise FrameError(
                f"array {name!r:.50}: dtype {dtype!r:.50} is not one of {list(_DTYPES)}"
            )
        if not (
            isinstance(shape, list)
            and len(shape) <= _LARGEST_RANK
            and all(type(length) is int and length >= 0 for length in shape)
        ):
            raise FrameError(f"array {name!r:.50}: bad shape {shape!r:.100}")
        total += math.prod(shape) * _DTYPES[dtype]
        if total > largest:
            raise FrameError(f"arrays of {total} bytes or more; at most {largest} are allowed here")
        arrays.append((name, dtype, tuple(shape)))
    return arrays


def _read(stream: RawIOBase, buffer: memoryview) -> None:
    while buffer:
        count = stream.readinto(buffer)
        if not count:
            raise EOFError("the other side closed the pipe")
        buffer = buffer[count:]


def write(stream: RawIOBase, data: bytes) -> None:
    """All of ``data``, in as many pieces as it takes."""
    rest = memoryview(data)
    while rest:
        rest = rest[stream.write(rest) or 0 :]
