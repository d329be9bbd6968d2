"""From records to flat arrays; nothing enters a dataset unchecked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlff_distiller.batch import check_structure
from mlff_distiller.dataset.columns import COLUMNS, Rows, running_total
from mlff_distiller.dataset.record import OPTIONAL_STRUCTURE, Record, charge_or_spin
from mlff_distiller.errors import DatasetError
from mlff_distiller.properties import LABELS, SUM_WITHIN, Property, add_up
from mlff_distiller.structure import ATOMIC_STATE, atomic_state

_KEY = re.compile(r"[0-9a-f]{64}")


def to_rows(records: Sequence[Record]) -> Rows:
    """Check and flatten at least one record; ``DatasetError`` or ``StructureError`` name it."""
    lists: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
    for number, record in enumerate(records):
        name = f"record {number} of the batch (key {str(record.key)[:12]}…)"
        check_structure(record.atoms, name)
        lists["positions"].append(record.atoms.positions)
        lists["atomic_numbers"].append(record.atoms.numbers)
        lists["cell"].append(record.atoms.cell.array)
        lists["pbc"].append(record.atoms.pbc)
        for optional in OPTIONAL_STRUCTURE:
            lists[optional].append(charge_or_spin(record.atoms, optional, name))
        state = atomic_state(record.atoms)
        for column in ATOMIC_STATE:
            lists[column].append(state.get(column, COLUMNS[column].lacking(len(record.atoms))))
        for label, value in _checked_labels(record, name).items():
            lists[label].append(value)
        lists["key"].append(np.array(_checked_key(record.key, name), dtype="S64"))
        lists["group"].append(_checked_group(record.group, name))
        lists["info"].append(np.frombuffer(dump_json(record.provenance, name), dtype=np.uint8))
    return Rows(
        running_total(np.array([len(numbers) for numbers in lists["atomic_numbers"]])),
        running_total(np.array([len(info) for info in lists["info"]])),
        {
            name: (np.stack if column.per == "system" else np.concatenate)(lists[name]).astype(
                column.dtype
            )
            for name, column in COLUMNS.items()
        },
    )


def dump_json(content: Mapping[str, Any], name: str) -> bytes:
    """Compact JSON in UTF-8; NumPy scalars and arrays become numbers and lists."""
    try:
        text = json.dumps(
            dict(content),
            ensure_ascii=False,
            allow_nan=False,
            separators=(",", ":"),
            default=_plain,
        )
        return text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise DatasetError(
            f"{name} cannot be written as JSON",
            expected="text, finite numbers, booleans, None, lists and dicts of them",
            found=error,
        ) from error


def _plain(value: object) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} {value!r}")


def _checked_labels(record: Record, name: str) -> dict[str, np.ndarray]:
    """Every label of the table in its dtype; missing optional ones are NaN."""
    unknown = sorted(set(record.labels) - set(LABELS))
    if unknown:
        raise DatasetError(f"{name} has unknown labels", expected=list(LABELS), found=unknown)
    lacking = sorted(
        label for label, row in LABELS.items() if row.required and label not in record.labels
    )
    if lacking:
        raise DatasetError(f"{name} lacks labels {lacking}", found=sorted(record.labels))
    labels = {
        label: _checked_label(record, label, row, f"{name}: label {label!r}")
        for label, row in LABELS.items()
    }
    energy, energies = float(labels["energy"]), labels["energies"]
    if not np.isnan(energies).all() and not add_up(energies, energy):
        raise DatasetError(
            f"{name}: label 'energies' does not sum to the energy",
            expected=f"{energy} eV, within {SUM_WITHIN} eV per atom",
            found=float(energies.sum()),
            remedy="leave 'energies' out",
        )
    return labels


def _checked_label(record: Record, label: str, row: Property, name: str) -> np.ndarray:
    shape = (len(record.atoms), *row.shape) if row.per == "atom" else row.shape
    if label not in record.labels:
        return np.full(shape, np.nan, row.dtype)
    try:
        with np.errstate(over="ignore"):  # what overflows float32 becomes inf, refused below
            value = np.asarray(record.labels[label], dtype=np.float64).astype(row.dtype)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{name} is not numeric", found=error) from error
    if value.shape != shape:
        raise DatasetError(f"{name} has the wrong shape", expected=shape, found=value.shape)
    if not row.required and np.isnan(value).all():
        return np.full(shape, np.nan, row.dtype)
    if not np.isfinite(value).all():
        raise DatasetError(
            f"{name} is not finite",
            expected=f"finite {row.dtype} in {row.unit}{'' if row.required else ', or all NaN'}",
            found=value[~np.isfinite(value)][:3].tolist(),
            remedy="leave the structure out: its teacher failed on it",
        )
    return value


def _checked_key(key: str, name: str) -> str:
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise DatasetError(
            f"{name} has no valid key", expected="64 hexadecimal digits", found=repr(key)
        )
    return key


def _checked_group(group: int, name: str) -> np.ndarray:
    whole = isinstance(group, int | np.integer) and not isinstance(group, bool)
    if not whole or not -(2**63) <= int(group) < 2**63:
        raise DatasetError(f"{name} has no valid group", expected="an int64", found=repr(group))
    return np.array(group, dtype=np.int64)
