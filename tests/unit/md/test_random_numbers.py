"""Random numbers of dynamics: whatever is not a repetition has its own.

With the same random forces two runs of a solid end up on one trajectory, wherever they began.
"""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from tests.helpers import random_nep, rattled

from mlff_distiller import run_md
from mlff_distiller.md.ase import ase_dynamics
from mlff_distiller.md.ensemble import Ensemble, seeds_of
from mlff_distiller.md.record import ForceField, simulate
from mlff_distiller.sampling import segments
from mlff_distiller.sampling.walkers import DynamicsSettings, walkers
from mlff_distiller.validation.settings import ValidationSettings
from mlff_distiller.validation.subject import Subject

SILICON = "Si_2022_NEP4_3body.txt"
NVT = {"ensemble": "nvt", "temperature_K": 300.0, "device": "cpu"}
QUICK = NVT | {"friction_per_ps": 100.0, "n_steps": 100, "skin_A": 1.0}
"""So many steps forget velocities, but for a part e^-10, unless the noise is the same."""


def silicon() -> Atoms:
    return bulk("Si", cubic=True) * 2


@pytest.fixture(scope="module")
def student():
    """Forces so weak that velocities are the noise's."""
    student = random_nep(("Si",), zbl=False)
    with torch.no_grad():
        student.w1 *= 1e-3
    return student


def alike(ends: list[Atoms]) -> float:
    """The largest correlation between velocities of two of ``ends``; some 0.1 by chance."""
    velocities = [atoms.get_velocities().ravel() for atoms in ends]
    return max(abs(np.corrcoef(a, b)[0, 1]) for a, b in combinations(velocities, 2))


def apart(a: Atoms, b: Atoms) -> float:
    """Å, root mean square, without the drift of the whole."""
    moved = a.positions - b.positions
    return float(np.sqrt(np.mean((moved - moved.mean(0)) ** 2)))


@pytest.mark.parametrize("ensemble", [{}, {"ensemble": "npt"}, {"thermostat": "bussi"}])
def test_a_run_from_the_end_of_another_is_independent(student, ensemble):
    ends = [silicon()]
    for _ in range(3):
        ends += run_md(ends[-1], student, **QUICK | ensemble).atoms
    if ensemble == {"thermostat": "bussi"}:  # one random number for all: velocities go on
        assert ends[1].get_temperature() != pytest.approx(ends[2].get_temperature(), rel=1e-6)
    else:
        assert alike(ends[1:]) < 0.25


def test_separate_runs_are_independent(student):
    starts = [rattled(silicon(), 0.05, seed) for seed in range(3)]
    assert alike([run_md(atoms, student, **QUICK).atoms[0] for atoms in starts]) < 0.25
    same = [run_md(atoms, student, seed=5, **QUICK).atoms[0] for atoms in starts]
    assert alike(same) > 0.99  # what independence is from: one seed for several runs


def test_replicas_of_neighbouring_seeds_have_nothing_in_common(student):
    ends = []
    for seed in (0, 1):
        ends += run_md([silicon()] * 4, student, seed=seed, **QUICK).atoms
    assert alike(ends) < 0.25


def test_a_chunk_of_silicon_is_a_new_sample(shared):
    """Of one random force they end within 1e-5 Å of each other; independent ones, 0.15 Å."""
    student, atoms = shared / "data" / "nep" / SILICON, bulk("Si", cubic=True)
    quick = NVT | {"friction_per_ps": 10.0, "n_steps": 2000}
    ends = []
    for start in (atoms, rattled(atoms, 0.05)):
        for _ in range(2):
            [start] = run_md(start, student, **quick).atoms
            ends.append(start)
    ends += run_md([atoms] * 2, student, seed=0, **quick).atoms
    ends += run_md([atoms] * 2, student, seed=1, **quick).atoms
    assert min(apart(a, b) for a, b in combinations(ends, 2)) > 0.03


def test_seeds_of_systems():
    assert seeds_of(7, 1).tolist() == [7]
    assert seeds_of(7, 0).tolist() == []
    assert seeds_of(2**63 - 1, 5)[:3].tolist() == seeds_of(2**63 - 1, 3).tolist()
    every = np.concatenate([seeds_of(seed, 1000) for seed in range(20)])
    assert len(np.unique(every)) == len(every)
    assert every.max() < 2**63
    assert all(Ensemble(seed=seed).seed == seed for seed in every[-2:].tolist())


def test_a_seed_that_is_not_given_is_drawn_told_and_kept(student, tmp_path):
    quick, out = QUICK | {"n_steps": 10, "log_every": 5}, tmp_path / "a.traj"
    first = run_md(silicon(), student, out=out, **quick)
    other = run_md(silicon(), student, seed=None, **quick)
    assert first.seed != other.seed
    again = run_md(silicon(), student, seed=first.seed, **quick)
    assert np.array_equal(first.atoms[0].positions, again.atoms[0].positions)
    longer = run_md(silicon(), student, out=out, **quick | {"n_steps": 20})
    whole = run_md(silicon(), student, seed=first.seed, **quick | {"n_steps": 20})
    assert longer.seed == first.seed
    assert np.array_equal(longer.atoms[0].positions, whole.atoms[0].positions)


def test_first_velocities_are_not_the_noise_of_ase():
    atoms, settings = bulk("Cu", cubic=True) * 3, Ensemble(ensemble="nvt", seed=3)
    first = simulate(ForceField("emt", EMT()), atoms, settings, 0, 1).frame(0)
    atoms.calc = EMT()
    noise = ase_dynamics(atoms, settings).rng.standard_normal((len(atoms), 3))
    assert alike([first, SimpleNamespace(get_velocities=lambda: noise)]) < 0.25


def test_a_walk_has_random_numbers_of_its_own(monkeypatch):
    """The teacher's and the student's from one structure; walks that begin elsewhere."""
    drawn = []
    monkeypatch.setattr(
        segments, "thermalise", lambda atoms, kelvin, rng: drawn.append(rng.random())
    )
    copper, settings = bulk("Cu", cubic=True), DynamicsSettings()
    for start in (copper, rattled(copper)):
        for seed in (0, 1):
            for walker in walkers([start], [300.0, 600.0], settings):
                for until in (False, True):
                    segments.run_segment(walker, EMT(), settings, seed, until_decorrelated=until)
    assert len(set(drawn)) == len(drawn) == 16


def test_validations_of_neighbouring_seeds_share_no_run(student):
    streams = [0, 1, 2, 500, 501, 1000, 3000, 4000]
    seeds = []
    for seed in range(3):
        subject = Subject(
            ForceField("emt", EMT()), bulk("Cu", cubic=True), ValidationSettings(seed=seed)
        )
        seeds += [subject.thermostat(300.0, stream).seed for stream in streams]
    assert len(set(seeds)) == len(seeds)
