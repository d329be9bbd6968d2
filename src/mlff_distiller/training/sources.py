"""What a student learns from besides its own labels: probes of the Hessian, labels of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mlff_distiller.batch import Batch
from mlff_distiller.dataset import Dataset
from mlff_distiller.errors import DatasetError
from mlff_distiller.students import Student
from mlff_distiller.students.data import reference_energies

_SAME_A = 1e-3
"""Probes stand this near around the structure they probe."""


@dataclass(frozen=True)
class Extra:
    """Frames that only train, in memory; a weight of each; pairs of indices into them."""

    frames: tuple[Batch, ...] = ()
    weights: tuple[float, ...] = ()
    probes: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Sources:
    """Datasets to take them from: ``others`` with their weights, any level of theory.

    ``more`` are labels by the same teacher, whose energies are what they are.
    """

    probes: Path | None = None
    others: tuple[tuple[Path, float], ...] = ()
    more: tuple[Path, ...] = ()

    def inputs(self) -> dict[str, str]:
        """What identifies them: structures, level, and values."""
        found = {}
        if self.probes is not None:
            probes = Dataset(self.probes)
            found["probes"], found["probe_values"] = probes.key_hash, probes.label_set_hash()
        for number, (path, weight) in enumerate(self.others):
            other = Dataset(path)
            found[f"other_{number}"] = f"{other.key_hash} x {weight:g}"
            found[f"other_{number}_values"] = other.label_set_hash()
        for number, path in enumerate(self.more):
            more = Dataset(path)
            found[f"more_{number}"] = more.key_hash
            found[f"more_{number}_values"] = more.label_set_hash()
        return found

    def read(self, student: Student, held_out: Sequence[Batch]) -> Extra:
        """The frames; probes around ``held_out`` structures are left out.

        These datasets are read into memory as a whole; ``held_out`` is iterated once.
        Energies of others are shifted, element by element, to what the student's are relative to:
        levels of theory differ by these above all.
        """
        frames, weights = [], []
        pairs = [] if self.probes is None else _pairs(self.probes, held_out)
        for pair in pairs:
            frames += pair
            weights += [1.0, 1.0]
        for path, weight in self.others:
            others = Dataset(path)
            found = others.read(np.arange(len(others))).systems()
            shift = student.reference_energies - reference_energies(found, student)
            for frame in found:
                own = shift[student.types(frame.atomic_numbers)].sum()
                labels = {**frame.labels, "energy": frame.labels["energy"] + own}
                labels.pop("energies", None)
                frames.append(replace(frame, labels=labels))
                weights.append(weight)
        for path in self.more:
            dataset = Dataset(path)
            found = dataset.read(np.arange(len(dataset))).systems()
            frames += found
            weights += [1.0] * len(found)
        probes = tuple((2 * k, 2 * k + 1) for k in range(len(pairs)))
        return Extra(tuple(frames), tuple(weights), probes)


NO_EXTRA = Extra()
NO_SOURCES = Sources()


def _pairs(path: Path, held_out: Sequence[Batch]) -> list[list[Batch]]:
    dataset = Dataset(path)
    frames = dataset.read(np.arange(len(dataset))).systems()
    pairs: dict[tuple[int, int], list[Batch]] = {}
    for frame, origin in zip(frames, dataset.provenances(), strict=True):
        if "probe" in origin:
            pairs.setdefault((int(origin["seed"]), int(origin["probe"])), []).append(frame)
    whole = [pair for pair in pairs.values() if len(pair) == 2]
    if not whole:
        raise DatasetError(
            f"{path} holds no probes",
            expected="labelled structures of `mlff-distiller sample --method probe`",
            found=f"{len(frames)} structures",
        )
    known: dict[bytes, list[int]] = {}
    middles = [0.5 * (pair[0].positions + pair[1].positions) for pair in whole]
    for k, pair in enumerate(whole):
        known.setdefault(pair[0].atomic_numbers.numpy().tobytes(), []).append(k)
    near = {
        k
        for frame in held_out
        for k in known.get(frame.atomic_numbers.numpy().tobytes(), ())
        if bool((frame.positions - middles[k]).abs().max() < _SAME_A)
    }
    return [pair for k, pair in enumerate(whole) if k not in near]
