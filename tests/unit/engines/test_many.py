"""Many systems in one evaluation: each as if it were alone."""

import copy

import numpy as np
import pytest
import torch
from tests.helpers import random_nep, random_painn, rattled, structures

from mlff_distiller.batch import Batch
from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.engines.choice import choose_engine
from mlff_distiller.errors import StructureError, StudentError, UnknownElementError

STUDENTS = {"nep": random_nep, "painn": random_painn}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


@pytest.fixture(params=STUDENTS)
def student(request, device):
    return STUDENTS[request.param]().to(device)


def compare(engine, calculator, frames):
    found = engine.evaluate_many(Batch.from_atoms(frames))
    forces = found.forces.cpu().split([len(atoms) for atoms in frames])
    for index, atoms in enumerate(frames):
        results = calculator._engine.evaluate(
            atoms.positions, atoms.numbers.astype(np.int64), atoms.cell.array, atoms.pbc
        )
        assert float(found.energy[index]) == pytest.approx(results.energy, abs=1e-9)
        np.testing.assert_allclose(forces[index], results.forces, atol=1e-9)
        xx, yy, zz, yz, xz, xy = results.virial
        virial = [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]
        np.testing.assert_allclose(found.virial[index].cpu(), virial, atol=1e-9)


def test_each_system_is_as_if_alone(student):
    engine = choose_engine(student)
    calculator = StudentCalculator(copy.deepcopy(student), device="cpu", dtype="float64")
    frames = list(structures().values())
    compare(engine, calculator, frames)
    compare(engine, calculator, [rattled(atoms, 0.02) for atoms in frames])  # within the skin
    compare(engine, calculator, [rattled(atoms, 1.0) for atoms in frames])  # beyond it
    stretched = [atoms.copy() for atoms in frames]
    for atoms in stretched:
        atoms.set_cell(1.02 * atoms.cell.array, scale_atoms=True)
    compare(engine, calculator, stretched)
    compare(engine, calculator, frames[::-1])
    swapped = [atoms.copy() for atoms in frames[::-1]]
    for atoms in swapped:  # only the elements are others
        atoms.numbers = 9 - atoms.numbers
    compare(engine, calculator, swapped)
    # One evaluated in between does not spoil the next of many.
    engine.evaluate(frames[0].positions, frames[0].numbers, frames[0].cell.array, frames[0].pbc)
    compare(engine, calculator, swapped)


def test_in_whatever_mode_the_caller_is(student):
    engine, frames = choose_engine(student), list(structures().values())[:2]
    batch = Batch.from_atoms(frames)
    expected = engine.evaluate_many(batch)
    with torch.inference_mode(), torch.device("meta"):
        found = engine.evaluate_many(batch)
    assert torch.equal(found.energy, expected.energy)
    assert not found.forces.requires_grad


def test_results_are_the_caller_s_own(student):
    engine, frames = choose_engine(student), list(structures().values())[:2]
    first = engine.evaluate_many(Batch.from_atoms(frames))
    energy = first.energy.clone()
    engine.evaluate_many(Batch.from_atoms([rattled(atoms, 0.1) for atoms in frames]))
    assert torch.equal(first.energy, energy)


def test_what_cannot_be_evaluated_is_named(student):
    engine, frames = choose_engine(student), list(structures().values())[:3]
    engine.evaluate_many(Batch.from_atoms(frames))
    batch = Batch.from_atoms(frames)
    batch.positions[-1, 0] = torch.nan
    with pytest.raises(StructureError, match=r"structure 2: the position of atom \d is not finite"):
        engine.evaluate_many(batch)
    batch = Batch.from_atoms(frames)
    batch.cell[1] = torch.tensor([[1.0, 0, 0], [2, 0, 0], [0, 0, 3]])
    with pytest.raises(StructureError, match="structure 1: the cell is singular"):
        engine.evaluate_many(batch)
    batch = Batch.from_atoms(frames)
    batch.atomic_numbers[0] = 14
    with pytest.raises(UnknownElementError, match="does not know Si"):
        engine.evaluate_many(batch)
    student.reference_energies[:] = torch.nan
    with pytest.raises(StudentError, match="not finite"):
        choose_engine(student).evaluate_many(Batch.from_atoms(frames))
