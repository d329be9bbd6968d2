"""Four copies of structure.extxyz at 300 to 600 K: ``python run_torchsim.py``."""

from pathlib import Path

import torch_sim
from ase.io import read

from mlff_distiller.deploy.torchsim import MLFFDModel

here = Path(__file__).parent
model = MLFFDModel(here / "student")
state = torch_sim.integrate(
    [read(here / "structure.extxyz")] * 4,
    model,
    integrator=torch_sim.Integrator.nvt_langevin,
    n_steps=100,
    temperature=[300.0, 400.0, 500.0, 600.0],
    timestep=0.0005,  # ps
)
for index, own in enumerate(state.split()):
    print(f"system {index}: {own.energy.item():.4f} eV, {own.calc_temperature().item():.0f} K")
