"""Elastic constants of crystals, with relaxed ions."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.filters import FrechetCellFilter
from ase.optimize import LBFGS
from ase.stress import full_3x3_to_voigt_6_stress

from mlff_distiller.errors import DistillerError
from mlff_distiller.md.record import Array, ForceField
from mlff_distiller.validation.check import Check, Measured
from mlff_distiller.validation.checks.equation_of_state import relaxed
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.verdict import Finding

_NAME = "elastic_difference_percent"
_STRAIN = 5e-3
"""Central differences leave O(strain²), some 1e-4 of the constants; float32 networks lose less."""
_LEAST_FORCE, _MOST_STEPS = 1e-4, 300
_ENOUGH_GPa = 0.05
"""Stress left: constants of a crystal under pressure P are off by P."""
_FAR = 1.5
"""A volume this much larger or smaller than the first is no longer the same crystal."""
_LOUD = 0.1
"""Share of the largest constant: with more noise there is nothing to compare."""
_VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


@dataclass(frozen=True)
class Elasticity:
    """At zero stress, in the axes of the given cell."""

    constants_GPa: Array  # (6, 6) symmetric, Voigt's order, engineering shear
    error_GPa: float
    """Half of the largest difference between ``C_ij`` and ``C_ji``, which are measured apart."""

    @property
    def bulk_modulus_GPa(self) -> float:
        """Voigt's average."""
        return float(self.constants_GPa[:3, :3].mean())

    @property
    def shear_modulus_GPa(self) -> float:
        """Voigt's average."""
        c = self.constants_GPa
        stretch, mixed = np.trace(c[:3, :3]), c[0, 1] + c[0, 2] + c[1, 2]
        return float((stretch - mixed + 3.0 * np.trace(c[3:, 3:])) / 15.0)


def elasticity(force_field: ForceField, atoms: Atoms) -> Elasticity:
    """``C_ij = d sigma_i / d strain_j`` by six strains, to either side, ions relaxed in each.

    Cell and ions are brought to zero stress before. Cost: thirteen relaxations.

    Raises
    ------
    DistillerError
        There is no minimum near, or the force field gives no stress.
    """
    start = at_zero_stress(force_field, atoms)
    columns = []
    for a, b in _VOIGT:
        strain = np.zeros((3, 3))
        strain[a, b] += 0.5 * _STRAIN
        strain[b, a] += 0.5 * _STRAIN  # engineering shear: 2 strain_ab
        stresses = []
        for sign in (1.0, -1.0):
            bent = start.copy()
            bent.set_cell(start.cell.array @ (np.eye(3) + sign * strain), scale_atoms=True)
            bent = relaxed(force_field, bent)
            stresses.append(full_3x3_to_voigt_6_stress(force_field.stress(bent)))
        columns.append((stresses[0] - stresses[1]) / (2.0 * _STRAIN))
    constants = np.array(columns) / units.GPa
    return Elasticity(
        0.5 * (constants + constants.T), float(np.abs(constants - constants.T).max() / 2.0)
    )


def at_zero_stress(force_field: ForceField, atoms: Atoms) -> Atoms:
    """Cell and positions at a minimum; `DistillerError` if there is none near."""
    copy: Atoms = atoms.copy()
    copy.calc = force_field.calculator
    grown = 1.0
    free: Any = FrechetCellFilter(copy)
    optimiser: Any = LBFGS
    with (
        optimiser(free, logfile=None) as descent,
        np.errstate(all="ignore"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", RuntimeWarning)  # of logarithms good to 1e-12 only
        for _ in descent.irun(fmax=_LEAST_FORCE, steps=_MOST_STEPS):
            grown = copy.get_volume() / atoms.get_volume()
            if not 1.0 / _FAR < grown < _FAR:
                break
    copy.calc = None
    near = 1.0 / _FAR < grown < _FAR
    left = float(np.abs(force_field.stress(copy)).max() / units.GPa) if near else np.inf
    if not left < _ENOUGH_GPa:
        raise DistillerError(
            f"{force_field.name} found no cell of {atoms.get_chemical_formula()} without stress",
            expected=f"stress below {_ENOUGH_GPa} GPa within {_MOST_STEPS} steps",
            found=f"{left:.3g} GPa" if near else f"{grown:.2f} of the volume",
        )
    return relaxed(force_field, copy)


def _measure(subject: Subject) -> Measured:
    """Constants of both, and the largest difference in percent of the teacher's largest constant.

    Half of what ``C_ij`` and ``C_ji`` differ by is noise, and taken off. Without a teacher the
    constants are shown and not judged.
    """
    known = []
    shown: dict[str, dict[str, Any]] = {}
    for label, one in (("student", subject.force_field), ("teacher", subject.teacher)):
        if one is None:
            continue
        try:
            found = elasticity(one, subject.atoms)
        except Exception as error:  # a foreign calculator's: no stress, NaN, whatever
            shown[label] = {"why": f"{label}: {error}".split("\n")[0]}
            continue
        known.append(found)
        shown[label] = {
            "constants_GPa": found.constants_GPa.round(4).tolist(),
            "error_GPa": found.error_GPa,
            "bulk_modulus_GPa": found.bulk_modulus_GPa,
            "shear_modulus_GPa": found.shear_modulus_GPa,
        }
    numbers = {"elasticity": shown}
    if subject.teacher is None:
        return Measured({}, numbers)
    if len(known) < 2:
        why = next(one["why"] for one in shown.values() if "why" in one)
        return Measured({_NAME: Finding(None, str(why))}, numbers)
    return Measured({_NAME: _difference(*known)}, numbers)


def _difference(mine: Elasticity, theirs: Elasticity) -> Finding:
    apart = np.abs(mine.constants_GPa - theirs.constants_GPa)
    i, j = np.unravel_index(int(apart.argmax()), apart.shape)
    noise = mine.error_GPa + theirs.error_GPa
    scale = float(np.abs(theirs.constants_GPa).max())
    words = (
        f"C{i + 1}{j + 1}: {mine.constants_GPa[i, j]:.4g} and {theirs.constants_GPa[i, j]:.4g}"
        f" ± {noise:.2g} GPa"
    )
    if not noise < _LOUD * scale:
        return Finding(None, words)
    return Finding(100.0 * max(0.0, float(apart.max()) - noise) / scale, words)


CHECK = Check((_NAME,), _measure, lambda subject: subject.kind == "crystal")
