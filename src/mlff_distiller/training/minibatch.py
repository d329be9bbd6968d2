"""What one update sees: frames, their pairs of atoms, and the weight of every error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from mlff_distiller.batch import Batch
from mlff_distiller.dataset.loader import cut
from mlff_distiller.neighbors import (
    PADDING_ATOMS,
    Neighbors,
    neighbor_list,
    padded_number,
    padding,
)
from mlff_distiller.students.base import Student

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
        starts = {"system_idx": n_systems, "i": n_atoms, "j": n_atoms, "partner": n_atoms}
        joined = {}
        for field in fields(cls):
            columns = [getattr(part, field.name) for part in parts]
            if field.name in starts:
                offsets = starts[field.name]
                columns = [own + start for own, start in zip(columns, offsets, strict=False)]
            joined[field.name] = torch.cat(columns)
        return cls(**joined)

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
        """And padding beside it, which takes a system and an atom."""
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

    Parameters
    ----------
    frames
        One system each, labelled.
    probes
        Pairs of indices into ``frames``; the two are always seen together.
    frame_weights
        By which all errors of a frame are multiplied.
    disagreement
        An atom weighs ``1/(1 + (disagreement s/m)^2)``, s the committee's spread of its force and m
        the median spread; a frame as its atoms on average. An unknown s counts as m.
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
    ) -> None:
        self.seed, self.atoms_per_batch = seed, atoms_per_batch
        partners = {a: b for pair in probes for a, b in (pair, pair[::-1])}
        self.units = [*probes, *((k,) for k in range(len(frames)) if k not in partners)]
        weights = _weights(frames, frame_weights, disagreement)
        parts = []
        for k, (frame, neighbors) in enumerate(with_neighbors(frames, student)):
            distance = 0.0
            if k in partners:
                distance = float((frames[k].positions - frames[partners[k]].positions).norm())
            parts.append(_part(frame, neighbors, student, weights[k], distance))
        self._units = []
        for unit in self.units:
            joined = Minibatch.concatenate([parts[k] for k in unit])
            self._units.append(_paired(joined) if len(unit) == 2 else joined)
        self._sizes = [Size(len(u.cell), len(u.types), len(u.i)) for u in self._units]
        self._norms = torch.stack([_norms(unit) for unit in self._units]).cpu()
        self._nothing = _nothing(student)

    def plan(self, epoch: int) -> list[list[int]]:
        """Units of each minibatch of an epoch; every unit once, in an order of (seed, epoch)."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.units))
        sizes = np.array([self._sizes[unit].n_atoms for unit in order])
        return [order[first:end].tolist() for first, end in cut(sizes, self.atoms_per_batch)]

    def norms(self, units: Sequence[int]) -> Tensor:
        """(5,) sums of weights: of force, atomic energy, energy, stress and probe components."""
        return self._norms[list(units)].sum(0).clamp(min=1e-12)

    def make(self, units: Sequence[int], padded_to: Size | None = None) -> Minibatch:
        """The minibatch of ``units``."""
        parts = [self._units[unit] for unit in units]
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

    def size(self, units: Sequence[int]) -> Size:
        own = [self._sizes[unit] for unit in units]
        return Size(
            sum(size.n_systems for size in own),
            sum(size.n_atoms for size in own),
            sum(size.n_edges for size in own),
        )

    def padded_size(self, plan: Sequence[Sequence[int]]) -> Size:
        """Holds every minibatch of ``plan``, and padding beside it."""
        sizes = [self.size(units) for units in plan]
        return Size(
            max(size.n_systems for size in sizes) + 1,
            max(size.n_atoms for size in sizes) + PADDING_ATOMS,
            padded_number(max(size.n_edges for size in sizes)),
        )

    def most_neighbors(self) -> int:
        """Of any atom."""
        return max(int(unit.i.bincount().max()) if len(unit.i) else 0 for unit in self._units)

    def _padding(self, n_systems: int, n_atoms: int, n_edges: int) -> Minibatch:
        """Atoms of no weight whose edges are longer than the cutoff, spread evenly."""
        device = self._nothing.types.device
        columns = {}
        for field in fields(Minibatch):
            own = getattr(self._nothing, field.name)
            length = n_systems if field.name in _BY_SYSTEM else n_atoms
            columns[field.name] = own.expand(length, *own.shape[1:])
        edges = padding(n_edges, n_atoms, device)
        columns["i"] = columns["j"] = edges.i.int()
        columns["shifts"] = edges.shifts.to(torch.int16)
        columns["partner"] = torch.arange(n_atoms, device=device)
        return Minibatch(**columns)


