"""Every student obeys physics, in every kind of box."""

from functools import partial

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from tests.helpers import random_nep, random_painn, rattled, structures

from mlff_distiller.batch import Batch
from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.students import read_nep
from mlff_distiller.students.registry import architectures
from mlff_distiller.testing import LAWS, assert_laws, assert_smooth_at_cutoff


def made_for_data(architecture):
    """Its smallest preset, for frames of H and O whose labels nobody has to believe."""
    rng, frames = np.random.default_rng(0), []
    for number in range(6):
        atoms = rattled(molecule("H2O2"), 0.1, number)
        forces = rng.normal(size=(len(atoms), 3))
        atoms.calc = SinglePointCalculator(atoms, energy=rng.normal(), forces=forces)
        frames.append(Batch.from_atoms([atoms]))
    preset = next(iter(architecture.presets), architecture.name)
    settings = architecture.named(architecture.settings(), preset)
    return architecture.build(frames, settings, 0).double().eval()


STUDENTS = {
    **{name: partial(made_for_data, own) for name, own in architectures().items()},
    "nep without ZBL": lambda: random_nep(zbl=False),
    "painn without ZBL": lambda: random_painn(zbl=False),
    "painn without moments": lambda: random_painn(zbl=True, max_moment=1),
    "painn with fourth moments": lambda: random_painn(zbl=True, max_moment=4),
}


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("box", structures())
@pytest.mark.parametrize("student", STUDENTS)
def test_law(student, box, law):
    calculator = StudentCalculator(STUDENTS[student](), device="cpu", dtype="float64")
    law(calculator, rattled(structures()[box]))


@pytest.mark.parametrize(
    ("file", "crystal"),
    [
        ("Si_2022_NEP4_3body.txt", bulk("Si")),
        ("C_2022_NEP4.txt", bulk("C")),
        ("Song-2024-UNEP-v1-AgAlAuCrCuMgMoNiPbPdPtTaTiVWZr.txt", bulk("Cu", cubic=True)),
    ],
)
def test_published_models_obey_the_laws(shared, file, crystal):
    student = read_nep(shared / "data" / "nep" / file)
    assert_laws(StudentCalculator(student, device="cpu", dtype="float64"), rattled(crystal))


@pytest.mark.parametrize("student", STUDENTS)
def test_smooth_at_cutoff(student):
    model = STUDENTS[student]()
    calculator = StudentCalculator(model, device="cpu", dtype="float64")
    assert_smooth_at_cutoff(model, calculator, ("H", "O"))


def test_the_laws_can_fail():
    """A calculator that breaks a law is caught by that law."""

    class Broken(StudentCalculator):
        def _evaluate(self, now):
            results = super()._evaluate(now)
            results["forces"] = results["forces"] + 0.01 * now.positions
            results["energy"] += 0.01 * now.positions[0, 0]
            if "stress" in results:
                results["stress"] = -results["stress"]
            results["free_energy"] = results["energy"] + 1.0
            return results

    calculator = Broken(random_nep(), device="cpu", dtype="float64")
    atoms = rattled(structures()["skewed cell"])
    for law in LAWS:
        with pytest.raises(AssertionError, match=r"differs by|must equal"):
            law(calculator, atoms)


@pytest.mark.parametrize("student", STUDENTS)
def test_one_atom_has_its_reference_energy_and_no_force(student):
    model = STUDENTS[student]()
    atoms = Atoms("O")
    atoms.calc = StudentCalculator(model, device="cpu", dtype="float64")
    alone = atoms.get_potential_energy()
    assert (atoms.get_forces() == 0).all()
    far = Atoms("O2", [[0, 0, 0], [50.0, 0, 0]])
    far.calc = StudentCalculator(model, device="cpu", dtype="float64")
    assert far.get_potential_energy() == pytest.approx(2 * alone, abs=1e-12)


@pytest.mark.parametrize("student", [name for name in STUDENTS if "without ZBL" not in name])
def test_repulsive_at_short_distance(student):
    calculator = StudentCalculator(STUDENTS[student](), device="cpu", dtype="float64")
    energies = []
    for distance in (0.05, 0.1, 0.2, 0.3):
        dimer = Atoms("OH", [[0, 0, 0], [distance, 0, 0]])
        dimer.calc = calculator
        energies.append(dimer.get_potential_energy())
        assert dimer.get_forces()[0, 0] < 0 < dimer.get_forces()[1, 0]
    assert (np.diff(energies) < 0).all()
