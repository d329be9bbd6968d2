"""Elastic constants and heat capacity: against known values, laws, and another force field."""

from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from tests.helpers import ROOT
from tests.unit.validation.faults import FlippedStress, Hole, Pairs, argon
from tests.unit.validation.short import SHORT

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.errors import DistillerError
from mlff_distiller.md import Ensemble
from mlff_distiller.md.record import ForceField, simulate
from mlff_distiller.validation.checks import elasticity as check
from mlff_distiller.validation.checks.elasticity import at_zero_stress, elasticity
from mlff_distiller.validation.checks.heat_capacity import heat_capacity
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.validate import validate

SOUND = ForceField("argon", Pairs())


def elastic_findings(field, teacher, atoms):
    found = check.CHECK.measure(Subject(field, atoms, SHORT, teacher))
    return found.findings, found.numbers


def test_elastic_constants_of_copper():
    found = elasticity(ForceField("EMT", EMT()), bulk("Cu", cubic=True))
    c = found.constants_GPa
    # Jacobsen, Stoltze and Nørskov, Surf. Sci. 366, 394 (1996): 173, 116, 91
    assert [c[0, 0], c[0, 1], c[3, 3]] == pytest.approx([173, 116, 91], rel=0.02)
    assert np.diag(c) == pytest.approx([c[0, 0]] * 3 + [c[3, 3]] * 3, rel=1e-3)
    assert abs(c[:3, 3:]).max() < 0.1
    assert found.bulk_modulus_GPa == pytest.approx(134, rel=0.02)
    assert found.error_GPa < 0.01


def test_pairs_obey_cauchy_and_the_bulk_modulus_agrees():
    found = elasticity(SOUND, argon(1))
    c = found.constants_GPa
    assert c[0, 1] == pytest.approx(c[3, 3], rel=0.01)  # central forces, inversion, no stress
    assert c[0, 0] > c[0, 1] > 0
    stress = SOUND.stress(at_zero_stress(SOUND, argon(1)))
    assert abs(stress).max() < 1e-5


def test_ions_of_silicon_relax():
    student = StudentCalculator(ROOT / "benchmarks" / "silicon" / "nep", device="cpu")
    field, silicon = ForceField("it", student), bulk("Si", cubic=True)
    found = elasticity(field, silicon)
    c = found.constants_GPa
    assert c[0, 0] == pytest.approx(151, rel=0.02)
    assert found.error_GPa < 0.1
    start = at_zero_stress(field, silicon)
    stresses = []
    for sign in (1, -1):
        bent = start.copy()
        shear = np.eye(3)
        shear[1, 2] = shear[2, 1] = sign * 0.0025
        bent.set_cell(start.cell.array @ shear, scale_atoms=True)
        stresses.append(field.stress(bent)[1, 2])
    clamped = (stresses[0] - stresses[1]) / 0.01 * 160.2177
    assert clamped > c[3, 3] + 10  # Kleinman's internal strain softens it


def test_another_crystal_is_told_from_the_same():
    class Stiffer(Pairs):
        def potential(self, r):
            energy, slope = super().potential(r)
            return 1.2 * energy, 1.2 * slope

    same, numbers = elastic_findings(SOUND, ForceField("teacher", Pairs()), argon(1))
    assert same["elastic_difference_percent"].value == pytest.approx(0, abs=1e-6)
    assert set(numbers["elasticity"]) == {"student", "teacher"}
    other, _ = elastic_findings(ForceField("it", Stiffer()), SOUND, argon(1))
    assert other["elastic_difference_percent"].value == pytest.approx(20, abs=0.5)
    assert "C" in other["elastic_difference_percent"].words
    alone, numbers = elastic_findings(SOUND, None, argon(1))
    assert alone == {}
    assert np.shape(numbers["elasticity"]["student"]["constants_GPa"]) == (6, 6)


def test_what_has_no_elastic_constants_says_why():
    class Without(Pairs):
        implemented_properties = ("energy", "forces")

    found, numbers = elastic_findings(ForceField("it", Without()), SOUND, argon(1))
    assert found["elastic_difference_percent"].value is None
    assert numbers["elasticity"]["student"]["why"]
    found, _ = elastic_findings(ForceField("it", FlippedStress()), SOUND, argon(1))
    assert found["elastic_difference_percent"].value > 100

    class Nowhere(Pairs):
        def spoil(self, atoms):
            self.results["stress"] = np.full(6, np.nan)

    found, _ = elastic_findings(ForceField("it", Nowhere()), SOUND, argon(1))
    assert found["elastic_difference_percent"].value is None
    squeezed = argon(1)
    squeezed.set_cell(0.5 * squeezed.cell.array, scale_atoms=True)  # inside the hole
    with pytest.raises(DistillerError, match="of the volume"):
        at_zero_stress(ForceField("it", Hole()), squeezed)


def test_heat_capacity_of_a_solid():
    settings = Ensemble(ensemble="nvt", time_step_fs=8.0, friction_per_ps=20.0)
    runs = [
        simulate(SOUND, argon(), replace(settings, temperature_K=(t,)), 1000, 1).part(100, 1001)
        for t in (8.0, 16.0)
    ]
    found = heat_capacity(runs)
    value, error = found["from_temperatures"]
    assert abs(value - 3.0) < 4 * error
    assert 0 < error < 0.3
    for row in found["runs"]:
        value, error = row["from_fluctuations"]
        assert abs(value - 3.0) < 4 * error
        assert 0.05 < error < 1.5
    assert heat_capacity(runs[:1])["from_temperatures"] is None
    broken = heat_capacity([replace(runs[0], completed=False), runs[1]])
    assert broken["from_temperatures"] is None
    assert broken["runs"][0]["energy_meV_per_atom"] is None


def test_both_are_in_the_report():
    warm = replace(SHORT, temperature_K=(20.0, 40.0))
    report = validate(SOUND, argon(), warm, teacher=ForceField("teacher", Pairs()))
    assert report["measurements"]["heat_capacity"]["from_temperatures"][0] == pytest.approx(3, 0.2)
    assert len(report["measurements"]["teacher"]["heat_capacity"]["runs"]) == 1
    names = {check["name"] for check in report["verdict"]["checks"]}
    assert "elastic_difference_percent" in names
    assert report["verdict"]["reasons"] == []
