"""Frames: what is sent arrives; what is no frame is refused before memory is reserved."""

import io
import json
import struct

import numpy as np
import pytest

from mlff_distiller.teachers.wire import FrameError, read_frame, write_frame


def sent(header, arrays=None):
    stream = io.BytesIO()
    write_frame(stream, header, arrays)
    return stream.getvalue()


def raw(header: object, payload: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return b"MLFD" + struct.pack("<I", len(text)) + text + payload


@pytest.mark.parametrize(
    "array",
    [
        np.array(1.5),
        np.zeros((0, 3)),
        np.arange(12.0).reshape(4, 3)[::2],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(3, dtype=np.float32),
        np.arange(3, dtype=np.uint8),
        np.array([True, False]),
        np.arange(3.0).astype(">f8"),
    ],
)
def test_round_trip(array):
    header, arrays = read_frame(io.BytesIO(sent({"command": "x"}, {"a": array, "b": np.ones(2)})))
    assert header == {"command": "x"}
    np.testing.assert_array_equal(arrays["a"], array)
    assert arrays["a"].shape == array.shape
    np.testing.assert_array_equal(arrays["b"], [1, 1])


def test_arrives_in_pieces():
    class Trickle(io.RawIOBase):
        def __init__(self, data):
            self.data = io.BytesIO(data)

        def readinto(self, buffer):
            return self.data.readinto(buffer[:3])

        def write(self, data):
            return self.data.write(data[:5])

    stream = Trickle(b"")
    write_frame(stream, {"n": 1}, {"a": np.arange(50.0)})
    header, arrays = read_frame(Trickle(stream.data.getvalue()))
    assert header == {"n": 1}
    np.testing.assert_array_equal(arrays["a"], np.arange(50.0))


@pytest.mark.parametrize("n_bytes", [0, 3, 8, 20, -1])
def test_truncated(n_bytes):
    with pytest.raises(EOFError):
        read_frame(io.BytesIO(sent({}, {"a": np.ones(3)})[:n_bytes]))


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"Hello, I print to stdout", "begin with"),
        (b"MLFD" + struct.pack("<I", 1 << 31), "header of"),
        (b"MLFD" + struct.pack("<I", 4) + b"oops", "not JSON"),
        (raw([1]), "an object"),
        (raw({}), "list of arrays"),
        (raw({"arrays": [["a", "<f8"]]}), "name, dtype, shape"),
        (raw({"arrays": [["a", "|O", [1]]]}), "dtype"),
        (raw({"arrays": [["a", ["<f8"], [1]]]}), "dtype"),
        (raw({"arrays": [["a", "<f8", [-1]]]}), "bad shape"),
        (raw({"arrays": [["a", "<f8", [True]]]}), "bad shape"),
        (raw({"arrays": [["a", "<f8", [1, 1, 1, 1, 1]]]}), "bad shape"),
        (raw({"arrays": [["a", "<f8", [1 << 40, 1 << 40]]]}), "at most"),
        (raw({"arrays": [["a", "<f8", [90]], ["b", "<f8", [90]]]}), "at most 1000"),
    ],
)
def test_refused(data, complaint):
    with pytest.raises(FrameError, match=complaint):
        read_frame(io.BytesIO(data), 1000)


def test_cannot_be_sent():
    with pytest.raises(FrameError, match="dtype object"):
        sent({}, {"a": np.array([object()])})
    with pytest.raises(FrameError, match="header of"):
        sent({"a": "x" * (1 << 21)})
    with pytest.raises(ValueError, match="Out of range"):
        sent({"a": float("nan")})
