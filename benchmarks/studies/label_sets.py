"""The file of a label set, which the scripts of this folder make and read.

A set is one safetensors file: positions float32, and labels made of just these; per system n_atoms,
cell, pbc, energy, stress, temperature_K, walker; per atom atomic_numbers, positions, forces, and
``spread``, the standard deviation of forces over the teacher's networks.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from mlff_distiller.batch import Batch
from mlff_distiller.durable import replacing


def stored(frames):
    """Tensors of ``frames``; positions are rounded to float32, and labels are to be made of these.

    ``temperature_K`` and ``walker`` are taken from ``atoms.info``.
    """
    return {
        "n_atoms": torch.tensor([len(atoms) for atoms in frames], dtype=torch.int32),
        "atomic_numbers": torch.from_numpy(
            np.concatenate([atoms.numbers for atoms in frames]).astype(np.uint8)
        ),
        "positions": torch.from_numpy(
            np.concatenate([atoms.positions for atoms in frames]).astype(np.float32)
        ),
        "cell": torch.from_numpy(np.stack([atoms.cell.array for atoms in frames])),
        "pbc": torch.from_numpy(np.stack([atoms.pbc for atoms in frames])),
        "temperature_K": torch.tensor(
            [atoms.info.get("temperature_K", math.nan) for atoms in frames], dtype=torch.float32
        ),
        "walker": torch.tensor([atoms.info.get("walker", -1) for atoms in frames]),
    }


def save_set(path, tensors, about):
    """``path`` (.safetensors) and, beside it, ``about`` as JSON."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        save_file({name: value.contiguous() for name, value in tensors.items()}, partial)
    path.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")


def to_batch(tensors):
    """All systems of a set as one ``Batch``; labels that are not there are NaN."""
    n_atoms, n_systems = len(tensors["positions"]), len(tensors["cell"])
    missing = {
        "energy": torch.full((n_systems,), math.nan, dtype=torch.float64),
        "forces": torch.full((n_atoms, 3), math.nan, dtype=torch.float32),
        "stress": torch.full((n_systems, 3, 3), math.nan, dtype=torch.float64),
    }
    return Batch(
        tensors["positions"].double(),
        tensors["atomic_numbers"].long(),
        torch.repeat_interleave(torch.arange(n_systems), tensors["n_atoms"].long()),
        tensors["cell"],
        tensors["pbc"],
        {name: tensors.get(name, nothing) for name, nothing in missing.items()},
    )


def load_set(path):
    """One labelled ``Batch`` a system."""
    return to_batch(load_file(path)).systems()


def load_extra(path, name="spread"):
    """What a ``Batch`` does not hold, a tensor a system.

    ``spread`` (n_atoms,) eV/Å, the standard deviation of forces over the teacher's networks;
    ``temperature_K`` and ``walker`` of the dynamics a structure is from.
    """
    tensors = load_file(path)
    if len(tensors[name]) == len(tensors["positions"]):
        return list(tensors[name].split(tensors["n_atoms"].tolist()))
    return list(tensors[name])
