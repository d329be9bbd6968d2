"""Walkers: physical statistics, exact replay, and what happens where the student is wrong."""

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from tests.helpers import random_nep

from mlff_distiller import StudentCalculator
from mlff_distiller.errors import DistillerError
from mlff_distiller.sampling import DynamicsSettings, explore, walk, walkers
from mlff_distiller.sampling.dynamics import relative_error
from mlff_distiller.sampling.segments import run_segment, run_segments


def copper(n=2):
    return bulk("Cu", cubic=True).repeat(n)


class Scaled(Calculator):
    """EMT with forces times a factor: a student with a known relative error."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, factor):
        super().__init__()
        self.factor, self.inner = factor, EMT()

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        atoms = atoms.copy()
        atoms.calc = self.inner
        self.results = {
            "energy": self.factor * atoms.get_potential_energy(),
            "forces": self.factor * atoms.get_forces(),
        }


def teacher(store):
    def label(frames, provenance):
        answers = []
        for atoms, origin in zip(frames, provenance, strict=True):
            atoms = atoms.copy()
            atoms.calc = EMT()
            answers.append({"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()})
            store.append((atoms, origin))
        return answers

    return label


def test_walk_labels_what_was_asked_for_and_heats_up():
    store = []
    group = walkers([copper()], [300.0, 600.0], DynamicsSettings())
    n = walk(group, EMT(), teacher(store), 24, DynamicsSettings(), seed=3)
    assert n == len(store) == 24
    origins = [origin for _, origin in store]
    assert {origin["source"] for origin in origins} == {"dynamics"}
    assert sorted((o["walker"], o["segment"]) for o in origins) == [
        (w, s) for w in range(2) for s in range(12)
    ]
    perfect = copper().get_scaled_positions()
    moved = {300.0: [], 600.0: []}
    for atoms, origin in store:
        if origin["segment"] >= 4:
            away = atoms.get_scaled_positions() - perfect
            moved[origin["temperature_K"]].append(((away - np.round(away)) ** 2).sum(1).mean())
    ratio = np.mean(moved[600.0]) / np.mean(moved[300.0])
    assert 1.4 < ratio < 3.0  # an Einstein crystal: 2


@pytest.mark.parametrize("n_seeds", [1, 3, 4, 6, 10])
@pytest.mark.parametrize(("n_temperatures", "n_pressures"), [(1, 1), (2, 2), (3, 2)])
def test_few_walkers_cover_all_conditions_and_all_seeds(n_seeds, n_temperatures, n_pressures):
    settings = DynamicsSettings(ensemble="npt", pressures_GPa=tuple(range(n_pressures)))
    seeds = [copper(1) for _ in range(n_seeds)]
    group = walkers(seeds, [300.0 + t for t in range(n_temperatures)], settings)
    states = [(w.temperature_K, w.pressure_GPa) for w in group]
    whole = n_temperatures * n_pressures
    assert len(set(zip(states, [w.seed_index for w in group], strict=True))) == whole * n_seeds
    assert len(group) == whole * n_seeds
    assert len(set(states[:whole])) == whole
    assert {w.seed_index for w in group[:n_seeds]} == set(range(n_seeds))
    more = walkers(seeds, [300.0 + t for t in range(n_temperatures)], settings, 2 * len(group) + 1)
    assert [w.seed_index for w in more] == [w.seed_index for w in [*group, *group, group[0]]]
    assert [w.number for w in more] == list(range(len(more)))


def test_a_segment_ends_when_forces_have_decorrelated():
    quick = DynamicsSettings(decorrelation=0.9)
    slow = DynamicsSettings(decorrelation=0.01)
    durations = {}
    for name, settings in (("quick", quick), ("slow", slow)):
        [walker] = walkers([copper()], [300.0], settings)
        walker.reach_fs = 200.0
        walker.atoms, _ = run_segment(walker, EMT(), settings, seed=0)
        walker.segment += 1
        _, durations[name] = run_segment(walker, EMT(), settings, seed=0, until_decorrelated=True)
    assert 10.0 <= durations["quick"] < durations["slow"] <= 200.0
    assert run_segment(walker, EMT(), quick, seed=0)[1] == 200.0


def test_an_interrupted_walk_continues_with_the_same_structures():
    settings = DynamicsSettings(longest_fs=20.0)
    whole, first, rest = [], [], []
    walk(walkers([copper()], [300.0], settings), EMT(), teacher(whole), 6, settings, seed=3)
    walk(walkers([copper()], [300.0], settings), EMT(), teacher(first), 3, settings, seed=3)
    known = {(o["walker"], o["segment"]): atoms for atoms, o in first}
    calls = []

    class Counting(EMT):
        def calculate(self, *args, **kwargs):
            calls.append(1)
            super().calculate(*args, **kwargs)

    group = walkers([copper()], [300.0], settings)
    walk(group, Counting(), teacher(rest), 6, settings, seed=3, known=known)
    for (a, p), (b, q) in zip(whole, rest, strict=True):
        assert np.allclose(a.positions, b.positions, rtol=0, atol=1e-8)  # EMT sums in list order
        assert p["segment"] == q["segment"]
    assert len(calls) < 3 * 25  # only the three new segments


def test_npt_relaxes_a_compressed_cell():
    settings = DynamicsSettings(ensemble="npt", longest_fs=200.0, decorrelation=0.01)
    squeezed = copper(1)
    squeezed.set_cell(0.97 * squeezed.cell.array, scale_atoms=True)
    store = []
    walk(walkers([squeezed], [300.0], settings), EMT(), teacher(store), 8, settings, seed=0)
    volumes = [atoms.get_volume() / squeezed.get_volume() for atoms, _ in store]
    assert 1.04 < np.mean(volumes[4:]) < 1.13


def test_a_walker_goes_on_where_the_student_is_right_and_back_where_it_is_wrong():
    settings = DynamicsSettings(longest_fs=40.0)
    for factor, goes_on in ((0.98, True), (0.7, False)):
        store = []
        group = walkers([copper()], [300.0], settings, 3)
        began = [walker.atoms.positions.copy() for walker in group]
        errors = explore(
            group, Scaled(factor), teacher(store), 9, settings, 0.1, seed=0, source={"round": 7}
        )
        assert len(errors) == len(store) == 9
        assert errors == pytest.approx([1 - factor] * 9, rel=1e-6)
        assert all(origin["round"] == 7 for _, origin in store)
        assert {origin["source"] for _, origin in store} == {"student"}
        for walker, start in zip(group, began, strict=True):
            assert (not np.array_equal(walker.atoms.positions, start)) == goes_on
            assert walker.reach_fs == (40.0 if goes_on else 10.0)


def test_a_walker_out_of_reach_begins_at_its_seed_again():
    """By the teacher's energies, however well the student knows the place."""
    settings = DynamicsSettings(longest_fs=40.0)
    seed = copper()
    strained = copper()
    strained.set_cell(1.1 * strained.cell.array, scale_atoms=True)  # some 0.3 eV/atom above
    for seeds, returns in (((seed,), True), ((), False)):
        group = walkers([seed], [300.0], settings, 2)
        group[1].atoms = strained.copy()
        for walker in group:
            walker.reach_fs = 20.0
        explore(group, EMT(), teacher([]), 2, settings, 0.1, seeds=seeds)
        assert group[0].reach_fs == 40.0
        assert np.array_equal(group[1].atoms.positions, seed.positions) == returns
        assert group[1].reach_fs == (10.0 if returns else 40.0)


