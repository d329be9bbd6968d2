"""What one update sees: frames, their pairs of atoms, and the weight of every error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mlff_distiller.batch import Batch
from mlff_distiller.dataset.frames import Frames, cut
from mlff_distiller.neighbors import (
    PADDING_ATOMS,
    Neighbors,
    neighbor_list,
    padded_number,
    padding,
)
from mlff_distiller.students.base import Student
from mlff_distiller.training.cache import Cache, Room
from mlff_distiller.training.weights import FrameWeights

Sample = tuple[Batch, Neighbors]

_ATOMS_AT_ONCE = 4096


@dataclass(frozen=True)
class Minibatch:
    """One frame or several, on the student's device. What is unknown is 0 and weighs 0.

    Two frames that differ by a displacement of length d are a probe: the difference of their forces
    over d is the Hessian times the direction. Its error is kept with the atoms of the first.
    """

    types: Tensor  # (n_atoms,)
    positions: Tensor  # (n_atoms, 3) float64, Å
    system_idx: Tensor  # (n_atoms,)
    cell: Tensor  # (n_systems, 3, 3) float64, Å
    i: Tensor  # (n_edges,) int32, ascending
    j: Tensor  # (n_edges,) int32
    shifts: Tensor  # (n_edges, 3) int16
    reverse: Tensor  # (n_edges,) int32, the edge from j to i; of padding the edge itself
    energy: Tensor  # (n_systems,) float64, eV
    energies: Tensor  # (n_atoms,) float64, eV
    forces: Tensor  # (n_atoms, 3) eV/Å
    stress: Tensor  # (n_systems, 3, 3) float64, eV/Å³
    sizes: Tensor  # (n_systems,) atoms, at least 1
    volume: Tensor  # (n_systems,) float64, Å³, 1 where there is none
    atom_weights: Tensor  # (n_atoms,) of its force
    site_weights: Tensor  # (n_atoms,) of its energy
    system_weights: Tensor  # (n_systems,) of the energy
    stress_weights: Tensor  # (n_systems,)
    partner: Tensor  # (n_atoms,) the same atom in the other frame of its probe, or itself
    inverse_distance: Tensor  # (n_atoms,) 1/d in 1/Å, 0 where there is no probe

    @classmethod
    def concatenate(cls, parts: Sequence[Minibatch]) -> Minibatch:
        """All of ``parts``, in order."""
        if len(parts) == 1:
            return parts[0]
        n_atoms = np.cumsum([0, *(len(part.types) for part in parts)]).tolist()
        n_systems = np.cumsum([0, *(len(part.cell) for part in parts)]).tolist()
        n_edges = np.cumsum([0, *(len(part.i) for part in parts)]).tolist()
        starts = {"system_idx": n_systems, "i": n_atoms, "j": n_atoms, "partner": n_atoms}
        starts["reverse"] = n_edges
        joined = {}
        for field in fields(cls):
            columns = [getattr(part, field.name) for part in parts]
            if field.name in starts:
                offsets = starts[field.name]
                columns = [own + start for own, start in zip(columns, offsets, strict=False)]
            joined[field.name] = torch.cat(columns)
        return cls(**joined)

    def split(
        self, n_systems: Sequence[int], n_atoms: Sequence[int], n_edges: Sequence[int]
    ) -> list[Minibatch]:
        """Parts of the given sizes, whose indices count from 0 in each; memory is shared."""
        columns = []
        for field in fields(self):
            by = n_systems if field.name in BY_SYSTEM else n_atoms
            by = n_edges if field.name in BY_EDGE else by
            columns.append(getattr(self, field.name).split(list(by)))
        return [Minibatch(*parts) for parts in zip(*columns, strict=True)]

    def graph(self) -> tuple[Batch, Neighbors]:
        """As a student takes them; ``types`` stand for the atomic numbers."""
        periodic = torch.ones(len(self.cell), 3, dtype=torch.bool, device=self.cell.device)
        batch = Batch(self.positions, self.types, self.system_idx, self.cell, periodic)
        return batch, Neighbors(self.i.long(), self.j.long(), self.shifts.double())

    def clone(self) -> Minibatch:
        """The same in memory of its own."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return Minibatch(
            **{
                name: value.clone(memory_format=torch.contiguous_format)
                for name, value in own.items()
            }
        )

    def copy_(self, other: Minibatch) -> None:
        """Overwrite these tensors by ``other``'s, of the same shapes."""
        for field in fields(self):
            getattr(self, field.name).copy_(getattr(other, field.name), non_blocking=True)


