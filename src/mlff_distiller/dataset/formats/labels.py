"""Which of the numbers ASE found in a file are its labels, and in what units: never guessed.

Results of an ASE calculator are in ASE's units by definition. Anything else, a column
``REF_forces`` or a comment's ``virial=``, needs its name, unit and sign from the user. A column
whose name says gradient is one: forces are its negative. Text says
nothing about the stress it holds, so even a ``stress`` of extended XYZ does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress

from mlff_distiller.dataset.formats.frame import (
    ENERGY_UNITS,
    STRESS_UNITS,
    Conventions,
    Frame,
    option,
    stress_from_virial,
    symmetric,
)
from mlff_distiller.errors import DatasetError
from mlff_distiller.properties import add_up
from mlff_distiller.structure import bare

_VOIGT = {"xx": (0, 0), "yy": (1, 1), "zz": (2, 2), "yz": (1, 2), "xz": (0, 2), "xy": (0, 1)}
_UNIT_KEY = re.compile(r"units?$|^units?[_-](energy|forces?|length)")
_OWN_UNITS = re.compile(r"(?i)(metal|ase|ev|ang(stroms?)?|a|å|[\s/;,^3*-])*$")
_SHORT = {
    "energy": re.compile(r"(?i)(^|_)(e|en|e_?tot|e_?total|toten)(_|$)"),
    "forces": re.compile(r"(?i)(^|_)(f|frc|fxyz|f_?tot)(_|$)"),
}
_SPELT = _VOIGT | {"zy": (1, 2), "zx": (0, 2), "yx": (0, 1)}


def labels_from_ase(
    atoms: Atoms,
    conventions: Conventions,
    name: str,
    index: int,
    progress: float,
) -> Frame:
    """A frame from what ASE read. ``DatasetError`` if the conventions leave a choice.

    A label that is absent or malformed is a problem of the frame, not of the conventions.
    """
    results = {} if atoms.calc is None else atoms.calc.results
    kept = bare(atoms)
    kept.positions *= conventions.length
    kept.cell = kept.cell.array * conventions.length
    labels: dict[str, np.ndarray] = {}
    try:
        energy, forces, stress = _answered(
            lambda: _find("energy", results, atoms, conventions, name),
            lambda: _find("forces", results, atoms, conventions, name),
            lambda: _stress(kept, results, atoms.info, conventions, name),
        )
        if forces is None and len(atoms) == 1 and not conventions.forces_key:
            forces = np.zeros((1, 3))  # by symmetry
        for label, found in (("energy", energy), ("forces", forces)):
            if found is None:
                wanted = getattr(conventions, f"{label}_key")
                known = f" (no {wanted!r})" if wanted else _unnamed(label, atoms)
                problem = f"no {label}{known}"
                return Frame(index, kept, problem=problem, progress=progress)
            factor = getattr(conventions, label)
            if label == "forces" and _is_gradient(conventions.forces_key or ""):
                factor = -factor
            labels[label] = np.asarray(found, np.float64) * factor
        if labels["energy"].size == 1:
            labels["energy"] = labels["energy"].reshape(())
        labels |= _of_atoms(atoms, results, labels["energy"], conventions)
    except (TypeError, ValueError, _Malformed) as error:
        return Frame(index, kept, problem=str(error).split("\n")[0], progress=progress)
    if stress is not None:
        labels["stress"] = stress
    return Frame(index, kept, labels, progress=progress)


def _answered(*questions: Callable[[], Any]) -> list[Any]:
    """What each gives; `DatasetError` with all that is left open, so that one answer closes it."""
    answers, left_open = [], []
    for question in questions:
        try:
            answers.append(question())
        except DatasetError as error:
            left_open.append(error)
    if len(left_open) > 1:
        remedies = " ".join(error.remedy.removeprefix("for example ") for error in left_open)
        raise DatasetError(
            "\n".join(error.problem for error in left_open),
            expected="; ".join(str(error.expected) for error in left_open),
            found="; ".join(str(error.found) for error in left_open if error.found) or None,
            remedy=f"for example {remedies}",
        )
    if left_open:
        raise left_open[0]
    return answers


def _of_atoms(
    atoms: Atoms, results: Mapping[str, Any], energy: np.ndarray, conventions: Conventions
) -> dict[str, np.ndarray]:
    """What the file says of each atom besides forces, in the units of energy and forces.

    ``energies`` that do not sum to the energy belong to another one. A column ``forces_spread`` is
    ours.
    """
    found = {}
    energies = np.asarray(results.get("energies", np.nan), np.float64) * conventions.energy
    fit = energies.shape == (len(atoms),) and energy.shape == ()
    if fit and add_up(energies, float(energy)):
        found["energies"] = energies
    spread = np.asarray(atoms.arrays.get("forces_spread", np.nan), np.float64) * conventions.forces
    if spread.shape == (len(atoms),):
        found["forces_spread"] = spread
    return found


class _Malformed(Exception):
    """One frame's label cannot be what it should be."""


