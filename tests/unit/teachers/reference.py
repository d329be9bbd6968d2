"""Answers of a teacher's library through its own ASE calculator, without any of our code.

Run as ``PYTHON reference.py FAMILY``: reads structures as JSON, prints results as JSON.
"""

import json
import os
import sys

import numpy as np
from ase import Atoms


def sevennet():
    from sevenn.calculator import SevenNetCalculator

    return SevenNetCalculator("7net-0", device="cpu")


def chgnet():
    from chgnet.model.dynamics import CHGNetCalculator

    return CHGNetCalculator(use_device="cpu", return_site_energies=True)


def ani():
    import torchani
    from torchani import neurochem

    folder = os.path.join(os.path.dirname(torchani.__file__), "resources", "ani-1x_8x")
    constants = neurochem.Constants(folder + "/rHCNO-5.2R_16-3.5A_a4-8.params")
    networks = neurochem.load_model_ensemble(constants.species, folder + "/train", 8)
    shifts = neurochem.load_sae(folder + "/sae_linfit.dat")
    model = torchani.nn.Sequential(torchani.AEVComputer(**constants), networks, shifts).double()
    return torchani.ase.Calculator(constants.species, model)


if __name__ == "__main__":
    calculator = globals()[sys.argv[1]]()
    answers = []
    for structure in json.load(sys.stdin):
        atoms = Atoms(**structure)
        wanted = ["energy", "forces", *(["stress"] if atoms.pbc.all() else [])]
        calculator.calculate(atoms, wanted)
        wanted += ["energies"] if "energies" in calculator.results else []
        answers.append({name: np.asarray(calculator.results[name]).tolist() for name in wanted})
    print("\nANSWERS" + json.dumps(answers))
