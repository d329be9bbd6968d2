"""The energy along straight lines, which must have no steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms

from mlff_distiller import plotting
from mlff_distiller.md.record import Array, ForceField
from mlff_distiller.plotting import Panel
from mlff_distiller.validation.check import Check, Measured, Tree
from mlff_distiller.validation.checks.derivatives import displaced, moved
from mlff_distiller.validation.findings import plain
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.verdict import Finding

_SCAN_POINTS, _SCAN_A, _N_SCANS = 120, 0.6, 2
_FINER = 8
_LOOKS = 40
_SMALL_eV = 1e-5
"""A tenth of the limit of jumps: nothing to look at more closely."""


@dataclass(frozen=True)
class Scan:
    """Energy along a straight line."""

    distance: Array  # (n,) Å of the atom that moves most
    energy: Array  # (n,) eV, relative to the first
    slope: Array  # (n,) -F · d, eV/Å of that distance
    jump_meV: float
    """Largest excess, anywhere, of a step in energy over what the forces at its ends explain."""
    at_A: float
    """Where."""


def straight_scan(
    force_field: ForceField, atoms: Atoms, direction: Array, length_A: float, n_points: int
) -> Scan:
    """Energies and forces on a line of ``n_points``, evenly spaced over ``length_A``.

    A smooth energy changes from point to point by the integral of its slope. With the slopes at
    four points around, the cubic through them is integrated between the middle two, and O(h⁵) is
    left; or a jump of the energy, where a pair crosses a hard cutoff. Five medians of all that is
    left are taken off, so that noise and curvature, which are everywhere, are not jumps. Where most
    is left, an eighth of the step is looked at: there a jump is what it was, and curvature, of a
    bond squeezed to half its length say, is 30,000 times less.
    """
    unit = direction / np.linalg.norm(direction, axis=1).max()
    distance = np.linspace(0.0, length_A, n_points)

    def along(places: Array) -> tuple[Array, Array]:
        energy, slope = np.empty(len(places)), np.empty(len(places))
        for k, s in enumerate(places):
            there = moved(atoms, s * unit)
            energy[k] = force_field.energy(there)
            slope[k] = -float((force_field.forces(there) * unit).sum())
        return energy, slope

    energy, slope = along(distance)
    left = _unexplained(energy, slope, distance[1])
    everywhere = 5.0 * float(np.median(left))
    excess = left - everywhere
    for _ in range(_LOOKS):
        worst = int(excess.argmax())
        if not excess[worst] > _SMALL_eV:
            break
        h = distance[1] / _FINER
        fine = distance[worst + 1] + h * np.arange(-1, _FINER + 2)
        closer = float(_unexplained(*along(fine), h).max()) - everywhere
        if closer >= 0.5 * excess[worst]:
            break
        excess[worst] = closer
    worst = int(excess.argmax())
    return Scan(
        distance,
        energy - energy[0],
        slope,
        1e3 * max(0.0, float(excess[worst])),
        float(distance[worst + 1]),
    )


def _unexplained(energy: Array, slope: Array, h: float) -> Array:
    """(n - 3,) eV: of each inner step of the energy, what the slopes around do not explain."""
    steps = h / 24.0 * (-slope[:-3] + 13.0 * slope[1:-2] + 13.0 * slope[2:-1] - slope[3:])
    return np.abs(np.diff(energy)[1:-1] - steps)


def _measure(subject: Subject) -> Measured:
    rng = np.random.default_rng([subject.settings.seed, 2])
    frame = displaced(subject)[0]
    scans, lines = [], []
    for atom in rng.choice(len(frame), min(_N_SCANS, len(frame)), replace=False):
        direction = np.zeros((len(frame), 3))
        direction[atom] = rng.normal(size=3)
        scan = straight_scan(subject.force_field, frame, direction, _SCAN_A, _SCAN_POINTS)
        scans.append((scan.jump_meV, f"atom {atom} moved by {scan.at_A:.3f} Å"))
        lines.append(
            {
                "name": f"atom {atom} ({frame.symbols[atom]})",
                "x": plain(scan.distance),
                "energy_eV": plain(scan.energy),
                "slope_eV_per_A": plain(scan.slope),
            }
        )
    finding = Finding(*max(scans))
    return Measured(
        {"scan_jump_meV": finding}, {"laws": {"scan_jump_meV": finding.value}, "scans": lines}
    )


def _panels(measured: Tree, series: Tree) -> list[Panel]:
    traces = plotting.curves(measured.get("scans") or [], "energy_eV")
    x, y = {"title": "displacement of one atom (Å)"}, {"title": "change of energy (eV)"}
    note = "A smooth curve; a step in it is a jump, as at a hard cutoff."
    drawn = plotting.figure(traces, x, y) if traces else None
    return [Panel("Energy along straight lines", drawn, note)]


CHECK = Check(("scan_jump_meV",), _measure, section="laws", panels=_panels)
