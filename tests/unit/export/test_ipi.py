"""i-PI: atomic units, all beads in one evaluation, and the example as it stands."""

import numpy as np
import pytest
from ase import units
from ase.io import write
from tests.helpers import random_nep, random_painn, rattled, structures

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.engines.engine import Engine
from mlff_distiller.errors import StructureError, UnknownElementError
from mlff_distiller.export import export

pytest.importorskip("ipi", reason="i-PI is not installed")

StudentDriver = pytest.importorskip("mlff_distiller.deploy.ipi").StudentDriver


@pytest.fixture(params=[random_nep, random_painn], ids=["nep", "painn"])
def student(request):
    return request.param()


@pytest.fixture
def ice(tmp_path):
    """A periodic structure, and its file."""
    atoms = structures()["skewed cell"]
    write(tmp_path / "ice.xyz", atoms, format="extxyz")
    return atoms, tmp_path / "ice.xyz"


def in_bohr(atoms):
    return atoms.cell.array.T / units.Bohr, atoms.positions / units.Bohr


def test_units_and_signs(student, ice):
    atoms, template = ice
    own = StudentCalculator(student, device="cpu", dtype="float64")
    driver = StudentDriver(student, template, device="cpu", dtype="float64")
    energy, forces, virial, extras = driver(*in_bohr(atoms))
    assert energy * units.Hartree == pytest.approx(own.get_property("energy", atoms), abs=1e-8)
    expected = own.get_property("forces", atoms)
    np.testing.assert_allclose(forces * units.Hartree / units.Bohr, expected, atol=1e-8)
    xx, yy, zz, yz, xz, xy = -atoms.get_volume() * own.get_property("stress", atoms)
    expected = [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]
    np.testing.assert_allclose(virial * units.Hartree, expected, atol=1e-8)
    assert extras == ""


def test_beads_are_evaluated_at_once(student, ice, monkeypatch):
    atoms, template = ice
    driver = StudentDriver(student, template, device="cpu", dtype="float64")
    beads = [in_bohr(rattled(atoms, 0.02, seed)) for seed in range(4)]
    alone = [driver(*bead) for bead in beads]
    calls, evaluate = [], Engine.evaluate_many
    monkeypatch.setattr(
        Engine, "evaluate_many", lambda *given: (calls.append(1), evaluate(*given))[1]
    )
    together = driver([cell for cell, _ in beads], [positions for _, positions in beads])
    assert len(calls) == 1
    for one, other in zip(alone, together, strict=True):
        for mine, theirs in zip(one[:3], other[:3], strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-10)


def test_atoms_must_be_those_of_the_template(student, ice):
    atoms, template = ice
    driver = StudentDriver(student, template, device="cpu")
    with pytest.raises(StructureError, match="not those of the template"):
        driver(*in_bohr(atoms[:-1]))


def test_an_element_it_lacks(student, ice):
    atoms, template = ice
    atoms.symbols[0] = "Si"
    write(template, atoms, format="extxyz")
    with pytest.raises(UnknownElementError, match="does not know Si"):
        StudentDriver(student, template, device="cpu")


@pytest.mark.slow
def test_what_is_exported_runs_and_agrees(folder, tmp_path):
    done = export("ipi", folder, tmp_path / "out", check=True)
    assert done.passed, done.rows
    names = {row.what for row in done.rows}
    assert "virial, a small periodic cell of it" in names
    assert "forces, 100 steps of 8 beads, the last of them" in names
