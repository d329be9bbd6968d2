"""What simulations are for, with error bars from blocks, and how far two force fields differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from ase import Atoms, units
from scipy.signal import welch

from mlff_distiller.md.record import Array, Trajectory
from mlff_distiller.md.statistics import N_BLOCKS, Estimate
from mlff_distiller.neighbors import pair_vectors
from mlff_distiller.structure import BONDED, radii_of_pairs

"""Times the sum of covalent radii, or the first nearest distance if that is more."""


@dataclass(frozen=True, eq=False)
class Distribution:
    """A function seen in every block of a run."""

    name: str
    x: Array  # (n,)
    unit: str
    blocks: Array  # (n_blocks, n)

    @property
    def mean(self) -> Array:
        """(n,)."""
        return np.asarray(self.blocks.mean(0))

    @property
    def error(self) -> Array:
        """One standard error (n,)."""
        return np.asarray(self.blocks.std(0, ddof=1) / np.sqrt(len(self.blocks)))

    @property
    def noise_percent(self) -> float:
        """How far the run's two halves differ from each other: the yardstick."""
        half = len(self.blocks) // 2
        return distance_percent(self.blocks[:half].mean(0), self.blocks[half:].mean(0))


def distance_percent(a: Array, b: Array) -> float:
    """``100 ∫|a - b| / ∫(a + b)``: 0 for the same, 100 for functions that do not overlap."""
    total = float(np.sum(a + b))
    return 100.0 * float(np.abs(a - b).sum()) / total if total > 0 else 0.0


@dataclass(frozen=True)
class Difference:
    """A student's distribution beside its teacher's."""

    name: str
    percent: float
    """`distance_percent` of the two means."""
    noise_percent: float
    """That of the teacher's own two halves, which scatter by sqrt(2) more than two whole runs."""

    @property
    def beyond_noise(self) -> float:
        """What noise does not explain."""
        return max(0.0, self.percent - self.noise_percent)


def differences(
    student: Sequence[Distribution], teacher: Sequence[Distribution]
) -> list[Difference]:
    """Of those that both have."""
    own = {distribution.name: distribution for distribution in student}
    return [
        Difference(one.name, distance_percent(own[one.name].mean, one.mean), one.noise_percent)
        for one in teacher
        if one.name in own and own[one.name].x.shape == one.x.shape
    ]


def rdfs(
    trajectory: Trajectory, r_max: float = 6.0, bins: int = 120, n_blocks: int = N_BLOCKS
) -> list[Distribution]:
    """Radial distribution function of every pair of elements, named ``rdf A-B``.

    Normalised by the density where there is one; otherwise pairs an atom A and Å.
    """
    atoms, edges = trajectory.atoms, np.linspace(0.0, r_max, bins + 1)
    symbols = np.array(atoms.get_chemical_symbols())
    pairs = list(combinations_with_replacement(dict.fromkeys(symbols.tolist()), 2))
    counts = {pair: np.zeros((len(trajectory.time_ps), bins)) for pair in pairs}
    for frame, positions in enumerate(trajectory.positions):
        i, j, d = _pairs(atoms, positions, r_max)
        for a, b in pairs:
            own = (symbols[i] == a) & (symbols[j] == b)
            counts[a, b][frame] = np.histogram(d[own], edges)[0]
    width = np.diff(edges)
    shells = 4.0 / 3.0 * np.pi * np.diff(edges**3)
    periodic = bool(atoms.pbc.all())
    found = []
    for (a, b), rows in counts.items():
        n_a, n_b = int((symbols == a).sum()), int((symbols == b).sum())
        ideal = n_a * n_b / atoms.get_volume() * shells if periodic else n_a * width
        if rows.any():
            x = 0.5 * (edges[1:] + edges[:-1])
            own = _blocks(rows / ideal, n_blocks)
            found.append(Distribution(f"rdf {a}-{b}", x, "Å", own))
    return found


def bond_angles(
    trajectory: Trajectory, bins: int = 60, n_blocks: int = N_BLOCKS
) -> list[Distribution]:
    """Angles between bonds, for every element at the vertex, named ``angle at A``; density in 1/°.

    Bonds are pairs within `BONDED` times the sum of covalent radii, or times the nearest distance
    of the first frame where that is longer.
    """
    atoms, edges = trajectory.atoms, np.linspace(0.0, 180.0, bins + 1)
    symbols = np.array(atoms.get_chemical_symbols())
    i, _, d = _pairs(atoms, trajectory.positions[0], 6.0)
    nearest = float(d.min()) if len(i) else 0.0
    every = np.arange(len(atoms))
    reach = BONDED * max(radii_of_pairs(atoms.numbers, every, every).max(), nearest)
    rows = {symbol: np.zeros((len(trajectory.time_ps), bins)) for symbol in dict.fromkeys(symbols)}
    for frame, positions in enumerate(trajectory.positions):
        i, j, vectors = pair_vectors(atoms, reach, positions)
        d = np.linalg.norm(vectors, axis=1)
        bonded = d < BONDED * np.maximum(radii_of_pairs(atoms.numbers, i, j), nearest)
        i, unit = i[bonded], vectors[bonded] / d[bonded, None]
        first, second = _same(i)
        angle = np.degrees(np.arccos(np.clip((unit[first] * unit[second]).sum(1), -1.0, 1.0)))
        for symbol, row in rows.items():
            row[frame] = np.histogram(angle[symbols[i[first]] == symbol], edges)[0]
    x = 0.5 * (edges[1:] + edges[:-1])
    return [
        Distribution(f"angle at {symbol}", x, "°", _blocks(row, n_blocks) / row.mean(0).sum())
        for symbol, row in rows.items()
        if row.any()
    ]


