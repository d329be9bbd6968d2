"""Derivatives, smoothness, translations, short range, leakage: sound force fields and faults."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from tests.helpers import random_nep, random_painn, rattled, structures
from tests.unit.validation.faults import (
    FlippedStress,
    Float32Sum,
    HardCutoff,
    Hole,
    NoisyForces,
    Pairs,
    Swirl,
    argon,
)

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.md.record import ForceField
from mlff_distiller.validation.checks.derivatives import force_agreement, stress_agreement
from mlff_distiller.validation.checks.leakage import leakage
from mlff_distiller.validation.checks.short_range import (
    cold_curve,
    dimer_curves,
    shortest_distances,
)
from mlff_distiller.validation.checks.smoothness import straight_scan
from mlff_distiller.validation.checks.translation import translation

SOUND = ForceField("argon", Pairs())


def frames() -> list[Atoms]:
    return [rattled(argon(), 0.15, seed) for seed in range(2)]


def forces_of(calculator, atoms: list[Atoms]) -> float:
    field = ForceField("it", calculator)
    return force_agreement(field, atoms, 5, np.random.default_rng(0)).relative_error


def test_sound_forces_and_stress():
    assert forces_of(Pairs(), frames()) < 1e-4
    assert stress_agreement(SOUND, frames()).relative_error < 1e-4
    copper = [rattled(bulk("Cu", cubic=True), 0.1)]
    assert forces_of(EMT(), copper) < 1e-3
    assert stress_agreement(ForceField("EMT", EMT()), copper).relative_error < 1e-3
    lj = LennardJones(epsilon=0.0104, sigma=3.4)
    assert forces_of(lj, frames()) < 1e-3
    assert stress_agreement(ForceField("LJ", lj), frames()).relative_error < 1e-3


@pytest.mark.parametrize("make", [random_nep, random_painn])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sound_students(make, dtype):
    calculator = StudentCalculator(make(), device="cpu", dtype=dtype)
    cell = [rattled(structures()["small cell"])]
    assert forces_of(calculator, cell) < 2e-3
    assert stress_agreement(ForceField("it", calculator), cell).relative_error < 5e-3


def test_forces_that_are_no_gradient():
    assert forces_of(NoisyForces(), frames()) > 5e-3
    assert forces_of(Swirl(), frames()) > 5e-3


def test_flipped_stress():
    assert stress_agreement(ForceField("it", FlippedStress()), frames()).relative_error > 1.0


def test_stress_where_there_is_none():
    ethanol = [molecule("CH3CH2OH")]
    assert stress_agreement(ForceField("EMT", EMT()), ethanol) is None

    class Without(Pairs):
        implemented_properties = ("energy", "forces")

    assert stress_agreement(ForceField("it", Without()), frames()) is None


def scan_of(calculator, atoms: Atoms):
    direction = np.zeros((len(atoms), 3))
    direction[0] = [1.0, 0.3, 0.2]
    return straight_scan(ForceField("it", calculator), atoms, direction, 0.6, 120)


def test_scans():
    smooth = scan_of(Pairs(), frames()[0])
    assert smooth.jump_meV < 1e-4
    assert smooth.energy[0] == 0
    assert scan_of(LennardJones(epsilon=0.0104, sigma=3.4), frames()[0]).jump_meV < 0.02
    assert scan_of(EMT(), rattled(bulk("Cu", cubic=True) * 2, 0.1)).jump_meV < 0.02
    hard = scan_of(HardCutoff(), frames()[0])
    assert hard.jump_meV > 0.5
    # A pair crosses the cutoff where the scan says.
    atoms, crossing = frames()[0], hard.at_A
    axis = np.array([1.0, 0.3, 0.2]) / np.linalg.norm([1.0, 0.3, 0.2])
    counts = []
    for s in (crossing - 0.01, crossing + 0.01):
        atoms = frames()[0]
        atoms.positions[0] += s * axis
        d = np.concatenate([atoms.get_distances(0, range(1, len(atoms)), mic=True)])
        counts.append(((d - 6.2) < 0).sum())
    assert counts[0] != counts[1]


class Walls(Pairs):
    """As stiff as a bond squeezed to half its length: a factor of e in ``width`` Å."""

    width = 0.04

    def potential(self, r):
        energy, slope = super().potential(r)
        wall = np.exp((2.1 - r) / self.width)
        return energy + wall, slope - wall / self.width


class HardWalls(Walls):
    def potential(self, r):
        energy, slope = super().potential(r)
        return energy - 1e-3 * (r < 2.05), slope


class SteepWalls(Walls):
    width = 0.01


class Float32Walls(Float32Sum, SteepWalls):
    pass


def test_a_steep_wall_is_no_fault_and_hides_none():
    atoms = rattled(argon(), 0.05)
    near = atoms.get_distances(0, range(1, len(atoms)), mic=True).argmin() + 1
    towards = atoms.get_distance(0, near, mic=True, vector=True)
    length = np.linalg.norm(towards)
    atoms.positions[near] -= towards * (1.0 - 2.1 / length)
    direction = np.zeros((len(atoms), 3))
    direction[0] = towards

    def jump(calculator):
        back = atoms.copy()
        back.positions[0] -= 0.3 * towards / length
        return straight_scan(ForceField("it", calculator), back, direction, 0.6, 120).jump_meV

    def noise(calculator):
        rng = np.random.default_rng(0)
        return translation(ForceField("it", calculator), atoms, rng, n_atoms=500).noise_meV

    assert forces_of(Walls(), [atoms]) < 1e-4
    assert jump(Walls()) < 0.011
    assert jump(HardWalls()) == pytest.approx(1.0, rel=0.05)
    assert noise(SteepWalls()) < 0.02
    assert noise(Float32Walls()) > 0.5


def test_translations_and_the_resolution_of_energies():
    rng = np.random.default_rng(0)
    sound = translation(SOUND, frames()[0], rng, n_atoms=500)
    assert sound.energy_meV_per_atom < 1e-6
    assert sound.noise_meV < 1e-5
    assert sound.n_atoms >= 500
    coarse = translation(ForceField("it", Float32Sum()), frames()[0], rng, n_atoms=500)
    assert coarse.noise_meV > 0.5
    for make in (random_nep, random_painn):
        student = ForceField("it", StudentCalculator(make(), device="cpu"))
        found = translation(student, structures()["small cell"], rng, n_atoms=60)
        assert found.noise_meV < 0.02
        assert found.energy_meV_per_atom < 0.02
    molecules = translation(SOUND, Atoms("Ar2", [[0, 0, 0], [3.5, 0, 0]]), rng, n_atoms=100)
    assert molecules.n_atoms >= 100
    assert molecules.noise_meV < 1e-6


def test_shortest_distances():
    found = shortest_distances([molecule("H2O"), molecule("OH", vacuum=3)])
    assert found[("H", "O")] == pytest.approx(molecule("H2O").get_distance(0, 1), abs=0.02)
    assert found[("H", "H")] == pytest.approx(molecule("H2O").get_distance(1, 2))
    assert ("O", "O") not in found
    assert shortest_distances([bulk("Si")])[("Si", "Si")] == pytest.approx(2.351, abs=1e-3)


def test_short_range():
    shortest = shortest_distances(frames())
    (curve,) = dimer_curves(SOUND, shortest)
    assert curve.name == "Ar-Ar"
    assert curve.distance[0] == pytest.approx(shortest["Ar", "Ar"])
    assert curve.drop[0] == 0
    assert cold_curve(SOUND, argon(), shortest).drop[0] == 0
    hole = ForceField("it", Hole())
    (curve,) = dimer_curves(hole, shortest)
    depth, where = curve.drop
    assert depth > 1
    assert where < 2.6
    assert cold_curve(hole, argon(), shortest).drop[0] > 1
    assert cold_curve(SOUND, Atoms("Ar"), shortest) is None


def test_what_is_not_a_number_is_a_hole():
    class Broken(Pairs):
        def potential(self, r):
            energy, slope = super().potential(r)
            return np.where(r < 2.8, np.nan, energy), slope

    (curve,) = dimer_curves(ForceField("it", Broken()), {("Ar", "Ar"): 3.2})
    assert curve.drop[0] == np.inf


def test_effective_medium_theory_rises_for_copper_and_collapses_for_aluminium():
    field = ForceField("EMT", EMT())
    copper, aluminium = (shortest_distances([bulk(metal)]) for metal in ("Cu", "Al"))
    assert dimer_curves(field, copper)[0].drop[0] < 0.01
    assert cold_curve(field, bulk("Cu"), copper).drop[0] < 0.01
    depth, where = cold_curve(field, bulk("Al"), aluminium).drop
    assert depth > 1
    assert where < 0.6


def test_leakage():
    independent = [rattled(bulk("Si", cubic=True) * 2, 0.08, seed) for seed in range(12)]
    test, training = independent[:4], independent[4:]
    assert leakage(test, training).fraction == 0
    again = [rattled(training[5], 0.002, 99), *test]
    again[0].rotate(31, "z", rotate_cell=True)
    found = leakage(again, training)
    assert found.pairs.tolist() == [[0, 5]]
    assert found.fraction == pytest.approx(0.2)
    assert leakage([], training).fraction is None
    assert leakage(test, []).fraction == 0
