"""Simulations sample the ensembles they are named after, and conserve what they must."""

import numpy as np
import pytest
import torch
import warp as wp
from ase import Atoms, units
from ase.build import bulk
from scipy import stats
from tests.helpers import random_nep, rattled

from mlff_distiller.engines.choice import choose_engine
from mlff_distiller.engines.loading import ready_student
from mlff_distiller.kernels.compiling import warp_device
from mlff_distiller.kernels.dynamics import warp as integrators
from mlff_distiller.md import Ensemble, Simulation

N_ATOMS, TEMPERATURE, VOLUME_EACH = 8, 400.0, 1e4


def ideal_gas(n_systems: int, **settings) -> Simulation:
    """Atoms without forces, at the density where the pressure is that of ``settings``."""
    student = random_nep(zbl=False)
    with torch.no_grad():
        student.w1.zero_()
        student.b1.zero_()
    edge = ((N_ATOMS + 1) * VOLUME_EACH) ** (1 / 3)
    rng = np.random.default_rng(0)
    frames = [
        Atoms("H4O4", rng.random((N_ATOMS, 3)) * edge, cell=[edge] * 3, pbc=True)
        for _ in range(n_systems)
    ]
    settings = {"temperature_K": TEMPERATURE, "time_step_fs": 1.0, "skin_A": 6.0} | settings
    settings |= {"max_step_A": 50.0, "max_temperature_K": 1e6}
    ensemble = Ensemble(**settings)
    return Simulation(choose_engine(student, frames, skin=6.0), frames, ensemble)


@pytest.mark.parametrize(
    "settings",
    [
        {"thermostat": "langevin", "friction_per_ps": 100.0},
        {"thermostat": "bussi", "thermostat_time_fs": 10.0},
    ],
)
def test_kinetic_energy_is_canonical(settings):
    one = ideal_gas(1000, ensemble="nvt", **settings)
    one.velocities.assign(0.3 * one.velocities.numpy())  # a tenth of the energy, and it recovers
    one.advance(60)
    n_dof = 3 * N_ATOMS - (3 if settings["thermostat"] == "bussi" else 0)
    energies = one.observables().kinetic_energy / (units.kB * TEMPERATURE)
    assert stats.kstest(energies, stats.gamma(n_dof / 2).cdf).pvalue > 0.01


