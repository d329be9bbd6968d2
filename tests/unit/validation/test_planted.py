"""For each criterion the smallest fault that must fail it, and half the limit, which must not."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from tests.helpers import random_nep, rattled
from tests.unit.validation.faults import Pairs, argon
from tests.unit.validation.short import SHORT

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.md import Ensemble
from mlff_distiller.md.record import ForceField, Trajectory
from mlff_distiller.validation.check import Check
from mlff_distiller.validation.checks import (
    CHECKS,
    density,
    diffusion,
    distributions,
    short_range,
)
from mlff_distiller.validation.checks import volume as volume_check
from mlff_distiller.validation.criteria import CRITERIA
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.verdict import Finding, judge

SOUND = ForceField("argon", Pairs())
N = 40_000


def limit(name: str) -> float:
    return CRITERIA[name].limit


def check_of(name: str) -> Check:
    return next(check for check in CHECKS if name in check.criteria)


def asked(name: str, field: ForceField = SOUND, atoms: Atoms | None = None, **known) -> Finding:
    """What the check of ``name`` finds; ``known``: runs and settings of the subject."""
    runs = {key: known.pop(key) for key in ("nve", "nvt", "equilibrations") if key in known}
    teacher = known.pop("teacher", None)
    subject = Subject(field, atoms or argon(), replace(SHORT, **known), teacher)
    vars(subject).update(runs)
    return check_of(name).made(subject).findings[name]


def gas(kelvin: float = 300.0, shape: float = 1.0, n: int = N, target: float = 300.0) -> Trajectory:
    """Independent frames of benzene, canonical but for the variance of the kinetic energy."""
    atoms, rng = molecule("C6H6"), np.random.default_rng(0)
    half, kT = 18.0, units.kB * kelvin
    kinetic = half * kT + np.sqrt(shape) * (rng.gamma(half, kT, n) - half * kT)
    masses = atoms.get_masses()[:, None]
    velocities = rng.normal(size=(n, len(atoms), 3)) / np.sqrt(masses)
    own = 0.5 * (masses * velocities**2).sum((1, 2))
    velocities *= np.sqrt(kinetic / own)[:, None, None]
    positions = np.broadcast_to(atoms.positions, velocities.shape)
    ensemble = Ensemble(ensemble="nvt", temperature_K=target)
    time = np.arange(n) * 1e-3
    return Trajectory(atoms, ensemble, 1.0, n, True, time, positions, velocities, np.zeros(n))


def drift(times: float) -> Finding:
    run = gas(n=2000)
    slope = 1e-3 * len(run.atoms) * times * limit("nve_drift_meV_per_atom_per_ps")
    run = replace(run, potential=slope * run.time_ps - run.kinetic)
    return asked("nve_drift_meV_per_atom_per_ps", nve=[run], equilibrations=[run])


class Pulled(Pairs):
    """A force from outside on one atom, eV/Å."""

    def __init__(self, force: float):
        super().__init__()
        self.force = force

    def spoil(self, atoms):
        self.results["forces"][0, 0] += self.force


def momentum(times: float) -> Finding:
    """By dynamics: an integrator that keeps the centre at rest would hide it."""
    masses = argon().get_masses()
    speed = np.sqrt(8.0 * units.kB * 40.0 / np.pi / masses)
    force = times * limit("momentum_change") * float((masses * speed).sum()) / (700.0 * units.fs)
    return asked("momentum_change", ForceField("pulled", Pulled(force)))


def temperature(times: float) -> Finding:
    kelvin = 300.0 * (1.0 + 0.01 * times * limit("temperature_deviation_percent"))
    return asked("temperature_deviation_percent", nvt=[gas(kelvin)])


def element(times: float) -> Finding:
    run = gas()
    hot = 1.0 + 0.01 * times * limit("element_temperature_deviation_percent")
    run.velocities[:, run.atoms.numbers == 1] *= np.sqrt(hot)
    return asked("element_temperature_deviation_percent", nvt=[run])


def shape(times: float) -> Finding:
    """Kinetic energies that fluctuate too little, as with a thermostat that only rescales."""
    return asked("kinetic_energy_p_value", nvt=[gas(shape=0.8 if times > 1 else 1.0, n=5000)])


def pressure(times: float) -> Finding:
    name = "npt_pressure_deviation_GPa"
    series = times * limit(name) + 1e-3 * np.random.default_rng(0).normal(size=400)
    run = replace(gas(n=400), pressure_GPa=series, ensemble=Ensemble(ensemble="npt"))
    return density.pressure_deviation(run, limit(name))


def heavier(times: float) -> Finding:
    name, rng = "density_difference_percent", np.random.default_rng(0)

    def run(shift: float) -> Trajectory:
        lengths = 10.5 * (1.0 - 0.01 * shift) ** (1 / 3) * (1 + 1e-5 * rng.normal(size=400))
        return replace(gas(n=400), cells=lengths[:, None, None] * np.eye(3))

    return density.density_finding(run(times * limit(name)), run(0.0), limit(name))


class Displaced(Pairs):
    """Energies that know where the system is, and when it was seen."""

    def __init__(self, far: float = 0.0, noise: float = 0.0):
        super().__init__()
        self.far, self.noise, self.rng = far, noise, np.random.default_rng(0)

    def spoil(self, atoms):
        self.results["energy"] += self.far * len(atoms) * np.tanh(atoms.positions[0, 0] / 50.0)
        self.results["energy"] += self.noise * self.rng.normal()


def translation(times: float) -> Finding:
    by = 1e-3 * times * limit("translation_meV_per_atom")
    return asked("translation_meV_per_atom", ForceField("it", Displaced(far=by)))


def noise(times: float) -> Finding:
    by = 1e-3 * times * limit("energy_noise_meV")
    return asked("energy_noise_meV", ForceField("it", Displaced(noise=by)))


class Scaled(Pairs):
    """Sigma and epsilon by factors; forces and stress by others."""

    def __init__(self, length=1.0, energy=1.0, forces=1.0, stress=1.0):
        super().__init__()
        self.length, self.depth, self.own = length, energy, {"forces": forces, "stress": stress}

    def potential(self, r):
        energy, slope = super().potential(r / self.length)
        return self.depth * energy, self.depth * slope / self.length

    def spoil(self, atoms):
        for name, factor in self.own.items():
            if name in self.results:
                self.results[name] = factor * self.results[name]


def forces(times: float) -> Finding:
    """Errors weigh against 0.1 eV/Å at least, and argon's forces are a third of that."""
    wrong = Scaled(forces=1.0 + 3.0 * times * limit("force_derivative_error"))
    return asked("force_derivative_error", ForceField("it", wrong))


