"""What engines that call Python share: files, the box, and errors; none of them is needed here."""

import numpy as np
import pytest
from ase.build import bulk, fcc111
from ase.io import read
from tests.helpers import random_nep, rattled, structures

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.errors import ExportError, StudentError
from mlff_distiller.export import export, target_of
from mlff_distiller.export.python import Found, boxed, compared, drift, run_in_copy
from mlff_distiller.export.target import Row
from mlff_distiller.students import load_student

ENGINES = {
    "lammps-python": "run_lammps.py",
    "openmm": "run_openmm.py",
    "ipi": "input.xml",
    "torchsim": "run_torchsim.py",
}


@pytest.mark.parametrize("engine", ENGINES)
def test_all_that_a_run_needs_is_written(engine, folder, tmp_path):
    done = export(engine, folder, tmp_path / "out")
    assert done.files[0].name == "README.md"
    assert {ENGINES[engine], "structure.extxyz", "student"} <= {file.name for file in done.files}
    assert load_student(tmp_path / "out" / "student").elements == ("H", "O")
    start = read(tmp_path / "out" / "structure.extxyz")
    assert set(start.symbols) == {"H", "O"}
    assert not start.pbc.any()
    assert len((tmp_path / "out" / "README.md").read_text().splitlines()) <= 15


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bare_file_will_do(engine, silicon, tmp_path):
    export(engine, silicon / "nep.txt", tmp_path / "out")
    assert load_student(tmp_path / "out" / "student").elements == ("Si",)
    start = read(tmp_path / "out" / "structure.extxyz")
    assert start.pbc.all()
    assert len(start) >= 32


def test_painn_is_taken_too(tmp_path):
    from .conftest import save

    export("ipi", save(tmp_path / "student", "painn"), tmp_path / "out")
    assert load_student(tmp_path / "out" / "student").architecture == "painn"


def test_a_damaged_student_is_refused_before_anything_is_written(folder, tmp_path):
    weights = folder.parent / "damaged"
    weights.mkdir(exist_ok=True)
    for file in folder.iterdir():
        (weights / file.name).write_bytes(file.read_bytes())
    (weights / "weights.safetensors").write_bytes(b"0")
    with pytest.raises(StudentError, match=r"does not belong to its config\.json"):
        export("ipi", weights, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_what_to_install_takes_one_line(engine, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("mlff_distiller.export.python.find_spec", lambda name: None)
    monkeypatch.setattr("sys.version_info", (3, 13, 0))
    with pytest.raises(ExportError, match="there is no Python package") as error:
        export(engine, folder, tmp_path / "out", check=True)
    assert f"remedy:   {target_of(engine).install}, or" in str(error.value)


def test_torchsim_tells_the_python_that_it_needs(monkeypatch):
    monkeypatch.setattr("sys.version_info", (3, 11, 9))
    assert "needs Python 3.12" in target_of("torchsim").missing()


CRYSTALS = {
    "cubic": bulk("Si", cubic=True),
    "primitive": bulk("Si"),
    "hexagonal": bulk("Mg", "hcp", a=3.2, c=5.2),
    "left-handed": structures()["left-handed cell"],
    "skewed": structures()["skewed cell"],
    "slab": fcc111("Cu", (2, 2, 3), a=3.6, vacuum=3.0),
    "molecule": structures()["molecule"],
    "wire": structures()["wire without other vectors"],
}


@pytest.mark.parametrize("name", CRYSTALS)
def test_a_box_holds_the_same_structure(name):
    atoms = CRYSTALS[name]
    elements = tuple(dict.fromkeys(atoms.symbols))
    calculator = StudentCalculator(random_nep(elements), device="cpu", dtype="float64")
    found = boxed(atoms)
    assert calculator.get_property("energy", found) == pytest.approx(
        calculator.get_property("energy", atoms), abs=1e-8
    )
    a, b, c = found.cell.array
    assert np.abs([a[1], a[2], b[2]]).max() < 1e-9
    assert found.get_volume() > 0
    if atoms.pbc.all():  # as OpenMM wants it
        assert abs(b[0]) <= 0.5 * a[0] + 1e-9
        assert abs(c[0]) <= 0.5 * a[0] + 1e-9
        assert abs(c[1]) <= 0.5 * b[1] + 1e-9


def test_differences_are_found():
    calculator = StudentCalculator(random_nep(), device="cpu", dtype="float64")
    atoms = rattled(structures()["small cell"])
    forces, volume = calculator.get_property("forces", atoms), atoms.get_volume()
    xx, yy, zz, yz, xz, xy = -volume * calculator.get_property("stress", atoms)
    virial = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    energy = calculator.get_property("energy", atoms)
    assert all(row.passed for row in compared("", atoms, Found(energy, forces, virial), calculator))
    for wrong in (
        Found(energy + 0.01, forces, virial),
        Found(energy, -forces, virial),
        Found(energy, forces, -virial),
    ):
        assert [row.passed for row in compared("", atoms, wrong, calculator)].count(False) == 1


def test_drift_is_of_the_mean():
    steps = np.arange(100)
    assert drift("", np.cos(steps * np.pi), 2).passed
    row = drift("", 1e-3 * steps, 2)
    assert row == Row(row.what, pytest.approx(25.0), "meV/atom", 1.0)
    assert not row.passed


def test_last_words_of_what_fails(tmp_path):
    (tmp_path / "fails.py").write_text("print('so far'); raise SystemExit('the box is too small')")
    with (
        pytest.raises(ExportError, match=r"fails\.py failed\n  found:    the box is too small"),
        run_in_copy(tmp_path, "fails.py"),
    ):
        pass


def test_a_run_leaves_the_folder_alone(tmp_path):
    (tmp_path / "writes.py").write_text("open('log', 'w').write('done')")
    with run_in_copy(tmp_path, "writes.py") as copy:
        assert (copy / "log").read_text() == "done"
    assert [file.name for file in tmp_path.iterdir()] == ["writes.py"]