def test_langevin_velocities_are_normal_for_each_element():
    one = ideal_gas(400, ensemble="nvt", friction_per_ps=100.0)
    one.advance(60)
    for system, number in ((0, 1), (N_ATOMS // 2, 8)):
        atoms = one.atoms()
        assert atoms.numbers[system] == number
        mass = atoms.get_masses()[system]
        velocities = one.velocities.numpy().reshape(-1, N_ATOMS, 3)[:, system].ravel()
        scaled = velocities / np.sqrt(units.kB * TEMPERATURE / mass)
        assert stats.kstest(scaled, stats.norm.cdf).pvalue > 0.01


@pytest.mark.parametrize("coupling", ["isotropic", "anisotropic", "triclinic"])
def test_volume_of_an_ideal_gas(coupling):
    """p(V) ~ V^N exp(-PV/kT), a gamma distribution of shape N + 1, however the cell may change."""
    thermal = units.kB * TEMPERATURE
    pressure = thermal / VOLUME_EACH / units.GPa
    one = ideal_gas(
        400,
        ensemble="npt",
        pressure_GPa=pressure,
        compressibility_per_GPa=1.0 / pressure,
        barostat_time_fs=200.0,
        friction_per_ps=20.0,
        pressure_coupling=coupling,
    )
    one.advance(800)  # four times the barostat's: a narrow start is forgotten to 0.03 %
    reduced = one.observables().volume / VOLUME_EACH
    assert stats.kstest(reduced, stats.gamma(N_ATOMS + 1).cdf).pvalue > 0.01
    cell = one.cell()
    lengths = np.diagonal(cell, axis1=1, axis2=2)
    off_diagonal = np.abs(cell - lengths[:, :, None] * np.eye(3)).max()
    assert (np.ptp(lengths, axis=1).max() < 1e-6) == (coupling == "isotropic")
    assert (off_diagonal < 1e-6) == (coupling != "triclinic")


def test_a_cell_diffuses_alike_in_all_its_strains():
    """Variance of E_ab after a short time: 2 kT beta t/(3 V tau), and half of it off-diagonal."""
    pressure = units.kB * TEMPERATURE / VOLUME_EACH
    one = ideal_gas(
        600,
        ensemble="npt",
        pressure_GPa=pressure / units.GPa,
        compressibility_per_GPa=units.GPa / pressure,
        barostat_time_fs=1000.0,
        pressure_coupling="triclinic",
    )
    before = one.cell()
    one.advance(10)
    strain = np.linalg.solve(before, one.cell()) - np.eye(3)
    expected = 2.0 / (3.0 * (N_ATOMS + 1)) * 10.0 / 1000.0
    assert strain[:, [0, 1, 2], [0, 1, 2]].var() == pytest.approx(expected, rel=0.12)
    assert strain[:, [1, 0, 0], [2, 2, 1]].var() == pytest.approx(expected / 2, rel=0.12)


def crystal(dtype: str, time_step_fs: float, **settings) -> Simulation:
    atoms = bulk("Fe", a=3.0, cubic=True) * (2, 2, 2)
    atoms.numbers = np.random.default_rng(1).choice([1, 8], len(atoms))
    atoms = rattled(atoms, 0.02)
    student = ready_student(random_nep(), "cpu", dtype)
    own = {"seed": 0, **settings}  # the same momenta for every time step
    ensemble = Ensemble(time_step_fs=time_step_fs, temperature_K=100.0, **own)
    return Simulation(choose_engine(student, [atoms]), [atoms], ensemble)


def total_energies(one: Simulation, n_steps: int) -> np.ndarray:
    energies = []
    for _ in range(n_steps):
        one.advance(1)
        seen = one.observables()
        energies.append(seen.potential_energy[0] + seen.kinetic_energy[0])
    return np.array(energies)


def test_energy_error_falls_with_the_square_of_the_time_step():
    errors = []
    for time_step in (0.2, 0.1):
        energies = total_energies(crystal("float64", time_step), round(10.0 / time_step))
        errors.append(np.std(energies))
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.05)


def test_energy_does_not_drift_in_float32():
    time_step = 0.05
    one = crystal("float32", time_step)
    energies = total_energies(one, 2000)
    times = 1e-3 * time_step * np.arange(len(energies))
    fit = stats.linregress(times, 1e3 * energies / one.engine.systems.n_atoms)
    assert abs(fit.slope) < 3 * fit.stderr + 0.01  # meV/atom/ps


def test_momentum_is_conserved_and_motion_reversible():
    one = crystal("float64", 0.05)
    before = one.state()
    masses = one.atoms().get_masses()[:, None]
    one.advance(200)
    there = one.state()
    assert np.abs((masses * there.velocities).sum(0)).max() < 1e-9
    assert np.abs(there.positions - before.positions).max() > 0.05
    one.velocities.assign(-there.velocities)
    one.advance(200)
    assert np.abs(one.state().positions - before.positions).max() < 1e-7


@wp.kernel(module="unique")
def _draw(
    words: wp.array(dtype=wp.vec4ui),
    normal: wp.array(dtype=wp.vec4d),
    gamma: wp.array(dtype=wp.float64),
):
    i = wp.tid()
    if i == 0:
        words[0] = integrators.philox(wp.vec4ui(), wp.uint64(0))
    normal[i] = integrators.normals(wp.uint64(7), wp.int64(5), i, 0)
    gamma[i] = integrators.gamma(wp.float64(1.5), wp.uint64(7), wp.int64(5), i)


def test_random_numbers():
    """The known answer of Random123, and the distributions drawn from it."""
    warp_device("cpu")
    n = 20_000
    words = wp.zeros(1, dtype=wp.vec4ui, device="cpu")
    normal = wp.zeros(n, dtype=wp.vec4d, device="cpu")
    gamma = wp.zeros(n, dtype=wp.float64, device="cpu")
    wp.launch(_draw, n, [words, normal, gamma], device="cpu")
    assert [hex(word) for word in words.numpy()[0]] == [
        "0x6627e8d5",
        "0xe169c58d",
        "0xbc57ac4c",
        "0x9b00dbd8",
    ]
    values = normal.numpy()
    assert stats.kstest(values.ravel(), stats.norm.cdf).pvalue > 0.01
    assert np.abs(np.corrcoef(values.T) - np.eye(4)).max() < 0.03
    assert stats.kstest(gamma.numpy(), stats.gamma(1.5).cdf).pvalue > 0.01
