"""The frame of every export: folders, options, refusals, and the table of a check."""

import json
from importlib.metadata import version

import pytest
from ase.build import bulk
from ase.io import write
from tests.helpers import command, random_nep, random_painn

from mlff_distiller.cli.options import REFUSED
from mlff_distiller.durable import Lock
from mlff_distiller.errors import ConfigError, ExportError, StudentError
from mlff_distiller.export import export, target_of
from mlff_distiller.export.example import example
from mlff_distiller.export.gpumd import GPUMD
from mlff_distiller.export.ipi import IPI
from mlff_distiller.export.table import checks_of, keep_checks
from mlff_distiller.export.target import Row
from mlff_distiller.students import load_student, save_student, write_nep

from .conftest import save


@pytest.fixture
def student(tmp_path):
    path = tmp_path / "given" / "nep.txt"
    path.parent.mkdir()
    write_nep(random_nep(("Si",)), path, max_neighbors=(60, 30))
    return path


def test_an_engine_and_its_options_are_known_by_name(student, tmp_path):
    with pytest.raises(ConfigError, match="one of lammps, lammps-python, gpumd, openmm, ipi"):
        target_of("namd")
    with pytest.raises(ConfigError, match="gpumd does not have this option"):
        export("gpumd", student, tmp_path / "out", source="lammps")


def test_a_second_export_of_the_same_keeps_what_is_there(student, tmp_path):
    out = tmp_path / "out"
    first = export("gpumd", student, out)
    (out / "run.in").write_text("mine")
    (out / "movie.xyz").write_text("mine")
    assert export("gpumd", student, out).files == first.files
    assert (out / "run.in").read_text() == "mine"


def test_a_folder_with_anything_else_is_refused(student, tmp_path):
    other = tmp_path / "nep.txt"
    write_nep(random_nep(("Si",), seed=1), other, max_neighbors=(60, 30))
    export("gpumd", other, tmp_path / "out")
    for folder in (tmp_path / "out", student.parent):
        with pytest.raises(ConfigError, match="holds something else"):
            export("gpumd", student, folder)


