"""ASE's engine: what it refuses, when it ends, what it draws."""

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from tests.unit.validation.faults import Pairs, argon

from mlff_distiller.errors import DynamicsError
from mlff_distiller.md import Ensemble
from mlff_distiller.md.ase import AseSimulation
from mlff_distiller.structure import thermalise


def copper(kelvin=300.0):
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    thermalise(atoms, kelvin, np.random.default_rng(0))
    return atoms


@pytest.mark.parametrize(
    ("settings", "atoms", "name"),
    [
        ({"ensemble": "nvt", "thermostat": "bussi"}, copper(), "thermostat"),
        ({"ensemble": "npt", "pressure_coupling": "triclinic"}, copper(), "pressure_coupling"),
        ({"ensemble": "npt"}, molecule("H2O"), "pbc"),
    ],
)
def test_what_it_cannot_do_is_refused(settings, atoms, name):
    with pytest.raises(DynamicsError, match=f"with this {name}"):
        AseSimulation(atoms, EMT(), Ensemble(**settings))


def test_heat_and_nan_end_a_run():
    class Bad(EMT):
        push, value = 0.0, 0.0

        def calculate(self, atoms=None, properties=("energy",), system_changes=()):
            super().calculate(atoms, properties, system_changes)
            forces = self.results["forces"] + self.push * atoms.get_momenta()
            forces[5] += self.value
            self.results["forces"] = forces

    bad = Bad()
    run = AseSimulation(copper(), bad, Ensemble(time_step_fs=2.0))
    run.advance(5)
    bad.push = 1.0
    with pytest.raises(DynamicsError, match=r"blown up near step 60 .* the fastest") as caught:
        run.advance(55)
    assert caught.value.expected == f"at most {10 * max(300.0, copper().get_temperature()):.4g} K"

    bad.push, bad.value = 0.0, np.nan
    run = AseSimulation(copper(), bad, Ensemble(time_step_fs=2.0))
    with pytest.raises(DynamicsError, match=r"not finite, atom 5 \(Cu\)"):
        run.advance(2)


@pytest.mark.parametrize("ensemble", ["nvt", "npt"])
def test_a_run_is_replayed_by_its_seed(ensemble):
    settings = {"ensemble": ensemble, "time_step_fs": 2.0, "friction_per_ps": 20.0}
    ends = []
    for seed in (0, 0, 1):
        run = AseSimulation(copper(), EMT(), Ensemble(seed=seed, **settings))
        run.advance(20)
        ends.append(run.state())
    # EMT sums in the order of its list.
    assert np.allclose(ends[0].positions, ends[1].positions, rtol=0, atol=1e-9)
    assert np.abs(ends[0].positions - ends[2].positions).max() > 1e-4
    assert (np.abs(ends[0].cell - copper().cell).max() > 1e-4) == (ensemble == "npt")
    for seed in (0, 7):
        rng = np.random.default_rng(0)
        run = AseSimulation(copper(), EMT(), Ensemble(seed=seed, **settings), rng)
        run.advance(20)
        ends.append(run.state())
    assert np.allclose(ends[3].positions, ends[4].positions, rtol=0, atol=1e-9)
    # First velocities are drawn from that generator: the noise is not the same numbers again.
    assert np.abs(ends[0].positions - ends[3].positions).max() > 1e-4


def test_observables():
    run = AseSimulation(argon(), Pairs(), Ensemble(ensemble="nvt", temperature_K=40.0))
    run.advance(3)
    seen, atoms = run.observables(), run.atoms
    assert run.step == run.state().step == 3
    assert seen.potential_energy[0] == atoms.get_potential_energy()
    assert seen.temperature_K[0] == atoms.get_temperature()
    assert np.array_equal(seen.stress[0], atoms.get_stress(voigt=False))
    whole = atoms.get_stress(voigt=False, include_ideal_gas=True)
    assert seen.pressure_GPa[0] == pytest.approx(-np.trace(whole) / 3 * 160.21766, rel=1e-6)
    calls = []

    class Asked(LennardJones):
        def get_property(self, name, *arguments, **named):
            calls.append(name)
            return super().get_property(name, *arguments, **named)

    water = molecule("H2O")
    seen = AseSimulation(water, Asked(), Ensemble()).observables()
    assert np.isnan(seen.pressure_GPa[0])
    assert np.isnan(seen.volume[0])
    assert "stress" not in calls
