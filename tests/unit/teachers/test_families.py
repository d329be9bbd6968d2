"""Each family against its library's own calculator, against laws, and against one another."""

import hashlib
import importlib.util
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.io import read

from mlff_distiller.errors import StructureError, TeacherError
from mlff_distiller.teachers import FeNNolTeacherCalculator, TeacherCalculator, load_teacher
from mlff_distiller.teachers.family import force_spread, full_stress, in_vacuum, total_charge
from mlff_distiller.testing import assert_teacher

BUNDLED = [("7net-0", "sevenn"), ("chgnet", "chgnet"), ("ani-1x", "torchani")]
SINGLE_PRECISION = 2e-5
"""eV/Å, and eV/Å³ over a few hundred Å³."""


@pytest.fixture(scope="session")
def fennol(shared: Path, need: Callable[[str], None]) -> Iterator[TeacherCalculator]:
    """The eight ANI-1x networks as FeNNol models."""
    need("fennol")
    paths = sorted((shared / "teachers").glob("ani1x_model*.fnx"))
    if len(paths) != 8:
        pytest.skip("no ANI-1x models in FeNNol's format beside the checkout")
    with FeNNolTeacherCalculator(*paths, device="cpu") as calculator:
        yield calculator


def crystal(spec: str) -> Atoms:
    """Eight rattled atoms the teacher knows, in a skewed cell."""
    diamond = spec == "ani-1x"
    atoms = bulk("C", cubic=True) if diamond else bulk("NaCl", "rocksalt", 5.64, cubic=True)
    shear = [[1, 0.05, 0], [0, 1.02, 0.1], [0, 0, 0.97]]
    atoms.set_cell(atoms.cell.array @ shear, scale_atoms=True)
    atoms.rattle(0.05, seed=2)
    return atoms


def ethanol_in_a_box() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.center(vacuum=8.0)
    atoms.pbc = True
    return atoms


def library_answers(family: str, frames: list[Atoms]) -> list[dict[str, np.ndarray]]:
    """What the library's own calculator says, in a process without our code."""
    structures = [
        {
            "numbers": atoms.numbers.tolist(),
            "positions": atoms.positions.tolist(),
            "cell": atoms.cell.array.tolist(),
            "pbc": atoms.pbc.tolist(),
        }
        for atoms in frames
    ]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("reference.py")), family],
        input=json.dumps(structures),
        capture_output=True,
        text=True,
        check=True,
    )
    answers = json.loads(done.stdout.rpartition("ANSWERS")[2])
    return [{name: np.array(value) for name, value in row.items()} for row in answers]


@pytest.mark.parametrize(("spec", "package"), BUNDLED)
def test_equals_the_library(teacher, spec, package):
    calculator = teacher(spec, package)
    frames = [crystal(spec), ethanol_in_a_box()]
    tolerance = 1e-10 if spec == "ani-1x" else SINGLE_PRECISION
    ours = calculator.label(frames)
    theirs = library_answers(calculator.identity.family, frames)
    for answer, known in zip(ours, theirs, strict=True):
        assert answer.error is None
        n_atoms = len(answer.atoms)
        assert abs(answer.labels["energy"] - known["energy"]) / n_atoms < tolerance
        np.testing.assert_allclose(answer.labels["forces"], known["forces"], atol=tolerance)
        stress = full_stress(known["stress"])
        np.testing.assert_allclose(answer.labels["stress"], stress, atol=tolerance)
        shares = answer.labels["energies"]
        assert abs(shares.sum() - answer.labels["energy"]) / n_atoms < 1e-9
        assert ("energies" in known) == (spec != "ani-1x")
        np.testing.assert_allclose(shares, known.get("energies", shares), rtol=0, atol=tolerance)
        assert ("forces_spread" in answer.labels) == (spec == "ani-1x")
    assert np.abs(ours[0].labels["forces"]).max() > 0.1
    assert np.abs(ours[0].labels["stress"]).max() > 1e-3


def small(metal: str) -> list[Atoms]:
    """Two atoms in a sheared cell, a bent molecule, one atom."""
    cell = bulk("C") if metal == "C" else bulk("NaCl", "rocksalt", 5.64)
    cell.set_cell(cell.cell.array @ [[1, 0.05, 0], [0, 1.02, 0.1], [0, 0, 0.97]], True)
    water = molecule("H2O")
    for atoms in (cell, water):
        atoms.rattle(0.05, seed=2)
    return [cell, water, Atoms("O")]


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "package"), BUNDLED)
def test_keeps_the_laws(teacher, spec, package):
    assert_teacher(teacher(spec, package), small("C" if spec == "ani-1x" else "NaCl"))


