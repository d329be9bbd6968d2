"""A simulation's checkpoint: one safetensors file, whose header holds the rest as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mlff_distiller.durable import write_bytes
from mlff_distiller.errors import ConfigError, DynamicsError
from mlff_distiller.md.simulation import State
from mlff_distiller.students import Student

SCHEMA = 1


def write_checkpoint(path: Path, state: State, about: dict[str, Any]) -> None:
    """Durably replace ``path``. ``about`` is JSON: what is simulated, and where files end."""
    arrays = {
        "positions": state.positions,
        "velocities": state.velocities,
        "cell": state.cell,
    }
    if state.listed is not None:
        arrays |= {"listed_positions": state.listed[0], "listed_cell": state.listed[1]}
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    header = {"schema": SCHEMA, "step": state.step, **about}
    write_bytes(path, save(contiguous, metadata={"simulation": json.dumps(header)}))


def read_checkpoint(path: Path, n_atoms: int, n_systems: int) -> tuple[State, dict[str, Any]]:
    """What ``write_checkpoint`` wrote.

    Raises
    ------
    DynamicsError
        The file is damaged, of another schema, or of other systems.
    """
    try:
        with safe_open(path, "numpy") as file:
            header = json.loads((file.metadata() or {})["simulation"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise DynamicsError(
            f"{path} is not a checkpoint, or is damaged: {error}",
            remedy="delete it and start anew (overwrite)",
        ) from error
    if header.get("schema") != SCHEMA:
        raise DynamicsError(
            f"{path} is of another schema", expected=SCHEMA, found=header.get("schema")
        )
    shapes = {"positions": (n_atoms, 3), "velocities": (n_atoms, 3), "cell": (n_systems, 3, 3)}
    found = {name: arrays[name].shape if name in arrays else None for name in shapes}
    if found != shapes or not all(np.isfinite(array).all() for array in arrays.values()):
        raise DynamicsError(f"{path} is damaged", expected=shapes, found=found)
    listed = None
    if "listed_positions" in arrays:
        listed = (arrays["listed_positions"], arrays["listed_cell"])
    state = State(
        int(header["step"]), arrays["positions"], arrays["velocities"], arrays["cell"], listed
    )
    return state, header


def check_same(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise ``ConfigError`` if the checkpoint is of another simulation."""
    names = [
        name
        for name in sorted(found | wanted)
        if json.dumps(found.get(name)) != json.dumps(wanted.get(name))
    ]
    if names:
        raise ConfigError(
            f"{path} is of another simulation: {', '.join(names)}",
            expected={name: found.get(name) for name in names},
            found={name: wanted.get(name) for name in names},
            remedy="repeat the first command, choose another name, or overwrite",
        )


def hash_of_student(student: Student) -> str:
    """SHA-256 of configuration and weights."""
    digest = hashlib.sha256(json.dumps([student.architecture, student.config()]).encode())
    for name, value in sorted(student.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def hash_of_structures(frames: Sequence[Atoms]) -> str:
    """SHA-256 of all that dynamics begins with."""
    digest = hashlib.sha256()
    for atoms in frames:
        fixed = [sorted(map(int, c.get_indices())) for c in atoms.constraints]
        digest.update(json.dumps(fixed).encode())
        for array in (
            atoms.numbers,
            atoms.positions,
            atoms.cell.array,
            atoms.pbc,
            atoms.get_momenta(),
            atoms.get_masses(),
        ):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