def _find(
    label: str,
    results: Mapping[str, Any],
    atoms: Atoms,
    conventions: Conventions,
    name: str,
) -> Any:
    """The value of ``label`` in its own unit; None if the frame has none."""
    places = atoms.arrays if label == "forces" else atoms.info
    key = getattr(conventions, f"{label}_key")
    candidates = _candidates(label, results, places)
    if key is None:
        if not candidates:
            return None
        if candidates == [label]:
            key = label
        else:
            raise DatasetError(
                f"{name}: the numbers for the {label} are not named",
                expected=f"{option(f'{label}_key')} with one of those found",
                found=", ".join(candidates),
                remedy=f"for example {option(f'{label}_key')} {candidates[-1]}"
                + ("" if candidates[-1] in results else f" {_unit(label)}"),
            )
    is_result = key in results
    if not is_result and key not in places:
        return None
    unit = f"{label}_unit"
    other = conventions.energy_unit if label == "forces" else conventions.forces_unit
    foreign = other not in (None, "eV/angstrom") or conventions.length_unit is not None
    said = _units_said(atoms)
    if getattr(conventions, unit) is None and (foreign or said or not is_result):
        why = "other units are given" if is_result else "it is not a result of an ASE calculator"
        why = f"the file says {said}" if said else why
        raise DatasetError(
            f"{name}: the unit of {key!r} is not given, and {why}",
            expected=option(unit),
            remedy=f"for example {_unit(label)}",
        )
    return results[key] if is_result else places[key]


def _is_gradient(key: str) -> bool:
    """Whether a name says that forces are its negative: gradient, dE_dR, energy_derivative."""
    return re.search(r"grad|deriv|(^|_)d_?e(nergy)?_?d_?[rxq]", key.lower()) is not None


def _units_said(atoms: Atoms) -> str:
    """Units that the comment of a text names, if they are not ASE's: ``energy-unit=hartree``."""
    named = {key: own for key, own in atoms.info.items() if _UNIT_KEY.search(str(key).lower())}
    other = [
        f"{key}={own}"
        for key, own in named.items()
        if isinstance(own, str) and not _OWN_UNITS.match(own)
    ]
    return " ".join(other)


def _unit(label: str) -> str:
    return f"{option(f'{label}_unit')} {'eV' if label == 'energy' else 'eV/angstrom'}"


def _candidates(label: str, results: Mapping[str, Any], places: Mapping[str, Any]) -> list[str]:
    """Names under which ``label`` may be meant, but not those of unknown origin in ``info``.

    Energies of the calculator come first. ``free_energy`` counts only if it differs.
    """
    own = [label] if results.get(label) is not None else []
    if label == "energy" and results.get("free_energy") is not None:
        same = own and np.isclose(results["energy"], results["free_energy"], rtol=1e-12, atol=1e-9)
        own += [] if same else ["free_energy"]
    others = [
        key
        for key, value in places.items()
        if not (own and key == label) and _looks_like(label, key, np.asarray(value))
    ]
    if label in _SHORT and not own + others:
        others = [key for key in _numbers(label, places) if _SHORT[label].search(key)]
    return own + others


def _unnamed(label: str, atoms: Atoms) -> str:
    """What else a frame without ``label`` holds that could be it."""
    found = ", ".join(_numbers(label, atoms.arrays if label == "forces" else atoms.info))
    return f"; {option(f'{label}_key')} names it if it is one of {found}" if found else ""


def _numbers(label: str, places: Mapping[str, Any]) -> list[str]:
    """Names of what has the shape of an energy, or of forces."""
    values = {key: np.asarray(own) for key, own in places.items() if key != "positions"}
    return [
        key
        for key, value in values.items()
        if value.dtype.kind == "f"  # neither a step nor a number of atoms
        and (value.shape[1:] == (3,) if label == "forces" else value.size == 1)
    ]