def stress(times: float) -> Finding:
    wrong = Scaled(stress=1.0 + times * limit("stress_derivative_error"))
    return asked("stress_derivative_error", ForceField("it", wrong))


class Stepped(Pairs):
    """An energy with a step where a pair is at 3.8 Å."""

    def __init__(self, height: float):
        super().__init__()
        self.height = height

    def potential(self, r):
        energy, slope = super().potential(r)
        return energy + self.height * (r < 3.8), slope


def jump(times: float) -> Finding:
    step = 1e-3 * times * limit("scan_jump_meV")
    return asked("scan_jump_meV", ForceField("it", Stepped(step)))


class Dented(Pairs):
    """The wall has a dent: ``depth`` deep (eV per pair) and 0.05 Å wide."""

    def __init__(self, depth: float, at: float):
        super().__init__()
        self.depth, self.at = depth, at

    def potential(self, r):
        energy, slope = super().potential(r)
        return energy - self.depth * np.exp(-(((r - self.at) / 0.05) ** 2)), slope


def dimer(times: float) -> Finding:
    """After the first rise, though within a fifth of the shortest distance known."""
    name, at = "dimer_drop_eV", 3.1
    curve = Pairs().potential(np.linspace(at - 0.2, at, 400))[0]
    level = curve[-1] + 0.02
    deep = level + times * limit(name) if times > 1 else 0.0
    return asked(name, ForceField("it", Dented(deep, at - 0.1)))


def compression(times: float) -> Finding:
    """Far behind the shortest distance of the data, where a volume is half."""
    name = "compression_drop_eV_per_atom"
    deep = (0.16 + times * limit(name)) / 6.0 if times > 1 else 0.0
    return asked(name, ForceField("it", Dented(deep, 3.35)))


def volume(times: float) -> Finding:
    name = "volume_difference_percent"
    wrong = Scaled(length=(1.0 + 0.01 * times * limit(name)) ** (1 / 3))
    return asked(name, ForceField("it", wrong), argon(1), teacher=SOUND)