def test_an_export_that_broke_off_is_written_again(student, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise OSError(28, "No space left on device")

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("mlff_distiller.export.gpumd.write_nep", broken)
        with pytest.raises(ConfigError, match="cannot be written: No space left"):
            export("gpumd", student, out)
    assert (out / "nep.txt") in export("gpumd", student, out).files
    assert (out / "nep.txt").is_file()


def test_painn_is_refused_by_what_runs_neps_only(tmp_path):
    folder = tmp_path / "painn"
    save_student(random_painn(("Si",)), folder, about={}, card="", frames=[])
    for engine in ("lammps", "gpumd"):
        said = (
            f"{engine} cannot run .* architecture painn(?s:.*)export to lammps-python, openmm, ipi"
        )
        with pytest.raises(StudentError, match=said):
            export(engine, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_named_before_anything_is_written(student, tmp_path, monkeypatch):
    monkeypatch.setattr(GPUMD, "missing", lambda self: "calorine is not installed")
    with pytest.raises(ExportError, match=r"calorine is not installed\n.*pip install calorine"):
        export("gpumd", student, tmp_path / "out", check=True)
    assert not (tmp_path / "out").exists()


def test_the_check_is_printed_and_kept(student, tmp_path, monkeypatch):
    rows = [
        Row("forces", 2e-3, "eV/Å", 1e-6),
        Row("drift", 0.1, "meV"),
        Row("x", float("nan"), "", 1),
    ]
    monkeypatch.setattr(GPUMD, "missing", lambda self: None)
    monkeypatch.setattr(GPUMD, "check", lambda self, student, out: rows)
    out = tmp_path / "out"
    for _ in range(2):  # the table takes the place of the one before
        done = command("export", "gpumd", student, "--out", out, "--check")
        assert done.returncode == REFUSED
        assert "✗    forces      0.002    1e-06" in done.stdout
    kept = json.loads((out / "check.json").read_text())["rows"]
    assert [(row["value"], row["passed"]) for row in kept] == [
        (2e-3, False),
        (0.1, True),
        (None, False),
    ]
    assert (out / "README.md").read_text().count("| ✗ | forces | 0.002 | 1e-06 | eV/Å |") == 1
    rows[:] = [Row("forces", 1e-9, "eV/Å", 1e-6)]
    assert command("export", "gpumd", student, "--out", out, "--check", "-q").returncode == 0


def test_the_card_has_the_largest_differences_by_engine(folder, tmp_path, monkeypatch):
    rows = [
        Row("forces, bulk", 1e-9, "eV/Å", 1e-6),
        Row("forces, slab", 2e-9, "eV/Å", 1e-6),
        Row("virial, bulk", float("nan"), "eV", 1e-6),
        Row("virial, slab", 3e-9, "eV", 1e-6),
    ]
    (folder / "README.md").write_text("# A student\n")
    for target in (GPUMD, IPI):
        monkeypatch.setattr(target, "missing", lambda self: None)
        monkeypatch.setattr(target, "check", lambda self, student, out: rows)
    for engine in ("gpumd", "ipi", "gpumd"):  # the last takes the place of the first
        export(engine, folder, tmp_path / engine, check=True)
    card = (folder / "README.md").read_text()
    assert card.startswith("# A student\n")
    assert card.count("| ✓ | forces, slab | 2e-09 | 1e-06 | eV/Å |") == 2
    assert card.count("| ✗ | virial, bulk | not a number | 1e-06 | eV |") == 2
    assert card.count("### gpumd, 20") == card.count(f"calorine {version('calorine')}") == 1
    assert load_student(folder).elements == ("H", "O")

    known = checks_of(folder)
    (folder / "README.md").write_text("# Written again\n")
    keep_checks(folder, known)
    assert "### ipi, 20" in (folder / "README.md").read_text()
    other = save(tmp_path / "other", elements=("Si",))  # another student's are none of its own
    keep_checks(other, known)
    assert not checks_of(other)["engines"]
    assert "ipi" not in (other / "README.md").read_text()


def test_a_card_that_cannot_be_written_is_said(folder, tmp_path, monkeypatch):
    (folder / "README.md").unlink()
    monkeypatch.setattr(GPUMD, "missing", lambda self: None)
    monkeypatch.setattr(GPUMD, "check", lambda self, student, out: [Row("forces", 0.0, "", 1.0)])
    with pytest.warns(UserWarning, match="the model card stays as it was: .*README"):
        assert export("gpumd", folder, tmp_path / "out", check=True).passed


def test_another_check_does_not_lose_what_one_has_written(folder, tmp_path, monkeypatch):
    (folder / "README.md").write_text("# A student\n")
    monkeypatch.setattr(GPUMD, "missing", lambda self: None)
    monkeypatch.setattr(GPUMD, "check", lambda self, student, out: [Row("forces", 0.0, "", 1.0)])
    with (
        Lock(folder / "engines.json"),
        pytest.warns(UserWarning, match="stays as it was: .*written by another process"),
    ):
        assert export("gpumd", folder, tmp_path / "out", check=True).passed
    assert not (folder / "engines.json").exists()


@pytest.mark.parametrize(
    ("elements", "formula"),
    [(("Si",), "Si8"), (("Hf", "O"), "Hf4O4"), (("C", "H", "O"), "CH2O"), (("Mg",), "Mg8")],
)
def test_the_example_is_made_of_the_students_elements(elements, formula, tmp_path):
    atoms = example(random_nep(elements), tmp_path)
    assert atoms.get_chemical_formula() == formula


def test_a_run_brings_its_own_example(tmp_path):
    (tmp_path / "student").mkdir()
    write(tmp_path / "structures.traj", bulk("Si", "fcc", a=4.0))
    assert len(example(random_nep(("Si",)), tmp_path / "student")) == 1