def _looks_like(label: str, key: str, value: np.ndarray) -> bool:
    word = key.lower()
    if value.dtype.kind not in "fiu":
        return False
    if label == "energy":
        return value.size == 1 and word.endswith("energy")
    if label == "forces":
        return value.ndim == 2 and value.shape[1] == 3 and ("force" in word or _is_gradient(word))
    return value.size in (6, 9) and ("stress" in word or "virial" in word)


def _stress(
    atoms: Atoms,
    results: Mapping[str, Any],
    info: Mapping[str, Any],
    conventions: Conventions,
    name: str,
) -> np.ndarray | None:
    """(3, 3) eV/Å³, tension positive; None if there is none or none is wanted."""
    key = conventions.virial_key or conventions.stress_key
    if key == "none" or (conventions.virial_key is None and not atoms.pbc.any()):
        return None  # a molecule has none
    candidates = _candidates("stress", results, info)
    if key is None:
        if not candidates:
            return None
        if candidates != ["stress"]:
            raise DatasetError(
                f"{name}: the numbers for the stress are not named",
                expected="--stress-key or --virial-key with one of those found, or --stress-key "
                "none to leave them out",
                found=", ".join(candidates),
                remedy=_example(candidates[-1], info.get(candidates[-1])),
            )
        key = "stress"
    value = results.get(key, info.get(key))
    if value is None:
        return None
    said = conventions.stress_unit, conventions.stress_sign
    if key not in results and None in said:
        raise DatasetError(
            f"{name}: unit and sign of {key!r} are not given, and the file does not say them",
            expected="--stress-unit and --stress-sign, or --stress-key none to leave it out",
            found=f"{key}={np.asarray(value).tolist()}",
            remedy=_example(key, None if key in results else value),
        )
    tensor = _tensor(np.asarray(value, np.float64), key in results, conventions)
    is_virial = conventions.virial_key is not None
    factor = _factor(conventions, is_virial=is_virial, name=name)
    if conventions.stress_sign is not None:
        positive = "compression" if is_virial else "tension"
        factor *= 1.0 if conventions.stress_sign == positive else -1.0
    try:
        if is_virial:
            return stress_from_virial(tensor * factor, atoms, key)
        return symmetric(tensor * factor, key)
    except DatasetError as error:
        raise _Malformed(error.problem) from error


def _factor(conventions: Conventions, *, is_virial: bool, name: str) -> float:
    unit = conventions.stress_unit
    if unit is None:
        return 1.0
    table: dict[str, float] = ENERGY_UNITS if is_virial else STRESS_UNITS
    if unit.lower() not in table:
        kind = "virial, which is an energy" if is_virial else "stress, an energy a volume"
        raise DatasetError(
            f"{name}: --stress-unit {unit} is not a unit of a {kind}", expected=sorted(table)
        )
    return table[unit.lower()]


def _tensor(value: np.ndarray, is_result: bool, conventions: Conventions) -> np.ndarray:
    """(3, 3) of nine numbers, or of six in ASE's order or the one given."""
    if value.size == 9:
        return value.reshape(3, 3)
    if value.size != 6:
        raise _Malformed(f"a stress or virial of {value.size} numbers instead of 9")
    if is_result and conventions.voigt_order is None:
        full: np.ndarray = voigt_6_to_full_3x3_stress(value.ravel())
        return full
    if conventions.voigt_order is None:
        raise DatasetError(
            "a stress or virial has six numbers, whose order is not given",
            expected="--voigt-order",
            remedy="for example --voigt-order xx,yy,zz,yz,xz,xy (ASE's) or xx,yy,zz,xy,yz,zx",
        )
    tensor = np.zeros((3, 3))
    for place, number in zip(_order(conventions.voigt_order), value.ravel(), strict=True):
        tensor[place] = tensor[place[::-1]] = number
    return tensor


def _order(text: str) -> Sequence[tuple[int, int]]:
    words = [word.strip().lower() for word in text.split(",")]
    if len(words) != 6 or {_SPELT.get(word) for word in words} != set(_VOIGT.values()):
        raise DatasetError("--voigt-order is wrong", expected="xx,yy,zz,yz,xz,xy", found=text)
    return [_SPELT[word] for word in words]


def _example(key: str, value: Any) -> str:
    words = f"--stress-key {key} --stress-unit eV/angstrom^3 --stress-sign tension"
    if "virial" in key.lower():
        words = f"--virial-key {key} --stress-unit eV --stress-sign compression"
    if np.size(value) == 6:
        words += " --voigt-order xx,yy,zz,yz,xz,xy"
    return f"for example {words}"
