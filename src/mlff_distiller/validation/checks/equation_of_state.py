"""Energy against volume: the equilibrium volume and the bulk modulus of a crystal."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.optimize import BFGS, LBFGS

from mlff_distiller import plotting
from mlff_distiller.errors import DistillerError
from mlff_distiller.md.record import Array, ForceField
from mlff_distiller.plotting import Panel
from mlff_distiller.validation.check import Check, Measured, Tree
from mlff_distiller.validation.findings import plain
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.verdict import Finding

_VOLUME, _MODULUS = "volume_difference_percent", "bulk_modulus_difference_percent"
_RELAXED, _ENOUGH = 1e-4, 5e-3
"""eV/Å: what is aimed at, and what is accepted; digits of float32 may end the descent before."""
_MOST_STEPS = 300
_DENSE = 64
"""Atoms up to which a step may diagonalise all second derivatives."""


@dataclass(frozen=True)
class EquationOfState:
    """Birch and Murnaghan's, of third order."""

    volume: float
    """At zero pressure, Å³/atom."""
    bulk_modulus_GPa: float
    volumes: Array  # (n,) Å³/atom
    energies: Array  # (n,) eV/atom


def relaxed(force_field: ForceField, atoms: Atoms) -> Atoms:
    """Positions at a minimum, in the cell as it is; `DistillerError` if there is none near."""
    copy: Atoms = atoms.copy()
    copy.calc = force_field.calculator
    # Forces that are not a gradient can run away, and the estimated curvature with them.
    descent: Any = BFGS if len(atoms) <= _DENSE else LBFGS
    with descent(copy, logfile=None) as optimizer, np.errstate(all="ignore"):
        with suppress(np.linalg.LinAlgError):
            optimizer.run(fmax=_RELAXED, steps=_MOST_STEPS)
        left = float(np.linalg.norm(copy.get_forces(), axis=1).max())
    if not left < _ENOUGH:
        raise DistillerError(
            f"{force_field.name} found no minimum of {atoms.get_chemical_formula()}",
            expected=f"forces below {_ENOUGH} eV/Å within {_MOST_STEPS} steps",
            found=f"{left:.3g} eV/Å",
        )
    copy.calc = None
    return copy


def equation_of_state(
    force_field: ForceField, atoms: Atoms, *, strain: float = 0.02, n_points: int = 9
) -> EquationOfState | None:
    """Energies of evenly scaled cells, fitted linearly in powers of ``V^(-2/3)``.

    Lengths change by up to ``strain`` around the volume of zero pressure, which a first, wider fit
    finds. Scaled positions are kept. None where the energies have no minimum.
    """
    n, start = len(atoms), atoms.get_volume() / len(atoms)
    centre, found = start, None
    for width in (2.5 * strain, strain):
        volumes = centre * np.linspace(1.0 - width, 1.0 + width, n_points) ** 3
        energies = np.array(
            [force_field.energy(_scaled(atoms, (v / start) ** (1 / 3))) / n for v in volumes]
        )
        found = _birch_murnaghan(volumes, energies)
        if found is None:
            return None
        centre = found.volume
    return found


def _birch_murnaghan(volumes: Array, energies: Array) -> EquationOfState | None:
    x = volumes ** (-2.0 / 3.0)
    middle, spread = x.mean(), np.ptp(x)
    fit = np.polynomial.Polynomial(np.polyfit((x - middle) / spread, energies, 3)[::-1])
    roots = fit.deriv().roots()
    real = roots[np.abs(roots.imag) < 1e-9].real
    minima = [t for t in real if fit.deriv(2)(t) > 0 and abs(t) < 2.0]
    if not minima:
        return None
    t = min(minima, key=abs)
    x0 = middle + spread * t
    volume = x0**-1.5
    # d²E/dV² at the minimum = E''(x) (dx/dV)², for E'(x) = 0.
    curvature = fit.deriv(2)(t) / spread**2 * (2.0 / 3.0 * x0 / volume) ** 2
    modulus = volume * curvature / units.GPa
    return EquationOfState(float(volume), float(modulus), volumes, energies)


def _scaled(atoms: Atoms, factor: float) -> Atoms:
    copy: Atoms = atoms.copy()
    copy.set_cell(atoms.cell.array * factor, scale_atoms=True)
    return copy


def _measure(subject: Subject) -> Measured:
    mine = equation_of_state(subject.force_field, subject.atoms)
    theirs = equation_of_state(subject.reference, subject.atoms)
    if mine is None or theirs is None:
        nothing = Finding(None, "energies have no minimum")
        return Measured({_VOLUME: nothing, _MODULUS: nothing})
    pairs = {
        _VOLUME: (mine.volume, theirs.volume, "Å³/atom"),
        _MODULUS: (mine.bulk_modulus_GPa, theirs.bulk_modulus_GPa, "GPa"),
    }
    found = {
        name: Finding(100.0 * abs(a / b - 1.0), f"{a:.4g} and {b:.4g} {unit}")
        for name, (a, b, unit) in pairs.items()
    }
    both = [
        {
            "volume_A3_per_atom": one.volume,
            "bulk_modulus_GPa": one.bulk_modulus_GPa,
            "volumes_A3_per_atom": plain(one.volumes),
            "energies_eV_per_atom": plain(one.energies),
        }
        for one in (mine, theirs)
    ]
    return Measured(found, {"teacher": {"equation_of_state": both}})


def _panels(measured: Tree, series: Tree) -> list[Panel]:
    return [_panel((measured.get("teacher") or {}).get("equation_of_state"))]


def _panel(both: Sequence[Tree] | None) -> Panel:
    title, traces = "Equation of state", []
    for number, (who, one) in enumerate(zip(("student", "teacher"), both or [], strict=False)):
        x, y = plotting.finite(
            plotting.array(one.get("volumes_A3_per_atom")),
            plotting.array(one.get("energies_eV_per_atom")),
        )
        if x.size:
            trace = plotting.line(x, 1e3 * (y - y.min()), who, *plotting.look(number))
            symbol = ("circle", "diamond")[number]
            traces.append(trace.update(mode="lines+markers", marker={"symbol": symbol, "size": 7}))
    y_axis = {"title": "energy above the lowest (meV/atom)"}
    drawn = plotting.figure(traces, {"title": "volume (Å³/atom)"}, y_axis) if traces else None
    return Panel(title, drawn)


CHECK = Check(
    (_VOLUME, _MODULUS),
    _measure,
    lambda subject: subject.teacher is not None and subject.kind == "crystal",
    section="statics",
    panels=_panels,
)
