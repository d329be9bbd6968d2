"""FeNNol: models from files (``.fnx``); several files are an ensemble and answer by their mean.

Mended here: the library's default is float32 on absolute energies (an error of meV), so it runs in
float64, with the per-element constants unrounded; one evaluation gives energy, forces and stress,
where its ASE calculator needs two; nothing of the previous structure is kept but compiled code,
which members of one architecture share. A batch is padded to one of few sizes, for each new size
costs seconds of compilation.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ase.units
import numpy as np
from ase import Atoms
from ase.data import atomic_numbers

from mlff_distiller.errors import StructureError, TeacherError
from mlff_distiller.teachers.family import (
    Evaluation,
    Family,
    Loaded,
    force_spread,
    local_file,
    total_charge,
)


def _resolve(name: str, argument: str | None) -> tuple[str, dict[str, Any]]:
    spec = name if argument is None else f"{name}:{argument}"
    paths = [local_file(path.strip(), spec) for path in (argument or "").split(",")]
    for path in paths:
        if not path.endswith(".fnx"):  # the library reads some others as pickles, which run code
            raise TeacherError(
                f"teacher {spec!r}: {path} is not a .fnx file",
                expected="a model that FeNNol saved as .fnx",
                found=Path(path).suffix or "no suffix",
                remedy="if you trust its source, save it again: "
                "FENNIX.load('model.pkl').save('model.fnx')",
            )
    return "fennol:" + ",".join(Path(path).name for path in paths), {"paths": paths}


FAMILY = Family(
    name="fennol",
    package="fennol",
    install="fennol jax",
    requirements='fennol "jax[cpu]" ase',
    licence="see the model's source",
    usage="fennol:PATH[,PATH...]",
    teachers={},
    resolve=_resolve,
)


def load(arguments: dict[str, Any], device: str, allow_download: bool) -> Loaded:
    """Load every file; see `mlff_distiller.teachers.family`."""
    import jax

    settings: Any = jax.config
    settings.update("jax_enable_x64", True)
    from fennol import FENNIX

    platform = _platform(jax, device)
    members: list[tuple[Any, Any]] = []  # model (compiled code), its weights
    for path in arguments["paths"]:
        model = FENNIX.load(path)
        twin = next((known for known, _ in members if _form(known) == _form(model)), model)
        members.append((twin, _exact_constants(model)))

    def evaluate_many(frames: Sequence[Atoms], wanted: Sequence[bool]) -> list[Evaluation]:
        answers: dict[int, Evaluation] = {}
        for periodic in (True, False):
            group = [k for k, atoms in enumerate(frames) if atoms.pbc.any() == periodic]
            if not group:
                continue
            inputs = _padded(_inputs([frames[k] for k in group]))
            stress = any(wanted[k] for k in group)
            together = _evaluate(members, [frames[k] for k in group], inputs, stress)
            answers |= dict(zip(group, together, strict=True))
        return [answers[k] for k in range(len(frames))]

    return Loaded(
        evaluate=lambda atoms, stress: _evaluate(members, [atoms], _inputs([atoms]), stress)[0],
        evaluate_many=evaluate_many,
        batch_atoms=512,
        version=importlib.metadata.version("fennol"),
        licence="see the model's source",
        device=platform,
        weights=[Path(path) for path in arguments["paths"]],
        elements=_elements(model for model, _ in members),
        settings={"members": len(members), "precision": "float64"},
        uses=("charge",) if all(_heeds_charge(model) for model, _ in members) else (),
    )


def _evaluate(
    members: list[tuple[Any, Any]], frames: Sequence[Atoms], inputs: dict[str, Any], stress: bool
) -> list[Evaluation]:
    prepared: dict[int, Any] = {}
    energies, forces, stresses, shares = [], [], [], []  # of each member, for all frames
    volumes = np.array([atoms.cell.volume for atoms in frames])[:, None, None]
    for model, weights in members:
        if id(model) not in prepared:
            prepared[id(model)] = model.preprocess(**inputs)
        data = prepared[id(model)]
        unit = ase.units.Hartree / model.Ha_to_model_energy
        if stress:  # dE/dstrain comes with the forces
            energy, force, slope, out = model._energy_and_forces_and_virial(weights, data)
            stresses.append(unit * np.asarray(slope)[: len(frames)] / volumes)
        else:
            energy, force, out = model._energy_and_forces(weights, data)
        energies.append(unit * np.asarray(energy, dtype=np.float64))
        forces.append(unit * np.asarray(force))
        if "atomic_energies" in out:  # of energies that no atom has there are none
            shares.append(unit * np.asarray(out["atomic_energies"]))
    ends = np.cumsum([len(atoms) for atoms in frames])
    committees = np.split(np.stack(forces), ends, axis=1)  # the last piece is padding
    energy, tensor = np.mean(energies, axis=0), np.mean(stresses, axis=0) if stress else None
    own = np.split(np.mean(shares, axis=0), ends) if len(shares) == len(members) else None
    several = len(members) > 1
    return [
        Evaluation(
            energy=float(energy[k]),
            forces=committees[k].mean(0),
            stress=None if tensor is None else tensor[k],
            extra={"forces_spread": force_spread(committees[k])} if several else {},
            energies=None if own is None else own[k],
        )
        for k in range(len(frames))
    ]


def _inputs(frames: Sequence[Atoms]) -> dict[str, np.ndarray]:
    """FeNNol's input arrays; `StructureError` for what it would answer wrongly.

    Either all ``frames`` are periodic or none.
    """
    for atoms in frames:
        if atoms.pbc.any() and not atoms.pbc.all():
            raise StructureError(
                "FeNNol models take a structure as periodic in all directions or in none",
                expected="atoms.pbc all True or all False",
                found=atoms.pbc.tolist(),
                remedy="add vacuum along the other directions and set atoms.pbc = True",
            )
    sizes = np.array([len(atoms) for atoms in frames], dtype=np.int32)
    inputs = {
        "species": np.concatenate([atoms.numbers for atoms in frames]).astype(np.int32),
        "coordinates": np.concatenate([atoms.positions for atoms in frames]),
        "natoms": sizes,
        "batch_index": np.repeat(np.arange(len(frames), dtype=np.int32), sizes),
        "total_charge": np.array([total_charge(atoms) for atoms in frames], dtype=np.int32),
    }
    if frames[0].pbc.all():
        cells = np.stack([atoms.cell.array for atoms in frames])
        inputs |= {"cells": cells, "reciprocal_cells": np.linalg.inv(cells)}
    return inputs


def _padded(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``inputs`` with absent atoms, in the library's form, so that few shapes are ever compiled.

    Numbers of atoms are rounded up to 2^k or 3/2 2^k, those of structures to 2^k. (The library's
    own padding mistakes a batch of as many structures as atoms.)
    """
    n_atoms, n_systems = len(inputs["species"]), len(inputs["natoms"])
    power = 1 << (n_atoms - 1).bit_length()
    spare = (3 * power // 4 if 4 * n_atoms <= 3 * power else power) - n_atoms
    empty = (1 << n_systems.bit_length()) - n_systems  # one at least, to hold the absent atoms
    pads: dict[str, np.ndarray] = {
        "species": np.full(spare, -1, dtype=np.int32),
        "coordinates": np.zeros((spare, 3)),
        "batch_index": np.full(spare, n_systems + empty - 1, dtype=np.int32),
        "natoms": np.zeros(empty, dtype=np.int32),
        "total_charge": np.zeros(empty, dtype=np.int32),
        "cells": np.tile(1000.0 * np.eye(3), (empty, 1, 1)),
        "reciprocal_cells": np.tile(0.001 * np.eye(3), (empty, 1, 1)),
    }
    padded = {name: np.concatenate([value, pads[name]]) for name, value in inputs.items()}
    padded["true_atoms"] = padded["species"] > 0
    padded["true_sys"] = np.arange(n_systems + empty) < n_systems
    return padded


def _platform(jax: Any, device: str) -> str:
    found = str(jax.default_backend())
    found = "cuda" if found == "gpu" else found
    if device.startswith("cuda") and found != "cuda":
        raise TeacherError(
            f"device {device!r} is not available to the teacher",
            expected="a CUDA device that JAX can use",
            found=f"JAX {jax.__version__} on {found}",
            remedy='use device "cpu", or pip install "jax[cuda12]"',
        )
    _, _, index = device.partition(":")
    if index:
        jax.config.update("jax_default_device", jax.devices()[int(index)])
    return found


def _form(model: Any) -> str:
    """Everything of a model but its weights."""
    form = {**model._input_args, "energy_terms": model.energy_terms}
    return json.dumps(form, sort_keys=True, default=repr)


def _elements(models: Iterator[Any]) -> list[int] | None:
    """Atomic numbers common to all lists of species in the models; None if they hold none."""
    common: set[str] | None = None
    for model in models:
        for symbols in _species_lists(model._input_args["modules"]):
            common = symbols if common is None else common & symbols
    return None if common is None else sorted(atomic_numbers[symbol] for symbol in common)


def _species_lists(form: Any) -> Iterator[set[str]]:
    """Lists of chemical symbols, and keys that all are, anywhere in a model's definition."""
    if (
        isinstance(form, (list, tuple, dict))
        and form
        and all(isinstance(symbol, str) and symbol in atomic_numbers for symbol in form)
    ):
        yield set(form)
    elif isinstance(form, dict):
        for part in form.values():
            yield from _species_lists(part)


def _exact_constants(model: Any) -> dict[str, Any]:
    """Weights with per-element constants as in the model's definition, not as rounded to float32.

    The rounding alone is up to 1e-4 eV per atom. Constants that were trained since stay.
    """
    import jax.numpy as jnp

    parameters = dict(model.variables.get("params", {}))
    for name, form in model._input_args["modules"].items():
        stored = parameters.get(name, {}).get("constant")
        if stored is None or not isinstance(form.get("value"), dict):
            continue
        exact = np.zeros(len(stored))
        for symbol, value in form["value"].items():
            exact[atomic_numbers[symbol]] = value
        unchanged = exact.astype(np.float32) == np.asarray(stored)
        mended = np.where(unchanged, exact, np.asarray(stored, dtype=np.float64))
        parameters[name] = {**parameters[name], "constant": jnp.asarray(mended)}
    return {**model.variables, "params": parameters}


def _heeds_charge(model: Any) -> bool:
    return any(
        "total_charge_key" in {field.name for field in dataclasses.fields(module)}
        for module, _ in model.modules.layers
        if dataclasses.is_dataclass(module)
    )
