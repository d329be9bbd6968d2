"""Whether the energy depends on where the system is, and how many digits a large one has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from numpy.polynomial import Polynomial

from mlff_distiller.structure import enlarge
from mlff_distiller.validation.check import Check, Measured
from mlff_distiller.validation.checks.derivatives import displaced, moved
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.trajectory import ForceField
from mlff_distiller.validation.verdict import Finding

_LINES_A = (0.05, 0.0125)
_N_STEPS = 64
_DEGREE = 8


@dataclass(frozen=True)
class Translation:
    """How much a force field depends on where things are and how many there are."""

    energy_meV_per_atom: float
    """Largest change of the energy per atom under translations."""
    noise_meV: float
    """Scatter of a large copy's total energy about a smooth curve."""
    n_atoms: int
    """Size of the large copy."""


def translation(
    force_field: ForceField,
    atoms: Atoms,
    rng: np.random.Generator,
    *,
    n_atoms: int = 1000,
    offset_A: float = 1000.0,
) -> Translation:
    """Translate by up to ``offset_A``, and look how finely a large system's energy is resolved.

    Sums in float32 have steps of 6e-8 of the total energy: at a thousand atoms of 10 eV each
    1 meV, at a million of them 1 eV, and what dynamics at constant energy conserves is lost in
    them. All atoms of a large copy move evenly along a line of 0.05 Å in 64 steps; a polynomial of
    degree 8 follows a smooth energy there to 1e-9 of its change, and what scatters about it are
    lost digits. Squeezed bonds may want a higher degree: on a line of a quarter of the length what
    it missed is a millionth, and lost digits are as many.
    """
    start = force_field.energy(atoms)
    changes = []
    for _ in range(3):
        offset = rng.uniform(-offset_A, offset_A, 3)
        changes.append(abs(force_field.energy(moved(atoms, offset)) - start) / len(atoms))
    large = enlarge(atoms, n_atoms)
    direction = rng.normal(size=(len(large), 3))
    noise = []
    for length in _LINES_A:
        place = np.linspace(0.0, length, _N_STEPS)
        energies = np.array([force_field.energy(moved(large, s * direction)) for s in place])
        energies -= energies[0]
        scatter = energies - Polynomial.fit(place, energies, _DEGREE)(place)
        noise.append(float(np.sqrt(scatter @ scatter / (_N_STEPS - _DEGREE - 1))))
    return Translation(1e3 * max(changes), 1e3 * min(noise), len(large))


def _measure(subject: Subject) -> Measured:
    rng = np.random.default_rng([subject.settings.seed, 3])
    frame, n_atoms = displaced(subject)[0], subject.settings.large_atoms
    seen = translation(subject.force_field, frame, rng, n_atoms=n_atoms)
    found = {
        "translation_meV_per_atom": Finding(seen.energy_meV_per_atom),
        "energy_noise_meV": Finding(seen.noise_meV, f"in {seen.n_atoms} atoms"),
    }
    return Measured(found, {"laws": {name: one.value for name, one in found.items()}})


CHECK = Check(("translation_meV_per_atom", "energy_noise_meV"), _measure)
