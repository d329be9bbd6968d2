"""StudentCalculator: ASE's conventions, never stale, clear errors, usable afterwards."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from tests.helpers import random_nep, rattled, structures

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.engines.loading import resolve_device
from mlff_distiller.errors import StructureError, StudentError, UnknownElementError


@pytest.fixture
def calculator():
    return StudentCalculator(random_nep(), device="cpu", dtype="float64")


@pytest.fixture
def ice(calculator):
    atoms = rattled(structures()["small cell"])
    atoms.calc = calculator
    return atoms


def count_calls(calculator, monkeypatch) -> list[int]:
    calls = []
    original = calculator._evaluate
    monkeypatch.setattr(calculator, "_evaluate", lambda *a: (calls.append(1), original(*a))[1])
    return calls


def test_it_says_what_it_is(calculator):
    assert calculator.elements == calculator.student.elements
    assert calculator.cutoff == calculator.student.cutoff
    assert repr(calculator) == "StudentCalculator(nep of H O, cutoff 4.5 Å)"


def test_one_evaluation_serves_all_properties(ice, calculator, monkeypatch):
    calls = count_calls(calculator, monkeypatch)
    ice.get_forces()
    ice.get_potential_energy()
    ice.get_stress()
    ice.get_potential_energies()
    assert len(calls) == 1
    VelocityVerlet(ice, 0.1).run(5)
    assert len(calls) == 6


def test_energies_sum_to_energy(ice):
    assert ice.get_potential_energies().sum() == pytest.approx(
        ice.get_potential_energy(), abs=1e-12
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda atoms: atoms.positions.__setitem__((0, 0), atoms.positions[0, 0] + 1e-13),
        lambda atoms: atoms.set_cell(atoms.cell.array * 1.01),
        lambda atoms: atoms.set_atomic_numbers([8, 8, 1]),
        lambda atoms: atoms.set_pbc([True, True, False]),
        lambda atoms: atoms.__delitem__(0),
        lambda atoms: atoms.append("H"),
    ],
    ids=["position", "cell", "numbers", "pbc", "fewer atoms", "more atoms"],
)
def test_never_stale(ice, calculator, change, monkeypatch):
    ice.get_forces()
    calls = count_calls(calculator, monkeypatch)
    change(ice)
    assert ice.get_forces().shape == (len(ice), 3)
    assert len(calls) == 1
    fresh = ice.copy()
    fresh.calc = StudentCalculator(random_nep(), device="cpu", dtype="float64")
    assert np.array_equal(ice.get_forces(), fresh.get_forces())


def test_things_that_change_nothing_cost_nothing(ice, calculator, monkeypatch):
    ice.get_forces()
    calls = count_calls(calculator, monkeypatch)
    ice.set_velocities(np.ones((len(ice), 3)))
    ice.set_tags([1, 2, 3])
    ice.set_constraint(FixAtoms([0]))
    assert (ice.get_forces()[0] == 0).all()
    assert (ice.get_forces(apply_constraint=False)[0] != 0).any()
    assert not calls


def test_no_stress_without_a_volume(calculator):
    atoms = molecule("H2O")
    atoms.calc = calculator
    atoms.get_forces()
    with pytest.raises(PropertyNotImplementedError, match="needs a cell"):
        atoms.get_stress()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_error_leaves_no_old_results_and_the_next_call_works(ice, calculator, bad):
    good = ice.get_forces()
    keep = ice.positions.copy()
    ice.positions[1, 2] = bad
    with pytest.raises(StructureError, match="atom 1 is not finite"):
        ice.get_forces()
    with pytest.raises(StudentError, match="no atoms"):
        calculator.get_property("forces")
    ice.positions = keep
    assert np.array_equal(ice.get_forces(), good)


def test_unknown_element_names_known_ones(ice, calculator):
    ice.numbers[0] = 26
    with pytest.raises(UnknownElementError, match=r"Fe[\s\S]*only H, O"):
        ice.get_forces()
    ice.numbers[0] = 1
    ice.get_forces()


def test_coincident_atoms_are_an_error_not_nan(calculator):
    atoms = Atoms("OH", [[0, 0, 0], [0, 0, 0]])
    atoms.calc = calculator
    with pytest.raises(StudentError, match="not finite"):
        atoms.get_forces()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"charge": 1}, "charges"),
        ({"total_charge": -1}, "charges"),
        ({"spin": 3}, "spins"),
        ({"multiplicity": 2}, "spins"),
        ({"magmoms": [1.0, 0.0, 0.0]}, "spins"),
    ],
)
def test_electrons_that_it_does_not_know_are_warned_about(calculator, state, words):
    atoms = molecule("H2O", magmoms=state.get("magmoms"))
    atoms.info |= {name: value for name, value in state.items() if name != "magmoms"}
    atoms.calc = calculator
    with pytest.warns(UserWarning, match=f"the student ignores {words}"):
        atoms.get_forces()


def test_pickle_deepcopy_and_threads(ice, calculator):
    forces = ice.get_forces()
    for other in (copy.deepcopy(calculator), pickle.loads(pickle.dumps(calculator))):
        assert np.array_equal(other.get_forces(ice), forces)
    frames = [rattled(structures()["small cell"], seed=seed) for seed in range(4)]
    expected = [calculator.get_forces(atoms).copy() for atoms in frames]
    wrong = []

    def work(index):
        for _ in range(10):
            if not np.array_equal(calculator.get_forces(frames[index]), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_works_with_optimisers_filters_and_trajectories(ice, tmp_path):
    before = ice.get_potential_energy()
    BFGS(FrechetCellFilter(ice), logfile=None).run(steps=3)
    assert ice.get_potential_energy() < before
    write(tmp_path / "ice.extxyz", ice)
    assert np.allclose(read(tmp_path / "ice.extxyz").get_forces(), ice.get_forces(), atol=1e-7)
    write(tmp_path / "ice.traj", ice)
    assert read(tmp_path / "ice.traj").get_potential_energy() == ice.get_potential_energy()
    properties = ice.get_properties(["energy", "forces", "stress", "energies", "free_energy"])
    assert properties["stress"].shape == (6,)


def test_global_state_is_untouched(ice):
    before = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    state = torch.random.get_rng_state().clone()
    ice.get_forces()
    assert before == (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled())
    assert torch.equal(state, torch.random.get_rng_state())


def test_devices_are_checked():
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(StudentError, match="unknown device"):
        resolve_device("toaster")
    if not torch.cuda.is_available():
        with pytest.raises(StudentError, match="there is no device 'cuda'"):
            resolve_device("cuda")


@pytest.mark.gpu
def test_same_forces_on_the_gpu(ice):
    gpu = StudentCalculator(random_nep(), device="cuda", dtype="float64")
    assert np.abs(gpu.get_forces(ice) - ice.get_forces()).max() < 1e-9
    assert gpu.get_potential_energy(ice) == pytest.approx(ice.get_potential_energy(), abs=1e-9)


@pytest.mark.parametrize(
    "empty", [lambda c: c.results.clear(), lambda c: setattr(c, "results", {})]
)
def test_emptied_results_are_computed_again(ice, calculator, empty):
    energy = ice.get_potential_energy()
    empty(calculator)
    assert ice.get_potential_energy() == energy
    empty(calculator)
    calculator.calculate()
    assert calculator.results["energy"] == energy


def test_atoms_that_are_set_have_results_of_their_own(ice, calculator):
    ice.get_potential_energy()
    other = ice.copy()
    other.positions[0] += 0.1
    calculator.atoms = other.copy()
    other.calc = calculator
    fresh = StudentCalculator(calculator.student, device="cpu", dtype="float64")
    assert other.get_potential_energy() == fresh.get_property("energy", other.copy())


@pytest.mark.parametrize(("charge", "warned"), [(np.zeros(3), 0), ("0", 0), (None, 0), ("-1", 1)])
def test_charges_of_any_type_are_read(ice, recwarn, charge, warned):
    ice.info["charge"] = charge
    ice.get_potential_energy()
    assert len([w for w in recwarn if "charges" in str(w.message)]) == warned


def test_modes_of_the_caller_change_nothing():
    atoms = rattled(structures()["small cell"])
    calculator = StudentCalculator(random_nep(), device="cpu", backend="torch")
    expected = calculator.get_property("energy", atoms)
    for mode in (torch.inference_mode(), torch.device("meta")):
        calculator.results = {}
        with mode:
            assert calculator.get_property("energy", atoms) == expected
