"""Short distances, where there are no data: the energy must rise, or atoms fall into a hole.

Dimers of all pairs of elements, and compression, from the shortest distances that are known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii

from mlff_distiller import plotting
from mlff_distiller.errors import DistillerError
from mlff_distiller.md.record import Array, ForceField
from mlff_distiller.neighbors import pair_vectors
from mlff_distiller.plotting import Panel
from mlff_distiller.validation.check import Check, Measured, Tree
from mlff_distiller.validation.findings import plain
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.verdict import Finding

Pair = tuple[str, str]

WALL_EV = 20.0
"""Nothing is examined behind so high a wall: at 2,000 K it is crossed once in exp(116) tries."""
_NEAREST = 0.35
"""Times the sum of covalent radii (0.22 Å for H-H, 0.78 Å for Si-Si): where curves end."""
_BOND = 0.8
_RISE = 5e-3
"""eV, or eV/atom: a tenth of the limit, and more than digits of float32 make up."""
_LOOSEST = 0.8
"""Times all lengths: compression begins here at the latest, however close a pair once came."""
_DENSEST = 0.5
"""Times all lengths: curves end at 8 times the density, as in the core of a giant planet."""
_N_POINTS, _N_BEFORE = 60, 12
_REACH_A = 6.0


_DIMER, _COMPRESSION = "dimer_drop_eV", "compression_drop_eV_per_atom"


@dataclass(frozen=True)
class Curve:
    """Energies from the shortest distance that the data hold down to shorter ones."""

    name: str
    distance: Array  # (n,) Å, or factors on lengths; falling
    energy: Array  # (n,) eV, or eV/atom, relative to the first

    @property
    def drop(self) -> tuple[float, float]:
        """By how much the energy falls below what it was further out, and at which distance.

        Counted from where the first descent ends, within `_BOND` of the first distance: two atoms
        alone may well be nearer than in the data (Cu₂ 2.22 Å, copper 2.55 Å), and a structure may
        be stretched. Once the energy has risen, it must rise on, up to the wall of `WALL_EV`.
        (0, the shortest distance) where it does.
        """
        if np.isnan(self.energy).any():  # a hole without a bottom
            return np.inf, float(self.distance[np.isnan(self.energy)][0])
        near = self.energy[self.distance >= _BOND * self.distance[0]]
        risen = np.flatnonzero(near > np.minimum.accumulate(near) + _RISE)
        lowest = int(near[: risen[0] if len(risen) else len(near)].argmin())
        energy, distance = self.energy[lowest:], self.distance[lowest:]
        below = np.maximum.accumulate(energy) - energy
        worst = int(below.argmax()) if below.max(initial=0.0) > 0 else len(energy) - 1
        return float(below[worst]), float(distance[worst])


def shortest_distances(frames: Sequence[Atoms]) -> dict[Pair, float]:
    """Shortest distance (Å) of every pair of elements that comes within 6 Å in ``frames``."""
    found: dict[Pair, float] = {}
    for atoms in frames:
        i, j, vectors = pair_vectors(atoms, _REACH_A)
        d = np.linalg.norm(vectors, axis=1)
        a, b = np.sort([atoms.numbers[i], atoms.numbers[j]], axis=0)
        for code in np.unique(200 * a + b):
            pair = (chemical_symbols[code // 200], chemical_symbols[code % 200])
            own = float(d[200 * a + b == code].min())
            found[pair] = min(own, found.get(pair, np.inf))
    return found


def dimer_curves(force_field: ForceField, shortest: dict[Pair, float]) -> list[Curve]:
    """One curve a pair of elements: two atoms in vacuum."""

    def dimer(pair: Pair) -> Callable[[float], Atoms]:
        return lambda distance: Atoms(list(pair), [[0.0, 0.0, 0.0], [distance, 0.0, 0.0]])

    return [
        _curve(
            force_field,
            "-".join(pair),
            dimer(pair),
            np.geomspace(distance, _limit(*pair), _N_POINTS),
        )
        for pair, distance in shortest.items()
        if distance > _limit(*pair)
    ]


def cold_curve(force_field: ForceField, atoms: Atoms, shortest: dict[Pair, float]) -> Curve | None:
    """The whole structure compressed evenly, on from where its first pair is at its shortest.

    Distances are factors on the structure's lengths, energies per atom. On the way there a few
    points tell whether the structure was stretched. None without a pair within 6 Å.
    """
    own = shortest_distances([atoms])
    if not own:
        return None
    start = max(_LOOSEST, *(min(1.0, shortest.get(pair, d) / d) for pair, d in own.items()))
    end = max(_limit(*pair) / d for pair, d in own.items())

    def compressed(factor: float) -> Atoms:
        copy: Atoms = atoms.copy()
        copy.set_cell(atoms.cell.array * factor)
        copy.positions = atoms.positions * factor
        return copy

    end = min(max(end, _DENSEST), 0.9 * start)
    factors = np.geomspace(start, end, _N_POINTS)
    if start < 1.0:
        factors = np.concatenate([np.geomspace(1.0, start, _N_BEFORE)[:-1], factors])
    return _curve(force_field, "compression", compressed, factors, len(atoms))


def _limit(a: str, b: str) -> float:
    radii = [covalent_radii[chemical_symbols.index(symbol)] for symbol in (a, b)]
    return float(_NEAREST * sum(radii))


def _curve(
    force_field: ForceField,
    name: str,
    make: Callable[[float], Atoms],
    distance: Array,
    n_atoms: int = 1,
) -> Curve:
    energy: list[float] = []
    for d in distance.tolist():
        try:
            energy.append(force_field.energy(make(d)) / n_atoms)
        except DistillerError:  # a student that gives NaN says so
            energy.append(np.nan)
        if not energy[-1] - energy[0] <= WALL_EV:
            break
    return Curve(name, distance[: len(energy)], np.array(energy) - energy[0])


def _measure(subject: Subject) -> Measured:
    shortest = shortest_distances(subject.seen)
    found, curves = _examined(subject.force_field, subject, shortest)
    theirs: dict[str, Finding] = {}
    if subject.teacher is not None:
        theirs, more = _examined(subject.teacher, subject, shortest)
        theirs = {name: one for name, one in theirs.items() if one.value not in (None, inf)}
        curves += [{**curve, "name": f"{curve['name']}, teacher"} for curve in more]
    shown = {"-".join(pair): round(distance, 4) for pair, distance in shortest.items()}
    return Measured(found, {"short_range": {"shortest_A": shown, "curves": curves}}, theirs)


def _examined(
    force_field: ForceField, subject: Subject, shortest: dict[Pair, float]
) -> tuple[dict[str, Finding], list[dict[str, Any]]]:
    dimers = dimer_curves(force_field, shortest)
    cold = cold_curve(force_field, subject.atoms, shortest)
    found = {}
    if len(subject.atoms) > 1 or dimers or cold:
        drops = [(*curve.drop, curve.name) for curve in dimers]
        depth, where, name = max(drops) if drops else (None, 0.0, "no pair")
        found[_DIMER] = Finding(depth, f"{name} at {where:.2f} Å")
        depth, where = cold.drop if cold is not None else (None, 0.0)
        found[_COMPRESSION] = Finding(depth, f"at {where:.2f} of all lengths")
    return found, [
        {"name": one.name, "x": plain(one.distance), "energy_eV": plain(one.energy)}
        for one in [*dimers, *([cold] if cold is not None else [])]
    ]


def _panels(measured: Tree, series: Tree) -> list[Panel]:
    curves = (measured.get("short_range") or {}).get("curves") or []
    return [_panel(curves, dimers=True), _panel(curves, dimers=False)]


def _panel(curves: Sequence[Tree], *, dimers: bool) -> Panel:
    title = "Two atoms in vacuum" if dimers else "Compression of the whole structure"
    whole = [str(curve.get("name")).startswith("compression") for curve in curves]
    own = [curve for curve, squeezed in zip(curves, whole, strict=True) if squeezed != dimers]
    traces = plotting.curves(own, "energy_eV")
    colors: dict[str, str] = {}
    for trace in traces:  # a colour for each pair, a dash for the teacher
        pair = trace.name.removesuffix(", teacher")
        color = colors.setdefault(pair, plotting.COLORS[len(colors) % len(plotting.COLORS)])
        trace.line.update(color=color, dash="dash" if trace.name != pair else "solid")
    x = {"title": "distance (Å)" if dimers else "factor on all lengths"}
    y = {"title": "energy (eV)" if dimers else "energy (eV/atom)"}
    note = "Towards the left, once past its lowest point, it must rise."
    return Panel(title, plotting.figure(traces, x, y) if traces else None, note)


CHECK = Check((_DIMER, _COMPRESSION), _measure, section="laws", panels=_panels)
