"""The kernels that train a NEP, against the reference and PyTorch's automatic differentiation."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from mlff_distiller.batch import Batch
from mlff_distiller.errors import KernelError
from mlff_distiller.kernels.nep import Shape
from mlff_distiller.kernels.nep import training as by_kernels
from mlff_distiller.neighbors import edge_vectors, neighbor_list
from mlff_distiller.students.nep import NEP
from mlff_distiller.training.loss import Spread
from mlff_distiller.training.minibatch import Minibatches, Size
from mlff_distiller.training.resident import Resident
from mlff_distiller.training.settings import TrainingSettings
from mlff_distiller.training.update import Updater
from mlff_distiller.training.workers import ALONE

SHAPES = {
    "all": Shape(4, 3, 6, 5, 4, True, True, 7),
    "plain": Shape(2, 5, 3, 7, 2, False, False, 3),
    "l=1": Shape(1, 1, 2, 3, 1, False, True, 2),
}
SCREENED = (0.7, 3.4, 0.18175, 3.1998, 0.50986, 0.94229, 0.28022, 0.4029, 0.02817, 0.20162)


def random_nep(elements: tuple[str, ...], shape: str, *, zbl: bool) -> NEP:
    torch.manual_seed(0)
    n = len(elements)
    pairs = [[SCREENED] * n] * n if zbl else None
    cutoffs = tuple((5.0 + 0.1 * k, 4.0 - 0.1 * k) for k in range(n))
    student = NEP(elements, SHAPES[shape], cutoffs, pairs)
    for own in student.parameters():
        own.data = 0.3 * torch.randn_like(own)
    student.q_center.normal_()
    student.scaler.uniform_(0.5, 1.5)
    return student.train()


def frames(elements: tuple[str, ...]) -> list[Atoms]:
    """Cells smaller than the cutoff, and a lone atom."""
    found = []
    for seed in range(3):
        atoms = bulk("Cu", cubic=True)
        atoms.symbols[:] = [elements[k % len(elements)] for k in range(4)]
        atoms.rattle(0.1, seed=seed)
        found.append(atoms)
    return [*found, Atoms(elements[:1], positions=[[0.0, 0.0, 0.0]])]


def outputs_and_gradients(student: NEP, batch: Batch, *, reference: bool) -> list[torch.Tensor]:
    pairs = neighbor_list(batch, student.cutoff)
    types = student.types(batch.atomic_numbers)
    vectors = edge_vectors(batch, pairs).to(student.dtype)
    vectors = vectors.clone().requires_grad_(reference)
    found = student.site_energies_and_gradients(types, pairs.i, pairs.j, vectors)
    generator = torch.Generator().manual_seed(1)
    adjoints = [
        torch.randn(own.shape, generator=generator, dtype=torch.float64).to(own) for own in found
    ]
    gradients = torch.autograd.grad(found, list(student.parameters()), adjoints)
    return [own.detach() for own in (*found, *gradients)]


def check_against_the_reference(student: NEP, batch: Batch, within: float) -> None:
    wanted = outputs_and_gradients(student, batch, reference=True)
    found = outputs_and_gradients(student, batch, reference=False)
    for a, b in zip(found, wanted, strict=True):
        assert float((a - b).abs().max()) <= within * float(b.abs().max())


@pytest.mark.parametrize("zbl", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("elements", [("Cu",), ("Cu", "Ni"), ("Cu", "Ni", "H")])
def test_energies_gradients_and_every_parameters_derivative(elements, shape, zbl):
    batch = Batch.from_atoms(frames(elements))
    check_against_the_reference(random_nep(elements, shape, zbl=zbl), batch, 1e-10)


def test_what_training_keeps_of_a_student_follows_its_changes():
    student, batch = random_nep(("Cu", "Ni"), "plain", zbl=True), Batch.from_atoms(frames(("Cu",)))
    check_against_the_reference(student, batch, 1e-10)
    student.scaler.mul_(1.5)
    check_against_the_reference(student, batch, 1e-10)
    student.repulsion.table[..., 1] *= 0.9
    check_against_the_reference(student, batch, 1e-10)
    student.load_state_dict({**student.state_dict(), "q_center": student.q_center - 0.2})
    check_against_the_reference(student, batch, 1e-10)
    check_against_the_reference(student.float().double(), batch, 1e-10)


def test_ends_of_pairs_may_take_half_the_memory(monkeypatch):
    student, batch = random_nep(("Cu", "Ni"), "plain", zbl=True), Batch.from_atoms(frames(("Cu",)))
    pairs = neighbor_list(batch, student.cutoff)
    vectors, types = edge_vectors(batch, pairs), student.types(batch.atomic_numbers)
    wanted = student.site_energies_and_gradients(types, pairs.i, pairs.j, vectors)
    found = student.site_energies_and_gradients(types, pairs.i.int(), pairs.j.int(), vectors)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))

    def fails(*_):
        raise KernelError("no compiler")

    monkeypatch.setattr(by_kernels, "OnTensors", fails)
    with pytest.warns(UserWarning, match="trains without its kernels, slower: no compiler"):
        found = student.site_energies_and_gradients(types, pairs.i.int(), pairs.j.int(), vectors)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("elements", [("Cu",), ("Cu", "Ni", "H")])
def test_the_same_on_a_gpu(elements, dtype):
    student = random_nep(elements, "all", zbl=True).to("cuda", dtype)
    batch = Batch.from_atoms(frames(elements)).to("cuda")
    check_against_the_reference(student, batch, 1e-10 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("elements", [("Cu",), ("Cu", "Ni")])
def test_sums_by_lanes_are_those_of_tables(elements):
    student = random_nep(elements, "all", zbl=True)
    batch = Batch.from_atoms(frames(elements))
    pairs = neighbor_list(batch, student.cutoff)
    vectors = edge_vectors(batch, pairs)
    given = (student._fixed(), student.types(batch.atomic_numbers), pairs.i, pairs.j, vectors)
    lanes, tables = (kind(*given) for kind in (by_kernels._Pairs, by_kernels._TabledPairs))
    radial, angular = tables.sums()
    moves = torch.randn(vectors.shape, dtype=torch.float64)
    for a, b in (
        (lanes.sums(), (radial, angular)),
        (lanes.sums_along(moves), tables.sums_along(moves)),
        ([lanes.gradients(radial, angular)], [tables.gradients(radial, angular)]),
    ):
        torch.testing.assert_close(list(a), list(b), rtol=1e-12, atol=1e-12)


def labelled(elements: tuple[str, ...]) -> list[Batch]:
    """As `frames`, and the first once more, displaced; not all know all."""
    rng = np.random.default_rng(0)
    all_frames = frames(elements)
    displaced = all_frames[0].copy()
    displaced.positions += 0.01 * rng.normal(size=displaced.positions.shape)
    found = []
    for number, atoms in enumerate([*all_frames, displaced]):
        n = len(atoms)
        labels = {
            "energy": torch.tensor([rng.normal()], dtype=torch.float64),
            "forces": torch.tensor(rng.normal(size=(n, 3))),
        }
        if atoms.pbc.any():
            stress = torch.tensor(rng.normal(size=(1, 3, 3)))
            labels["stress"] = 0.5 * (stress + stress.mT)
        if number != 1:
            labels["energies"] = torch.tensor(rng.normal(size=n))
        found.append(replace(Batch.from_atoms([atoms]), labels=labels))
    return found


@pytest.mark.parametrize("delta", [0.02, 3.0])
def test_the_loss_and_its_derivatives_are_those_of_autograd(delta):
    student, training = random_nep(("Cu", "Ni"), "all", zbl=False), labelled(("Cu", "Ni"))
    minibatches = Minibatches(training, student, 4096, probes=[(0, 4)])
    spread = Spread.of(training, student, [(0, 4)])
    settings = TrainingSettings(loss={"huber_delta": delta})
    updater = Updater(student, minibatches, spread, settings, ALONE)
    units = minibatches.plan(0)[0]
    part, weights = minibatches.make(units), torch.tensor([1.0, 0.3, 0.2, 0.4, 0.7]).double()
    scales = torch.stack([weights, minibatches.norms(units)])
    wanted = updater._loss(part, scales)
    gradients = torch.autograd.grad(wanted, list(student.parameters()))
    assert float(updater._learn(part, scales)) == pytest.approx(float(wanted.detach()), rel=1e-12)
    for own, gradient in zip(student.parameters(), gradients, strict=True):
        torch.testing.assert_close(own.grad, gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("units", [[1, 0], [3, 2, 0], [2], []])
def test_minibatches_joined_where_the_set_lies(units):
    student = random_nep(("Cu", "Ni"), "all", zbl=False)
    minibatches = Minibatches(labelled(("Cu", "Ni")), student, 4096, probes=[(0, 4)])
    minibatches.most_neighbors()  # finds all pairs
    size = Size(8, 40, 4096)
    resident = Resident(*minibatches.table, size)
    resident.choose(units)
    wanted, found = minibatches.make(units, size), resident.fill()
    for field in fields(wanted):
        assert torch.equal(getattr(found, field.name), getattr(wanted, field.name)), field.name


def test_every_pair_knows_its_reverse():
    batch = Batch.from_atoms(frames(("Cu",)))
    pairs = neighbor_list(batch, 5.0)
    back = pairs.reverse()
    assert torch.equal(pairs.i[back], pairs.j)
    assert torch.equal(pairs.shifts[back], -pairs.shifts)
    assert torch.equal(back[back], torch.arange(len(back)))
