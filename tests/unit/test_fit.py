"""Starting from an earlier student."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from tests.conftest import random_nep, random_painn, rattled

from mlff_distiller.batch import Batch
from mlff_distiller.errors import UnknownElementError
from mlff_distiller.fit import rebased
from mlff_distiller.neighbors import neighbor_list


def frames(energy: float, names=("H2O", "OH", "H2", "H2O2")) -> list[Batch]:
    batches = []
    for seed, name in enumerate(names):
        atoms = rattled(molecule(name), 0.05, seed)
        forces = np.zeros((len(atoms), 3))
        atoms.calc = SinglePointCalculator(atoms, energy=energy * len(atoms), forces=forces)
        batches.append(Batch.from_atoms([atoms]))
    return batches


@pytest.mark.parametrize("model", [random_nep, random_painn])
def test_reference_energies_follow_the_level_of_the_labels(model):
    own = model().float()
    before = own.reference_energies.clone()
    weights = {name: value.clone() for name, value in own.named_parameters()}
    labels = frames(0.0)
    for batch in labels:
        known = own(batch, neighbor_list(batch, own.cutoff)).energy.detach()
        shift = torch.tensor([-13.0, -2040.0], dtype=torch.float64)[own.types(batch.atomic_numbers)]
        batch.labels["energy"].copy_(known + shift.sum())
    student = rebased(own, labels)
    moved = student.reference_energies - before
    assert moved.tolist() == pytest.approx([-13.0, -2040.0], abs=1e-3)
    assert all(torch.equal(value, weights[name]) for name, value in student.named_parameters())


def test_an_element_that_no_frame_holds_keeps_its_energy():
    own = random_nep(("H", "C", "O")).float()
    before = float(own.reference_energies[1])
    assert float(rebased(own, frames(-5.0)).reference_energies[1]) == pytest.approx(before)


def test_an_element_it_does_not_know():
    atoms = Atoms("N2", [[0, 0, 0], [0, 0, 1.1]])
    atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((2, 3)))
    with pytest.raises(UnknownElementError, match="N"):
        rebased(random_nep().float(), [Batch.from_atoms([atoms])])