@pytest.mark.parametrize(("spec", "package"), BUNDLED)
def test_molecules_have_no_stress_and_need_no_cell(teacher, spec, package):
    calculator = teacher(spec, package)
    ethanol = molecule("CH3CH2OH")
    boxed, free = calculator.label([ethanol_in_a_box(), ethanol])
    assert abs(boxed.labels["energy"] - free.labels["energy"]) < 1e-4
    np.testing.assert_allclose(boxed.labels["forces"], free.labels["forces"], atol=5e-4)
    assert "stress" not in free.labels
    ethanol.calc = calculator
    assert ethanol.get_potential_energy() == pytest.approx(float(free.labels["energy"]), abs=1e-6)
    with pytest.raises(PropertyNotImplementedError):
        ethanol.get_stress()


@pytest.mark.parametrize(("spec", "package"), BUNDLED)
def test_small_far_and_lonely(teacher, spec, package):
    """A cell below the cutoff, unwrapped atoms, a slab, one atom, atoms out of reach."""
    calculator = teacher(spec, package)
    primitive = bulk("C")
    far = primitive.copy()
    far.positions[1] += 50 * primitive.cell[0] - 20 * primitive.cell[2]
    slab = bulk("C", cubic=True)
    slab.pbc = [True, True, False]
    thick = slab.copy()
    thick.cell[2] *= 9
    thick.pbc = True
    pair = Atoms("C2", [[0, 0, 0], [0, 0, 30.0]])
    frames = [primitive, primitive * 2, far, slab, thick, Atoms("C"), pair]
    answers = calculator.label(frames)
    assert [answer.error for answer in answers] == [None] * len(frames)
    one, many, away, open_, vacuum, atom, two = (float(a.labels["energy"]) for a in answers)
    assert many / 16 == pytest.approx(one / 2, abs=1e-4)
    assert away == pytest.approx(one, abs=1e-4)
    assert open_ == pytest.approx(vacuum, abs=1e-4)
    assert "stress" not in answers[3].labels
    assert two == pytest.approx(2 * atom, abs=1e-4)
    np.testing.assert_allclose(answers[5].labels["forces"], 0.0, atol=1e-6)


@pytest.mark.parametrize(("spec", "package"), BUNDLED)
def test_bad_structures_do_not_spoil_the_next(teacher, spec, package):
    calculator = teacher(spec, package)
    good, unknown, broken = (crystal(spec) for _ in range(3))
    unknown.numbers[3] = 100
    broken.positions[2, 1] = np.inf
    answers = calculator.label([good, unknown, good, broken, good])
    assert "not made for Fm" in answers[1].error
    assert "atom 2 is not finite" in answers[3].error
    first, *others = (answers[i].labels for i in (0, 2, 4))
    for other in others:
        assert other["energy"] == pytest.approx(float(first["energy"]), abs=1e-5)
        np.testing.assert_allclose(other["forces"], first["forces"], atol=SINGLE_PRECISION)


def test_forces_and_stress_are_derivatives_of_the_energy(teacher):
    calculator = teacher("ani-1x", "torchani")
    atoms = crystal("ani-1x")
    [answer] = calculator.label([atoms])
    h = 1e-4

    def slope(change: Callable[[Atoms, float], None]) -> float:
        energies = []
        for step in (h, -h):
            moved = atoms.copy()
            change(moved, step)
            energies.append(calculator.get_property("free_energy", moved))
        return (energies[0] - energies[1]) / (2 * h)

    for atom, axis in ((0, 0), (5, 2)):

        def move(moved: Atoms, step: float, atom: int = atom, axis: int = axis) -> None:
            moved.positions[atom, axis] += step

        assert -slope(move) == pytest.approx(answer.labels["forces"][atom, axis], abs=1e-6)
    for i, j in ((0, 0), (1, 2), (0, 1)):

        def strain(moved: Atoms, step: float, i: int = i, j: int = j) -> None:
            tensor = np.eye(3)
            tensor[i, j] += step / 2
            tensor[j, i] += step / 2
            moved.set_cell(moved.cell.array @ tensor, scale_atoms=True)

        stress = slope(strain) / atoms.get_volume()
        assert stress == pytest.approx(answer.labels["stress"][i, j], rel=2e-6)


