"""``TeacherCalculator`` keeps ASE's conventions; seen mostly with the cheapest calculator."""

import copy
import dataclasses
import pickle
import warnings

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError, all_properties
from ase.calculators.emt import EMT
from ase.optimize import BFGS

from mlff_distiller.errors import TeacherError, UnknownElementError
from mlff_distiller.properties import LABELS
from mlff_distiller.teachers import TeacherIdentity, load_teacher

SPEC = "ase:ase.calculators.emt:EMT"


def copper() -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    return atoms


def test_equals_the_calculator_itself(teacher):
    ours, theirs = copper(), copper()
    ours.calc, theirs.calc = teacher(SPEC), EMT()
    assert ours.get_potential_energy() == theirs.get_potential_energy()
    assert ours.get_potential_energy(force_consistent=True) == theirs.get_potential_energy()
    np.testing.assert_array_equal(ours.get_forces(), theirs.get_forces())
    np.testing.assert_allclose(ours.get_stress(), theirs.get_stress(), atol=1e-15)
    assert ours.get_stress().shape == (6,)
    assert type(ours.calc.results["energy"]) is float
    assert ours.calc.results["forces"].dtype == np.float64
    assert set(ours.calc.results) <= set(all_properties)
    ours.get_properties(["energy", "forces", "stress"])


def test_labels_have_the_table_s_shapes(teacher):
    crystal, cluster = teacher(SPEC).label([copper(), Atoms("Cu2", [[0, 0, 0], [0, 0, 2.3]])])
    for name, value in crystal.labels.items():
        row = LABELS[name]
        assert value.shape == ((4, *row.shape) if row.per == "atom" else row.shape)
        assert value.dtype == np.float64
    np.testing.assert_array_equal(crystal.labels["stress"], crystal.labels["stress"].T)
    assert set(cluster.labels) == {"energy", "forces", "energies"}
    assert crystal.atoms == copper()
    assert crystal.atoms.calc is None
    assert crystal.seconds > 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        crystal.error = "no"


def test_one_evaluation_fills_everything(teacher, monkeypatch):
    atoms = copper()
    atoms.calc = teacher(SPEC)
    atoms.calc.reset()
    asked = []
    ask = atoms.calc._session.ask
    monkeypatch.setattr(atoms.calc._session, "ask", lambda a: asked.append(1) or ask(a))
    atoms.get_forces(), atoms.get_stress(), atoms.get_potential_energy()
    assert len(asked) == 1
    for change in (
        lambda: atoms.positions.__iadd__(0.1),
        lambda: atoms.set_cell(atoms.cell * 1.01),
        lambda: atoms.set_pbc([True, True, False]),
        lambda: atoms.symbols.__setitem__(0, "Au"),
        lambda: atoms.info.__setitem__("charge", 1),
        lambda: atoms.info.__setitem__("spin", 2),
        lambda: atoms.info.pop("charge"),
        lambda: atoms.calc.set(anything=1),
    ):
        before = len(asked)
        change()
        atoms.get_potential_energy()
        assert len(asked) == before + 1
    atoms.info["colour"] = "red"
    atoms.set_velocities(np.ones((4, 3)))
    atoms.get_potential_energy()
    assert len(asked) == before + 1


def test_results_are_replaced_and_handed_out_as_copies(teacher):
    atoms = copper()
    atoms.calc = teacher(SPEC)
    handed_out = atoms.get_forces()
    first = atoms.calc.results
    before = first["forces"].copy()
    handed_out[:] = 7.0
    atoms.positions[0] += 0.1
    atoms.get_forces()
    assert atoms.calc.results is not first
    np.testing.assert_array_equal(first["forces"], before)


@pytest.mark.parametrize("pbc", [False, [True, True, False]])
def test_no_stress_unless_periodic_in_three_directions(teacher, pbc, monkeypatch):
    atoms = copper()
    atoms.pbc = pbc
    atoms.calc = teacher(SPEC)
    atoms.get_forces()
    assert "stress" not in atoms.calc.results
    monkeypatch.setattr(atoms.calc._session, "ask", None)  # nor is anything evaluated for it
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()


def test_optimises(teacher):
    atoms = copper()
    atoms.calc = teacher(SPEC)
    BFGS(atoms, logfile=None).run(fmax=0.01, steps=50)
    assert np.abs(atoms.get_forces()).max() < 0.01


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_have_a_process_of_their_own(bad, duplicate):
    original = bad()
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 1]])
    original.get_property("energy", atoms)
    twin = duplicate(original)
    assert twin.spec == original.spec
    assert twin.results["energy"] == 2.0
    assert twin._session.pid is None
    atoms.positions[1, 2] = 0.9
    assert twin.get_property("energy", atoms) == 2.0
    assert twin._session.pid != original._session.pid
    twin.close()
    assert original.label([atoms])[0].error is None


def test_state_reaches_the_teacher(bad):
    calculator = bad("Charged")
    plain, ion, charges, moments = (Atoms("H2", [[0, 0, 0], [0, 0, 1]]) for _ in range(4))
    ion.info.update(charge=-1, spin=2, energy=99.0)
    charges.set_initial_charges([0.5, 0.25])
    moments.set_initial_magnetic_moments([1, 1])
    answers = calculator.label([plain, ion, charges, moments])
    assert [float(a.labels["energy"]) for a in answers] == [0.0, 19.0, 0.75, 200.0]


@pytest.mark.parametrize("value", ["one", float("nan"), [1, 2], np.ones(2)])
def test_charge_that_is_no_number(bad, value):
    atoms = Atoms("H")
    atoms.info["charge"] = value
    [refused, good] = bad().label([atoms, Atoms("H")])
    assert "charge of H (1 atoms) is not a number" in refused.error
    assert good.error is None