def vibrational_spectrum(
    trajectory: Trajectory, n_blocks: int = N_BLOCKS, resolution_THz: float = 1.0
) -> list[Distribution]:
    """Vibrational density of states: the Fourier transform of the velocity autocorrelation.

    By the theorem of Wiener and Khinchin it is the mean power spectrum of ``sqrt(m) v``; Welch's
    estimate, with a Hann window of ``1 / resolution_THz``, normalised to 1. Frames must be closer
    than half the fastest period. Empty where a block is shorter than the window.
    """
    if len(trajectory.time_ps) < 2:
        return []
    rate = 1.0 / (trajectory.time_ps[1] - trajectory.time_ps[0])  # THz
    window = round(rate / resolution_THz)
    weighted = np.sqrt(trajectory.atoms.get_masses())[:, None] * trajectory.velocities
    weighted = weighted.reshape(len(weighted), -1)
    if window < 4 or len(weighted) // n_blocks < window:
        return []
    rows = []
    for part in np.array_split(weighted, n_blocks):
        x, power = welch(part, rate, nperseg=window, axis=0, detrend=False)
        rows.append(power.sum(1) / power.sum())
    return [Distribution("vibrational spectrum", x, "THz", np.array(rows))]


def velocity_autocorrelation(trajectory: Trajectory, n_lags: int) -> Array:
    """``<v(0)·v(t)> / <v²>``, mass-weighted, over all origins: (n_lags,)."""
    weighted = np.sqrt(trajectory.atoms.get_masses())[:, None] * trajectory.velocities
    flat = weighted.reshape(len(weighted), -1)
    power = np.abs(np.fft.rfft(flat, 2 * len(flat), axis=0)) ** 2
    sums = np.fft.irfft(power.sum(1))[:n_lags] / np.arange(len(flat), len(flat) - n_lags, -1)
    return np.asarray(sums / sums[0])


def diffusion(trajectory: Trajectory, symbol: str, n_blocks: int = 5) -> Estimate | None:
    """Diffusion coefficient of an element in Å²/ps, by Einstein's relation.

    In every block the mean squared displacement over all origins, the centre of mass at rest, is
    fitted from a tenth to a half of the block; ``D`` is a sixth of the slope. None for blocks
    below 20 frames.
    """
    masses = trajectory.atoms.get_masses()
    centre = np.einsum("i,tik->tk", masses, trajectory.positions) / masses.sum()
    own = np.asarray(trajectory.atoms.symbols == symbol)
    moved = trajectory.positions[:, own] - centre[:, None]
    length = len(moved) // n_blocks
    if length < 20:
        return None
    found = []
    for block in range(n_blocks):
        part = moved[block * length : (block + 1) * length]
        lags = np.arange(length // 10, length // 2)
        squared = [float(((part[lag:] - part[:-lag]) ** 2).sum(2).mean()) for lag in lags if lag]
        times = (trajectory.time_ps[1] - trajectory.time_ps[0]) * lags[lags > 0]
        found.append(float(np.polyfit(times, squared, 1)[0]) / 6.0)
    return Estimate(float(np.mean(found)), float(np.std(found, ddof=1) / np.sqrt(n_blocks)))


def lindemann(trajectory: Trajectory) -> float:
    """RMS displacement from the mean position over the mean nearest distance; melts at 0.1–0.15."""
    spread = trajectory.positions - trajectory.positions.mean(0)
    i, _, d = _pairs(trajectory.atoms, trajectory.positions.mean(0), 6.0)
    nearest = np.full(len(trajectory.atoms), 6.0)
    np.minimum.at(nearest, i, d)
    return float(np.sqrt((spread**2).sum(2).mean()) / nearest.mean())


THZ_PER_WAVENUMBER = units._c * 1e-10
"""1 cm⁻¹ in THz: c = 2.998e8 m/s."""


def _pairs(atoms: Atoms, positions: Array, reach: float) -> tuple[np.ndarray, np.ndarray, Array]:
    i, j, vectors = pair_vectors(atoms, reach, positions)
    return i, j, np.asarray(np.linalg.norm(vectors, axis=1))


def _same(i: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs ``a < b`` of places of ascending ``i`` with equal values."""
    first, second = [], []
    start = 0
    for count in np.unique(i, return_counts=True)[1].tolist():
        a, b = np.triu_indices(count, 1)
        first.append(start + a)
        second.append(start + b)
        start += count
    none = [np.zeros(0, dtype=np.int64)]
    return np.concatenate(first or none), np.concatenate(second or none)


def _blocks(rows: Array, n_blocks: int) -> Array:
    return np.array([part.mean(0) for part in np.array_split(rows, n_blocks)])