def test_two_implementations_of_ani_1x_agree(teacher, fennol, shared):
    frames = [molecule("CH3CH2OH"), read(shared / "data/molecules/small_molecule_HCNO.xyz")]
    in_torch = teacher("ani-1x", "torchani").label(frames)
    in_jax = fennol.label(frames)
    for one, other in zip(in_torch, in_jax, strict=True):
        difference = one.labels["energy"] - other.labels["energy"]
        assert abs(difference) / len(one.atoms) < 1e-5
        np.testing.assert_allclose(one.labels["forces"], other.labels["forces"], atol=1e-5)
        spreads = [answer.labels["forces_spread"] for answer in (one, other)]
        shares = [answer.labels["energies"] for answer in (one, other)]
        np.testing.assert_allclose(*shares, rtol=0, atol=1e-4)
        assert spreads[0].shape == (len(one.atoms),)
        assert spreads[0].max() > 0.01
        np.testing.assert_allclose(*spreads, atol=1e-5)


def test_fennol_periodic(teacher, fennol):
    atoms = crystal("ani-1x")
    one, other = (c.label([atoms])[0].labels for c in (teacher("ani-1x", "torchani"), fennol))
    assert one["energy"] == pytest.approx(float(other["energy"]), abs=8e-5)
    np.testing.assert_allclose(one["forces"], other["forces"], atol=2e-5)  # of some 20 eV/Å
    np.testing.assert_allclose(one["stress"], other["stress"], atol=1e-6)


def test_fennol_refuses_what_it_would_get_wrong(fennol):
    ethanol = molecule("CH3CH2OH")
    [before] = fennol.label([ethanol])
    slab = ethanol_in_a_box()
    slab.pbc = [True, True, False]
    fractional = ethanol.copy()
    fractional.info["charge"] = 0.5
    silicon, nan = ethanol.copy(), ethanol.copy()
    silicon.symbols[0] = "Si"
    nan.positions[0] = np.nan
    pid = fennol._session.pid
    with pytest.warns(UserWarning, match="charge=0.5"):
        failures = fennol.label([slab, fractional, silicon, nan])
    complaints = ["all directions or in none", "whole number", "not made for Si", "not finite"]
    for failure, complaint in zip(failures, complaints, strict=True):
        assert complaint in failure.error
    assert fennol._session.pid == pid  # nothing of it got into the library
    [after] = fennol.label([ethanol])
    assert after.labels["energy"] == pytest.approx(float(before.labels["energy"]), abs=1e-9)
    with pytest.raises(PropertyNotImplementedError):
        fennol.get_property("stress", ethanol)
    assert fennol.elements == {1, 6, 7, 8}


def test_fennol_keeps_nothing_of_the_structure_before(fennol):
    """Its neighbour lists and padding grow with a structure and must not outlive it."""
    box = ethanol_in_a_box()
    dimer = Atoms("H2", [[0, 0, 0], [0, 0, 0.8]])
    far = Atoms("O2", [[0, 0, 0], [0, 0, 40.0]])  # no neighbours at all
    known = {}
    for atoms in (dimer, box, far, box, dimer):  # each compiled again, which takes seconds
        [answer] = fennol.label([atoms])
        assert answer.error is None, answer.error
        found = answer.labels["energy"], answer.labels["forces"]
        energy, forces = known.setdefault(id(atoms), found)
        assert float(answer.labels["energy"]) == pytest.approx(float(energy), abs=1e-9)
        np.testing.assert_allclose(answer.labels["forces"], forces, rtol=0, atol=1e-9)
    np.testing.assert_allclose(known[id(far)][1], 0.0, atol=1e-9)
    along = known[id(dimer)][1]
    np.testing.assert_allclose(along[0], -along[1], atol=1e-9)
    assert abs(along[0, 2]) > 0.1


def test_a_file_that_is_no_model(shared, tmp_path, need):
    need("fennol")
    (tmp_path / "text.fnx").write_text("not a model")
    with pytest.raises(TeacherError, match="could not be loaded"):
        _ = load_teacher(f"fennol:{tmp_path / 'text.fnx'}").identity