def npt_volume(times: float) -> Finding:
    """Met by the force field's own dynamics at constant pressure."""
    name = "npt_volume_difference_percent"
    wrong = Scaled(length=(1.0 + 0.01 * times * limit(name)) ** (1 / 3))
    subject = Subject(ForceField("it", wrong), argon(), SHORT, SOUND)
    subject.findings["nve_completed"] = Finding(1.0)
    return volume_check.CHECK.made(subject).findings[name]


def stiffness(name: str, power: float = 1.0):
    def finding(times: float) -> Finding:
        wrong = Scaled(energy=(1.0 + 0.01 * times * limit(name)) ** power)
        return asked(name, ForceField("it", wrong), argon(1), teacher=SOUND)

    return finding


class Bent(Calculator):
    """Three atoms in a line along x, held by springs; bending costs ``k`` (eV/Å²)."""

    implemented_properties = ("energy", "forces")

    def __init__(self, k: float):
        super().__init__()
        self.k = k

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        p, forces = atoms.positions, np.zeros((3, 3))
        bend = np.array([-0.5, 1.0, -0.5]) @ p[:, 1:]
        forces[:, 1:] = -self.k * np.outer([-0.5, 1.0, -0.5], bend)
        energy = 0.5 * self.k * float(bend @ bend)
        for a, b in ((0, 1), (1, 2)):
            left = p[b, 0] - p[a, 0] - 1.2
            energy += 5.0 * left**2
            forces[a, 0] += 10.0 * left
            forces[b, 0] -= 10.0 * left
        self.results = {"energy": energy, "forces": forces}


def imaginary(times: float) -> Finding:
    name = "imaginary_frequency_per_cm"
    omega = 2.0 * np.pi * units._c * 100.0 * times * limit(name) / units.s
    k = -(omega**2) * 15.999 / 1.5
    line = Atoms("O3", [[0, 0, 0], [1.2, 0, 0], [2.4, 0, 0]])
    teacher = ForceField("straight", Bent(0.5))
    return asked(name, ForceField("bent", Bent(k)), line, teacher=teacher, kind="molecule")


def speed(times: float) -> Finding:
    """A student that is its own teacher is no faster, one of a very slow teacher is."""
    student = StudentCalculator(random_nep(("Ar",)), device="cpu")

    class Slow(Pairs):
        def spoil(self, atoms):
            self.results["energy"] += float(np.linalg.norm(np.ones((2000, 2000)) @ np.ones(2000)))
            for _ in range(40):
                np.linalg.norm(np.random.default_rng(0).normal(size=10**5))

    teacher = ForceField("teacher", student if times > 1 else Slow())
    return asked("speedup", ForceField("it", student), argon(1), teacher=teacher, speed_sizes=(4,))


def walk(times: float) -> Finding:
    name, rng = "diffusion_difference_percent", np.random.default_rng(0)

    def run(factor: float) -> Trajectory:
        steps = np.sqrt(factor) * rng.normal(size=(1000, 300, 3))
        atoms = Atoms("Ar300", np.zeros((300, 3)))
        return replace(gas(n=1000), atoms=atoms, positions=np.cumsum(steps, 0))

    return diffusion.compared(run(1.0 + 0.01 * times * limit(name)), run(1.0))


def distribution(name: str, prefix: str):
    def finding(times: float) -> Finding:
        x, rng = np.linspace(0.0, 10.0, 200), np.random.default_rng(0)

        def seen(share: float) -> distributions.Distribution:
            rows = np.where(x < 5.0, 1.0 - share, share)
            return distributions.Distribution(
                f"{prefix} A", x, "", rows * (1.0 + 1e-3 * rng.normal(size=(10, 200)))
            )

        share = 0.01 * times * limit(name)
        return distributions._difference(distributions.differences([seen(share)], [seen(0.0)]))

    return finding


def fidelity(name: str):
    def finding(times: float) -> Finding:
        wrong = Scaled(forces=1.0 - times * (1.0 - limit(name)))
        frames = [rattled(argon(1), 0.2, seed) for seed in range(3)]
        for frame in frames:
            frame.calc = Pairs()
            frame.get_forces()
        subject = Subject(ForceField("it", wrong), argon(1), SHORT, SOUND, (), frames)
        vars(subject)["own_frames"] = frames
        return check_of(name).made(subject).findings[name]

    return finding


