"""Several students side by side: what each is fit for, one page, and a teacher asked once."""

import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.emt import EMT
from tests.helpers import ROOT, command, rattled
from tests.unit.reports.pages import ATTACK, Page, assert_safe, browse
from tests.unit.validation.faults import Pairs, argon

from mlff_distiller.cli.options import REFUSED
from mlff_distiller.errors import DistillerError
from mlff_distiller.md.record import ForceField
from mlff_distiller.reports.comparison import (
    Validated,
    names_of,
    students_panel,
    write_comparison,
)
from mlff_distiller.validation.certificate import verify_certificate
from mlff_distiller.validation.checks import speed
from mlff_distiller.validation.classes import class_of, compares
from mlff_distiller.validation.criteria import CRITERIA
from mlff_distiller.validation.remembering import Remembering
from mlff_distiller.validation.settings import ValidationSettings
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.verdict import Finding, judge

FIDELITY = "student_md_forces_fidelity"


# What each is fit for


@pytest.mark.parametrize(
    ("findings", "use", "why"),
    [
        ({"incidents": 0.0, FIDELITY: 0.97}, "production", "every check passed"),
        ({"incidents": 0.0, FIDELITY: 0.9}, "screening", "forces differ from the teacher's"),
        ({FIDELITY: 0.97, "rdf_difference_percent": 5.0}, "screening", "structure differs"),
        (
            {FIDELITY: 0.97, "rdf_difference_percent": None},
            "unsuitable",
            "not measured: Radial distribution functions vs teacher",
        ),
        ({FIDELITY: 0.97, "leaked_fraction": 0.1}, "screening", "training set"),
        ({"bulk_modulus_difference_percent": 40.0}, "screening", "bulk modulus"),
        ({"bulk_modulus_difference_percent": 53.8}, "unsuitable", "53.8 %; screening takes 4"),
        ({"bulk_modulus_difference_percent": None}, "unsuitable", "not measured: Bulk modulus"),
        ({"test_forces_fidelity": 0.7}, "unsuitable", "70 % right; screening needs 80 %"),
        ({FIDELITY: 0.97, "speedup": 0.1}, "screening", "hardly faster"),
        ({FIDELITY: 0.79, "incidents": 0.0}, "unsuitable", "79 % right; screening needs 80 %"),
        ({FIDELITY: None}, "unsuitable", "not measured: Force fidelity on frames"),
        ({"incidents": 1.0, FIDELITY: 0.99}, "unsuitable", "something unphysical happened"),
        ({"nve_drift_meV_per_atom_per_ps": None}, "unsuitable", "not measured: Energy drift in"),
        ({"dimer_drop_eV": 1.0, FIDELITY: 0.9}, "unsuitable", "two atoms fall into a hole"),
        ({}, "unsuitable", "nothing was checked"),
    ],
)
def test_the_class_of_a_verdict(findings, use, why):
    verdict = judge({name: Finding(value) for name, value in findings.items()}, {})
    found = class_of(verdict)
    assert found.name == use
    assert why in found.why


@pytest.mark.parametrize(
    ("value", "why"), [(1.0, "a_check of"), (None, "not measured: a_check of")]
)
def test_an_unknown_check_that_failed_counts_as_physics(value, why):
    check = {"name": "a_check of later years", "value": value, "limit": 0.5, "passed": False}
    found = class_of({"status": "rejected", "checks": [check]})
    assert found.name == "unsuitable"
    assert why in found.why


def test_checks_of_physics_compare_with_nobody():
    physics = {name for name in CRITERIA if not compares(name)}
    assert {"nve_completed", "incidents", "force_derivative_error", "dimer_drop_eV"} <= physics
    assert "element_temperature_deviation_percent" in physics
    assert {"test_forces_fidelity", "rdf_difference_percent", "leaked_fraction"}.isdisjoint(physics)


# A teacher asked once


def test_what_is_remembered_is_what_was_computed():
    teacher = Remembering(Pairs())
    for _ in range(2):
        for seed in range(3):
            atoms = rattled(argon(), 0.1, seed)
            atoms.calc = Pairs()
            expected = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
            atoms.calc = teacher
            assert atoms.get_potential_energy() == expected[0]
            np.testing.assert_array_equal(atoms.get_forces(), expected[1])
            np.testing.assert_array_equal(atoms.get_stress(), expected[2])
            atoms.get_forces()[:] = np.nan  # a caller's copy
    assert teacher.n_computed == 3
    atoms.pbc = False
    atoms.get_potential_energy()
    atoms.cell *= 2
    atoms.get_potential_energy()
    atoms.numbers[0] = 36
    atoms.get_potential_energy()
    assert teacher.n_computed == 6


