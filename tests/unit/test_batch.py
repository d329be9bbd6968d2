"""Conversion from and to ASE, and the inputs that are refused."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from tests.helpers import structures

from mlff_distiller.batch import Batch, check_structure
from mlff_distiller.errors import StructureError

GOOD = Atoms("H2", [[0, 0, 0], [0, 0, 0.8]], cell=[4, 4, 4], pbc=True)


def broken(**changes) -> Atoms:
    atoms = GOOD.copy()
    for name, value in changes.items():
        if name == "cell":
            atoms.set_cell(value)
        else:
            setattr(atoms, name, value)
    return atoms


@pytest.mark.parametrize(
    ("atoms", "words"),
    [
        (Atoms(), "is empty"),
        (broken(positions=[[0, 0, 0], [np.nan, 0, 0]]), "position of atom 1 is not finite"),
        (broken(positions=[[0, 0, 0], [np.inf, 0, 0]]), "position of atom 1 is not finite"),
        (broken(positions=[[0, 0, 0], [1e7, 0, 0]]), "atom 1 is too far from the origin"),
        (broken(numbers=[0, 1]), "the number of atom 0 is not that of an element"),
        (broken(numbers=[1, 119]), "the number of atom 1 is not that of an element"),
        (broken(cell=[[np.nan, 0, 0], [0, 4, 0], [0, 0, 4]]), "cell is not finite"),
        (broken(cell=[4, 4, 0]), "periodic along lattice vector 2, which is zero"),
        (broken(cell=[[4, 0, 0], [8, 0, 0], [0, 0, 4]]), "cell is singular"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_structures_no_model_can_evaluate(atoms, words):
    with pytest.raises(StructureError, match=words):
        Batch.from_atoms([GOOD, atoms])


def test_good_structures_pass():
    for atoms in structures().values():
        check_structure(atoms)


def test_round_trip_keeps_everything():
    frames = list(structures().values())
    for before, after in zip(frames, Batch.from_atoms(frames).to_atoms(), strict=True):
        assert (before.numbers == after.numbers).all()
        assert (before.positions == after.positions).all()
        assert (before.cell.array == after.cell.array).all()
        assert (before.pbc == after.pbc).all()


def test_arrays_of_any_layout():
    positions = np.asfortranarray(GOOD.positions.astype(np.float32))
    atoms = GOOD.copy()
    atoms.positions = positions
    expected = torch.from_numpy(GOOD.positions.astype(np.float32).astype(np.float64))
    assert torch.equal(Batch.from_atoms([atoms]).positions, expected)


def test_labels_come_from_calculators_with_ase_stress_order():
    copper = bulk("Cu", cubic=True)
    copper.rattle(0.1, seed=1)
    copper.calc = EMT()
    voigt = copper.get_stress()
    labels = Batch.from_atoms([copper]).labels
    assert labels["energy"][0] == copper.get_potential_energy()
    assert np.allclose(labels["forces"], copper.get_forces())
    stress = labels["stress"][0]
    for index, (a, b) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        assert stress[a, b] == voigt[index] == stress[b, a]
    assert np.allclose(Batch.from_atoms([copper]).to_atoms()[0].get_stress(), voigt)


def test_residual_info_is_ignored_and_stale_results_too():
    atoms = molecule("H2O")
    atoms.info["energy"] = 99.0
    assert "energy" not in Batch.from_atoms([atoms]).labels
    atoms.calc = SinglePointCalculator(atoms, energy=1.0)
    atoms.positions[0, 0] += 0.1
    assert torch.isnan(Batch.from_atoms([atoms]).labels["energy"]).all()


def test_concatenate_inverts_systems():
    batch = Batch.from_atoms(list(structures().values()))
    again = Batch.concatenate(batch.systems())
    for name in ("positions", "atomic_numbers", "system_idx", "cell", "pbc"):
        assert torch.equal(getattr(batch, name), getattr(again, name))


def test_labels_of_atoms_go_where_ase_looks_for_them():
    """``energies`` is ASE's own and a result; ``forces_spread`` is ours and in ``extra``."""
    water, argon = molecule("H2O"), Atoms("Ar")
    water.calc = SinglePointCalculator(
        water, energy=-6.0, forces=np.ones((3, 3)), energies=[-1.0, -2.0, -3.0]
    )
    water.calc.extra = {"forces_spread": np.array([0.1, 0.2, 0.3])}
    argon.calc = SinglePointCalculator(argon, energy=-1.0, forces=np.zeros((1, 3)))
    batch = Batch.from_atoms([water, argon])
    assert batch.labels["energies"].tolist()[:3] == [-1.0, -2.0, -3.0]
    assert batch.labels["forces_spread"].tolist()[:3] == [0.1, 0.2, 0.3]
    for name in ("energies", "forces_spread"):
        assert batch.labels[name].isnan().tolist() == [False] * 3 + [True]
    one, other = batch.to_atoms()
    assert set(one.calc.results) == {"energy", "forces", "energies"}
    assert one.get_potential_energies().tolist() == [-1.0, -2.0, -3.0]
    assert one.calc.extra["forces_spread"].tolist() == [0.1, 0.2, 0.3]
    one.calc.extra["forces_spread"][:] = 9.0
    assert batch.labels["forces_spread"][0] == 0.1
    assert (set(other.calc.results), other.calc.extra) == ({"energy", "forces"}, {})
    again = Batch.from_atoms(batch.to_atoms()).labels
    for name, value in batch.labels.items():
        assert torch.equal(again[name].nan_to_num(7.0), value.nan_to_num(7.0))
    water.positions[0, 0] += 0.1  # what is stale is not taken from extra either
    stale = Batch.from_atoms([water]).labels
    assert stale["forces_spread"].isnan().all()
    assert stale["energies"].isnan().all()


def test_concatenate_takes_a_label_that_some_frames_lack():
    water = molecule("H2O")
    water.calc = SinglePointCalculator(water, energy=-6.0, energies=[-1.0, -2.0, -3.0])
    full = Batch.from_atoms([water])
    water.calc = SinglePointCalculator(water, energy=-6.0)
    both = Batch.concatenate([full, Batch.from_atoms([water])])
    assert both.labels["energies"].isnan().tolist() == [False] * 3 + [True] * 3
    assert [len(one.labels["energies"]) for one in both.systems()] == [3, 3]
    assert "energies" not in both.to_atoms()[1].calc.results


@pytest.mark.parametrize("numbers", [np.array([14.5, 14.0]), np.array([14])])
def test_numbers_that_are_no_whole_number_for_each_atom_are_refused(numbers):
    atoms = Atoms("Si2", positions=[[0, 0, 0], [2, 0, 0]])
    atoms.arrays["numbers"] = numbers
    with pytest.raises(StructureError, match="whole number"):
        check_structure(atoms)


def test_an_unused_lattice_vector_may_depend_on_the_others():
    check_structure(Atoms("Si", cell=[[4, 0, 0], [0, 4, 0], [4, 4, 0]], pbc=[1, 1, 0]))
