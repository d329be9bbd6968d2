"""Statistics, conservation, ensemble and incidents: against cases whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

from mlff_distiller.md import Ensemble
from mlff_distiller.md.record import ForceField, Trajectory, simulate
from mlff_distiller.md.statistics import (
    Estimate,
    block_means,
    correlation_time,
    mean,
    slope,
    variance,
)
from mlff_distiller.validation.checks.conservation import conservation, fluctuation_ratio
from mlff_distiller.validation.checks.incidents import incidents
from mlff_distiller.validation.checks.thermostat import canonical


def correlated(n: int, memory: float, rng: np.random.Generator) -> np.ndarray:
    """Unit variance, correlation memory**t: integrated correlation time (1+memory)/(1-memory)/2."""
    series, noise = np.empty(n), rng.normal(size=n)
    series[0] = noise[0]
    for k in range(1, n):
        series[k] = memory * series[k - 1] + np.sqrt(1 - memory**2) * noise[k]
    return series


def test_errors_of_correlated_series_cover_the_truth():
    rng = np.random.default_rng(0)
    within = {"mean": 0, "variance": 0, "slope": 0}
    x = np.arange(2000.0)
    for _ in range(100):
        series = correlated(2000, 0.9, rng)
        for name, found, truth in (
            ("mean", mean(series), 0.0),
            ("variance", variance(series), 1.0),
            ("slope", slope(x, series + 1e-3 * x), 1e-3),
        ):
            within[name] += abs(found.value - truth) < 2 * found.error
    assert all(number > 85 for number in within.values()), within
    naive = series.std() / np.sqrt(len(series))
    assert mean(series).error > 2 * naive


def test_correlation_time():
    rng = np.random.default_rng(1)
    assert correlation_time(correlated(40_000, 0.9, rng)) == pytest.approx(9.5, rel=0.15)
    assert correlation_time(rng.normal(size=40_000)) == pytest.approx(0.5, abs=0.1)
    assert correlation_time(np.ones(10)) == 0.5


def test_too_short_series_give_none():
    assert mean(np.ones(19)) is variance(np.ones(3)) is slope(np.ones(5), np.ones(5)) is None
    with pytest.raises(ValueError, match="3 samples make no 10 blocks"):
        block_means(np.ones(3))


def test_beyond_noise():
    assert Estimate(1.0, 0.1).beyond_noise(0.8) == 0.0
    assert Estimate(1.0, 0.1).beyond_noise(0.5) == pytest.approx(0.2)


def copper() -> Atoms:
    return bulk("Cu", cubic=True) * (2, 2, 2)


EMT_FIELD = ForceField("EMT", EMT())


@pytest.fixture(scope="module")
def nvt() -> Trajectory:
    settings = Ensemble(ensemble="nvt", temperature_K=400, time_step_fs=5, friction_per_ps=10)
    return simulate(EMT_FIELD, copper(), settings, 1000, 2)


def test_copper_conserves(nvt):
    run = simulate(EMT_FIELD, nvt.frame(-1), Ensemble(time_step_fs=4), 500, 2)
    found = conservation(run)
    assert run.completed
    assert abs(found.drift.value) < 5 * found.drift.error + 0.02
    assert 0 < found.fluctuation < 2
    assert found.momentum < 1e-10
    ratio = fluctuation_ratio(EMT_FIELD, nvt.frame(-1), Ensemble(time_step_fs=4), 100, 1)
    assert ratio == pytest.approx(4, abs=0.5)


def test_copper_is_canonical(nvt):
    found = canonical(nvt.part(100, 501))
    assert found.temperature_K.beyond_noise(400) < 4
    assert found.temperature_K.error < 12
    assert found.variance_ratio.beyond_noise(1.0) < 0.2
    assert found.p_value > 0.001
    assert found.elements_K["Cu"].value == pytest.approx(found.temperature_K.value)
    assert incidents(nvt) == []


def made(kinetic: np.ndarray, atoms: Atoms, seed: int = 0) -> Trajectory:
    """Velocities of random direction with the given kinetic energies (n,) eV."""
    rng = np.random.default_rng(seed)
    masses = atoms.get_masses()[:, None]
    velocities = rng.normal(size=(len(kinetic), len(atoms), 3)) / np.sqrt(masses)
    own = 0.5 * (masses * velocities**2).sum((1, 2))
    velocities *= np.sqrt(kinetic / own)[:, None, None]
    n = len(kinetic)
    return Trajectory(
        atoms,
        Ensemble(ensemble="nvt", temperature_K=300),
        1.0,
        n,
        True,
        np.arange(n) * 1e-3,
        np.repeat(atoms.positions[None], n, 0),
        velocities,
        np.zeros(n),
    )


def test_wrong_distributions_are_seen():
    atoms, rng = molecule("C6H6"), np.random.default_rng(0)
    degrees, kT = 36, units.kB * 300
    good = canonical(made(rng.gamma(degrees / 2, kT, 2000), atoms))
    assert good.p_value > 0.01
    assert good.variance_ratio.beyond_noise(1) == 0
    # A weak-coupling thermostat keeps the mean, and suppresses the fluctuation.
    narrow = canonical(made(degrees / 2 * kT * rng.normal(1, 0.1, 2000), atoms))
    assert narrow.temperature_K.beyond_noise(300) < 3
    assert narrow.variance_ratio.beyond_noise(1) > 0.5
    assert narrow.p_value < 1e-6
    hot = canonical(made(1.1 * rng.gamma(degrees / 2, kT, 2000), atoms))
    assert hot.temperature_K.beyond_noise(300) > 20


def test_hot_hydrogen_is_seen():
    atoms = molecule("C6H6")
    run = made(np.random.default_rng(1).gamma(18, units.kB * 300, 1000), atoms)
    run.velocities[:, atoms.numbers == 1] *= np.sqrt(1.2)
    found = canonical(run)
    assert found.elements_K["H"].beyond_noise(300) > 40
    assert found.elements_K["C"].beyond_noise(300) < 10


def still(atoms: Atoms, n: int = 30) -> Trajectory:
    return made(np.full(n, 1.5 * len(atoms) * units.kB * 300), atoms)


def test_incidents_name_frame_and_atom():
    ethanol = molecule("CH3CH2OH")
    assert incidents(still(ethanol)) == []

    run = still(ethanol)
    run.positions[7, 2] = run.positions[7, 0] + [0.4, 0, 0]
    kinds = {incident.kind: incident for incident in incidents(run)}
    assert kinds["clash"].frame == 7
    assert {i.atom for i in incidents(run) if i.kind == "clash"} >= {0, 2}
    assert "frame 7" in kinds["clash"].text

    run = still(ethanol)
    run.positions[9:, 3] += 7.0
    found = {incident.kind: incident for incident in incidents(run)}
    assert (found["evaporated"].frame, found["evaporated"].atom) == (9, 3)
    assert "atom 3 (H)" in found["evaporated"].text
    assert "atom 3 (H), bonded" in found["bond"].text

    run = still(ethanol)
    bond = run.positions[0, 3] - run.positions[0, 2]
    axis = bond / np.linalg.norm(bond)
    run.positions[4, 3] += 0.6 * axis
    (only,) = incidents(run)
    assert (only.kind, only.frame) == ("bond", 4)
    assert "+0.5" in only.text

    run = still(ethanol)
    run.velocities[5:, 1] *= 30
    (only,) = incidents(run)
    assert (only.kind, only.frame, only.atom) == ("hot", 5, 1)


def test_bonds_across_a_boundary_are_not_broken():
    water = molecule("H2O", cell=[6, 6, 6], pbc=True)
    run = still(water)
    run.positions[5:, 1] += [6.0, 0, -6.0]  # an image
    assert incidents(run) == []
    run.positions[6, 1] += [0, 1.0, 0]
    assert ("bond", 6) in {(incident.kind, incident.frame) for incident in incidents(run)}


def test_argon_has_no_bonds_and_does_not_evaporate():
    assert incidents(still(bulk("Ar", cubic=True, a=6.5) * 2)) == []


def test_the_end_of_a_broken_run_is_an_incident():
    run = replace(still(molecule("C6H6")), completed=False, why="NaN")
    assert [incident.kind for incident in incidents(run)] == ["ended"]


def test_momentum_that_changes_is_seen():
    run = still(molecule("C6H6"))
    before = conservation(run).momentum
    run.velocities[:] = run.velocities[:1]
    assert conservation(run).momentum < 1e-12 < before
    run.velocities[20:] += 0.01
    assert conservation(run).momentum > 0.01
