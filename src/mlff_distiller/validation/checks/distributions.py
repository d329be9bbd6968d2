"""Structure and vibrations in a run: distributions, and how far two force fields' differ.

Every distribution has error bars from blocks of the run.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from ase import Atoms
from scipy.signal import welch

from mlff_distiller import plotting
from mlff_distiller.md.record import Array, Trajectory
from mlff_distiller.md.statistics import N_BLOCKS
from mlff_distiller.neighbors import pair_vectors
from mlff_distiller.plotting import GREY, Panel
from mlff_distiller.structure import BONDED, radii_of_pairs
from mlff_distiller.validation.check import Check, Measured, Tree
from mlff_distiller.validation.findings import plain
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.verdict import Finding

_CRITERIA = {
    "rdf": "rdf_difference_percent",
    "angle": "angle_difference_percent",
    "vibrational": "spectrum_difference_percent",
}
"""By the first word of a distribution's name."""
_MOST_FRAMES = 400
"""Frames that distributions are counted over."""
_MOST_NOISE_PERCENT = 10.0
"""If the halves of the teacher's run differ by this much, they are not a yardstick."""


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
    """A student's distribution and its teacher's."""

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
    """How far they differ: by 100 % where only one has pairs or bonds of some elements.

    Spectra are compared where both runs are long enough for one.
    """
    own, found = {one.name: one for one in student}, []
    for one in teacher:
        mine = own.pop(one.name, None)
        if mine is not None and mine.x.shape == one.x.shape:
            percent = distance_percent(mine.mean, one.mean)
            found.append(Difference(one.name, percent, one.noise_percent))
        elif mine is None and not one.name.startswith("vibrational"):
            found.append(Difference(one.name, 100.0, one.noise_percent))
    found += [
        Difference(one.name, 100.0, one.noise_percent)
        for one in own.values()
        if not one.name.startswith("vibrational")
    ]
    return found


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


def distributions(trajectory: Trajectory) -> list[Distribution]:
    """Everything that one run shows."""
    stride = max(1, len(trajectory.time_ps) // _MOST_FRAMES)
    thin = replace(
        trajectory,
        time_ps=trajectory.time_ps[::stride],
        positions=trajectory.positions[::stride],
        velocities=trajectory.velocities[::stride],
        potential=trajectory.potential[::stride],
    )
    return [*rdfs(thin), *bond_angles(thin), *vibrational_spectrum(trajectory)]


def _measure(subject: Subject) -> Measured:
    run, theirs = subject.nvt[0], subject.teacher_run
    both = run.completed and theirs.completed
    student = distributions(run) if both else []
    teacher = distributions(theirs) if both else []
    compared, found = differences(student, teacher), {}
    for prefix, name in _CRITERIA.items():
        rows = [one for one in compared if one.name.startswith(prefix)]
        if rows or not both or prefix == "rdf":
            found[name] = _difference(rows)
    shown = [
        {"name": d.name, "percent": d.percent, "noise_percent": d.noise_percent} for d in compared
    ]
    blocks = [
        {
            "name": one.name,
            "unit": one.unit,
            "x": plain(one.x),
            "student": plain(mine.mean),
            "student_error": plain(mine.error),
            "teacher": plain(one.mean),
            "teacher_error": plain(one.error),
        }
        for one in teacher
        for mine in student
        if mine.name == one.name
    ]
    numbers = {
        "teacher_completed": theirs.completed,
        "differences": shown,
        "distributions": blocks,
    }
    return Measured(found, {"teacher": numbers})


def _difference(rows: Sequence[Difference]) -> Finding:
    if not rows:
        return Finding(None, "a run broke off, or was too short")
    loud = max(rows, key=lambda row: row.noise_percent)
    if loud.noise_percent > _MOST_NOISE_PERCENT:
        return Finding(
            None,
            f"{loud.name}: halves of the teacher's own run differ by {loud.noise_percent:.0f} %;"
            " run longer",
        )
    worst = max(rows, key=lambda row: row.beyond_noise)
    return Finding(
        worst.beyond_noise,
        f"{worst.name}: {worst.percent:.1f} ± {worst.noise_percent:.1f} %",
    )


def _panels(measured: Tree, series: Tree) -> list[Panel]:
    blocks = (measured.get("teacher") or {}).get("distributions") or []
    return [
        panel(one, [(who, one[who], one.get(f"{who}_error")) for who in ("student", "teacher")])
        for one in blocks
    ]


def panel(one: Tree, curves: Sequence[tuple[str, Any, Any]]) -> Panel:
    """``curves`` (name, mean, standard error or None) over the ``x`` of ``one``; the last dashed.

    The last is the teacher's.
    """
    kind, _, rest = str(one["name"]).partition(" ")
    title = {"rdf": "Radial distribution, ", "angle": "Angle "}.get(kind, kind + " ") + rest
    title = title[:1].upper() + title[1:]
    x = plotting.array(one["x"])
    bands, traces, tops = [], [], [0.0]
    for number, (name, mean, error) in enumerate(curves):
        last = number == len(curves) - 1
        color = GREY if last and len(curves) > 2 else plotting.look(number)[0]
        y = plotting.array(mean)
        if y.size != x.size or not np.isfinite(y).any():
            continue
        tops.append(float(np.nanmax(y)))
        if error is not None:
            spread = plotting.BAND * plotting.array(error)
            bands.append(plotting.band(x, y - spread, y + spread, color))
        dash = "dash" if last else "solid"
        traces.append(plotting.line(x, y, html.escape(name), color, dash).update(line_width=2))
    label = {"rdf": "g(r)", "angle": "density (1/°)"}.get(kind, "density")
    axes = {"title": f"{_AXES.get(kind, 'x')} ({html.escape(str(one.get('unit', '')))})"}
    drawn = plotting.figure([*bands, *traces], axes, {"title": label, "rangemode": "tozero"})
    return Panel(title, drawn if max(tops) > 0 else None)


_AXES = {"rdf": "distance", "angle": "angle", "vibrational": "frequency"}

CHECK = Check(
    tuple(_CRITERIA.values()),
    _measure,
    lambda subject: subject.teacher is not None,
    section="distributions",
    panels=_panels,
)