@dataclass(frozen=True)
class Size:
    """Systems, atoms and edges."""

    n_systems: int
    n_atoms: int
    n_edges: int

    def holds(self, other: Size) -> bool:
        """And padding, which takes a system and an atom."""
        return (
            self.n_systems > other.n_systems
            and self.n_atoms > other.n_atoms
            and self.n_edges >= other.n_edges
        )

    def united(self, other: Size) -> Size:
        """What holds all that either does."""
        return Size(
            max(self.n_systems, other.n_systems),
            max(self.n_atoms, other.n_atoms),
            max(self.n_edges, other.n_edges),
        )


class Minibatches:
    """Minibatches of ``frames``, of up to ``atoms_per_batch`` atoms; a larger frame comes alone.

    A unit, a frame or a probe, is read and searched for neighbours when a minibatch first needs it,
    and kept while there is ``room``; then it is made again each time, with the same bits. Memory
    besides that: some 80 bytes per frame.

    Parameters
    ----------
    frames
        One system each, labelled; a `Frames` need not fit in memory.
    probes
        Pairs of indices into ``frames``; the two are always seen together.
    frame_weights
        By which all errors of a frame are multiplied.
    disagreement
        An atom weighs ``1/(1 + (disagreement s/m)^2)``, s the committee's spread of its force and m
        the median spread, of some million atoms at most; a frame as its atoms on average. An
        unknown s counts as m.
    room
        For units on the student's device; without a bound if None.
    """

    def __init__(
        self,
        frames: Sequence[Batch],
        student: Student,
        atoms_per_batch: int,
        *,
        seed: int = 0,
        probes: Sequence[tuple[int, int]] = (),
        frame_weights: Sequence[float] | None = None,
        disagreement: float = 0.0,
        room: Room | None = None,
    ) -> None:
        self.seed, self.atoms_per_batch = seed, atoms_per_batch
        self._frames, self._student = Frames.of(frames), student
        self._pairs = np.array(probes, dtype=np.int64).reshape(-1, 2)
        probed = np.isin(np.arange(len(frames)), self._pairs)
        self._single = np.flatnonzero(~probed)
        self._weights = FrameWeights(self._frames, frame_weights, disagreement)
        self._n_atoms = self._of_units(self._frames.n_atoms)
        self._norms = torch.from_numpy(self._sums_of_weights())
        self._made = Cache(self._make, room)
        self._nothing = _nothing(student)

    def plan(self, epoch: int) -> list[list[int]]:
        """Units of each minibatch of an epoch; every unit once, in an order of (seed, epoch)."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self._n_atoms))
        runs = cut(self._n_atoms[order], self.atoms_per_batch)
        return [order[first:end].tolist() for first, end in runs]

    def norms(self, units: Sequence[int]) -> Tensor:
        """(5,) sums of weights: of force, atomic energy, energy, stress and probe components."""
        return self._norms[list(units)].sum(0).clamp(min=1e-12)

    def make(self, units: Sequence[int], padded_to: Size | None = None) -> Minibatch:
        """The minibatch of ``units``."""
        parts = self._made.get(units)
        if padded_to is not None:
            size = self.size(units)
            parts.append(
                self._padding(
                    padded_to.n_systems - size.n_systems,
                    padded_to.n_atoms - size.n_atoms,
                    padded_to.n_edges - size.n_edges,
                )
            )
        return Minibatch.concatenate(parts)

    def prepare(self, units: Sequence[int]) -> None:
        """Begin to read those of ``units``, the next to be made, that are not in memory."""
        self._made.prepare(units)

    def wait(self) -> None:
        """Until nothing is being prepared: a GPU whose work is recorded bears no other thread."""
        self._made.wait()

    def close(self) -> None:
        """Prepare nothing more."""
        self._made.close()

    @cached_property
    def table(self) -> tuple[Minibatch, np.ndarray] | None:
        """All units in one, the padding last, and the systems, atoms and edges of each unit.

        None if not all of them may be in memory twice.
        """
        units = self._made.all_of(len(self._n_atoms))
        if units is None:
            return None
        sizes = [(len(own.cell), len(own.types), len(own.i)) for own in units]
        return Minibatch.concatenate([*units, self._nothing]), np.array(sizes, dtype=np.int32)

    def size(self, units: Sequence[int]) -> Size:
        """Searches all frames for neighbours when first called."""
        own = np.asarray(units, dtype=np.int64)
        n_systems = len(own) + int((own < len(self._pairs)).sum())
        return Size(n_systems, int(self._n_atoms[own].sum()), int(self._neighbors[0][own].sum()))

    def padded_size(self, plan: Sequence[Sequence[int]]) -> Size:
        """Holds every minibatch of ``plan``, and padding."""
        sizes = [self.size(units) for units in plan]
        return Size(
            max(size.n_systems for size in sizes) + 1,
            max(size.n_atoms for size in sizes) + PADDING_ATOMS,
            padded_number(max(size.n_edges for size in sizes)),
        )

    def most_neighbors(self) -> int:
        """Largest number of neighbours of any atom; the first call searches all frames."""
        return self._neighbors[1]

    @cached_property
    def _neighbors(self) -> tuple[np.ndarray, int]:
        """Pairs of each unit, and the most of any atom."""
        n_edges, most = np.zeros(len(self._n_atoms), np.int64), 0
        for first, end in cut(self._n_atoms, _ATOMS_AT_ONCE):
            for unit, made in enumerate(self._made.get(range(first, end)), first):
                n_edges[unit] = len(made.i)
                most = max(most, int(made.i.bincount().max()) if len(made.i) else 0)
        return n_edges, most

    def _of_units(self, of_frames: np.ndarray) -> np.ndarray:
        """(n_units, ...) from what frames have (n_frames, ...): probes first, their two summed."""
        return np.concatenate([of_frames[self._pairs].sum(1), of_frames[self._single]])

    def _sums_of_weights(self) -> np.ndarray:
        """(n_units, 5); see `norms`. Reads every frame."""
        sums = np.zeros((len(self._frames), 5))
        for k, frame in enumerate(self._frames):
            weights = self._weights.of(k, frame, self._student.dtype)
            total, mean = weights.sum(), float(weights.mean())
            stress = _known(frame, "stress") and bool((frame.volume > 0).all())
            sites = float(total) * _known(frame, "energies")
            sums[k, :4] = float(3.0 * total), sites, mean, mean * stress
        of_units = self._of_units(sums)
        for unit, pair in enumerate(self._pairs.tolist()):
            if _distance(*self._frames.take(pair)):
                of_units[unit, 4] = sums[pair[0], 0]
        return of_units

    def _make(self, units: Sequence[int]) -> list[Minibatch]:
        """One of each unit. Runs in a thread, too."""
        made, n_probes = [], len(self._pairs)
        for first, end in cut(self._n_atoms[list(units)], _ATOMS_AT_ONCE):
            members = [
                self._pairs[u].tolist() if u < n_probes else [int(self._single[u - n_probes])]
                for u in units[first:end]
            ]
            numbers = [k for own in members for k in own]
            frames = self._frames.take(numbers)
            weights = [
                self._weights.of(k, frame, self._student.dtype)
                for k, frame in zip(numbers, frames, strict=True)
            ]
            made += _units(frames, weights, [len(own) for own in members], self._student)
        return made

    def _padding(self, n_systems: int, n_atoms: int, n_edges: int) -> Minibatch:
        """Atoms of no weight whose edges are longer than the cutoff, spread evenly."""
        device = self._nothing.types.device
        columns = {}
        for field in fields(Minibatch):
            own = getattr(self._nothing, field.name)
            length = n_systems if field.name in BY_SYSTEM else n_atoms
            columns[field.name] = own.expand(length, *own.shape[1:])
        edges = padding(n_edges, n_atoms, device)
        columns["i"] = columns["j"] = edges.i.int()
        columns["shifts"] = edges.shifts.to(torch.int16)
        columns["reverse"] = torch.arange(n_edges, dtype=torch.int32, device=device)
        columns["partner"] = torch.arange(n_atoms, device=device)
        return Minibatch(**columns)


BY_EDGE = ("i", "j", "shifts", "reverse")
BY_SYSTEM = (
    "cell",
    "energy",
    "stress",
    "sizes",
    "volume",
    "system_weights",
    "stress_weights",
)


def _units(
    frames: Sequence[Batch], weights: Sequence[Tensor], counts: Sequence[int], student: Student
) -> list[Minibatch]:
    """Units of ``counts`` (1 or 2) of ``frames`` each, whose atoms have ``weights``.

    All at once, since a GPU is slow to start on each; no bit depends on which are made together.
    """
    device, dtype = student.device, student.dtype
    batch = Batch.concatenate([_with_all_labels(frame) for frame in frames]).to(device)
    pairs = neighbor_list(batch, student.cutoff)
    system, labels, volume = batch.system_idx, batch.labels, batch.volume
    sizes = np.array([frame.n_atoms for frame in frames])
    first_frame = np.cumsum([0, *counts])  # of each unit, and the end
    first_atom = np.cumsum([0, *sizes])[first_frame]

    def by_frame(of_units: np.ndarray) -> Tensor:
        return torch.from_numpy(np.repeat(of_units, counts)).to(device)

    start = by_frame(first_atom[:-1])[system]  # of the atom's unit
    ahead, inverse = np.zeros(len(frames), np.int64), np.zeros(len(frames))
    for k in first_frame[:-1][np.array(counts) == 2]:
        distance = _distance(frames[k], frames[k + 1])
        inverse[k] = 1.0 / distance if distance else 0.0
        ahead[k], ahead[k + 1] = sizes[k], -sizes[k]
    atoms = torch.arange(batch.n_atoms, device=device)
    atom_weights = torch.cat(list(weights)).to(device)
    system_weights = torch.stack([own.mean() for own in weights]).to(device)
    unknown = torch.zeros(len(frames), dtype=dtype, device=device)
    unknown.index_add_(0, system, labels["energies"].isnan().to(dtype))
    known_stress = ~labels["stress"].isnan().flatten(1).any(1) & (volume > 0)
    ends = torch.searchsorted(pairs.i, torch.from_numpy(first_atom).to(device))
    first_edge = ends[:-1].repeat_interleave(torch.tensor(counts, device=device))
    together = Minibatch(
        student.types(batch.atomic_numbers),
        batch.positions,
        system - by_frame(first_frame[:-1])[system],
        batch.cell,
        (pairs.i - start[pairs.i]).int(),
        (pairs.j - start[pairs.i]).int(),
        pairs.shifts.to(torch.int16),
        (pairs.reverse() - first_edge[system[pairs.i]]).int(),
        labels["energy"].double(),
        labels["energies"].double().nan_to_num(),
        labels["forces"].to(dtype),
        labels["stress"].double().nan_to_num(),
        torch.from_numpy(sizes).to(device, dtype),
        torch.where(volume > 0, volume, 1.0),
        atom_weights,
        atom_weights * (unknown == 0)[system],
        system_weights,
        system_weights * known_stress,
        atoms - start + torch.from_numpy(ahead).to(device)[system],
        torch.from_numpy(inverse).to(device, dtype)[system],
    )
    return together.split(counts, np.diff(first_atom).tolist(), ends.diff().tolist())


def _with_all_labels(frame: Batch) -> Batch:
    """Those that a minibatch takes; NaN where the frame has none."""
    known, unknown = frame.labels, frame.positions.new_tensor(torch.nan)
    labels = {
        "energy": known["energy"],
        "forces": known["forces"],
        "energies": known.get("energies", unknown.expand(frame.n_atoms)),
        "stress": known.get("stress", unknown.expand(1, 3, 3)),
    }
    return replace(frame, labels=labels)


def _nothing(student: Student) -> Minibatch:
    """A system of one atom of no weight, with one edge of twice the cutoff."""
    device, dtype = student.device, student.dtype

    def zeros(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    double, whole = torch.float64, torch.int64
    one = zeros(1, dtype=whole)
    return Minibatch(
        types=one,
        positions=zeros(1, 3, dtype=double),
        system_idx=one,
        cell=2.0 * student.cutoff * torch.eye(3, dtype=double, device=device).unsqueeze(0),
        i=one.int(),
        j=one.int(),
        shifts=torch.tensor([[1, 0, 0]], dtype=torch.int16, device=device),
        reverse=one.int(),
        energy=zeros(1, dtype=double),
        energies=zeros(1, dtype=double),
        forces=zeros(1, 3),
        stress=zeros(1, 3, 3, dtype=double),
        sizes=zeros(1) + 1.0,
        volume=zeros(1, dtype=double) + 1.0,
        atom_weights=zeros(1),
        site_weights=zeros(1),
        system_weights=zeros(1),
        stress_weights=zeros(1),
        partner=one,
        inverse_distance=zeros(1),
    )


def _known(frame: Batch, label: str) -> bool:
    return label in frame.labels and not bool(frame.labels[label].isnan().any())


def _distance(first: Batch, second: Batch) -> float:
    """Å, between the two frames of a probe."""
    return float((first.positions - second.positions).norm())
