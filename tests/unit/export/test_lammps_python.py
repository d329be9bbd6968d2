"""LAMMPS by Python: a student as a fix, its sums, what is refused, and errors that end a run."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from tests.helpers import random_nep, random_painn, rattled

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.deploy.lammps import StudentFix, lammps
from mlff_distiller.errors import ConfigError, DynamicsError, UnknownElementError
from mlff_distiller.export import export, lammps_python
from mlff_distiller.export.lammps_files import BAR_A3, write_data
from mlff_distiller.students.error_model import ErrorModel

from .conftest import save

QUIET = ("-log", "none", "-screen", "none")
ELEMENTS = ("Hf", "O")


def fake(ranks=1, units="metal", n_types=2, box=1):
    settings = {"world_size": ranks, "ntypes": n_types, "box_exist": box}
    return SimpleNamespace(extract_setting=settings.get, extract_global={"units": units}.get)


@pytest.mark.parametrize(
    ("program", "elements", "error", "said"),
    [
        (fake(ranks=2), ELEMENTS, DynamicsError, r"one MPI rank(?s:.*)2 ranks.*\n.*export lammps'"),
        (fake(units="real"), ELEMENTS, DynamicsError, r"units metal\n.*found: +real"),
        (fake(n_types=1), None, DynamicsError, r"expected: 1 of them\n.*found: +Hf O"),
        (fake(box=0), None, DynamicsError, "a box: read_data comes first"),
        (fake(), ("Hf", "Si"), UnknownElementError, "does not know Si"),
    ],
)
def test_what_would_go_wrong_is_refused(program, elements, error, said):
    with pytest.raises(error, match=said):
        StudentFix(program, random_nep(ELEMENTS), elements, device="cpu")


@pytest.fixture
def program():
    pytest.importorskip("lammps", reason="LAMMPS is not installed")
    program = lammps(*QUIET)
    yield program
    program.close()


@pytest.mark.parametrize("make", [random_nep, random_painn], ids=["nep", "painn"])
def test_it_adds_to_another_potential(make, program, tmp_path):
    """Types in another order, atoms that LAMMPS has sorted, and sums of all kinds."""
    student = make(ELEMENTS)
    atoms = rattled(bulk("HfO", "rocksalt", a=4.6, cubic=True) * 2)
    write_data(tmp_path / "frame.data", atoms, ELEMENTS[::-1])
    repulsion = "pair_style zbl 1.0 2.0\npair_coeff 1 1 8 8\npair_coeff 2 2 72 72\n"
    program.commands_string(
        f"units metal\natom_modify sort 1 1.0\nread_data {tmp_path / 'frame.data'}\n{repulsion}"
        "pair_coeff 1 2 8 72\ncompute energies all pe/atom\ncompute virials all stress/atom NULL\n"
        "compute virial all pressure NULL virial\nthermo_style custom step pe vol c_virial[*]\n"
    )

    def sums():
        program.command("run 0")
        n, order = len(atoms), np.argsort(program.numpy.extract_atom("id")[: len(atoms)])
        virial = program.numpy.extract_compute("virial", 0, 1) * atoms.get_volume() / BAR_A3
        energies = program.numpy.extract_compute("energies", 1, 1)[:n][order].copy()
        forces = program.numpy.extract_atom("f")[:n][order].copy()
        return program.get_thermo("pe"), forces, energies, virial

    alone = sums()
    StudentFix(program, student, ELEMENTS[::-1], device="cpu", dtype="float64")
    together = sums()
    found = [both - other for both, other in zip(together, alone, strict=True)]
    own = StudentCalculator(student, device="cpu", dtype="float64")
    order = np.argsort(program.numpy.extract_atom("id")[: len(atoms)])
    assert not np.array_equal(order, np.arange(len(atoms)))
    assert found[0] == pytest.approx(own.get_property("energy", atoms), abs=1e-8)
    np.testing.assert_allclose(found[1], own.get_property("forces", atoms), atol=1e-8)
    np.testing.assert_allclose(found[2], own.get_property("energies", atoms), atol=1e-8)
    xx, yy, zz, yz, xz, xy = -own.get_property("stress", atoms) * atoms.get_volume()
    np.testing.assert_allclose(found[3], [xx, yy, zz, xy, xz, yz], atol=1e-6)
    assert np.isnan(program.numpy.extract_compute("virials", 1, 2)).all()  # not zero: unknown


def test_it_follows_a_box_that_changes(program, tmp_path):
    student = random_nep(("Si",))
    write_data(tmp_path / "frame.data", rattled(bulk("Si", cubic=True)), ("Si",))
    program.commands_string(
        f"units metal\nread_data {tmp_path / 'frame.data'}\nchange_box all triclinic\n"
        "pair_style zero 1.0\npair_coeff * *\ntimestep 0.001\nvelocity all create 300 1\n"
        "change_box all xy final 0.5 xz final -0.3 yz final 0.7 remap units box\n"
    )
    StudentFix(program, student, device="cpu", dtype="float64")
    program.command("fix npt all npt temp 300 300 0.1 tri 0 0 0.1")
    program.command("run 20")
    low, high, xy, yz, xz, *_ = program.extract_box()
    x, y, z = np.subtract(high, low)
    order = np.argsort(program.numpy.extract_atom("id")[:8])
    positions, forces = (program.numpy.extract_atom(name)[:8][order] for name in "xf")
    atoms = Atoms("Si8", positions, cell=[[x, 0, 0], [xy, y, 0], [xz, yz, z]], pbc=True)
    assert abs(xy - 0.5) > 1e-6
    own = StudentCalculator(student, device="cpu", dtype="float64")
    np.testing.assert_allclose(forces, own.get_property("forces", atoms), atol=1e-8)


def test_it_warns_of_what_the_student_does_not_know(program, tmp_path):
    student, one = random_nep(("Si",)), torch.ones(1, dtype=torch.float64)
    whitening = torch.eye(student.shape.neurons, dtype=torch.float64)[None]
    model = ErrorModel(0 * whitening[0, :1], whitening, one, one, 1.0, 4.5, 0.1, limit=1e-9)
    write_data(tmp_path / "frame.data", rattled(bulk("Si", cubic=True)), ("Si",))
    program.commands_string(
        f"units metal\nread_data {tmp_path / 'frame.data'}\npair_style zero 1.0\npair_coeff * *"
    )
    with pytest.raises(ConfigError, match="needs a student that estimates its errors"):
        StudentFix(program, student, device="cpu", guard="warn")
    student.error_model = model
    StudentFix(program, student, device="cpu", guard="warn", guard_every=1)
    with pytest.warns(UserWarning, match=r"does not know this structure.* atom . \(Si\) is"):
        program.command("run 0")


def test_an_error_during_a_run_ends_it(folder, tmp_path):
    """Python ignores what callbacks raise: LAMMPS would go on without the student's forces."""
    pytest.importorskip("lammps", reason="LAMMPS is not installed")
    done = export("lammps-python", folder, tmp_path / "out")
    script = (done.out / "run_lammps.py").read_text()
    broken = script.replace(
        'lmp.file("in.run")', "student._engine.evaluate = None\nlmp.command('run 5')\nprint('on')"
    )
    (done.out / "broken.py").write_text(broken)
    ended = subprocess.run(
        [sys.executable, "broken.py"], cwd=done.out, capture_output=True, text=True, check=False
    )
    assert ended.returncode != 0
    assert "the student failed at step 0: 'NoneType' object is not callable" in ended.stderr
    assert "on\n" not in ended.stdout.splitlines(keepends=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nep", "painn"])
def test_what_is_exported_runs_and_agrees(name, tmp_path, monkeypatch):
    monkeypatch.setattr(lammps_python, "_STEPS", 40)
    pytest.importorskip("lammps", reason="LAMMPS is not installed")
    done = export("lammps-python", save(tmp_path / "student", name), tmp_path / "out", check=True)
    assert done.passed, done.rows
    names = {row.what for row in done.rows}
    assert "virial, a small periodic cell of it" in names
    assert "forces 20 steps after a restart" in names
