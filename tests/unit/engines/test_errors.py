"""Estimates of force errors: kernels as PyTorch, laws of physics, files; what is far is told."""

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from safetensors.numpy import load_file
from scipy.spatial.transform import Rotation
from tests.helpers import random_nep, random_painn, rattled, structures

from mlff_distiller.batch import Batch
from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.engines.choice import choose_engine, slow_engine
from mlff_distiller.engines.nep import NEPEngine
from mlff_distiller.errors import StudentError
from mlff_distiller.kernels.types import WARP
from mlff_distiller.md.record import ForceField
from mlff_distiller.neighbors import neighbor_list
from mlff_distiller.reports.validation_tables import tables
from mlff_distiller.students import load_student, save_student
from mlff_distiller.students.error_model import LARGEST, fit_error_model
from mlff_distiller.validation.accuracy import Compared, answers
from mlff_distiller.validation.checks.error_estimates import CHECK
from mlff_distiller.validation.settings import ValidationSettings
from mlff_distiller.validation.subject import Subject

STUDENTS = {"nep": random_nep, "painn": random_painn}
NOISE = 0.1


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


def labelled(student, atoms: Atoms, seed: int) -> Batch:
    """With the student's own forces, and errors that have a length of ``NOISE`` eV/Å."""
    batch = Batch.from_atoms([atoms])
    found = student(batch, neighbor_list(batch, student.cutoff))
    apart = np.random.default_rng(seed).normal(size=(len(atoms), 3))
    apart *= NOISE / np.linalg.norm(apart, axis=1, keepdims=True)
    forces = found.forces.detach().double() + torch.from_numpy(apart)
    return dataclasses.replace(batch, labels={"energy": found.energy, "forces": forces})


def crystal(a: float = 3.0) -> Atoms:
    return bulk("OH", "rocksalt", a=a, cubic=True) * (2, 1, 1)


@pytest.fixture(scope="module", params=STUDENTS)
def fitted(request):
    student = STUDENTS[request.param]()
    frames = [labelled(student, rattled(crystal(), 0.05, seed), seed) for seed in range(20)]
    student.error_model = fit_error_model(student, frames[::2], frames[1::2])
    return student