@pytest.mark.parametrize(
    ("spec", "package", "licence", "settings"),
    [
        ("7net-mf-0:PBE", "sevenn", "MIT", {"modal": "PBE", "precision": "float32"}),
        ("chgnet-r2scan", "chgnet", "Modified BSD (BSD-3-Clause)", {"precision": "float32"}),
    ],
)
def test_other_bundled_weights(teacher, spec, package, licence, settings):
    identity = teacher(spec, package).identity
    assert identity.name == spec
    assert identity.licence == licence
    assert identity.settings == settings
    assert len(identity.weights_sha256) == 64
    base = "7net-0" if package == "sevenn" else "chgnet"
    assert identity.weights_sha256 != teacher(base, package).identity.weights_sha256
    [answer] = teacher(spec, package).label([crystal(spec)])
    assert answer.error is None


def test_local_sevennet_checkpoints(teacher):
    bundled = teacher("7net-0", "sevenn").identity
    folder = Path(importlib.util.find_spec("sevenn").origin).parent / "pretrained_potentials"
    [file] = (folder / "SevenNet_0__11Jul2024").glob("*.pth")
    local = teacher(f"sevennet:{file}", "sevenn").identity
    assert local.weights_sha256 == bundled.weights_sha256
    assert local.weights_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert local.name == f"sevennet:{file.name}"
    assert local.licence == "see the model's source"
    [multi] = (folder / "SevenNet_MF_0").glob("*.pth")
    with pytest.raises(TeacherError, match=r"several surfaces[^$]*R2SCAN"):
        _ = load_teacher(f"sevennet:{multi}").identity


def test_cuda_that_is_missing(need):
    need("torchani")
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(TeacherError, match="device 'cuda' is not available"):
        _ = load_teacher("ani-1x", device="cuda").identity


def test_in_vacuum():
    wire = Atoms("C2", [[0, 0, 90.0], [1, 5, 91.3]], cell=[0, 0, 2.6], pbc=[False, False, True])
    boxed = in_vacuum(wire, 6.0)
    assert boxed.pbc.all()
    np.testing.assert_allclose(np.abs(boxed.cell.lengths()), [13, 17, 2.6])
    assert boxed.get_distance(0, 1, mic=True) == pytest.approx(wire.get_distance(0, 1, mic=True))
    assert (boxed.get_scaled_positions(wrap=False) >= 0).all()
    assert (boxed.get_scaled_positions(wrap=False) < 1).all()
    left_handed = bulk("Cu")
    left_handed.set_cell(left_handed.cell.array[[1, 0, 2]])
    np.testing.assert_array_equal(in_vacuum(left_handed, 6.0).cell, left_handed.cell)


def test_small_pieces():
    np.testing.assert_array_equal(full_stress(np.arange(6.0)), [[0, 5, 4], [5, 1, 3], [4, 3, 2]])
    with pytest.raises(TeacherError, match="wrong shape"):
        full_stress(np.zeros((2, 3)))
    members = np.zeros((2, 1, 3))
    members[:, 0, 1] = [1.0, -1.0]
    np.testing.assert_allclose(force_spread(members), [1.0])
    atoms = Atoms("H2")
    atoms.set_initial_charges([0.5, 0.5])
    assert total_charge(atoms) == 1
    atoms.info["charge"] = -2
    assert total_charge(atoms) == -2
    atoms.info["charge"] = 0.3
    with pytest.raises(StructureError, match="whole number"):
        total_charge(atoms)


class Payload:
    """What a pickle can do: here it leaves a file."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("name", ["model.pkl", "model.pickle", "model.pt", "model"])
def test_fennol_is_given_no_pickle(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(Payload()))
    with pytest.raises(TeacherError, match=r"not a \.fnx file"):
        load_teacher(f"fennol:{name}")


def test_of_a_chgnet_checkpoint_only_tensors_are_read(tmp_path, monkeypatch, need):
    need("chgnet")
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Payload()}, "bad.pth.tar")
    with (
        load_teacher("chgnet:bad.pth.tar", device="cpu") as teacher,
        pytest.raises(TeacherError, match="cannot be read"),
    ):
        _ = teacher.identity
    assert not Path("ran").exists()
    folder = Path(importlib.util.find_spec("chgnet").origin).parent / "pretrained" / "0.3.0"
    with load_teacher(f"chgnet:{next(folder.glob('*.tar'))}", device="cpu") as teacher:
        assert teacher.label([bulk("Cu")])[0].error is None
