"""PaiNN made for data: sizes, scales, and what its terms can tell apart."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from tests.helpers import random_painn, rattled
from tests.unit.students.labelled import energies, labelled

from mlff_distiller.batch import Batch
from mlff_distiller.errors import ConfigError
from mlff_distiller.kernels.slots import Slots
from mlff_distiller.neighbors import edge_vectors, neighbor_list
from mlff_distiller.students import PaiNN, PaiNNSettings, painn_for
from mlff_distiller.students.painn import bessel, saturated, solid_harmonics
from mlff_distiller.students.painn_setup import initialise
from mlff_distiller.students.repulsion import repulsion
from mlff_distiller.workflows.config import load_config

SMALL = PaiNNSettings(channels=16, layers=2)


@pytest.mark.parametrize(
    ("preset", "parameters"), [("32x2", 25_900), ("64x2", 97_800), ("128x3", 566_000)]
)
def test_presets(preset, parameters):
    config = load_config(None, student=f"painn-{preset}")
    student = config.new_student(labelled(bulk("Cu", cubic=True), 4))
    assert sum(p.numel() for p in student.parameters()) == pytest.approx(parameters, rel=0.03)
    assert student.dtype == torch.float32
    assert student.cutoff == 4.5
    assert f"{student.channels}x{student.layers}" == preset


@pytest.mark.parametrize(
    ("shortest", "outer"),
    [(1.2, 1.1 * 1.2), (1.9, 0.95 * 2.0), (2.2, 0.95 * 2.2), (9.0, 1.75 * 1.32)],
)
def test_repulsion_begins_where_few_pairs_are_or_molecules_meet(shortest, outer):
    distances = [shortest, *np.linspace(max(2.0, shortest), max(2.3, shortest), 1500)]
    frames = [Batch.from_atoms([Atoms("O2", [[0, 0, 0], [d, 0, 0]])]) for d in distances]
    ((pair,),) = repulsion(frames, ("O",), 5.0)
    assert pair[:2] == pytest.approx((outer / 2, outer), abs=2e-3)


def test_the_data_set_cutoff_scales_and_repulsion():
    frames = labelled(molecule("C2H6"), 6)
    student = painn_for(frames, PaiNNSettings(), 0)
    assert student.elements == ("H", "C")
    assert (student.cutoff, student.channels, student.layers) == (5.0, 64, 2)
    forces = torch.cat([frame.labels["forces"] for frame in frames]).double()
    assert float(student.scale) == pytest.approx(float(forces.square().mean().sqrt()))
    assert 0.02 < student.radial_scale < 1.0
    shortest = min(float(torch.pdist(frame.positions).min()) for frame in frames)  # C-H
    assert student.zbl[0][1][1] == pytest.approx(0.95 * shortest, abs=1.5e-3)
    words = ["painn.cutoff_A=3", "painn.channels=8", "painn.layers=1", "painn.zbl=false"]
    own = load_config(None, words, student="painn-64x2").new_student(frames)
    assert (own.cutoff, own.channels, own.layers, own.zbl) == (3.0, 8, 1, None)


def test_the_seed_decides_and_the_global_one_stays():
    frames = labelled(bulk("Cu", cubic=True), 2)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (painn_for(frames, SMALL, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.gather.weights, same.gather.weights)
    assert not torch.equal(one.gather.weights, other.gather.weights)


@pytest.mark.parametrize("preset", ["large", "64", "64x2x1"])
def test_no_such_preset(preset):
    with pytest.raises(ConfigError, match=r"student: there is no student.*painn-64x2"):
        load_config(None, student=f"painn-{preset}")


def test_sizes_out_of_range():
    with pytest.raises(ConfigError, match=r"student: layers: .* at most 8"):
        load_config(None, student="painn-64x9")


def test_training_follows_the_exact_gradient_of_forces():
    """The second derivative, by which force errors are trained, against finite differences."""
    student = random_painn(seed=2).train()
    batch = Batch.from_atoms([rattled(molecule("H2O"))])
    pairs = neighbor_list(batch, student.cutoff)
    weight = student.gather.filters.weight

    def error() -> torch.Tensor:
        return student(batch, pairs).forces.square().sum()

    (gradient,) = torch.autograd.grad(error(), weight)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).double()
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * 1e-5 * direction
        values.append(float(error().detach()))
        with torch.no_grad():
            weight -= sign * 1e-5 * direction
    slope = (values[0] - values[1]) / 2e-5
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-6)


def shells(order: int) -> tuple[Atoms, Atoms]:
    """Two neighbourhoods of the same distances, whose first differing moment is ``order``."""
    cos, sin = np.cos(np.radians(70)), np.sin(np.radians(70))
    if order > 2:  # two rings of so many atoms, above each other or turned
        vectors = tuple(
            [
                [0.8 * np.cos(angle), 0.8 * np.sin(angle), z]
                for z, turn in ((0.6, 0.0), (-0.6, turned))
                for angle in 2 * np.pi * (np.arange(order) + turn) / order
            ]
            for turned in (0.0, 0.5)
        )
    elif order == 1:
        vectors = [[1, 0, 0], [-1, 0, 0]], [[1, 0, 0], [0, 1, 0]]
    else:
        vectors = (
            [[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]],
            [
                [1, 0, 0],
                [-1, 0, 0],
                [cos, sin, 0],
                [-cos, -sin, 0],
            ],
        )
    one, other = (Atoms("O" + "H" * len(v), [[0, 0, 0], *v]) for v in vectors)
    return one, other


@pytest.mark.parametrize(
    ("order", "max_moment", "differ"),
    [
        (1, 1, 1),
        (2, 1, 0),
        (2, 2, 1),
        (3, 2, 0),
        (3, 3, 1),
        (4, 3, 0),
        (4, 4, 1),
        (6, 5, 0),
        (6, 6, 1),
    ],
)
def test_each_order_of_moments_sees_more_angles(order, max_moment, differ):
    """One layer, one centre: what lower moments cannot tell, those of the next order can."""
    student = PaiNN(("H", "O"), 1.1, 8, 1, 6, 2.0, max_moment=max_moment)
    initialise(student, torch.Generator().manual_seed(1))
    one, other = (energies(student, atoms) for atoms in shells(order))
    assert (abs(one - other) > 1e-6) == differ


@pytest.mark.parametrize("order", range(9))
def test_harmonics_obey_the_addition_theorem(order):
    one, other = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0)).double()
    lengths = one.norm(dim=1) * other.norm(dim=1)
    cosines = ((one * other).sum(1) / lengths).numpy()
    products = solid_harmonics(8, one)[order] * solid_harmonics(order, other)[-1]
    found = products.sum(1) / lengths**order
    expected = np.polynomial.legendre.Legendre.basis(order)(cosines)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_a_student_saved_with_the_flag_of_old_keeps_its_moments():
    config = random_painn(max_moment=2).config()
    del config["max_moment"]
    assert PaiNN.from_config({**config, "moments": True}).max_moment == 2
    assert PaiNN.from_config({**config, "moments": False}).max_moment == 1


def test_closer_than_in_the_data_only_the_repulsion_changes():
    student = random_painn(zbl=True)  # outer radius 1.3 Å
    plain = PaiNN.from_config({**student.config(), "zbl": None})
    plain.load_state_dict(student.state_dict())
    frozen = PaiNN.from_config(student.config() | {"saturates": False})
    frozen.load_state_dict(student.state_dict())

    def dimer(distance):
        return Atoms("OH", [[0, 0, 0], [distance, 0, 0]])

    def repulsion(distance):
        return energies(frozen, dimer(distance)) - energies(plain, dimer(distance))

    rest = [energies(student, dimer(r)) - repulsion(r) for r in (0.5, 0.7, 0.9, 0.97)]
    assert np.ptp(rest) < 1e-9
    for r in (1.3, 1.5):
        assert energies(student, dimer(r)) == energies(frozen, dimer(r))
    assert abs(energies(student, dimer(1.1)) - energies(frozen, dimer(1.1))) > 1e-6


def test_students_saved_before_messages_saturated_go_on_without():
    config = random_painn().config()
    del config["saturates"]
    assert not PaiNN.from_config(config).saturates


def test_saturation_is_twice_differentiable():
    outer = torch.tensor(1.4, dtype=torch.float64)
    for place in (outer, 0.75 * outer):
        values = []
        for side in (-1e-6, 1e-6):
            r = (place + side).requires_grad_()
            (first,) = torch.autograd.grad(saturated(r, outer), r, create_graph=True)
            (second,) = torch.autograd.grad(first, r) if first.requires_grad else (0.0 * r,)
            values.append([saturated(r, outer).item(), first.item(), second.item()])
        assert np.abs(np.subtract(*values)).max() < 1e-4


def test_coincident_atoms_stay_finite():
    student = random_painn(zbl=False)
    batch = Batch.from_atoms([Atoms("OH", np.zeros((2, 3)))])
    prediction = student(batch, neighbor_list(batch, student.cutoff))
    assert torch.isfinite(prediction.forces).all()


def test_products_of_products_stay_small():
    """Three layers of quadratic terms on cubic ones; without softening 1e30 eV at 0.74 Å."""
    student = random_painn(zbl=False)
    for distance in (0.3, 0.74, 1.2):
        assert abs(energies(student, Atoms("H2", [[0, 0, 0], [0, 0, distance]]))) < 1e3


def test_a_crystal_is_harmonic_where_symmetry_makes_vectors_vanish():
    """Forces of a displaced atom double with its displacement; phonons need them to."""
    student = painn_for(labelled(bulk("Cu", cubic=True), 6), SMALL, 0).double()
    forces = []
    for displacement in (0.001, 0.002):
        atoms = bulk("Cu", cubic=True) * 2
        atoms.positions[0] += displacement
        batch = Batch.from_atoms([atoms])
        forces.append(student(batch, neighbor_list(batch, student.cutoff)).forces[0])
    torch.testing.assert_close(forces[1], 2.0 * forces[0], rtol=0.03, atol=0.0)


def test_a_student_keeps_the_norm_it_was_trained_with():
    student = random_painn()
    config = student.config()
    assert PaiNN.from_config(config).norm_width == student.norm_width == 1.0
    del config["norm_width"]
    assert PaiNN.from_config(config).updates[0].norm_width == 1e-3


def test_first_messages_are_sums_over_neighbours():
    student = random_painn(max_moment=1)
    gather, batch = student.gather, Batch.from_atoms([rattled(molecule("H2O2"))])
    pairs = neighbor_list(batch, student.cutoff)
    vectors, types = edge_vectors(batch, pairs), student.types(batch.atomic_numbers)
    slots = Slots.from_edges(types, pairs.i, pairs.j, vectors, 9.0)
    r = slots.vectors.norm(dim=2)
    radial = bessel(r, student.cutoff, student.radial_functions)
    s, v = gather(slots.neighbor_types, radial, slots.vectors / r.unsqueeze(2))
    one = bessel(vectors.norm(dim=1), student.cutoff, student.radial_functions)
    own, along = (gather.weights[types[pairs.j]] * gather.filters(one)).split(gather.sizes, 1)
    along = along.unsqueeze(1) * (vectors / vectors.norm(dim=1, keepdim=True)).unsqueeze(2)
    for found, summed in ((s, own), (v, along)):
        wanted = torch.zeros_like(found).index_add(0, pairs.i, summed)
        assert torch.allclose(found, wanted, rtol=0, atol=1e-12)
        assert wanted.abs().max() > 0.1


def test_atoms_without_neighbours():
    student = random_painn().train()
    apart = Batch.from_atoms([Atoms("H2O", [[0, 0, 0], [9, 0, 0], [0, 9, 0]])])
    energies_ = []
    for batch in (apart, Batch.from_atoms([Atoms("H")]), Batch.from_atoms([Atoms("O")])):
        found = student(batch, neighbor_list(batch, student.cutoff))
        found.forces.square().sum().backward()
        assert not found.forces.any()
        energies_.append(found.energy.item())
    assert energies_[0] == pytest.approx(2 * energies_[1] + energies_[2], abs=1e-12)