def estimates(engine, atoms: Atoms):
    engine.evaluate(atoms.positions, atoms.numbers.astype(np.int64), atoms.cell.array, atoms.pbc)
    return engine.estimates()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_engine_estimates_what_the_model_says(fitted, dtype, device):
    student = copy.deepcopy(fitted).to(device, dtype)
    frames = [rattled(atoms, 0.05) for atoms in structures().values()]
    batch = Batch.from_atoms(frames).to(device)
    types = student.types(batch.atomic_numbers)
    pairs = neighbor_list(batch, student.cutoff)
    wanted = [
        own.cpu().numpy() for own in student.error_model.estimate(student, types, batch, pairs)
    ]
    engine = choose_engine(student)
    engine.evaluate_many(batch)
    ends = np.cumsum([len(atoms) for atoms in frames])[:-1]
    exact = 1e-9 if student.architecture == "nep" else 1e-8  # a painn looks functions up in tables
    tolerance = {"rtol": 1e-3 if dtype == torch.float32 else exact}
    for one in (engine.estimates(), engine.estimates()):
        np.testing.assert_allclose(one.errors, wanted[0], **tolerance)
        np.testing.assert_allclose(one.extrapolation, wanted[1], **tolerance)
    for own in (choose_engine(student), slow_engine(student)):
        parts = zip(frames, np.split(wanted[0], ends), np.split(wanted[1], ends), strict=True)
        for atoms, errors, extrapolation in parts:
            one = estimates(own, atoms)
            np.testing.assert_allclose(one.errors, errors, **tolerance)
            np.testing.assert_allclose(one.extrapolation, extrapolation, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lanes_that_share_an_atom_find_the_same(dtype):
    """Their source runs on a CPU too, one lane after the other."""
    student = random_nep().to(dtype)
    frames = [labelled(student, rattled(crystal(), 0.05, seed), seed) for seed in range(6)]
    student.error_model = fit_error_model(student, frames[::2], frames[1::2])
    for atoms in structures().values():
        one, shared = (estimates(NEPEngine(student, lanes=n), atoms) for n in (1, WARP))
        tolerance = 1e-4 if dtype == torch.float32 else 1e-12
        np.testing.assert_allclose(shared.errors, one.errors, rtol=tolerance)
        np.testing.assert_allclose(shared.extrapolation, one.extrapolation, rtol=tolerance)


def test_on_the_device_they_are_of_the_atoms_as_they_are(fitted):
    atoms = rattled(crystal(), 0.05)
    engine = choose_engine(fitted, [atoms])
    assert np.array_equal(engine.errors.numpy(), np.zeros(len(atoms)))
    engine.positions.assign(atoms.positions)
    engine.rebuild(atoms.cell.array, atoms.pbc)
    engine.compute()
    engine.estimate_errors()
    wanted = estimates(choose_engine(fitted), atoms)
    np.testing.assert_allclose(engine.errors.numpy(), wanted.errors, rtol=1e-12)
    np.testing.assert_allclose(engine.extrapolation.numpy(), wanted.extrapolation, rtol=1e-12)


def test_turning_moving_and_renumbering_atoms_changes_nothing(fitted):
    engine, atoms = choose_engine(fitted), rattled(crystal(), 0.05)
    wanted = estimates(engine, atoms)
    order = np.random.default_rng(0).permutation(len(atoms))
    turn = Rotation.random(rng=1).as_matrix()
    other = atoms[order]
    other.set_cell(other.cell.array @ turn.T, scale_atoms=True)
    other.positions += [7.1, -3.2, 0.4]
    found = estimates(engine, other)
    np.testing.assert_allclose(found.errors, wanted.errors[order], rtol=1e-9)
    np.testing.assert_allclose(found.extrapolation, wanted.extrapolation[order], rtol=1e-9)


def test_errors_are_those_of_frames_that_did_not_train(fitted):
    model, engine = fitted.error_model, choose_engine(fitted)
    assert model.typical == pytest.approx(NOISE, rel=1e-6)
    found = [estimates(engine, rattled(crystal(), 0.05, seed)).errors for seed in range(100, 120)]
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(NOISE, rel=0.25)
    assert np.max(found) < model.limit


def test_what_is_far_is_beyond_the_limit(fitted):
    engine, limit = choose_engine(fitted), fitted.error_model.limit
    trained = [rattled(crystal(), 0.05, seed) for seed in range(0, 20, 2)]
    grades = [estimates(engine, atoms).extrapolation.max() for atoms in trained]
    assert max(grades) == pytest.approx(1.0)
    squeezed, hole = rattled(crystal(2.5), 0.05), rattled(crystal(), 0.05)[1:]
    for atoms in (squeezed, hole, Atoms("OH", [[0, 0, 0], [0, 0, 0.5]]), Atoms("O")):
        assert estimates(engine, atoms).errors.max() > limit


def test_one_structure_unlike_the_others_moves_the_limit_only_where_it_trains(fitted):
    student = copy.deepcopy(fitted)
    near = [labelled(student, rattled(crystal(), 0.05, seed), seed) for seed in range(20)]
    far = labelled(student, rattled(crystal(), 0.12, 77), 0)
    for training, validation, is_told in (
        (near[::2], [*near[1::2], far], True),
        ([*near[::2], far], near[1::2], False),
    ):
        own = student.error_model = fit_error_model(student, training, validation)
        found = estimates(choose_engine(student), far.to_atoms()[0]).errors.max()
        assert (found > own.limit) == is_told
    farther = labelled(student, rattled(crystal(4.0), 0.4, 77), 0)
    own = fit_error_model(student, [*near[::2], farther], near[1::2])
    assert 3.0 * own.typical < own.limit <= 5.0 * own.typical


def test_an_element_that_did_not_train_is_far(fitted):
    student = copy.deepcopy(fitted)
    atoms = Atoms("O", cell=[2.0] * 3, pbc=True) * 2
    frames = [labelled(student, rattled(atoms, 0.05, seed), seed) for seed in range(6)]
    student.error_model = fit_error_model(student, frames[:3], frames[3:])
    engine = choose_engine(student)
    assert estimates(engine, rattled(atoms, 0.05, 7)).errors.max() < student.error_model.limit
    assert estimates(engine, crystal()).errors.max() > student.error_model.limit


def test_what_is_not_a_number_is_as_far_as_can_be(fitted):
    model = dataclasses.replace(fitted.error_model, mean=fitted.error_model.mean * np.nan)
    student = copy.deepcopy(fitted)
    student.error_model = model
    found = estimates(choose_engine(student), crystal())
    assert (found.extrapolation == LARGEST).all()
    assert (found.errors > model.limit).all()


def test_a_calculator_tells_them_when_asked(fitted):
    calculator, atoms = StudentCalculator(fitted, device="cpu", dtype="float64"), crystal()
    engine = choose_engine(fitted)
    assert set(calculator.extra) == {"forces_error", "extrapolation"}
    with pytest.raises(StudentError, match="no atoms yet"):
        calculator.extra["forces_error"]
    for seed in range(2):
        atoms = rattled(crystal(), 0.05, seed)
        atoms.calc = calculator
        atoms.get_forces()
        wanted = estimates(engine, atoms)
        for one in (calculator, copy.deepcopy(calculator), pickle.loads(pickle.dumps(calculator))):
            np.testing.assert_allclose(one.extra["forces_error"], wanted.errors, rtol=1e-9)
            found = one.extra["extrapolation"]
            np.testing.assert_allclose(found, wanted.extrapolation, rtol=1e-9)
        found[:] = 0.0  # the caller's own
        assert calculator.extra["extrapolation"].min() > 0.0
    with pytest.raises(KeyError):
        calculator.extra["stress"]
    assert not StudentCalculator(random_nep(), device="cpu").extra


def test_a_validation_sets_them_beside_the_errors_found(fitted):
    calculator = StudentCalculator(fitted, device="cpu", dtype="float64")
    subject = Subject(ForceField("student", calculator), crystal(), ValidationSettings())
    assert not CHECK.applies(subject)
    frames = [rattled(crystal(), 0.02 * (1 + k % 5), k) for k in range(10)]
    mine = answers(subject.force_field, frames)
    calculator_errors = []
    for frame in frames:
        calculator.calculate(frame)
        calculator_errors.append(calculator.extra["forces_error"])
    apart = [own[:, None] * [0.6, 0.0, 0.8] for own in calculator_errors]
    forces = [own + error for own, error in zip(mine.forces, apart, strict=True)]
    theirs = dataclasses.replace(mine, forces=forces)
    subject.compared["test"] = Compared(frames, theirs, mine)
    assert CHECK.applies(subject)
    measured = CHECK.made(subject).numbers["error_estimates"]
    assert measured["limit_eV_per_A"] == fitted.error_model.limit
    found = measured["test"]
    assert found["n_atoms"] == sum(map(len, frames))
    assert found["rank_correlation"] == pytest.approx(1.0)
    assert found["auroc_of_large_errors"] in (None, 1.0)
    np.testing.assert_allclose(found["found_eV_per_A"], found["estimated_eV_per_A"])
    (panel,) = CHECK.panels({"error_estimates": measured}, {})
    assert len(panel.figure.data) == 2
    assert CHECK.panels({}, {}) == []
    content = json.loads(json.dumps({"measurements": {"error_estimates": measured}}))
    assert not tables(content["measurements"])


def test_a_student_keeps_its_model_on_disk(fitted, tmp_path):
    save_student(fitted, tmp_path / "student", about={}, card="", frames=[])
    found = load_student(tmp_path / "student")
    for field in dataclasses.fields(found.error_model):
        own = getattr(found.error_model, field.name)
        assert torch.equal(
            torch.as_tensor(own), torch.as_tensor(getattr(fitted.error_model, field.name))
        )
    path = tmp_path / "student" / "errors.safetensors"
    assert {"mean", "whitening", "limit"} <= set(load_file(path))
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    with pytest.raises(StudentError, match="does not belong to its config"):
        load_student(tmp_path / "student")


def test_a_student_without_one_says_nothing(tmp_path):
    student = random_nep()
    save_student(student, tmp_path / "student", about={}, card="", frames=[])
    assert load_student(tmp_path / "student").error_model is None
    engine = choose_engine(student)
    assert estimates(engine, crystal()) is None
    engine.estimate_errors()
    assert engine.errors is None
    assert fit_error_model(student, [labelled(student, crystal(), 0)], []) is None