def leaked(times: float) -> Finding:
    frames = [rattled(argon(1), 0.1, seed) for seed in range(6)]
    again = rattled(frames[2], 0.001, 9)
    test = [again, frames[5]] if times > 1 else frames[3:]
    subject = Subject(SOUND, argon(1), SHORT, None, frames[:3], test)
    return check_of("leaked_fraction").made(subject).findings["leaked_fraction"]


PLANTED = {
    "nve_drift_meV_per_atom_per_ps": drift,
    "momentum_change": momentum,
    "temperature_deviation_percent": temperature,
    "kinetic_energy_p_value": shape,
    "element_temperature_deviation_percent": element,
    "npt_pressure_deviation_GPa": pressure,
    "density_difference_percent": heavier,
    "translation_meV_per_atom": translation,
    "energy_noise_meV": noise,
    "force_derivative_error": forces,
    "stress_derivative_error": stress,
    "scan_jump_meV": jump,
    "dimer_drop_eV": dimer,
    "compression_drop_eV_per_atom": compression,
    "volume_difference_percent": volume,
    "npt_volume_difference_percent": npt_volume,
    "bulk_modulus_difference_percent": stiffness("bulk_modulus_difference_percent"),
    "elastic_difference_percent": stiffness("elastic_difference_percent"),
    "frequency_difference_percent": stiffness("frequency_difference_percent", 2.0),
    "imaginary_frequency_per_cm": imaginary,
    "speedup": speed,
    "diffusion_difference_percent": walk,
    "rdf_difference_percent": distribution("rdf_difference_percent", "rdf"),
    "angle_difference_percent": distribution("angle_difference_percent", "angle"),
    "spectrum_difference_percent": distribution("spectrum_difference_percent", "vibrational"),
    "test_forces_fidelity": fidelity("test_forces_fidelity"),
    "student_md_forces_fidelity": fidelity("student_md_forces_fidelity"),
    "leaked_fraction": leaked,
}
ELSEWHERE = {
    "nve_completed", "nvt_completed", "incidents", "npt_completed", "nve_fluctuation_ratio",
    "memory_growth_kB_per_step",
}  # fmt: skip
"""Runs that break, in `test_validate`, `test_dynamics`, `test_pressure` and `test_memory`."""


def test_every_criterion_has_a_fault_of_its_own():
    assert set(PLANTED) | ELSEWHERE == set(CRITERIA)


@pytest.mark.parametrize("name", PLANTED)
def test_the_smallest_fault_fails_and_half_the_limit_passes(name):
    status = {}
    for times in (2.0, 0.5):
        finding = PLANTED[name](times)
        assert finding.value is not None, finding.words
        status[times] = (judge({name: finding}, {})["status"], finding.value)
    assert status[2.0][0] == "rejected", status
    assert status[0.5][0] == "approved", status


def test_a_structure_that_is_stretched_may_first_come_together():
    shortest = {("Ar", "Ar"): 3.5}
    for factor in (1.0, 1.05, 1.15):
        stretched = argon()
        stretched.set_cell(stretched.cell.array * factor, scale_atoms=True)
        assert short_range.cold_curve(SOUND, stretched, shortest).drop[0] == 0.0
        dented = ForceField("it", Dented(0.1, 3.35))
        assert short_range.cold_curve(dented, stretched, shortest).drop[0] > 0.1


def test_a_crystal_of_one_atom_is_compressed_too():
    primitive = argon(1)[[0]]
    primitive.set_cell(0.5 * 5.26 * (1 - np.eye(3)))
    assert asked("compression_drop_eV_per_atom", atoms=primitive).value == 0.0


def test_pairs_that_only_one_has_are_all_the_difference():
    def seen(name: str) -> distributions.Distribution:
        return distributions.Distribution(name, np.arange(4.0), "", np.ones((10, 4)))

    both = ["rdf A-A", "vibrational spectrum"]
    student, teacher = map(seen, both[:1]), map(seen, ["rdf A-A", "rdf A-B", "vibrational"])
    found = distributions.differences(list(student), list(teacher))
    assert {one.name: one.percent for one in found} == {"rdf A-A": 0.0, "rdf A-B": 100.0}
    student, teacher = map(seen, [*both, "angle at B"]), map(seen, both[:1])
    found = distributions.differences(list(student), list(teacher))
    assert {one.name: one.percent for one in found} == {"rdf A-A": 0.0, "angle at B": 100.0}
