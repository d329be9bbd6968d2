"""The reference kernel: its gradient is its energy's, twice over; and calorine agrees."""

import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from tests.helpers import random_nep, rattled, structures
from tests.kernels.published import FILES, crystals

from mlff_distiller.batch import Batch
from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.neighbors import edge_vectors, neighbor_list
from mlff_distiller.students import read_nep, write_nep


def edges(student, atoms):
    batch = Batch.from_atoms([atoms])
    pairs = neighbor_list(batch, student.cutoff)
    return student.types(batch.atomic_numbers), pairs.i, pairs.j, edge_vectors(batch, pairs)


@pytest.mark.parametrize("box", ["molecule", "skewed cell", "small cell"])
@pytest.mark.parametrize("zbl", [False, True])
def test_gradient_is_that_of_the_energy(box, zbl):
    student = random_nep(zbl=zbl)
    types, i, j, vectors = edges(student, rattled(structures()[box]))
    vectors.requires_grad_()
    energies, gradients = student.site_energies_and_gradients(types, i, j, vectors)
    (expected,) = torch.autograd.grad(energies.sum(), vectors)
    assert torch.allclose(gradients, expected, atol=1e-12)


def test_differentiable_twice_by_positions_and_once_more_by_parameters():
    student = random_nep(seed=2)
    types, i, j, vectors = edges(student, rattled(structures()["molecule"]))
    vectors.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda v: student.site_energies(types, i, j, v), vectors)
    names = [name for name, _ in student.named_parameters()]

    def loss(*values):
        parameters = dict(zip(names, values, strict=True))
        energies, gradients = torch.func.functional_call(
            _Both(student),
            {f"student.{name}": value for name, value in parameters.items()},
            (types, i, j, vectors.detach()),
        )
        return (energies**2).sum() + (gradients**2).sum()

    inputs = [value.detach().clone().requires_grad_() for value in student.parameters()]
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


class _Both(torch.nn.Module):
    def __init__(self, student):
        super().__init__()
        self.student = student

    def forward(self, types, i, j, vectors):
        return self.student.site_energies_and_gradients(types, i, j, vectors)


def test_no_edges_and_no_neighbours():
    student = random_nep()
    types, i, j, vectors = edges(student, Atoms("OH", [[0, 0, 0], [30, 0, 0]]))
    assert len(i) == 0
    energies, gradients = student.site_energies_and_gradients(types, i, j, vectors)
    assert energies.shape == (2,)
    assert gradients.shape == (0, 3)
    last = Atoms("OHO", [[0, 0, 0], [0, 0, 1.0], [30, 0, 0]])  # the last atom has none
    alone = StudentCalculator(student, device="cpu", dtype="float64", backend="torch")
    last.calc = alone
    assert (last.get_forces()[2] == 0).all()


def test_non_contiguous_vectors():
    student = random_nep()
    types, i, j, vectors = edges(student, structures()["skewed cell"])
    strided = torch.stack((vectors, vectors), 1)[:, 0]
    assert not strided.is_contiguous()
    for a, b in zip(
        student.site_energies_and_gradients(types, i, j, vectors),
        student.site_energies_and_gradients(types, i, j, strided),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_float32_is_close_to_float64():
    student = random_nep()
    atoms = rattled(structures()["skewed cell"])
    exact = StudentCalculator(random_nep(), device="cpu", dtype="float64", backend="torch")
    fast = StudentCalculator(student, device="cpu", dtype="float32", backend="torch")
    difference = fast.get_forces(atoms) - exact.get_forces(atoms)
    assert 0 < np.abs(difference).max() < 1e-4
    assert fast.get_potential_energy(atoms) == pytest.approx(
        exact.get_potential_energy(atoms), abs=1e-5
    )


def calorine(path, atoms):
    calculators = pytest.importorskip("calorine.calculators")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        atoms = atoms.copy()
        atoms.calc = calculators.CPUNEP(str(path))
        stress = atoms.get_stress() if atoms.cell.rank == 3 else None
        return atoms.get_potential_energy(), atoms.get_forces(), stress


@pytest.mark.parametrize("backend", ["torch", "warp"])
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", list(crystals(("Si",))))
def test_same_as_calorine(shared, file, kind, backend):
    path = shared / "data" / "nep" / file
    atoms = crystals(FILES[file])[kind]
    if kind == "cluster":
        atoms.center(vacuum=12.0)  # CPUNEP wants a cell
    energy, forces, stress = calorine(path, atoms)
    own = StudentCalculator(path, device="cpu", dtype="float64", backend=backend)
    assert own.get_potential_energy(atoms) == pytest.approx(energy, abs=1e-9 * len(atoms))
    assert np.abs(own.get_forces(atoms) - forces).max() <= 1e-8
    assert np.abs(own.get_stress(atoms) - stress).max() <= 1e-9


@pytest.mark.parametrize("zbl", [False, True])
def test_written_file_means_the_same_to_calorine(tmp_path, zbl):
    student = random_nep(zbl=zbl, seed=4)
    write_nep(student, tmp_path / "nep.txt", max_neighbors=(90, 60))
    atoms = rattled(structures()["small cell"]) * (2, 2, 2)
    own = StudentCalculator(student, device="cpu", dtype="float64", backend="torch")
    energy, forces, stress = calorine(tmp_path / "nep.txt", atoms)
    assert energy == pytest.approx(own.get_potential_energy(atoms), abs=1e-5)
    assert np.abs(own.get_forces(atoms)).max() > 0.5
    assert np.abs(own.get_forces(atoms) - forces).max() <= 1e-6
    assert np.abs(own.get_stress(atoms) - stress).max() <= 1e-7
    again = StudentCalculator(
        read_nep(tmp_path / "nep.txt"), device="cpu", dtype="float64", backend="torch"
    )
    assert np.abs(again.get_forces(atoms) - forces).max() <= 1e-9
    assert again.student.reference_energies.tolist() == [-1.0, -2.0]
