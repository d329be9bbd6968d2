"""Constraints of the input hold wherever structures are sampled; labels know nothing of them."""

import warnings

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.constraints import (
    FixAtoms,
    FixBondLengths,
    FixCartesian,
    FixedLine,
    FixedPlane,
    FixScaled,
    Hookean,
)
from ase.io import write
from tests.helpers import random_nep

from mlff_distiller import StudentCalculator
from mlff_distiller.dataset import input_hash, structure_hash
from mlff_distiller.errors import StructureError
from mlff_distiller.labeling import read_structures as read_to_label
from mlff_distiller.sampling import (
    ApproachSettings,
    DynamicsSettings,
    RattleSettings,
    ScanSettings,
    approach,
    explore,
    grow,
    probes,
    scan,
    walk,
    walkers,
)
from mlff_distiller.sampling.segments import run_segments
from mlff_distiller.structure import degrees_of_freedom, enlarge
from mlff_distiller.workflows.sample import sample
from mlff_distiller.workflows.seeds import read_seeds, read_structures, save_structures

TREES, WALKS = RattleSettings(trees=3, max_steps=4), DynamicsSettings(longest_fs=15.0)


def copper() -> Atoms:
    """A hot cell, so that everything moves that may."""
    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.rattle(0.05, seed=0)
    return atoms


def held(name: str) -> Atoms:
    atoms = copper()
    atoms.set_constraint(
        {
            "atoms": FixAtoms([0, 5]),
            "axis": FixCartesian([0, 5], mask=(True, False, True)),
            "scaled": FixScaled([0, 5], mask=(True, False, True)),
            "plane": FixedPlane([0, 5], (0, 1, 0)),
            "line": FixedLine([0, 5], (0, 1, 0)),
            "bond": FixBondLengths([(0, 5)]),
            "two": [FixAtoms([0]), FixCartesian([5], mask=(True, False, True))],
        }[name]
    )
    return atoms


def is_kept(name: str, atoms: Atoms, seed: Atoms) -> bool:
    moved = atoms.positions - seed.positions
    others = np.delete(moved, [0, 5], axis=0)
    assert np.abs(others).max() > 1e-4
    assert np.array_equal(atoms.cell.array, seed.cell.array)
    if name == "bond":
        lengths = [one.get_distance(0, 5, mic=True) for one in (atoms, seed)]
        return bool(np.isclose(*lengths, atol=1e-6))
    rest = {
        "atoms": moved[[0, 5]],
        "plane": moved[[0, 5]][:, 1],
        "two": np.append(moved[0], moved[5, [0, 2]]),
    }
    return not np.abs(rest.get(name, moved[[0, 5]][:, [0, 2]])).max() > 1e-9


KINDS = ["atoms", "axis", "scaled", "plane", "line", "bond", "two"]


class Store:
    """A teacher that labels as our own do: without constraints, and stores none."""

    def __init__(self) -> None:
        self.frames: list[Atoms] = []
        self.origins: list[dict] = []

    def __call__(self, frames, provenance):
        answers = []
        for atoms, origin in zip(frames, provenance, strict=True):
            self.frames.append(Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True))
            self.origins.append(origin)
            bare = self.frames[-1].copy()
            bare.calc = EMT()
            answers.append({"energy": bare.get_potential_energy(), "forces": bare.get_forces()})
        return answers


@pytest.mark.parametrize("name", KINDS)
def test_trees_and_walks_keep_what_is_held(name):
    seed, store = held(name), Store()
    grow([seed], store, 8, TREES, seed=1)
    group = walkers([seed], [300.0], WALKS)
    walk(group, EMT(), store, 2, WALKS, seed=1)
    assert len(store.frames) == 10
    assert all(is_kept(name, atoms, seed) for atoms in store.frames[1:])


@pytest.mark.parametrize("name", KINDS)
def test_the_students_walkers_keep_what_is_held(name):
    """On the device where it can, in ASE where it cannot; pressure changes no cell."""
    student = StudentCalculator(random_nep(["Cu"], seed=0), device="cpu")
    settings = DynamicsSettings(ensemble="npt", longest_fs=30.0, max_force_eV_per_A=1e3)
    seed = held(name)
    group = walkers([seed], [300.0], settings, 2)
    for walker in group:
        walker.reach_fs = 30.0
    ends = run_segments(group, student, settings, seed=2)
    assert all(is_kept(name, atoms, seed) for atoms, _ in ends)
    assert all(len(atoms.constraints) == len(seed.constraints) for atoms, _ in ends)


def test_walkers_with_and_without_held_atoms_share_no_batch():
    student = StudentCalculator(random_nep(["Cu"], seed=0), device="cpu")
    settings = DynamicsSettings(ensemble="npt", longest_fs=20.0, max_force_eV_per_A=1e3)
    group = walkers([held("atoms"), copper()], [300.0], settings)
    for walker in group:
        walker.reach_fs = 20.0
    (fixed, _), (free, _) = run_segments(group, student, settings, seed=2)
    assert is_kept("atoms", fixed, held("atoms"))
    assert not np.array_equal(free.cell.array, copper().cell.array)


def test_a_walk_that_continues_from_labels_keeps_what_is_held():
    whole, first, rest = Store(), Store(), Store()
    for store, n, known in ((whole, 4, {}), (first, 2, {})):
        walk(walkers([held("atoms")], [300.0], WALKS), EMT(), store, n, WALKS, 3, known)
    known = {
        (origin["walker"], origin["segment"]): atoms
        for atoms, origin in zip(first.frames, first.origins, strict=True)
    }
    walk(walkers([held("atoms")], [300.0], WALKS), EMT(), rest, 4, WALKS, 3, known)
    for one, other in zip(whole.frames, rest.frames, strict=True):
        assert np.allclose(one.positions, other.positions, atol=1e-9)
        assert is_kept("atoms", other, held("atoms"))