def test_what_does_not_fit_is_computed_again():
    teacher = Remembering(Pairs(), most_bytes=500)
    atoms = argon()
    atoms.calc = teacher
    forces = [atoms.get_forces() for _ in range(3)]
    np.testing.assert_array_equal(*forces[:2])
    assert teacher.n_computed == 3
    with pytest.raises(PropertyNotImplementedError):
        Remembering(Pairs()).get_property("dipole", atoms)


def test_a_step_is_timed_in_its_own_dynamics():
    class Slow(EMT):
        def calculate(self, *arguments, **more):
            time.sleep(0.01)
            super().calculate(*arguments, **more)

    copper = bulk("Cu", cubic=True)
    settings = ValidationSettings()
    one = Subject(ForceField("slow", Slow()), copper, settings, ForceField("fast", EMT()))
    made = speed.CHECK.measure(one)
    assert made.findings == {}  # asked of students
    found = made.numbers["speed"]
    assert 10.0 < found["ms_per_step"] < 40.0
    assert found["speedup"] == found["teacher_ms_per_step"] / found["ms_per_step"] < 1.0
    assert found["dynamics"] == "ase"

    class Broken(Pairs):
        def spoil(self, atoms):
            raise DistillerError("it broke")

    one = Subject(ForceField("broken", Broken()), argon(), settings)
    found = speed.CHECK.measure(one).numbers["speed"]
    assert found["ms_per_step"] is found["speedup"] is None


# Names and page


def test_students_have_names_of_their_own(tmp_path):
    for name in ("a/student", "b/student", "c/nep", "d/nep"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "b" / "nep.txt").touch()
    (tmp_path / "small.txt").touch()
    paths = ("a/student", "b/student", "b", "b/nep.txt", "c/nep", "d/nep", "small.txt")
    names = names_of([tmp_path / path for path in paths])
    assert names == ["a", "b", "b-2", "b-3", "nep", "nep-2", "small"]


def validated(name: str, rmse: float, ms: float, **findings: float) -> Validated:
    moments = np.linspace(0, 1, 50)
    x = np.linspace(0.05, 6.0, 60)
    curve = (np.exp(-((x - 3) ** 2))).tolist()
    block = {"name": "rdf Ar-Ar", "unit": "Å", "x": x.tolist(), "student": curve, "teacher": curve}
    content = {
        "system": {"formula": "Ar32", "kind": "crystal", "n_atoms": 32},
        "settings": {"temperature_K": [40.0]},
        "teacher": {"name": "pairs"},
        "measurements": {
            "teacher": {
                "student_md": {"forces_rmse_meV_per_A": rmse, "forces_fidelity": 0.9},
                "distributions": [block | {"teacher_error": [0.01] * 60}],
            },
            "speed": {"ms_per_step": ms, "teacher_ms_per_step": 30.0, "speedup": 30.0 / ms},
            "memory": {"host": {"step": [1, 2, 3], "MB": [500.0, 512.0, 511.0]}},
        },
        "verdict": judge({key: Finding(value) for key, value in findings.items()}, {}),
    }
    run = {"time_ps": moments.tolist(), "total_energy_meV_per_atom": (0.1 * moments).tolist()}
    return Validated(name, content, {"runs": [{"target_K": 40.0, "nve": run}], "movie": None})


@pytest.fixture
def three() -> list[Validated]:
    return [
        validated("good", 10.0, 5.0, incidents=0.0, student_md_forces_fidelity=0.97),
        validated("fast", 40.0, 0.5, incidents=0.0, student_md_forces_fidelity=0.9),
        validated(ATTACK, 50.0, 6.0, incidents=2.0, student_md_forces_fidelity=0.9),
    ]


def test_the_page_says_who_is_fit_for_what(tmp_path, three):
    write_comparison(tmp_path / "report.html", three)
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    text = page.text.replace("\xa0", " ")
    assert page.visible[0] == "✗ 1 of 3 approved"
    assert "good : production . every check passed" in text
    assert "fast : screening ." in text
    assert f"{ATTACK} : unsuitable . something unphysical happened" in text
    row = text[text.index("Memory (MB)") :]
    assert "good approved production – 90 % 10 – 5 6 × 512" in row
    links = [str(attrs["href"]) for tag, attrs in page.tags if tag == "a"]
    assert links[0] == "good/report.html"
    assert not set('<>":') & set(links[2])
    assert_safe(page)


