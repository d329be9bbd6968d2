"""Run by an interpreter with mace-torch: makes a model of random weights, and what the library's
own calculator says of structures.

python mace_reference.py MODEL.model KIND PRECISION STRUCTURES.json ANSWERS.json

KIND is a seed for a plain model (``7``), ``heads`` for one of two heads, ``charged`` for one that
embeds charge and spin, or ``medium`` for one of the size of MACE-MP-0-medium.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from mace import modules  # first: it lets e3nn load its tables, which recent PyTorch refuses
from mace.calculators import MACECalculator
from mace.tools import torch_tools

from e3nn import o3  # isort: skip

file, kind, precision, structures, answers = sys.argv[1:]
MEDIUM = kind == "medium"
ELEMENTS = list(range(1, 90)) if MEDIUM else [1, 6, 8, 11, 14, 17]


def random_model():
    torch.manual_seed(int(kind) if kind.isdigit() else 7)
    heads = ["pbe", "r2scan"] if kind == "heads" else ["Default"]
    options = {}
    if kind == "charged":
        options["embedding_specs"] = {
            name: {"type": "categorical", "per": "graph", "emb_dim": 8, "offset": offset,
                   "num_classes": 20}
            for name, offset in (("total_charge", 10), ("total_spin", 0))
        }  # fmt: skip
        options["use_embedding_readout"] = True
    energies = -np.linspace(1.0, 30.0, len(ELEMENTS) * len(heads)).reshape(len(heads), -1)
    with torch_tools.default_dtype("float64"):
        return modules.ScaleShiftMACE(
            r_max=6.0 if MEDIUM else 4.5,
            num_bessel=10 if MEDIUM else 6,
            num_polynomial_cutoff=5,
            max_ell=3 if MEDIUM else 2,
            interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
            interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
            num_interactions=2,
            num_elements=len(ELEMENTS),
            hidden_irreps=o3.Irreps("128x0e + 128x1o" if MEDIUM else "16x0e + 16x1o"),
            MLP_irreps=o3.Irreps("16x0e" if MEDIUM else "8x0e"),
            atomic_energies=energies if len(heads) > 1 else energies[0],
            avg_num_neighbors=12.0,
            atomic_numbers=ELEMENTS,
            correlation=3 if MEDIUM else 2,
            gate=torch.nn.functional.silu,
            atomic_inter_scale=[80.0] * len(heads) if len(heads) > 1 else 80.0,
            atomic_inter_shift=[0.1] * len(heads) if len(heads) > 1 else 0.1,
            heads=heads,
            **options,
        )


if not Path(file).exists():
    torch.save(random_model(), file)
head = {"head": "r2scan"} if kind == "heads" else {}
calculator = MACECalculator(model_paths=file, device="cpu", default_dtype=precision, **head)
told = []
for row in json.loads(Path(structures).read_text()):
    atoms = Atoms(row["numbers"], row["positions"], cell=row["cell"], pbc=row["pbc"])
    atoms.info |= {"charge": row["charge"], "spin": row["spin"]}
    calculator.reset()  # older ones take no notice of a new charge or spin
    atoms.calc = calculator
    answer = {"energy": float(atoms.get_potential_energy()), "forces": atoms.get_forces().tolist()}
    if all(row["pbc"]):
        answer["stress"] = atoms.get_stress().tolist()
    told.append(answer)
Path(answers).write_text(json.dumps(told))