def test_label_energy_is_that_of_the_forces(bad):
    atoms = bulk("Cu")
    [answer] = bad("Smeared").label([atoms])
    assert answer.labels["energy"] == -2.0
    assert "stress" not in answer.labels
    atoms.calc = bad("Smeared")
    assert atoms.get_potential_energy() == -1.0
    assert atoms.get_potential_energy(force_consistent=True) == -2.0
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()


def test_charge_to_a_teacher_that_ignores_it_warns_once(teacher):
    calculator = teacher("ani-1x", "torchani")
    atoms = molecule("H2O")
    atoms.info.update(charge=0, spin=1)
    calculator.label([atoms])
    atoms.info["charge"] = 1
    with pytest.warns(UserWarning, match="no notice of charge=1"):
        calculator.label([atoms])
    with warnings.catch_warnings(action="error"):
        calculator.label([atoms])


def test_charges_and_moments_of_atoms_that_a_teacher_ignores_are_said_once(teacher):
    calculator = teacher("ani-1x", "torchani")
    atoms = molecule("H2O")
    atoms.set_initial_charges([1, 0, 0])
    with pytest.warns(UserWarning, match="no notice of the initial_charges of atoms"):
        calculator.label([atoms])
    atoms.set_initial_magnetic_moments([0, 1, 0])
    with pytest.warns(UserWarning, match="no notice of the initial_magmoms of atoms"):
        calculator.label([atoms])
    with warnings.catch_warnings(action="error"):
        calculator.label([atoms])


def test_unknown_element(teacher):
    calculator = teacher("ani-1x", "torchani")
    with pytest.raises(UnknownElementError, match="not made for Si"):
        calculator.get_property("energy", bulk("Si"))
    assert calculator.elements == {1, 6, 7, 8}


def test_identity(teacher, bad):
    identity = teacher(SPEC).identity
    assert identity.name == SPEC
    assert identity.licence == "LGPL-2.1-or-later"
    assert identity.weights_sha256 is None
    assert teacher(SPEC).name == SPEC
    # The same module, another class; then the same class of a module that changed.
    assert bad("Moody").identity.fingerprint() != bad("Charged").identity.fingerprint()
    before = bad("Moody").identity.fingerprint()
    assert before == bad("Moody").identity.fingerprint()
    with open("bad_teachers.py", "a") as stream:
        stream.write("# changed\n")
    assert before != bad("Moody").identity.fingerprint()


def test_a_teacher_that_changed_is_refused(bad):
    calculator = bad()
    _ = calculator.identity
    calculator.close()
    with open("bad_teachers.py", "a") as stream:
        stream.write("# changed\n")
    with pytest.raises(TeacherError, match="has changed since"):
        calculator.label([bulk("Cu")])


def test_fingerprint_is_stable_and_leaves_out_the_device():
    identity = TeacherIdentity("n", "f", "1", "00", "MIT", "cpu", {"b": 1, "a": [None, "Å"]})
    known = "f67294aa7acc8d45ea5643cd63242286eeef65c5c193635c2dae1d9c47bd16a3"
    assert identity.fingerprint() == known
    assert dataclasses.replace(identity, device="cuda").fingerprint() == known
    shuffled = dataclasses.replace(identity, settings={"a": [None, "Å"], "b": 1})
    assert shuffled.fingerprint() == known
    for other in ({"name": "m"}, {"version": "2"}, {"weights_sha256": None}, {"settings": {}}):
        assert dataclasses.replace(identity, **other).fingerprint() != known


def test_load_teacher_is_lazy():
    calculator = load_teacher("7net-0")
    assert calculator._session.pid is None
    calculator.close()


def test_energies_of_atoms_are_a_label_if_they_sum_to_the_energy(bad):
    calculator = bad("Shares")
    frames = [Atoms(f"{symbol}3", 3 * np.eye(3)) for symbol in ("Cu", "Al", "Ag", "Au")]
    copper, *others = calculator.label(frames)
    assert copper.labels["energies"].tolist() == [0.0, 1.0, 2.0]
    for answer in others:
        assert answer.error is None
        assert set(answer.labels) == {"energy", "forces"}
    frames[0].calc = frames[1].calc = calculator
    assert frames[0].get_potential_energies().tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(PropertyNotImplementedError):
        frames[1].get_potential_energies()


def test_energies_that_sum_to_another_energy_than_the_label_are_left_out():
    """A smeared metal's sum to the energy, but its forces are the free energy's slope."""
    arrays = {
        "energy": np.array(-1.0),
        "free_energy": np.array(-2.0),
        "forces": np.zeros((2, 3)),
        "energies": np.full(2, -0.5),
    }
    session = load_teacher(SPEC)._session
    assert session._checked(Atoms("Cu2"), arrays, 1.0).energies is None
    arrays["energies"] = np.full(2, -1.0)
    assert session._checked(Atoms("Cu2"), arrays, 1.0).energies.tolist() == [-1.0, -1.0]


@pytest.mark.parametrize("name", ["energies", "extra.forces_spread"])
@pytest.mark.parametrize("value", [np.zeros(3), np.zeros((2, 3)), np.array([0.0, np.nan])])
def test_a_label_of_atoms_that_is_none(name, value):
    arrays = {"energy": np.array(0.0), "free_energy": np.array(0.0), "forces": np.zeros((2, 3))}
    with pytest.raises(TeacherError, match=f"bad {name.removeprefix('extra.')} for Cu2"):
        load_teacher(SPEC)._session._checked(Atoms("Cu2"), arrays | {name: value}, 1.0)
