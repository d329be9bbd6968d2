"""The kit for teachers: sound ones pass, and each law is broken by somebody."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from mlff_distiller.errors import StructureError, TeacherError
from mlff_distiller.teachers import TeacherCalculator, load_teacher
from mlff_distiller.teachers.registry import ENTRY_POINTS
from mlff_distiller.testing import Tolerance, assert_teacher

HERE = Path(__file__).parent
EXACT = Tolerance(energy=1e-9, forces=1e-8, slope=1e-3, step=0.01)


@pytest.fixture(autouse=True)
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`broken_teachers.py` in the current folder and, as a plug-in, installed."""
    shutil.copy(HERE / "broken_teachers.py", tmp_path)
    info = tmp_path / "morse-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: morse\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\nmorse = broken_teachers\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def crystal() -> Atoms:
    """Sheared and rattled, all atoms well inside the cell."""
    atoms = bulk("Cu", cubic=True)
    atoms.positions += 0.7
    atoms.set_cell(atoms.cell.array @ [[1, 0.05, 0], [0, 1.02, 0.1], [0, 0, 0.97]], True)
    atoms.rattle(0.05, seed=2)
    return atoms


def cluster() -> Atoms:
    return Atoms("Cu4", [[0, 0, 0], [2.4, 0, 0.3], [0.2, 2.6, 0], [1.0, 0.9, 2.2]])


def test_a_sound_one_passes():
    assert_teacher("ase:broken_teachers:Sound", [crystal(), cluster()], tolerance=EXACT)
    assert_teacher("morse-copper", [crystal(), cluster()], tolerance=EXACT)
    assert_teacher("morse-copper")  # on structures of its own


@pytest.mark.parametrize(
    ("name", "structure", "complaint"),
    [
        ("ForcesOff", cluster, "derivatives, Cu4: force against -dE/dr"),
        ("StressReversed", crystal, "derivatives, Cu4: stress against dE/de/V"),
        ("StressInAnotherOrder", crystal, "derivatives, Cu4: stress against dE/de/V"),
        ("InAField", cluster, "symmetries, Cu4 moved: energy"),
        ("WithoutImages", crystal, "symmetries, Cu4 moved: energy"),
        ("WithAxes", cluster, "symmetries, Cu4 rotated: energy"),
        ("WithNumbers", cluster, "symmetries, Cu4 renumbered: energy"),
        ("SharesByNumber", cluster, "symmetries, Cu4 renumbered: energies"),
        ("LeftHanded", crystal, "symmetries, Cu4 with a left-handed cell: stress"),
        ("SomebodyElse", cluster, "assert_identity: the teacher failed: teacher "),
    ],
)
def test_a_calculator_that_breaks_a_law(name, structure, complaint):
    with pytest.raises(AssertionError) as caught:
        assert_teacher(f"ase:broken_teachers:{name}", [structure()], tolerance=EXACT)
    assert str(caught.value).startswith(complaint)


def test_a_batch_that_is_not_its_structures():
    with pytest.raises(AssertionError, match="labels, Cu4 in a batch and alone: energy"):
        assert_teacher("morse-copper:0.001", [cluster()], tolerance=EXACT)


