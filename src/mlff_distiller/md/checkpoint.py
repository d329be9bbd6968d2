"""A simulation's checkpoint: one safetensors file, whose header holds the rest as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mlff_distiller.durable import explaining, write_bytes
from mlff_distiller.errors import ConfigError, DynamicsError
from mlff_distiller.md.state import State
from mlff_distiller.students import Student

SCHEMA = 1


def write_checkpoint(path: Path, state: State, about: dict[str, Any]) -> None:
    """Durably replace ``path``. ``about`` is JSON: what is simulated, and where files end."""
    arrays: dict[str, NDArray[Any]] = {
        "positions": state.positions,
        "velocities": state.velocities,
        "cell": state.cell,
    }
    if state.listed is not None:
        arrays |= {"listed_positions": state.listed[0], "listed_cell": state.listed[1]}
    if state.seeds is not None:
        arrays["seeds"] = state.seeds
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    _write(path, {"schema": SCHEMA, "step": state.step, **about}, contiguous)


def _write(path: Path, content: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    header = json.dumps(content)
    metadata = {"simulation": header, "sha256": _digest(header, arrays)}
    with explaining(f"the checkpoint {path} cannot be written", DynamicsError):
        write_bytes(path, save(arrays, metadata=metadata))


def students_of(header: dict[str, Any]) -> list[dict[str, Any]]:
    """Which student runs from which step on, the first at step 0."""
    first = {"from_step": 0, "student_sha256": header["about"]["student_sha256"]}
    return header.get("students") or [first]


def hand_over(path: Path, student_sha256: str) -> None:
    """Let another student go on from a checkpoint, and keep the steps that each has run."""
    header, arrays = _read(path)
    now = {"from_step": header["step"], "student_sha256": student_sha256}
    students = [one for one in students_of(header) if one["from_step"] < header["step"]]
    about = {**header["about"], "student_sha256": student_sha256}
    _write(path, {**header, "about": about, "students": [*students, now]}, arrays)


def _digest(header: str, arrays: dict[str, Any]) -> str:
    digest = hashlib.sha256(header.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(metadata["simulation"])
        if header["schema"] == SCHEMA:
            header["step"], header["about"]["seed"] = (
                int(header["step"]),
                int(header["about"]["seed"]),
            )
            if not {"trajectory", "log"} <= set(header["files"]):
                raise ValueError("it does not say where files end")
        if metadata.get("sha256") not in (None, _digest(metadata["simulation"], arrays)):
            raise ValueError("its checksum is wrong")
    except (SafetensorError, LookupError, ValueError, TypeError, OSError, RecursionError) as error:
        raise DynamicsError(
            f"{path} is not a checkpoint, or is damaged: {error}",
            remedy="put it back from a copy, or start again (overwrite)",
        ) from error
    if header["schema"] != SCHEMA:
        raise DynamicsError(f"{path} has another schema", expected=SCHEMA, found=header["schema"])
    return header, arrays


def read_header(path: Path) -> dict[str, Any]:
    """What is simulated and where files end: the ``about`` that ``write_checkpoint`` was given.

    Raises
    ------
    DynamicsError
        The file is damaged, or of another schema.
    """
    return _read(path)[0]


def read_checkpoint(path: Path, n_atoms: int, n_systems: int) -> State:
    """The state that ``write_checkpoint`` wrote.

    Raises
    ------
    DynamicsError
        The file is damaged, of another schema, or of other systems.
    """
    header, arrays = _read(path)
    shapes = {"positions": (n_atoms, 3), "velocities": (n_atoms, 3), "cell": (n_systems, 3, 3)}
    found = {name: arrays[name].shape if name in arrays else None for name in shapes}
    if found != shapes or not all(np.isfinite(array).all() for array in arrays.values()):
        raise DynamicsError(
            f"{path} is damaged",
            expected=f"finite numbers of {shapes}",
            found=found,
            remedy="put it back from a copy, or start again (overwrite)",
        )
    listed = None
    if "listed_positions" in arrays:
        listed = (arrays["listed_positions"], arrays["listed_cell"])
    # Earlier versions wrote no seeds.
    before = np.uint64(header["about"]["seed"]) + np.arange(n_systems, dtype=np.uint64)
    return State(
        header["step"],
        arrays["positions"],
        arrays["velocities"],
        arrays["cell"],
        listed,
        arrays.get("seeds", before),
    )


def check_same(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise ``ConfigError`` if the checkpoint is of another simulation."""
    names = [
        name
        for name in sorted(found | wanted)
        if json.dumps(found.get(name)) != json.dumps(wanted.get(name))
    ]
    if names:
        raise ConfigError(
            f"{path} belongs to another simulation: {', '.join(names)}",
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
        held = [c for c in atoms.constraints if isinstance(c, FixAtoms)]  # others are refused
        fixed = [sorted(map(int, c.get_indices())) for c in held]
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