_BY_SYSTEM = (
    "cell",
    "energy",
    "stress",
    "sizes",
    "volume",
    "system_weights",
    "stress_weights",
)


def _part(
    frame: Batch, neighbors: Neighbors, student: Student, weights: np.ndarray, distance: float
) -> Minibatch:
    device, dtype = student.device, student.dtype
    types = student.types_of_numbers[frame.atomic_numbers]
    atom_weights = torch.from_numpy(weights).to(device, dtype)
    n_atoms, unknown = frame.n_atoms, torch.tensor(torch.nan, device=device)
    energies = frame.labels.get("energies", unknown.expand(n_atoms)).double()
    stress = frame.labels.get("stress", unknown.expand(1, 3, 3)).double()
    volume = frame.volume
    system_weight = atom_weights.mean().reshape(1)
    return Minibatch(
        types,
        frame.positions,
        frame.system_idx,
        frame.cell,
        neighbors.i.int(),
        neighbors.j.int(),
        neighbors.shifts.to(torch.int16),
        frame.labels["energy"].double(),
        energies.nan_to_num(),
        frame.labels["forces"].to(dtype),
        stress.nan_to_num(),
        torch.full((1,), float(n_atoms), dtype=dtype, device=device),
        torch.where(volume > 0, volume, 1.0),
        atom_weights,
        atom_weights * (~energies.isnan()).all(),
        system_weight,
        system_weight * ((~stress.isnan()).all() & (volume > 0).all()),
        torch.arange(n_atoms, device=device),
        torch.full((n_atoms,), 1.0 / distance if distance else 0.0, dtype=dtype, device=device),
    )


def _paired(probe: Minibatch) -> Minibatch:
    """Two frames, of which the atoms of the first know those of the second."""
    half = len(probe.types) // 2
    partner, inverse = probe.partner.clone(), probe.inverse_distance.clone()
    partner[:half] += half
    inverse[half:] = 0.0
    return Minibatch(
        **{
            **{field.name: getattr(probe, field.name) for field in fields(probe)},
            "partner": partner,
            "inverse_distance": inverse,
        }
    )


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


def _norms(unit: Minibatch) -> Tensor:
    return torch.stack(
        [
            3.0 * unit.atom_weights.sum(),
            unit.site_weights.sum(),
            unit.system_weights.sum(),
            unit.stress_weights.sum(),
            3.0 * (unit.atom_weights * (unit.inverse_distance > 0)).sum(),
        ]
    ).double()


def _weights(
    frames: Sequence[Batch], frame_weights: Sequence[float] | None, disagreement: float
) -> list[np.ndarray]:
    """(n_atoms,) of each frame."""
    weights = [
        np.full(frame.n_atoms, 1.0 if frame_weights is None else frame_weights[k])
        for k, frame in enumerate(frames)
    ]
    unknown = torch.tensor(torch.nan)
    spreads = [
        frame.labels.get("forces_spread", unknown.expand(frame.n_atoms)).double().cpu().numpy()
        for frame in frames
    ]
    known = np.concatenate(spreads)
    known = known[~np.isnan(known)]
    if disagreement == 0.0 or not len(known):
        return weights
    median = max(float(np.median(known)), 1e-9)
    return [
        own / (1.0 + (disagreement * np.nan_to_num(spread, nan=median) / median) ** 2)
        for own, spread in zip(weights, spreads, strict=True)
    ]


def collate(samples: Sequence[Sample]) -> Sample:
    """One batch of all ``samples``."""
    batches = [batch for batch, _ in samples]
    sizes = [batch.n_atoms for batch in batches]
    pairs = Neighbors.concatenate([neighbors for _, neighbors in samples], sizes)
    return Batch.concatenate(batches), pairs


def with_neighbors(frames: Sequence[Batch], student: Student) -> list[Sample]:
    """Each frame and its pairs, on the student's device; an unknown element is an error."""
    samples: list[Sample] = []
    sizes = np.array([frame.n_atoms for frame in frames])
    for first, end in cut(sizes, _ATOMS_AT_ONCE):
        batch = Batch.concatenate(frames[first:end]).to(student.device)
        student.types(batch.atomic_numbers)
        pairs = neighbor_list(batch, student.cutoff)
        starts = torch.from_numpy(np.cumsum([0, *sizes[first:end]])).to(student.device)
        bounds = torch.searchsorted(pairs.i, starts).tolist()
        for k, own in enumerate(batch.systems()):
            rows, start = slice(bounds[k], bounds[k + 1]), starts[k]
            part = Neighbors(pairs.i[rows] - start, pairs.j[rows] - start, pairs.shifts[rows])
            samples.append((own, part))
    return samples