def test_the_front_joins_those_that_nobody_beats(three):
    drawn = {trace.name: trace for trace in students_panel(three).figure.data}
    assert list(drawn["front"].x) == [0.5, 5.0]
    assert list(drawn["production"].y) == [10.0]
    assert "<script" not in drawn["unsuitable"].text[0]
    assert students_panel([validated("none", 0.0, 1.0)]).figure is None


def test_a_browser_draws_the_comparison(tmp_path, three):
    write_comparison(tmp_path / "report.html", three)
    dom, messages = browse(tmp_path, "--dump-dom")
    assert not re.findall(r".*(?:CONSOLE|Uncaught).*", messages)
    assert dom.count('class="main-svg"') >= 3
    assert dom.count('class="csv"') == 2


# The command

COUNTING = """
from ase.calculators.morse import MorsePotential

class Counting(MorsePotential):
    def calculate(self, *arguments, **more):
        with open("count", "ab") as file:
            file.write(b".")
        super().calculate(*arguments, **more)

def teacher():
    return Counting(epsilon=1.0, r0=2.35, rho0=3.0, rcut1=1.2, rcut2=1.4)
"""


@pytest.mark.slow
def test_the_command_compares_and_asks_the_teacher_once(tmp_path, monkeypatch):
    student, count = ROOT / "benchmarks" / "silicon" / "nep", tmp_path / "count"
    shutil.copytree(student, tmp_path / "again")
    (tmp_path / "counted.py").write_text(COUNTING)
    (tmp_path / "short.yaml").write_text(
        "{equilibration_ps: 0.0, time_ps: 0.05, large_atoms: 8, rescored: 3, friction_per_ps: 20,\n"
        " memory_steps: 20}\n"
    )
    bulk("Si", cubic=True).write(tmp_path / "silicon.extxyz")
    monkeypatch.chdir(tmp_path)
    # What is timed is not remembered, and how often depends on the machine.
    clock = "mlff_distiller.validation.checks.speed.ms_per_step"
    monkeypatch.setattr(clock, lambda *arguments, **settings: 1.0)
    words = ("validate", "silicon.extxyz", "--teacher", "ase:counted:teacher")
    words += ("--config", "short.yaml", "--device", "cpu", "--student", student)
    done = command(*words, "--student", "again", "--out", "proof")
    assert done.returncode == REFUSED, done.stderr
    of_both = count.stat().st_size
    count.unlink()
    command(*words, "--out", "one")
    assert 100 < of_both <= count.stat().st_size  # the students' frames are the same, too
    assert "unsuitable" in done.stdout
    contents = []
    for name in ("nep", "again"):
        path = Path("proof") / name / "certificate.json"
        assert verify_certificate(path) == []
        contents.append(json.loads(path.read_text()))
        for of_the_machine in ("speed", "memory"):
            contents[-1]["measurements"].pop(of_the_machine)
    assert contents[0]["measurements"] == contents[1]["measurements"]
    assert "report" in contents[0]["files"]
    assert Path("proof/nep/report.html").is_file()
    assert not Path("proof/certificate.json").exists()
    text = Page(Path("proof/report.html").read_text("utf-8")).text
    assert text.startswith("✗ 0 of 2 approved")
    assert Path("one/report.html").is_file()

    def made():
        return [Path(f"proof/{name}/certificate.json").read_text() for name in ("nep", "again")]

    before, page = made(), Path("proof/report.html").read_text("utf-8")
    Path("proof/again/report.html").write_text("changed")
    done = command(*words, "--student", "again", "--out", "proof", "--resume")
    assert done.returncode == REFUSED
    assert "proof/again/report.html is not what certificate.json was written with" in done.stdout
    assert [a == b for a, b in zip(before, made(), strict=True)] == [True, False]
    before = made()
    command(*words, "--student", "again", "--out", "proof", "--resume")
    assert made() == before
    assert len(Path("proof/report.html").read_text("utf-8")) == pytest.approx(len(page), rel=1e-3)
    Path("proof/nep/series.json").unlink()
    command(*words, "--student", "again", "--out", "proof", "--resume")
    assert [a == b for a, b in zip(before, made(), strict=True)] == [False, True]
    before = made()
    command(*words, "--student", "again", "--out", "proof", "--resume", "--limit", "incidents=2")
    assert not set(made()) & set(before)
