"""A validation that is interrupted: what it has measured is not measured again."""

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.morse import MorsePotential
from tests.helpers import ROOT

import mlff_distiller
from mlff_distiller.durable import read_json
from mlff_distiller.validation.remembering import Remembering

SETTINGS = {
    "equilibration_ps": 0.02,
    "time_ps": 0.1,
    "large_atoms": 8,
    "rescored": 3,
    "friction_per_ps": 20,
    "memory_steps": 20,
    "speed_sizes": [8],
}
TIMED = ("speed", "speeds", "memory")


class Counting(MorsePotential):
    n_calls = 0

    def __init__(self):
        super().__init__(epsilon=1.0, r0=2.35, rho0=3.0, rcut1=1.2, rcut2=1.4)

    def calculate(self, *arguments, **more):
        self.n_calls += 1
        super().calculate(*arguments, **more)


def validated(out, on_progress=lambda *news: None):
    """The measurements that do not depend on the machine, what failed, and the teacher's calls."""
    atoms, teacher = bulk("Si", cubic=True), Counting()
    student = ROOT / "benchmarks" / "silicon" / "nep"
    mlff_distiller.validate(
        atoms,
        students=student,
        teacher=teacher,
        out=out,
        settings=SETTINGS,
        device="cpu",
        on_progress=on_progress,
    )
    content = read_json(out / "certificate.json")
    measured = {k: v for k, v in content["measurements"].items() if k not in TIMED}
    return measured, content["verdict"]["status"], teacher.n_calls


@pytest.mark.slow
def test_an_interrupted_validation_goes_on(tmp_path):
    whole, status, calls = validated(tmp_path / "whole")
    assert not (tmp_path / "whole" / "partial").exists()
    said = []

    def interrupt(stage, done, total, news):
        said.append(news)
        if stage.startswith("300 K, ase:") and done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        validated(tmp_path / "cut", interrupt)
    assert any("evaluations of ase:" in news and "steps of" in news for news in said)
    assert not (tmp_path / "cut" / "certificate.json").exists()
    asked = []
    again, same, rest = validated(tmp_path / "cut", lambda *news: asked.append(news))
    assert any("checks were finished before" in news[-1] for news in asked)
    assert "300 K, equilibration" not in {news[0] for news in asked}
    assert (again, same) == (whole, status)
    assert rest < calls - 60, "half of the teacher's run was there"
    assert not (tmp_path / "cut" / "partial").exists()


def test_answers_on_disk_outlive_the_process_and_a_torn_end(tmp_path):
    atoms = bulk("Si", cubic=True)
    file, first = tmp_path / "answers.npy", Counting()
    forces = Remembering(first, file=file).get_property("forces", atoms)
    with file.open("ab") as stream:
        stream.write(b"\x93NUMPY torn")
    for _ in range(2):
        second = Counting()
        remembering = Remembering(second, file=file)
        np.testing.assert_array_equal(remembering.get_property("forces", atoms), forces)
        assert second.n_calls == 0
    atoms.positions[0] += 0.1
    remembering.get_property("energy", atoms)
    third = Counting()
    assert Remembering(third, file=file).get_property("energy", atoms) == pytest.approx(
        remembering.get_property("energy", atoms)
    )
    assert third.n_calls == 0
