"""TorchSim: many systems at once, in PyTorch."""

from __future__ import annotations

import sys
from pathlib import Path

from ase import Atoms, units

from mlff_distiller.export.python import Found, PythonTarget, drift, run_in_copy
from mlff_distiller.export.target import Row
from mlff_distiller.structure import default_time_step_fs

_STEPS = 200


class TorchSim(PythonTarget):
    """A script around `MLFFDModel`."""

    name = "torchsim"
    install = "pip install torch-sim-atomistic"
    modules = ("torch_sim",)
    distributions = ("torch-sim-atomistic",)

    def missing(self) -> str | None:
        if sys.version_info < (3, 12):
            return f"TorchSim needs Python 3.12, this is {sys.version.split()[0]}"
        return super().missing()

    def evaluate(self, out: Path, atoms: Atoms) -> Found:
        import torch_sim

        from mlff_distiller.deploy.torchsim import MLFFDModel

        model = MLFFDModel(out / "student", dtype="float64")
        state = torch_sim.initialize_state(atoms, model.device, model.dtype)
        found = {name: value.cpu().numpy() for name, value in model(state).items()}
        virial = -found["stress"][0] * atoms.get_volume()
        return Found(float(found["energy"][0]), found["forces"], virial)

    def run(self, out: Path, start: Atoms) -> list[Row]:
        import torch_sim

        from mlff_distiller.deploy.torchsim import MLFFDModel

        with run_in_copy(out, "run_torchsim.py"):
            pass
        model = MLFFDModel(out / "student")
        state = torch_sim.initialize_state([start], model.device, model.dtype)
        state.rng = 0
        moving = torch_sim.nve_init(state, model, kT=300.0 * units.kB)
        dt = 1e-3 * default_time_step_fs(start) * float(torch_sim.units.MetalUnits.time)
        energies = []
        for _ in range(_STEPS):
            moving = torch_sim.nve_step(moving, model, dt=dt)
            kinetic = 0.5 * (moving.momenta**2).sum(1) / moving.masses
            energies.append(float(moving.energy[0] + kinetic.sum()))
        return [drift(f"{_STEPS} steps of NVE", energies, len(start))]


TARGET = TorchSim