def test_broken_dynamics_ends_before_the_damage():
    class Wild(EMT):
        def calculate(self, *args, **kwargs):
            super().calculate(*args, **kwargs)
            self.results["forces"] = -40 * self.results["forces"]

    settings = DynamicsSettings()
    rattled = copper()
    rattled.rattle(0.02, seed=0)
    [walker] = walkers([rattled], [300.0], settings)
    walker.reach_fs = 200.0
    atoms, lasted = run_segment(walker, Wild(), settings, seed=0)
    assert lasted < 100.0
    if atoms is not None:
        atoms.calc = Wild()
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() < settings.max_force_eV_per_A


def test_walk_gives_up_with_a_reason_when_no_step_can_be_taken():
    settings = DynamicsSettings(min_distance_A=2.0)
    water = molecule("H2O")
    with pytest.raises(DistillerError, match="every walker broke down"):
        walk(walkers([water], [300.0], settings), LennardJones(), teacher([]), 2, settings)


def test_relative_error_is_one_minus_fidelity():
    reference = np.array([[1.0, -2.0, 0.0], [0.0, 0.0, 1.0]])
    assert relative_error(reference, reference) == 0.0
    assert relative_error(0.5 * reference, reference) == pytest.approx(0.5)


@pytest.mark.parametrize("ensemble", ["nvt", "npt"])
def test_walkers_of_a_student_move_as_one_batch(monkeypatch, ensemble):
    settings = DynamicsSettings(ensemble=ensemble)
    student = StudentCalculator(random_nep(("Cu",)), device="cpu")

    def group(reaches=(20.0, 50.0, 20.0)):
        made = walkers([copper(1)], (300.0, 600.0, 300.0), settings)
        for walker, reach in zip(made, reaches, strict=True):
            walker.reach_fs = reach
        return made

    alone = "mlff_distiller.sampling.segments.run_segment"
    with monkeypatch.context() as nothing:
        nothing.setattr(alone, lambda *_, **__: pytest.fail("each moved on its own"))
        ends = run_segments(group(), student, settings, 5)
        again = run_segments(group(), student, settings, 5)
        other = run_segments(group(), student, settings, 6)
    assert [lasted for _, lasted in ends] == [20.0, 50.0, 20.0]
    for (one, _), (same, _), (third, _) in zip(ends, again, other, strict=True):
        assert (one.positions == same.positions).all()
        assert np.abs(one.positions - third.positions).max() > 1e-3
        assert (np.abs(one.cell.array - copper(1).cell.array).max() > 0) == (ensemble == "npt")
    assert np.abs(ends[0][0].positions - ends[2][0].positions).max() > 1e-3
    hot = np.linalg.norm(ends[1][0].positions - copper(1).positions)
    cold = np.linalg.norm(ends[0][0].positions - copper(1).positions)
    assert 0.0 < cold < hot < 5.0


def test_where_one_of_a_batch_breaks_each_walks_alone():
    settings = DynamicsSettings(max_force_eV_per_A=1e-6)
    student = StudentCalculator(random_nep(("Cu",)), device="cpu")
    group = walkers([copper(1)], (300.0, 600.0), settings)
    assert run_segments(group, student, settings, 5) == [(None, 0.0), (None, 0.0)]
