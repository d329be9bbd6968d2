"""Runs at constant pressure: density, and whether the pressure is the one asked for.

The cell's size follows stochastic cell rescaling (Bernetti and Bussi, J. Chem. Phys. 153, 114107
(2020)), in which the mean pressure is the target and the volume fluctuates as it must::

    d ln V = beta / tau (P - P0) dt + sqrt(2 kT beta / (V tau)) dw

Students run it on the device, as ``run_md`` does; other calculators the same equation here, with
ASE's Langevin between the changes of the cell, at one evaluation a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from ase import Atoms, units
from ase.geometry import find_mic
from ase.md.langevin import Langevin
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.errors import DistillerError, DynamicsError
from mlff_distiller.md import Ensemble
from mlff_distiller.structure import bonds_of, thermalise
from mlff_distiller.validation.trajectory import Array, ForceField, OnStep, simulations

_BURST = 2.0
"""A volume so much larger or smaller than the first is another phase, or none."""
_TOO_HOT = 10.0
_SQUEEZE = 0.01
"""Of all lengths: the cells that resistance is measured between."""
_MODULI_GPA = (1.0, 1000.0)
"""From liquid argon to twice diamond."""

_Row = tuple[int, float, float]


@dataclass(frozen=True, eq=False)
class PressureRun:
    """What was recorded, evenly spaced, of a run that may have ended early."""

    atoms: Atoms
    """As it began."""
    target_GPa: float
    compressibility_per_GPa: float
    """What the barostat took for it."""
    completed: bool
    time_ps: Array  # (n,)
    volume: Array  # (n,) Å³
    pressure_GPa: Array  # (n,) kinetic part included
    why: str = ""

    @property
    def density(self) -> Array:
        """(n,) g/cm³."""
        grams = self.atoms.get_masses().sum() / units.kg * 1e3
        return np.asarray(grams / (self.volume * 1e-24))

    def part(self, start: int) -> PressureRun:
        """From frame ``start`` on."""
        return replace(
            self,
            time_ps=self.time_ps[start:],
            volume=self.volume[start:],
            pressure_GPa=self.pressure_GPa[start:],
        )


def at_constant_pressure(
    force_field: ForceField,
    atoms: Atoms,
    ensemble: Ensemble,
    n_steps: int,
    every: int,
    on_step: OnStep = lambda done, total: None,
) -> PressureRun:
    """``n_steps`` of NPT from ``atoms``, the cell changing evenly, recorded ``every`` k steps.

    Velocities are drawn where the structure has none. NaN, an error, an explosion, or a volume that
    doubles or halves ends it, with ``why``.
    """
    atoms = atoms.copy()
    if not atoms.get_momenta().any():
        thermalise(atoms, ensemble.temperature_K[0], np.random.default_rng(ensemble.seed))
    first, why = atoms.get_volume(), ""
    rows: list[_Row] = []
    student = isinstance(force_field.calculator, StudentCalculator)
    steps = (_on_device if student else _in_ase)(force_field, atoms, ensemble, n_steps, every)
    try:
        for row in steps:
            if not np.isfinite(row).all():
                raise DynamicsError("volume or pressure is not finite")
            if not first / _BURST < row[1] < first * _BURST:
                raise DynamicsError(
                    "the cell burst" if row[1] > first else "the cell collapsed",
                    expected=f"a volume near {first:.0f} Å³",
                    found=f"{row[1]:.0f} Å³ at step {row[0]}",
                )
            rows.append(row)
            on_step(row[0], n_steps)
    except DistillerError as error:
        why = str(error)
    except Exception as error:  # whatever a foreign calculator raises is a result of the run
        why = f"{type(error).__name__}: {error}"
    table = np.array(rows, dtype=np.float64).reshape(-1, 3)
    return PressureRun(
        atoms,
        ensemble.pressure_GPa[0],
        ensemble.compressibility_per_GPa,
        not why and len(rows) > 0 and rows[-1][0] >= n_steps,
        1e-3 * (ensemble.time_step_fs or 1.0) * table[:, 0],
        table[:, 1],
        table[:, 2],
        why,
    )


def compressibility(force_field: ForceField, atoms: Atoms) -> float:
    """``1 / (V d²E/dV²)`` in 1/GPa, by energies of cells 1 % longer and shorter.

    Molecules keep their shape. Within what matter has; it sets the pace of the barostat only.
    """
    i, j = bonds_of(atoms)
    n = len(atoms)
    bonded = coo_array((np.ones(len(i)), (i, j)), (n, n))
    label = connected_components(bonded, directed=False)[1]
    if np.bincount(label).max() > n // 2:  # a network has no molecules
        label = np.arange(n)
    centre = np.unique(label, return_index=True)[1][label]
    arms = find_mic(atoms.positions - atoms.positions[centre], atoms.cell, atoms.pbc)[0]
    energies = []
    for length in (1.0 - _SQUEEZE, 1.0, 1.0 + _SQUEEZE):
        cell: Atoms = atoms.copy()
        cell.set_cell(atoms.cell.array * length)
        cell.positions = length * atoms.positions[centre] + arms
        energies.append(force_field.energy(cell))
    curvature = (energies[0] - 2.0 * energies[1] + energies[2]) / (3.0 * _SQUEEZE) ** 2
    modulus = curvature / atoms.get_volume() / units.GPa
    return 1.0 / float(np.clip(modulus, *_MODULI_GPA))


def _on_device(
    force_field: ForceField, atoms: Atoms, ensemble: Ensemble, n_steps: int, every: int
) -> Iterator[_Row]:
    for simulation in simulations(force_field, atoms, ensemble, n_steps, every):
        seen = simulation.observables()
        yield simulation.step, float(seen.volume[0]), float(seen.pressure_GPa[0])


def _in_ase(
    force_field: ForceField, atoms: Atoms, ensemble: Ensemble, n_steps: int, every: int
) -> Iterator[_Row]:
    atoms = atoms.copy()
    atoms.calc = force_field.calculator
    kelvin, target = ensemble.temperature_K[0], ensemble.pressure_GPa[0] * units.GPa
    step_fs = ensemble.time_step_fs or 1.0
    rng = np.random.default_rng(ensemble.seed)
    thermostat = Langevin(
        atoms,
        step_fs * units.fs,
        temperature_K=kelvin,
        friction=1e-3 * ensemble.friction_per_ps / units.fs,
        rng=rng,
        fixcm=False,
    )
    rate = ensemble.compressibility_per_GPa / units.GPa * step_fs / ensemble.barostat_time_fs
    too_hot = _TOO_HOT * max(300.0, kelvin, atoms.get_temperature())
    for done in range(n_steps + 1):
        volume, pressure = atoms.get_volume(), _pressure(atoms)
        if done % every == 0 or done == n_steps:
            yield done, volume, pressure / units.GPa
            if not atoms.get_temperature() < too_hot:
                raise DynamicsError(
                    f"the run exploded near step {done}",
                    expected=f"at most {too_hot:.4g} K",
                    found=f"{atoms.get_temperature():.4g} K",
                )
        if done == n_steps:
            return
        forces = atoms.get_forces(md=True)
        noise = np.sqrt(2.0 * units.kB * kelvin * rate / volume) * rng.standard_normal()
        growth = np.exp((rate * (pressure - target) + noise) / 3.0)
        atoms.set_cell(atoms.cell.array * growth, scale_atoms=True)
        atoms.set_momenta(atoms.get_momenta() / growth)
        thermostat.step(forces)  # of before the change: an error of its size, some 1e-4


def _pressure(atoms: Atoms) -> float:
    """eV/Å³, of all three directions, with the kinetic part."""
    kinetic = 2.0 * atoms.get_kinetic_energy() / (3.0 * atoms.get_volume())
    return float(kinetic - np.trace(atoms.get_stress(voigt=False)) / 3.0)
