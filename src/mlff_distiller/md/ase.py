"""``AseSimulation``: dynamics under any ASE calculator, by ASE's integrators.

At constant pressure the size of the cell follows stochastic cell rescaling (Bernetti and Bussi,
J. Chem. Phys. 153, 114107 (2020)), the equation of ``kernels/dynamics``, in which the mean pressure
is the target and the volume fluctuates as it must::

    d ln V = beta / tau (P - P0) dt + sqrt(2 kT beta / (V tau)) dw

Langevin dynamics goes on between the changes of the cell, at one evaluation per step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.verlet import VelocityVerlet

from mlff_distiller.errors import DynamicsError
from mlff_distiller.md.ensemble import Ensemble, explosion
from mlff_distiller.md.state import Observables, State


class AseSimulation:
    """Dynamics of ``atoms``, moved in place, with the methods of `Simulation` that recorders need.

    Momenta are taken as they are. Random numbers come from ``rng``, or one made of the ensemble's
    seed.

    Raises
    ------
    DynamicsError
        ASE's integrators cannot do what the ensemble asks for.
    """

    def __init__(
        self,
        atoms: Atoms,
        calculator: BaseCalculator,
        ensemble: Ensemble,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.atoms, self.ensemble = atoms, ensemble
        self.time_step_fs = ensemble.step_fs(atoms)
        atoms.calc = calculator
        self.dynamics = ase_dynamics(atoms, ensemble, rng)
        n_degrees = float(atoms.get_number_of_degrees_of_freedom())
        self.max_temperature_K = float(ensemble.explodes_at_K(atoms.get_temperature(), n_degrees))

    @property
    def step(self) -> int:
        """Number of steps done."""
        return int(self.dynamics.nsteps)

    def advance(self, n_steps: int) -> None:
        """Do ``n_steps`` steps; DynamicsError where they blow up."""
        self.dynamics.run(n_steps)
        self.check()

    def check(self) -> None:
        """Raise ``DynamicsError`` if a position is not finite or the system too hot."""
        atoms, temperature = self.atoms, self.atoms.get_temperature()
        finite = bool(np.isfinite(atoms.positions).all() and np.isfinite(temperature))
        if finite and temperature <= self.max_temperature_K:
            return
        speeds = np.linalg.norm(atoms.get_velocities(), axis=1)
        fastest = int(np.nan_to_num(speeds, nan=np.inf).argmax())
        why = f"it has {temperature:.4g} K" if finite else "positions or velocities are not finite"
        raise explosion(
            self.step,
            self.time_step_fs,
            expected=f"at most {self.max_temperature_K:.4g} K",
            found=f"{why}, atom {fastest} ({atoms.symbols[fastest]}) the fastest",
            remedy="take a shorter time step, or a model that knows such structures",
        )

    def state(self) -> State:
        """A copy of where the atoms are, and how they move."""
        atoms = self.atoms
        cell = atoms.cell.array[None].copy()
        return State(self.step, atoms.positions.copy(), atoms.get_velocities().copy(), cell)

    def observables(self) -> Observables:
        """Energies, temperature and pressure of the present state, of one system.

        Pressure and stress are NaN where they would need an evaluation of their own: the ensemble
        does not ask for them, and the calculator has not given a stress.
        """
        atoms, stress, volume = self.atoms, np.full((3, 3), np.nan), np.nan
        potential, kinetic = atoms.get_potential_energy(), atoms.get_kinetic_energy()
        if atoms.pbc.all() and atoms.cell.rank == 3:
            volume = atoms.get_volume()
            known = "stress" in getattr(atoms.calc, "results", {})
            if known or self.ensemble.ensemble == "npt":
                stress = atoms.get_stress(voigt=False)
        pressure = _pressure(kinetic, volume, stress) / units.GPa
        values = (potential, kinetic, atoms.get_temperature(), pressure, volume, stress)
        return Observables(*(np.array([value]) for value in values))


def ase_dynamics(
    atoms: Atoms, ensemble: Ensemble, rng: np.random.Generator | None = None
) -> MolecularDynamics:
    """ASE's integrator: velocity Verlet, Langevin's, or this in a cell that changes its size."""
    step = ensemble.step_fs(atoms) * units.fs
    if ensemble.ensemble == "nve":
        return VelocityVerlet(atoms, step)
    if ensemble.thermostat != "langevin":
        raise _refusal("thermostat", "langevin", ensemble.thermostat)
    # First velocities are drawn from ``default_rng(seed)``, and must not be the noise again.
    noise = np.random.SeedSequence(ensemble.seed, spawn_key=(1,))
    langevin: dict[str, Any] = {
        "temperature_K": ensemble.temperature_K[0],
        "friction": ensemble.friction_per_ps / (1e3 * units.fs),
        "rng": np.random.default_rng(noise) if rng is None else rng,
        "fixcm": False,
    }
    if ensemble.ensemble == "nvt":
        return Langevin(atoms, step, **langevin)
    if ensemble.pressure_coupling != "isotropic":
        raise _refusal("pressure_coupling", "isotropic", ensemble.pressure_coupling)
    if not atoms.pbc.all():
        raise _refusal("pbc", [True] * 3, atoms.pbc.tolist())
    softness = ensemble.compressibility_per_GPa / units.GPa
    return _CellRescaling(
        atoms,
        step,
        pressure=ensemble.pressure_GPa[0] * units.GPa,
        rate=softness * ensemble.step_fs(atoms) / ensemble.barostat_time_fs,
        **langevin,
    )


class _CellRescaling(Langevin):
    """Langevin dynamics; before each step the cell, its atoms and their momenta are rescaled."""

    def __init__(
        self,
        atoms: Atoms,
        timestep: float,
        *,
        pressure: float,  # eV/Å³, the target
        rate: float,  # Å³/eV, compressibility × time step / barostat's time
        **langevin: Any,
    ) -> None:
        super().__init__(atoms, timestep, **langevin)
        self.pressure, self.rate = pressure, rate

    def step(self, forces: np.ndarray | None = None) -> np.ndarray:
        atoms, volume = self.atoms, self.atoms.get_volume()
        stress = atoms.get_stress(voigt=False)
        excess = _pressure(atoms.get_kinetic_energy(), volume, stress) - self.pressure
        forces = atoms.get_forces(md=True)
        noise = np.sqrt(2.0 * self.temp * self.rate / volume) * self.rng.standard_normal()
        growth = np.exp((self.rate * excess + noise) / 3.0)
        atoms.set_cell(atoms.cell.array * growth, scale_atoms=True)
        atoms.set_momenta(atoms.get_momenta() / growth)
        # Forces of before the change: an error of its size, some 1e-4.
        after: np.ndarray = super().step(forces)
        return after


def _pressure(kinetic: float, volume: float, stress: np.ndarray) -> float:
    """eV/Å³, of all three directions, with the kinetic part."""
    return float(2.0 * kinetic / (3.0 * volume) - np.trace(stress) / 3.0)


def _refusal(name: str, expected: object, found: object) -> DynamicsError:
    return DynamicsError(
        f"ASE's dynamics cannot run with this {name}", expected=expected, found=found
    )