def test_on_a_cpu_crystals_go_alone_unless_a_size_is_given():
    """A shift shows who was in a batch."""
    with load_teacher("morse-copper", device="cpu") as sound:
        known = [float(answer.labels["energy"]) for answer in sound.label([cluster(), crystal()])]
    frames = [cluster(), cluster(), crystal(), crystal()]
    with load_teacher("morse-copper:1", device="cpu") as teacher:
        for batch_size, shifts in (
            (None, [1, 1, 0, 0]),
            (100, [1] * 4),
            (8, [1] * 4),
            (1, [0] * 4),
        ):
            answers = teacher.label(frames, batch_size=batch_size)
            expected = [known[k // 2] + shift for k, shift in enumerate(shifts)]
            found = [float(answer.labels["energy"]) for answer in answers]
            assert found == pytest.approx(expected, abs=1e-9)


class Keys(TeacherCalculator):
    """Keeps a key that ASE does not know."""

    def calculate(self, *arguments, **options):
        super().calculate(*arguments, **options)
        self.results["num_edges"] = 3


class Halves(TeacherCalculator):
    """Counts each bond once, at one of its atoms, and forgets the other half."""

    def calculate(self, *arguments, **options):
        super().calculate(*arguments, **options)
        self.results["energies"] = 0.5 * self.results["energies"]


class Squares(TeacherCalculator):
    """Stress as a matrix."""

    def calculate(self, *arguments, **options):
        super().calculate(*arguments, **options)
        if "stress" in self.results:
            self.results["stress"] = np.diag(self.results["stress"][:3])


class Zeros(TeacherCalculator):
    """A stress for molecules."""

    def calculate(self, *arguments, **options):
        super().calculate(*arguments, **options)
        self.results.setdefault("stress", np.zeros(6))


class Single(TeacherCalculator):
    """Single precision leaks out."""

    def calculate(self, *arguments, **options):
        super().calculate(*arguments, **options)
        self.results["forces"] = self.results["forces"].astype(np.float32)


class Lends(TeacherCalculator):
    """Hands out its own arrays."""

    def get_property(self, name, atoms=None, allow_calculation=True):
        super().get_property(name, atoms, allow_calculation)
        return self.results[name]


class Differs(TeacherCalculator):
    """``calculate`` is not ``label``."""

    def calculate(self, *arguments, **options):
        super().calculate(*arguments, **options)
        self.results["free_energy"] += 1e-3
        self.results["energies"] = self.results["energies"] + 1e-3 / len(self.atoms)


class Guesses(TeacherCalculator):
    """Labels whatever it is given."""

    def label(self, frames, *, batch_size=None):
        mended = [atoms.copy() for atoms in frames]
        for atoms in mended:
            atoms.positions = np.nan_to_num(atoms.positions)
        return super().label(mended, batch_size=batch_size)


class Remembers(TeacherCalculator):
    """Keeps the last results when a calculation fails."""

    def calculate(self, *arguments, **options):
        kept = self.results
        try:
            super().calculate(*arguments, **options)
        except Exception:
            self.results = kept
            raise


class Settled(TeacherCalculator):
    """Knows only atoms at rest."""

    def get_property(self, name, atoms=None, allow_calculation=True):
        if atoms is not None and atoms.has("momenta"):
            raise TeacherError("it moves")
        return super().get_property(name, atoms, allow_calculation)


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        (Keys, "conventions, Cu4: results hold {'num_edges'}"),
        (Halves, "conventions, Cu4: sum of energies"),
        (Squares, "conventions, Cu4: stress must be (6,), found (3, 3)"),
        (Zeros, "conventions, Cu4: stress must exist only for structures periodic"),
        (Single, "conventions, Cu4: forces must be float64, not float32"),
        (Lends, "conventions, Cu4: forces after a caller changed his"),
        (Differs, "labels, Cu4 by calculate: energy"),
        (Guesses, "bad structures: Cu4 got a label"),
        (Remembers, "bad structures: results are left after a failure"),
        (Settled, "assert_runs_in_ase: the teacher failed: it moves"),
    ],
)
def test_an_adapter_that_breaks_a_law(kind, complaint):
    with kind("morse-copper") as teacher, pytest.raises(AssertionError) as caught:
        assert_teacher(teacher, [crystal(), cluster()], tolerance=EXACT)
    assert str(caught.value).startswith(complaint)


def test_no_structure_at_hand():
    with pytest.raises(StructureError, match="pass structures"):
        assert_teacher("ase:broken_teachers:Sound")


@pytest.mark.slow
def test_fennol_passes(shared):
    """One structure, for every size is compiled anew."""
    if importlib.util.find_spec("fennol") is None:
        pytest.skip("needs the package fennol")
    water = molecule("H2O")
    water.rattle(0.05, seed=2)
    assert_teacher(f"fennol:{shared}/teachers/ani1x_model0.fnx", [water])