class Zero(Calculator):
    """A student whose forces are all wrong by 100 %, on held atoms too."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.0, "forces": np.ones((len(atoms), 3))}


def test_errors_of_a_student_count_the_forces_on_held_atoms():
    seed = held("atoms")
    seed.set_constraint(FixAtoms(np.arange(31)))
    settings = DynamicsSettings(longest_fs=10.0)

    def label(frames, provenance):
        return [{"energy": 0.0, "forces": np.ones((len(atoms), 3))} for atoms in frames]

    errors = explore(walkers([seed], [300.0], settings), Zero(), label, 1, settings, 0.5)
    assert errors == [0.0]


def test_no_scan_moves_what_is_held_and_probes_do_not():
    _, origins = scan([held("axis"), copper()], ScanSettings())
    assert {origin["seed"] for origin in origins} == {1}
    for pair in probes([held("atoms")], 2, seed=0):
        moved = [atoms.positions - held("atoms").positions for atoms in pair]
        assert np.array_equal(np.abs(moved).max(2)[:, [0, 5]], np.zeros((2, 2)))
        assert np.allclose(moved[0], -moved[1])


def test_what_is_held_is_approached():
    """A molecule over a slab: each pair comes as near as it says, by what may move."""
    seed = fcc111("Cu", (2, 2, 2), vacuum=8.0, periodic=True)
    water = molecule("H2O")
    water.positions += seed.positions[-1] + [0.0, 0.0, 2.6]
    seed += water
    seed.set_constraint(FixAtoms(np.arange(8)))
    settings = ApproachSettings(compressed=1.0, atoms_per_pair=1000, range=(0.85, 0.95))
    frames, origins = approach([seed], 12, settings, seed=4)
    assert len(frames) == 12
    for atoms, origin in zip(frames, origins, strict=True):
        assert np.array_equal(atoms.positions[:8], seed.positions[:8])
        made = origin["distance_A"][0]
        assert np.isclose(atoms.get_all_distances(mic=True), made, atol=1e-3).any()


def test_a_supercell_holds_every_copy():
    atoms = bulk("Si", cubic=True)
    atoms.set_constraint(
        [FixAtoms([2]), FixScaled([3], (True, False, False)), FixBondLengths([(0, 1), (0, 5)])]
    )
    large = enlarge(atoms, 30)
    fixed, scaled, bonds = large.constraints
    copies = len(large) // 8
    assert fixed.index.tolist() == [2 + 8 * k for k in range(copies)]
    assert scaled.index.tolist() == [3 + 8 * k for k in range(copies)]
    lengths = [large.get_distance(a, b, mic=True) for a, b in bonds.pairs]
    assert len(lengths) == 2 * copies
    assert np.allclose(lengths, 2.3513, atol=1e-3)


def test_degrees_of_freedom_of_each_atom():
    water = molecule("H2O")
    water.set_constraint(FixBondLengths([(0, 1), (0, 2)]))
    oxygen, *hydrogens = degrees_of_freedom(water)
    assert oxygen + sum(hydrogens) == pytest.approx(7.0)
    assert oxygen > max(hydrogens)  # the heavy atom hardly moves along a bond anyway
    atoms = held("two")
    assert (
        degrees_of_freedom(atoms).sum()
        == 3 * len(atoms) - 5
        == (atoms.get_number_of_degrees_of_freedom())
    )


def test_seeds_keep_constraints_on_disk_and_say_which_are_ignored(tmp_path):
    plain, fixed, sprung = copper(), held("two"), copper()
    sprung.set_constraint(Hookean(0, 1, rt=2.0, k=5.0))
    path = tmp_path / "seeds.traj"
    write(path, [fixed, plain, sprung])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seeds = read_seeds([path])
    told = [str(one.message) for one in caught]
    assert len(told) == 2
    assert "Hookean is ignored" in told[1]
    assert "structure 2" in told[1]
    assert "the cell stays" in told[0]
    assert len(seeds) == 2  # a spring that is ignored makes no other structure
    save_structures(path, seeds)
    again, free = read_structures(path)
    assert not free.constraints
    assert [repr(one) for one in again.constraints] == [repr(one) for one in fixed.constraints]
    assert input_hash(again) == input_hash(fixed) != input_hash(free)
    assert input_hash(free) == structure_hash(free) == structure_hash(fixed)
    assert len(read_to_label([path]).all) == 1  # to labels they are one


def test_a_structure_that_cannot_move_is_refused():
    atoms = copper()
    atoms.set_constraint(FixAtoms(np.arange(len(atoms))))
    with pytest.raises(StructureError, match=r"(?s)hold all atoms.*remove some"):
        read_seeds([atoms])


@pytest.mark.filterwarnings("ignore:atoms are held")
def test_selective_dynamics_of_a_poscar(tmp_path):
    """The file that users have: what it fixes stays, and its forces are labels all the same."""
    atoms = copper()
    atoms.set_constraint([FixAtoms([0]), FixScaled([5], (False, False, True))])
    path = tmp_path / "POSCAR"
    write(path, atoms, format="vasp", direct=True)
    made = sample(
        [path], tmp_path / "new.xyz", number=8, teacher="ase:ase.calculators.emt:EMT", seed=1
    )
    for one in made[1:]:
        moved = one.positions - made[0].positions
        assert np.abs(moved[0]).max() < 1e-9
        assert np.abs(moved[5, 2]) < 1e-9
        assert np.abs(moved[5, :2]).min() > 1e-6
        assert np.abs(one.calc.results["forces"][0]).max() > 1e-3
