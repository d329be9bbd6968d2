"""What the kernels of NEP give, what the reference gives, and how far they may differ."""

import copy

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.stress import voigt_6_to_full_3x3_stress
from tests.helpers import rattled

from mlff_distiller.batch import Batch
from mlff_distiller.engines.loading import ready_student
from mlff_distiller.engines.nep import NEPEngine
from mlff_distiller.kernels.nep.warp_lanes import WARP
from mlff_distiller.neighbors import neighbor_list
from mlff_distiller.students import NEP

FORCE_TOLERANCE = {"float64": 1e-9, "float32": 5e-5}  # eV/Å

LANES = [1, WARP]  # on a CPU; there the lanes of a warp take turns


def engine(student: NEP, dtype: str = "float64", device: str = "cpu", **settings) -> NEPEngine:
    return NEPEngine(ready_student(copy.deepcopy(student), device, dtype), **settings)


def run(engine: NEPEngine, atoms: Atoms):
    found = engine.evaluate(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc)
    return found.energy, found.energies, found.forces, voigt_6_to_full_3x3_stress(found.virial)


def expected(student: NEP, atoms: Atoms):
    batch = Batch.from_atoms([atoms])
    with torch.no_grad():
        prediction = student(batch, neighbor_list(batch, student.cutoff))
    virial = -prediction.stress[0].numpy() * atoms.cell.volume if atoms.cell.rank == 3 else None
    return (
        float(prediction.energy[0]),
        prediction.energies.numpy(),
        prediction.forces.numpy(),
        virial,
    )


def assert_same(found, wanted, dtype: str = "float64") -> None:
    tolerance = FORCE_TOLERANCE[dtype]
    n_atoms = len(wanted[1])
    assert np.abs(found[2] - wanted[2]).max() <= tolerance
    assert np.abs(found[1] - wanted[1]).max() <= tolerance
    assert found[0] == pytest.approx(wanted[0], abs=tolerance * n_atoms)
    if wanted[3] is not None:
        assert np.abs(found[3] - wanted[3]).max() <= 5 * tolerance * n_atoms


def many_atoms(n: int = 5) -> Atoms:
    atoms = bulk("Fe", a=3.0, cubic=True) * (n, n, n)
    atoms.numbers = np.random.default_rng(1).choice([1, 8], len(atoms))
    atoms.set_initial_magnetic_moments(None)
    return rattled(atoms, 0.1)
