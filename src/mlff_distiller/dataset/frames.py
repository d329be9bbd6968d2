"""A set of labelled frames that need not fit in memory: a sequence, read when it is asked for."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from typing import SupportsIndex, overload

import numpy as np

from mlff_distiller.batch import Batch
from mlff_distiller.dataset.store import Dataset

_ATOMS_AT_ONCE = 32_768  # held in memory by an iteration: some 2 MB


class Frames(Sequence[Batch]):
    """Records ``indices`` of ``dataset`` as batches of one system each, then those ``held``.

    A record is read, and its checksum verified, whenever it is asked for; ``held`` frames are in
    memory. A slice is another ``Frames``, which reads nothing. Iterating reads runs of some
    thousand atoms. Memory: 16 bytes per frame. May be used by several threads.

    Raises
    ------
    IndexError
        A record does not exist.
    DatasetError
        A record is damaged; raised where it is read.
    """

    def __init__(
        self,
        dataset: Dataset | None = None,
        indices: Sequence[int] | np.ndarray = (),
        held: Sequence[Batch] = (),
    ) -> None:
        self._dataset, self._held = dataset, held
        stored, sizes = np.zeros(0, np.int64), np.zeros(0, np.int64)
        if dataset is not None:
            stored = dataset.numbers(indices)
            sizes = dataset.n_atoms[stored]
        own = np.array([frame.n_atoms for frame in held], dtype=np.int64)
        self._places = np.concatenate([stored, -1 - np.arange(len(held))])  # -1 - k: held[k]
        self.n_atoms = np.concatenate([sizes, own])
        """(n,) int64, known without reading."""

    @classmethod
    def of(cls, frames: Sequence[Batch]) -> Frames:
        """``frames`` themselves, or what lets a list be used in the same way."""
        return frames if isinstance(frames, Frames) else cls(held=frames)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, key: SupportsIndex) -> Batch: ...
    @overload
    def __getitem__(self, key: slice) -> Frames: ...
    def __getitem__(self, key: SupportsIndex | slice) -> Batch | Frames:
        if not isinstance(key, slice):
            return self.take([operator.index(key)])[0]
        return self._with(self._held, self._places[key], self.n_atoms[key])

    def _with(self, held: Sequence[Batch], places: np.ndarray, n_atoms: np.ndarray) -> Frames:
        other = Frames()
        other._dataset, other._held = self._dataset, held
        other._places, other.n_atoms = places, n_atoms
        return other

    def __iter__(self) -> Iterator[Batch]:
        for first, end in cut(self.n_atoms, _ATOMS_AT_ONCE):
            yield from self.take(range(first, end))

    def beside(self, held: Sequence[Batch]) -> Frames:
        """These, then the frames ``held`` in memory."""
        more = Frames(held=held)
        return self._with(
            [*self._held, *held],
            np.concatenate([self._places, more._places - len(self._held)]),
            np.concatenate([self.n_atoms, more.n_atoms]),
        )

    def thinned(self, n_atoms: int) -> Frames:
        """Every k-th frame, k the smallest for about ``n_atoms`` in all; of few atoms every one."""
        return self[:: max(1, math.ceil(int(self.n_atoms.sum()) / n_atoms))]

    def take(self, numbers: Sequence[int]) -> list[Batch]:
        """The frames ``numbers`` (m,) of this sequence, in that order, by one reading."""
        places = self._places[np.asarray(numbers, dtype=np.int64)]
        stored = places[places >= 0]
        read: Iterator[Batch] = iter(())
        if self._dataset is not None and len(stored):
            read = iter(self._dataset.read(stored).systems())
        return [next(read) if place >= 0 else self._held[-1 - place] for place in places.tolist()]


def cut(sizes: np.ndarray, most: int) -> list[tuple[int, int]]:
    """(first, last + 1) of runs as long as their ``sizes`` (n,) sum up to at most ``most``.

    An entry that exceeds ``most`` is a run of its own.
    """
    runs, first, total = [], 0, 0
    for number, size in enumerate(sizes.tolist()):
        if total + size > most and number > first:
            runs.append((first, number))
            first, total = number, 0
        total += size
    return [*runs, (first, len(sizes))] if len(sizes) else runs
