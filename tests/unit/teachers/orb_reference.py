"""Run by an interpreter with orb-models: makes a checkpoint of random weights, and what the
library's own calculator says of structures.

python orb_reference.py NAME CHECKPOINT PRECISION STRUCTURES.json ANSWERS.json
"""

import json
import sys
from pathlib import Path

import torch
from ase import Atoms
from orb_models.forcefield import pretrained

name, checkpoint, precision, structures, answers = sys.argv[1:]


def architecture():
    old = hasattr(pretrained, "SystemConfig")
    options = {"device": "cpu"}
    if old:
        neighbors = 20 if "v2" in name or "-20-" in name else 120
        options["system_config"] = pretrained.SystemConfig(radius=6.0, max_num_neighbors=neighbors)
    if "omol" in name:
        options |= {"has_charge_spin_cond": True, "has_stress": False}
    if "v2" in name:
        return pretrained.orb_v2_architecture(**options)
    if "conservative" in name:
        return pretrained.orb_v3_conservative_architecture(**options)
    return pretrained.orb_v3_direct_architecture(**options)


if not Path(checkpoint).exists():
    torch.manual_seed(7)
    torch.save(architecture().state_dict(), checkpoint)
loaded = pretrained.ORB_PRETRAINED_MODELS[name](
    weights_path=checkpoint, device="cpu", precision=precision, compile=False
)
if isinstance(loaded, tuple):
    from orb_models.forcefield.inference.calculator import ORBCalculator

    calculator = ORBCalculator(*loaded, device="cpu")
else:
    from orb_models.forcefield.calculator import ORBCalculator

    calculator = ORBCalculator(loaded, device="cpu")
told = []
for row in json.loads(Path(structures).read_text()):
    atoms = Atoms(row["numbers"], row["positions"], cell=row["cell"], pbc=row["pbc"])
    atoms.info |= {"charge": row["charge"], "spin": row["spin"]}
    calculator.reset()  # it takes no notice of a new charge or spin
    atoms.calc = calculator
    answer = {"energy": float(atoms.get_potential_energy()), "forces": atoms.get_forces().tolist()}
    if all(row["pbc"]) and "stress" in calculator.results:
        answer["stress"] = calculator.results["stress"].tolist()
    told.append(answer)
Path(answers).write_text(json.dumps(told))
