"""GPUMD: what is written, what is refused, and calorine's results."""

import pytest
from ase.io import read
from tests.helpers import random_nep

from mlff_distiller.errors import StudentError
from mlff_distiller.export import export
from mlff_distiller.kernels.nep import Shape
from mlff_distiller.students import NEP, write_nep


def exported(student, tmp_path, **options):
    path = tmp_path / "nep.txt"
    write_nep(student, path, max_neighbors=(60, 30))
    return export("gpumd", path, tmp_path / "out", **options)


@pytest.mark.parametrize("elements", [("Si",), ("Hf", "O"), ("C", "H", "O")], ids="-".join)
def test_calorine_agrees(elements, tmp_path):
    done = exported(random_nep(elements), tmp_path, check=True)
    assert done.passed
    assert len(done.rows) == (2 if "H" in elements else 3)


def test_the_files_are_those_that_gpumd_reads(tmp_path):
    out = exported(random_nep(("C", "H", "O")), tmp_path).out
    assert "cutoff 4.5 3.6 75 39\n" in (out / "nep.txt").read_text()
    assert (out / "run.in").read_text().startswith("potential    nep.txt\n")
    assert "time_step    0.5\n" in (out / "run.in").read_text()
    molecule = read(out / "model.xyz")
    assert molecule.cell.rank == 3  # GPUMD knows no atoms without a box
    assert not molecule.pbc.any()


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        (Shape(17, 3, 6, 5, 2, False, False, 4), "n_max than.*at most 16.*17.*n_max_radial"),
        (Shape(12, 15, 6, 5, 4, True, True, 4), "more descriptors than.*at most 103.*109"),
        (Shape(4, 15, 6, 5, 4, True, True, 4), "more angular descriptors than.*at most 90.*96"),
        (Shape(4, 4, 6, 5, 4, True, True, 199), "neurons than.*at most 200.*201.*nep.neurons"),
    ],
)
def test_a_student_beyond_its_limits_is_refused_with_the_setting_to_change(shape, match, tmp_path):
    with pytest.raises(StudentError, match=f"(?s){match}"):
        exported(NEP(("Si",), shape, ((5.0, 4.0),)), tmp_path)
