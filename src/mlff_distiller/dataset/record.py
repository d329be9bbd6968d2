"""``Record``: a structure, its labels, identity and origin; its hashes; reading it back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.io.jsonio import encode

from mlff_distiller.batch import Batch
from mlff_distiller.dataset.columns import Rows
from mlff_distiller.errors import DatasetError
from mlff_distiller.properties import LABELS, STRUCTURE
from mlff_distiller.structure import ATOMIC_STATE, atomic_state, constraints_of

OPTIONAL_STRUCTURE = tuple(
    name for name, row in STRUCTURE.items() if row.per == "system" and not row.required
)


@dataclass(frozen=True)
class Record:
    """One labelled structure.

    ``labels`` has names, shapes and units of ``properties.LABELS``; an optional one may be absent
    or all NaN, which is the same. ``key`` is 64 hexadecimal digits, usually ``label_key``. Frames
    of one ``group`` (int64) resemble each other: a split keeps them together. ``provenance`` is
    anything JSON can hold. Charge (e) and spin multiplicity are taken from ``atoms.info``, charges
    and magnetic moments of atoms from its columns.
    """

    atoms: Atoms
    labels: Mapping[str, np.ndarray]
    key: str
    group: int
    provenance: Mapping[str, Any] = field(default_factory=dict)


def structure_hash(atoms: Atoms) -> str:
    """SHA-256, 64 hexadecimal digits, of what defines a structure.

    Numbers, positions, cell, pbc, charge and spin of ``atoms.info``, and initial charges and
    magnetic moments of atoms unless all are zero, in float64 and exactly: another order of atoms
    is another structure; memory order and the sign of zero are not. What cannot be a charge or
    spin counts as it is written.
    """
    digest = hashlib.sha256(b"mlff-distiller structure 1")
    digest.update(np.concatenate([[len(atoms)], atoms.numbers]).astype("<i8").tobytes())
    optional = []
    for name in OPTIONAL_STRUCTURE:
        try:
            optional.append(charge_or_spin(atoms, name, "structure"))
        except DatasetError:
            optional.append(np.array(np.nan))
            digest.update(f"{name}={atoms.info[name]!r}".encode())
    for array in (atoms.positions, atoms.cell.array, atoms.pbc, optional):
        digest.update((np.asarray(array, dtype="<f8") + 0.0).tobytes())  # -0.0 + 0.0 is 0.0
    for name, values in atomic_state(atoms).items():
        digest.update(name.encode() + (values.astype("<f8") + 0.0).tobytes())
    return digest.hexdigest()


def input_hash(atoms: Atoms) -> str:
    """`structure_hash` of a structure that is sampled or simulated, and of what is held in it."""
    constraints = constraints_of(atoms)
    if not constraints:
        return structure_hash(atoms)
    held = encode([one.todict() for one in constraints])
    return hashlib.sha256((structure_hash(atoms) + held).encode()).hexdigest()


def label_key(atoms: Atoms, teacher_fingerprint: str) -> str:
    """Key of the label a teacher (with its settings) gives ``atoms``: 64 hexadecimal digits."""
    text = f"mlff-distiller label 1\n{structure_hash(atoms)}\n{teacher_fingerprint}"
    return hashlib.sha256(text.encode()).hexdigest()


def to_batch(rows: Rows) -> Batch:
    """Structures and labels; labels have the dtype of ``properties.LABELS``."""
    columns = rows.columns
    system_idx = np.repeat(np.arange(len(rows)), np.diff(rows.offsets))
    return Batch(
        torch.from_numpy(columns["positions"]),
        torch.from_numpy(columns["atomic_numbers"].astype(np.int64)),
        torch.from_numpy(system_idx),
        torch.from_numpy(columns["cell"]),
        torch.from_numpy(columns["pbc"]),
        labels={name: torch.from_numpy(columns[name]) for name in LABELS},
    )


def to_records(rows: Rows) -> list[Record]:
    """The inverse of ``to_rows``; missing labels, charges and spins are absent."""
    return [_record(rows, number) for number in range(len(rows))]


def labels_of(rows: Rows, number: int) -> dict[str, np.ndarray]:
    """Labels of one record as stored; missing ones are absent."""
    atoms = slice(rows.offsets[number], rows.offsets[number + 1])
    values = {
        name: np.asarray(rows.columns[name][atoms if row.per == "atom" else number]).copy()
        for name, row in LABELS.items()
    }
    return {name: value for name, value in values.items() if not np.isnan(value).all()}


def provenance_of(rows: Rows, number: int) -> dict[str, Any]:
    """Provenance of one record."""
    span = slice(rows.info_offsets[number], rows.info_offsets[number + 1])
    try:
        provenance = json.loads(rows.columns["info"][span].tobytes())
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"provenance of record {number} is not JSON", found=error) from error
    if not isinstance(provenance, dict):
        raise DatasetError(f"provenance of record {number} is not a JSON object", found=provenance)
    return provenance


def _record(rows: Rows, number: int) -> Record:
    columns, span = rows.columns, slice(rows.offsets[number], rows.offsets[number + 1])
    optional = {name: float(columns[name][number]) for name in OPTIONAL_STRUCTURE}
    atoms = Atoms(
        columns["atomic_numbers"][span],
        columns["positions"][span],
        cell=columns["cell"][number],
        pbc=columns["pbc"][number],
        info={name: value for name, value in optional.items() if not np.isnan(value)},
    )
    for name in ATOMIC_STATE:
        values = columns[name][span]
        if not np.isnan(values).all():
            atoms.set_array(name, values.copy())
    return Record(
        atoms,
        labels_of(rows, number),
        columns["key"][number].decode("ascii"),
        int(columns["group"][number]),
        provenance_of(rows, number),
    )


def charge_or_spin(atoms: Atoms, name: str, record: str) -> np.ndarray:
    """Charge or spin of ``atoms.info``; NaN if absent."""
    value = atoms.info.get(name)
    if value is None:
        return np.array(np.nan)
    try:
        number = np.array(float(value))
    except (TypeError, ValueError):
        number = np.array(np.nan)
    if not np.isfinite(number):
        raise DatasetError(
            f"{record}: atoms.info[{name!r}] is not a number",
            expected=f"a finite number in {STRUCTURE[name].unit}, or no such entry",
            found=repr(value),
        )
    return number
