"""A calculator that never computes the same structure twice.

Several students are compared with one teacher, whose own run, equation of state and phonons are the
same each time, bit by bit, since integrators here draw from seeds.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, Calculator

from mlff_distiller.structure import STATE, atomic_state

_MOST_BYTES = 2 * 1024**3
"""Forces of 10 ps of 5,000 atoms."""


class Remembering(Calculator):
    """``inner``; results are kept by numbers, positions, cell, pbc and state, also in ``file``.

    Results beyond ``most_bytes`` are not kept, and computed again. Cost of a look-up: a hash of the
    positions, some µs for a thousand atoms.
    """

    def __init__(
        self, inner: BaseCalculator, most_bytes: int = _MOST_BYTES, file: Path | None = None
    ) -> None:
        super().__init__()
        self.inner = inner
        self.implemented_properties = list(inner.implemented_properties)
        self.n_computed = 0
        """Structures that ``inner`` was asked for."""
        self._left = most_bytes
        self._known: dict[bytes, dict[str, Any]] = {}
        self._file = file
        if file is not None and file.exists():
            for key, name, value in _read(file):
                self._keep(key, name, value)

    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        """Results for ``atoms``; None where they are unknown and may not be computed."""
        if atoms is None:
            return self.inner.get_property(name, None, allow_calculation)
        key = _key(atoms)
        known = self._known.get(key, {})
        if name not in known:
            if not allow_calculation:
                return None
            self.n_computed += not known
            value = self.inner.get_property(name, atoms)
            if not self._keep(key, name, np.array(value)):
                return value
            if self._file is not None:
                _append(self._file, key, name, np.array(value))
        value = self._known[key][name]
        return value.copy() if value.ndim else value.item()

    def _keep(self, key: bytes, name: str, value: np.ndarray) -> bool:
        self._left -= value.nbytes + 100
        if self._left < 0:
            self._left += value.nbytes + 100
            return False
        self._known.setdefault(key, {})[name] = value
        return True


def unremembered(calculator: BaseCalculator) -> BaseCalculator:
    """The calculator that computes, which alone can be timed."""
    return calculator.inner if isinstance(calculator, Remembering) else calculator


def _append(file: Path, key: bytes, name: str, value: np.ndarray) -> None:
    """One record in one piece; an interruption costs the last one at most."""
    record = BytesIO()
    for part in (np.frombuffer(key, np.uint8), np.array(name), value):
        np.save(record, part, allow_pickle=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as stream:
        stream.write(record.getvalue())


def _read(file: Path) -> Iterator[tuple[bytes, str, np.ndarray]]:
    """The records up to the first that is not whole, from which on the file is cut off."""
    good = 0
    with file.open("rb") as stream, suppress(EOFError, ValueError, OSError):
        while True:
            key, name, value = (np.load(stream, allow_pickle=False) for _ in range(3))
            yield key.tobytes(), str(name), value
            good = stream.tell()
    os.truncate(file, good)


def _key(atoms: Atoms) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc):
        digest.update(np.ascontiguousarray(part).tobytes())
    for name, values in atomic_state(atoms).items():
        digest.update(name.encode() + values.astype(np.float64).tobytes())
    digest.update(repr([atoms.info.get(name) for name in STATE]).encode())
    return digest.digest()
