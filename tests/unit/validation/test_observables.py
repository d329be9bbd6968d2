"""Observables: against closed forms, and against the same force field and another."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from tests.helpers import rattled
from tests.unit.validation.faults import EPSILON, SIGMA, Pairs, argon

from mlff_distiller.errors import DistillerError
from mlff_distiller.md import Ensemble
from mlff_distiller.md.record import ForceField, Trajectory, simulate
from mlff_distiller.validation.checks.diffusion import diffusion
from mlff_distiller.validation.checks.distributions import (
    Distribution,
    bond_angles,
    differences,
    distance_percent,
    rdfs,
    vibrational_spectrum,
)
from mlff_distiller.validation.checks.equation_of_state import equation_of_state, relaxed
from mlff_distiller.validation.checks.vibrations import (
    crystal_frequencies,
    harmonic_frequencies,
    hessian,
    phonon_frequencies,
)
from mlff_distiller.validation.kinds import kind_of

SOUND = ForceField("argon", Pairs())


def water(n: int = 3, seed: int = 0) -> Atoms:
    rng, box = np.random.default_rng(seed), Atoms(cell=[3.1 * n] * 3, pbc=True)
    for place in np.ndindex(n, n, n):
        one = molecule("H2O")
        one.rotate(rng.uniform(0, 360), rng.normal(size=3))
        one.positions += 3.1 * np.array(place) + rng.uniform(-0.9, 0.9, 3)
        box += one
    return box


@pytest.mark.parametrize(
    ("atoms", "kind"),
    [
        (molecule("H2O"), "molecule"),
        (bulk("Si"), "crystal"),
        (rattled(bulk("Si", cubic=True) * 2, 0.15), "crystal"),
        (bulk("NaCl", "rocksalt", a=5.64, cubic=True) * 2, "crystal"),
        (fcc111("Cu", (2, 2, 3), vacuum=6.0, periodic=True), "slab"),
        (fcc111("Cu", (2, 2, 3), vacuum=6.0), "slab"),
        (water(), "liquid"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.get_chemical_formula(),
)
def test_kinds(atoms, kind):
    assert kind_of(atoms) == kind


def made(positions: np.ndarray, atoms: Atoms, step_ps: float, velocities=None) -> Trajectory:
    n = len(positions)
    return Trajectory(
        atoms,
        Ensemble(),
        1.0,
        n,
        True,
        step_ps * np.arange(n),
        positions,
        np.zeros_like(positions) if velocities is None else velocities,
        np.zeros(n),
    )


def test_diffusion_of_a_random_walk():
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(2000, 60, 3)) * np.sqrt(2 * 0.5 * 0.01)  # D = 0.5 Å²/ps
    found = diffusion(made(steps.cumsum(0), Atoms("Ar60"), 0.01), "Ar")
    assert abs(found.value - 0.5 * 59 / 60) < 4 * found.error
    assert found.error < 0.05
    assert diffusion(made(steps[:50], Atoms("Ar60"), 0.01), "Ar") is None


def test_spectrum_of_oscillators():
    t, rng = 0.005 * np.arange(4000), np.random.default_rng(0)
    phases = rng.uniform(0, 2 * np.pi, (1, 20, 3))
    velocities = np.cos(2 * np.pi * 12.0 * t[:, None, None] + phases)
    run = made(np.zeros_like(velocities), Atoms("Ar20"), 0.005, velocities)
    (spectrum,) = vibrational_spectrum(run)
    assert spectrum.x[spectrum.mean.argmax()] == pytest.approx(12.0)
    assert spectrum.mean.sum() == pytest.approx(1.0)
    assert vibrational_spectrum(run.part(0, 100)) == []


def test_rdf_and_angles_of_a_crystal():
    salt = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * 2
    run = made(np.repeat(salt.positions[None], 20, 0), salt, 0.01)
    names = {one.name: one for one in rdfs(run)}
    assert sorted(names) == ["rdf Cl-Cl", "rdf Na-Cl", "rdf Na-Na"]
    near = names["rdf Na-Cl"]
    assert near.x[near.mean > 0][0] == pytest.approx(2.82, abs=0.03)
    shell = 4 * np.pi * near.x**2 * (near.x[1] - near.x[0]) * 32 / salt.get_volume()
    assert (near.mean * shell)[near.x < 3.5].sum() == pytest.approx(6.0, rel=0.01)
    assert near.error.max() == 0
    silicon = bulk("Si", cubic=True) * 2
    (angles,) = bond_angles(made(np.repeat(silicon.positions[None], 20, 0), silicon, 0.01))
    assert angles.name == "angle at Si"
    assert angles.x[angles.mean > 0] == pytest.approx([109.5], abs=2)
    assert angles.mean.sum() == pytest.approx(1.0)


def test_distances():
    a, b = np.array([1.0, 1, 0, 0]), np.array([0, 0, 1.0, 1])
    assert distance_percent(a, a) == 0
    assert distance_percent(a, b) == 100
    rng = np.random.default_rng(0)
    x = np.linspace(-3, 3, 50)

    def noisy(shift: float) -> Distribution:
        rows = np.exp(-0.5 * (x - shift) ** 2) * (1 + 0.1 * rng.normal(size=(10, 50)))
        return Distribution("g", x, "Å", rows)

    (same,) = differences([noisy(0)], [noisy(0)])
    (other,) = differences([noisy(0.2)], [noisy(0)])
    assert same.percent > 0
    assert same.beyond_noise == 0
    assert other.beyond_noise > 3
    alone = differences([noisy(0)], [Distribution("h", x, "Å", np.ones((10, 50)))])
    assert {one.name: one.percent for one in alone} == {"g": 100.0, "h": 100.0}


def test_another_force_field_is_told_from_the_same():
    class Softer(Pairs):
        def potential(self, r):
            energy, slope = super().potential(r * 1.04)
            return energy, 1.04 * slope

    settings = Ensemble(ensemble="nvt", temperature_K=40, time_step_fs=10, friction_per_ps=5)

    def distributions(field: ForceField, seed: int) -> list[Distribution]:
        run = simulate(field, argon(), replace(settings, seed=seed), 1500, 10).part(30, 151)
        return rdfs(run, 7.0, 100)

    teacher = distributions(SOUND, 0)
    (same,) = differences(distributions(SOUND, 1), teacher)
    (other,) = differences(distributions(ForceField("soft", Softer()), 2), teacher)
    assert same.beyond_noise < 1.0
    assert other.beyond_noise > 3.0


def test_equation_of_state_of_lennard_jones_and_copper():
    found = equation_of_state(SOUND, argon(1))
    # fcc with all neighbours: a = 1.5496 sigma, B = 75.2 epsilon/sigma³; a cutoff softens a little.
    assert (4 * found.volume) ** (1 / 3) == pytest.approx(1.5496 * SIGMA, rel=0.01)
    pressures = []
    for factor in (0.99, 1.01):
        cell = argon(1)
        cell.set_cell(np.eye(3) * (4 * found.volume * factor) ** (1 / 3), scale_atoms=True)
        pressures.append(-np.trace(SOUND.stress(cell)) / 3 / units.GPa)
    modulus = (pressures[0] - pressures[1]) / 0.02
    assert found.bulk_modulus_GPa == pytest.approx(modulus, rel=0.01)
    assert np.mean(pressures) == pytest.approx(0, abs=2e-3)
    copper = equation_of_state(ForceField("EMT", EMT()), bulk("Cu", a=3.7))
    assert copper.bulk_modulus_GPa == pytest.approx(134, rel=0.05)  # Jacobsen et al. 1996: 134
    assert copper.volume == pytest.approx(3.59**3 / 4, rel=0.01)

    class Gas(Pairs):
        def potential(self, r):
            return 1 / r, -1 / r**2

    assert equation_of_state(ForceField("gas", Gas()), argon(1)) is None


def test_vibrations_of_a_dimer():
    dimer = Atoms("Ar2", [[0, 0, 0], [3.7, 0.3, 0]])
    (found,) = harmonic_frequencies(SOUND, dimer)
    k, reduced = 57.1464 * EPSILON / SIGMA**2, dimer.get_masses()[0] / 2
    exact = np.sqrt(k / reduced) * units.s / (2 * np.pi) / (units._c * 100)
    assert found == pytest.approx(exact, rel=2e-3)
    assert len(harmonic_frequencies(ForceField("EMT", EMT()), molecule("H2O"))) == 3


def test_hessian_is_that_of_the_energy():
    atoms = relaxed(SOUND, Atoms("Ar3", [[0, 0, 0], [3.8, 0, 0], [0, 3.8, 0]]))
    assert np.linalg.eigvalsh(hessian(SOUND, atoms)).min() > -1e-4

    class Turning(Pairs):
        def spoil(self, atoms):
            self.results["forces"] += np.cross([0, 0, 1.0], atoms.positions)

    with pytest.raises(DistillerError, match="no minimum"):
        relaxed(ForceField("turning", Turning()), Atoms("Ar2", [[0, 0, 0], [3.8, 0, 0]]))


def test_large_structures_relax():
    field = ForceField("EMT", EMT())
    crystal = bulk("Cu", cubic=True, a=3.59) * 3
    found = relaxed(field, rattled(crystal, 0.1))
    assert abs(field.forces(found)).max() < 1e-3
    assert field.energy(found) == pytest.approx(field.energy(crystal), abs=1e-4)


def test_phonons_without_phonopy(monkeypatch):
    monkeypatch.setattr("mlff_distiller.validation.checks.vibrations.find_spec", lambda name: None)
    field, copper = ForceField("EMT", EMT()), bulk("Cu", cubic=True, a=3.59)
    found = crystal_frequencies(field, copper)
    assert len(found) == 3 * 4 - 3
    # Of four atoms the zone's boundary X alone is commensurate: 3 wave vectors, 2 + 1 branches.
    assert found[:6] == pytest.approx(found[0], abs=0.1)
    assert found[6:] == pytest.approx(found[8], abs=0.1)
    assert 100 < found[0] < found[8] < 300


@pytest.mark.skipif(importlib.util.find_spec("phonopy") is None, reason="needs phonopy")
def test_phonons_of_copper():
    found = phonon_frequencies(ForceField("EMT", EMT()), bulk("Cu", cubic=True, a=3.59) * 2)
    assert found[:3] == pytest.approx(0.0, abs=3.0)
    assert len(found) == 3 * 64
    at_x = harmonic_frequencies(ForceField("EMT", EMT()), bulk("Cu", cubic=True, a=3.59))[-1]
    assert found[-1] >= at_x - 1
    assert 200 < found[-1] < 300  # measured: 240 cm⁻¹ at X and L
