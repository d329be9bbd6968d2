"""OpenMM: pure and mixed systems, virtual sites untouched, units, and the example as it stands."""

import subprocess
import sys
from shutil import copytree

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from tests.helpers import ROOT, random_nep, random_painn, structures

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.errors import StudentError, UnknownElementError
from mlff_distiller.export import export

openmm = pytest.importorskip("openmm", reason="OpenMM is not installed")
openmmml = pytest.importorskip("openmmml", reason="OpenMM-ML is not installed")

adapter = pytest.importorskip("mlff_distiller.deploy.openmm_ml")
topology_of = pytest.importorskip("mlff_distiller.deploy.openmm").topology_of
KJ = units.kJ / units.mol


@pytest.fixture(params=[random_nep, random_painn], ids=["nep", "painn"])
def student(request):
    return request.param()


@pytest.fixture(autouse=True)
def registered():
    """As the entry point does where the package itself is installed."""
    openmmml.MLPotential.registerImplFactory("mlffd", adapter.StudentPotentialFactory())


def calculator(student):
    return StudentCalculator(student, device="cpu", dtype="float64")


def found(system, positions, groups=-1):
    """Energy (eV) and forces (eV/Å) of ``positions`` (Å)."""
    platform = openmm.Platform.getPlatform("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(0.1 * np.asarray(positions))
    context.computeVirtualSites()
    state = context.getState(energy=True, forces=True, groups=groups)
    energy, forces = state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value
    return energy * KJ, np.asarray(forces) * 0.1 * KJ


@pytest.mark.parametrize("name", ["molecule", "small cell"])
def test_a_whole_system(student, name):
    atoms = structures()[name]
    own = calculator(student)
    potential = openmmml.MLPotential("mlffd", student=student, device="cpu", dtype="float64")
    energy, forces = found(potential.createSystem(topology_of(atoms)), atoms.positions)
    assert energy == pytest.approx(own.get_property("energy", atoms), abs=1e-6)
    np.testing.assert_allclose(forces, own.get_property("forces", atoms), atol=1e-6)


def two_waters(model):
    """Topology, positions (Å) and force field of two waters of ``model`` in a box of 20 Å."""
    app, water = openmm.app, molecule("H2O")
    topology = app.Topology()
    chain = topology.addChain()
    for _ in range(2):
        residue = topology.addResidue("HOH", chain)
        own = [
            topology.addAtom(name, app.Element.getBySymbol(name[0]), residue)
            for name in ("O", "H1", "H2")
        ]
        topology.addBond(own[0], own[1])
        topology.addBond(own[0], own[2])
    topology.setUnitCellDimensions((2.0, 2.0, 2.0))
    field = app.ForceField(f"{model}.xml")
    positions = np.vstack([water.positions, np.add(water.positions, [0, 0, 4.0])])
    modeller = app.Modeller(topology, 0.1 * positions)
    modeller.addExtraParticles(field)
    placed = np.array(modeller.getPositions().value_in_unit(openmm.unit.angstrom))
    options = {"nonbondedMethod": app.PME, "nonbondedCutoff": 0.9, "rigidWater": False}
    return modeller.topology, placed, field.createSystem(modeller.topology, **options)


def in_the_box(symbols, positions):
    return Atoms(symbols, positions, cell=20 * np.eye(3), pbc=True)


def test_a_part_of_a_system(student):
    topology, positions, mm_system = two_waters("tip3p")
    part = [0, 1, 2]
    potential = openmmml.MLPotential("mlffd", student=student, device="cpu", dtype="float64")
    mixed = potential.createMixedSystem(topology, mm_system, part, forceGroup=1)
    energy, forces = found(mixed, positions, groups={1})
    own, atoms = calculator(student), in_the_box("OHH", positions[part])
    assert energy == pytest.approx(own.get_property("energy", atoms), abs=1e-6)
    np.testing.assert_allclose(forces[part], own.get_property("forces", atoms), atol=1e-6)
    assert not forces[3:].any()
    rest, _ = found(mixed, positions, groups={0})
    assert np.isfinite(rest)
    assert rest != 0.0  # the force field's own, between the two and of the other


def test_the_mixed_system_of_the_page(folder, tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "openmm.md").read_text(encoding="utf-8")
    block = next(own for own in text.split("```") if "createMixedSystem(" in own)
    monkeypatch.chdir(tmp_path)
    copytree(folder, tmp_path / "RUN" / "student")
    exec(block.removeprefix("python\n"), {})
    energy, unit = capsys.readouterr().out.split()
    assert np.isfinite(float(energy))
    assert unit == "kJ/mol"


def test_virtual_sites_are_left_alone(student):
    topology, positions, mm_system = two_waters("tip4pew")
    sites = [atom.index for atom in topology.atoms() if atom.element is None]
    real = [atom.index for atom in topology.atoms() if atom.element is not None]
    assert len(sites) == 2
    potential = openmmml.MLPotential("mlffd", student=student, device="cpu", dtype="float64")
    adapter.StudentPotential(calculator(student)).addForces(topology, mm_system, None, 1)
    own, atoms = calculator(student), in_the_box("OHHOHH", positions[real])
    for system in (potential.createSystem(topology), mm_system):
        energy, forces = found(system, positions, groups={1} if system is mm_system else -1)
        assert energy == pytest.approx(own.get_property("energy", atoms), abs=1e-6)
        np.testing.assert_allclose(forces[real], own.get_property("forces", atoms), atol=1e-6)
        assert not forces[sites].any()
    assert all(mm_system.isVirtualSite(index) for index in sites)


def test_a_system_can_be_saved(student):
    atoms = structures()["molecule"]
    potential = openmmml.MLPotential("mlffd", student=student, device="cpu", dtype="float64")
    system = potential.createSystem(topology_of(atoms))
    again = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    assert found(again, atoms.positions)[0] == found(system, atoms.positions)[0]


def test_errors_say_what_to_do(student):
    with pytest.raises(StudentError, match=r"MLPotential\('mlffd', student='RUN/student'\)"):
        openmmml.MLPotential("mlffd")
    potential = openmmml.MLPotential("mlffd", student=student, device="cpu")
    with pytest.raises(UnknownElementError, match="does not know Si"):
        potential.createSystem(topology_of(Atoms("SiO", np.eye(3)[:2])))


def test_others_pay_nothing_for_it():
    """OpenMM-ML imports every potential that is registered, also when ours is imported first."""
    program = (
        "import mlff_distiller.deploy.openmm, openmmml, mlff_distiller.deploy.openmm_ml, sys;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.slow
def test_what_is_exported_runs_and_agrees(folder, tmp_path):
    if "mlffd" not in {
        one.name for one in openmmml.mlpotential.entry_points(group="openmmml.potentials")
    }:
        pytest.skip("the package is not installed with its entry point: install it again")
    done = export("openmm", folder, tmp_path / "out", check=True)
    assert done.passed, done.rows
    assert "forces, a small periodic cell of it" in {row.what for row in done.rows}
