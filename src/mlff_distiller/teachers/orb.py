"""Orb: graph network simulators of Orbital Materials, v2 to OrbMol.

A SPEC is a model's own name, then after a colon, separated by commas, a weight file and options:

    orb-v3-conservative-inf-omat
    orb-v3-conservative-inf-omat:weights.ckpt
    orb-v3-direct-20-omat:weights.ckpt,precision=float64,compile=true

Works with orb-models 0.5 (Python 3.11) and from 0.6 on, whose loaders also return an adapter that
makes graphs. Mended here: the library knows full periodicity or none, so directions that are not
periodic get a vacuum wider than its cutoff; stress of a molecule is zeros and is dropped; models
that need charge and spin take a neutral structure of lowest spin unless told otherwise; weights
are never fetched unless that is allowed.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mlff_distiller.errors import TeacherError
from mlff_distiller.teachers.family import (
    Evaluation,
    Family,
    Loaded,
    in_vacuum,
    local_file,
    torch_device,
    total_charge,
)

_WAYS = {"conservative": "forces are the energy's gradient,", "direct": "predicts forces directly,"}
_DATA = {"omat": "OMat24", "mpa": "MPtrj and Alexandria"}
_TEACHERS = {
    f"orb-v3-{way}-{number}-{data}": f"Orb-v3: {how} {about} neighbours; trained on {source}"
    for way, how in _WAYS.items()
    for number, about in (("inf", "all"), ("20", "20"))
    for data, source in _DATA.items()
} | {
    "orb-v3-conservative-omol": "OrbMol: molecules with charge and spin, trained on OMol25",
    "orb-v3-direct-omol": "OrbMol, forces predicted directly",
    "orbmol-v2": "OrbMol 2 with learned electrostatics; orb-models from 0.7 on",
    "orb-v2": "Orb-v2, trained on MPtrj and Alexandria",
    "orb-d3-v2": "Orb-v2 trained with D3 dispersion",
    "orb-d3-sm-v2": "the same, ten layers",
    "orb-d3-xs-v2": "the same, five layers",
    "orb-mptraj-only-v2": "Orb-v2, trained on MPtrj alone",
}
_PRECISIONS = ("float32-high", "float32-highest", "float64")
_EDGES = ("knn_brute_force", "knn_scipy", "knn_cuml_brute", "knn_cuml_rbc", "knn_alchemi")
_OPTIONS: dict[str, Callable[[str], Any]] = {
    "precision": str,
    "compile": lambda text: {"true": True, "false": False}[text.lower()],
    "edge_method": str,
    "max_num_neighbors": int,
    "d3": str,
    "confidence": lambda text: {"true": True, "false": False}[text.lower()],
}
_USAGE = (
    "NAME[:PATH][,KEY=VALUE...], KEY one of precision ("
    + ", ".join(_PRECISIONS)
    + "), compile, edge_method, max_num_neighbors, d3 (a functional, such as PBE), confidence"
)


def _resolve(name: str, argument: str | None) -> tuple[str, dict[str, Any]]:
    spec = name if argument is None else f"{name}:{argument}"
    if name == "orb":
        raise TeacherError(
            "teacher 'orb' has many models, and none is named",
            expected="one of " + ", ".join(_TEACHERS),
            found=spec,
        )
    arguments: dict[str, Any] = {"model": name, "path": None}
    for word in (argument or "").split(",") if argument is not None else ():
        key, equals, text = word.strip().partition("=")
        if not equals:
            arguments["path"] = local_file(key, spec)
            continue
        try:
            arguments[key] = _OPTIONS[key](text)
        except (KeyError, ValueError) as error:
            raise TeacherError(
                f"teacher {spec!r}: cannot understand {word!r}", expected=_USAGE, found=word
            ) from error
    if arguments.get("precision", _PRECISIONS[0]) not in _PRECISIONS:
        raise TeacherError(
            f"teacher {spec!r}: unknown precision",
            expected=" or ".join(_PRECISIONS),
            found=arguments["precision"],
        )
    if arguments.get("edge_method", _EDGES[0]) not in _EDGES:
        raise TeacherError(
            f"teacher {spec!r}: unknown edge method",
            expected=" or ".join(_EDGES),
            found=arguments["edge_method"],
        )
    shown = "" if arguments["path"] is None else f":{Path(arguments['path']).name}"
    return f"{name}{shown}", arguments


FAMILY = Family(
    name="orb",
    package="orb_models",
    install="orb-models",
    requirements="orb-models",
    licence="Apache-2.0",
    usage="ORB-NAME:PATH[,KEY=VALUE...]",
    teachers=_TEACHERS,
    resolve=_resolve,
)


def load(arguments: dict[str, Any], device: str, allow_download: bool) -> Loaded:
    """Load a pretrained model, from its own download or a file; see `family`."""
    from orb_models.forcefield import pretrained

    name, device = arguments["model"], torch_device(device)
    loader = pretrained.ORB_PRETRAINED_MODELS.get(name)
    version = importlib.metadata.version("orb-models")
    if loader is None:
        raise TeacherError(
            f"orb-models {version} has no model {name!r}",
            expected="one of " + ", ".join(pretrained.ORB_PRETRAINED_MODELS),
            remedy="install another version of orb-models",
        )
    path = arguments["path"] or _weights(name, loader, allow_download)
    # The total energies of molecules in OMol25 are thousands of eV, too many for float32.
    usual = "float64" if "mol" in name else "float32-highest"
    precision = arguments.get("precision", usual)
    compiled = arguments.get("compile", device != "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it sets torch's default dtype: it is alone here
        loaded = loader(
            weights_path=str(path), device=device, precision=precision, compile=compiled
        )
    model, adapter = loaded if isinstance(loaded, tuple) else (loaded, None)
    if arguments.get("d3"):
        model = _with_d3(model, arguments["d3"], device, version)
    options = {
        key: arguments.get(key) for key in ("edge_method", "max_num_neighbors", "confidence", "d3")
    }
    radius = float(model.system_config.radius if adapter is None else adapter.radius)
    core: Any = getattr(model, "xc_model", model)
    charged = type(core.model.conditioner).__name__ == "ChargeSpinConditioner"
    if options["confidence"] and "confidence" not in core.heads:
        raise TeacherError(
            f"teacher {name!r} has no confidence head", remedy="leave confidence=true out"
        )

    def evaluate_many(frames: Sequence[Atoms], wanted: Sequence[bool]) -> list[Evaluation]:
        boxes = [_prepared(atoms, radius, charged) for atoms in frames]
        batch = _graphs(boxes, model, adapter, options, device)
        out = {key: value.detach() for key, value in model.predict(batch).items()}
        return _split(out, core, frames, wanted, bool(options["confidence"]))

    return Loaded(
        evaluate=lambda atoms, stress: evaluate_many([atoms], [stress])[0],
        evaluate_many=evaluate_many,
        version=version,
        licence="Apache-2.0",
        device=device,
        weights=[Path(path)],
        elements=None,
        settings={"model": name, "precision": precision, **options},
        uses=("charge", "spin") if charged else (),
    )


def _weights(name: str, loader: Callable[..., Any], allow_download: bool) -> Path:
    """The file of a model's public weights, from the library's own cache or its own download."""
    from cached_path import cached_path
    from cached_path.util import find_latest_cached

    url: str = inspect.signature(loader).parameters["weights_path"].default
    if allow_download:
        return Path(cached_path(url))
    found = find_latest_cached(url)
    if found is None:
        raise TeacherError(
            f"the weights of {name!r} are not on this machine",
            expected=f"a copy of {url} in the library's cache, or a local file",
            remedy=f"allow the download (--allow-download), or fetch the file elsewhere and name "
            f"it: {name}:PATH",
        )
    return Path(found)


def _with_d3(model: Any, functional: str, device: str, version: str) -> Any:
    try:
        from orb_models.forcefield.inference.d3_model import AlchemiDFTD3, D3SumModel
    except ModuleNotFoundError as error:
        raise TeacherError(
            f"orb-models {version} cannot add D3 dispersion",
            expected="orb-models from 0.6 on",
            remedy="upgrade orb-models, or leave d3 out",
        ) from error
    has_stress = bool(model.has_stress)
    return D3SumModel(model, AlchemiDFTD3(functional=functional, has_stress=has_stress).to(device))


def _prepared(atoms: Atoms, radius: float, charged: bool) -> Atoms:
    """As the library wants it: fully periodic or not at all, with charge and spin if need be."""
    mixed = atoms.pbc.any() and not atoms.pbc.all()
    box = in_vacuum(atoms, radius) if mixed else Atoms(atoms.numbers, atoms.positions)
    if atoms.pbc.all():
        box = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
    if charged:
        charge = total_charge(atoms)
        odd = int(atoms.numbers.sum() - charge) % 2
        box.info |= {"charge": float(charge), "spin": float(atoms.info.get("spin") or 1 + odd)}
    return box


def _graphs(
    boxes: Sequence[Atoms], model: Any, adapter: Any, options: dict[str, Any], device: str
) -> Any:
    """One graph of all structures."""
    how = {key: options[key] for key in ("edge_method", "max_num_neighbors")}
    if adapter is not None:
        return adapter.from_ase_atoms_list(list(boxes), device=device, **how)
    from orb_models.forcefield.atomic_system import ase_atoms_to_atom_graphs
    from orb_models.forcefield.base import batch_graphs

    graphs = [
        ase_atoms_to_atom_graphs(box, system_config=model.system_config, device=device, **how)
        for box in boxes
    ]
    return (batch_graphs(graphs) if len(graphs) > 1 else graphs[0]).to(device)


def _split(
    out: dict[str, Any],
    core: Any,
    frames: Sequence[Atoms],
    wanted: Sequence[bool],
    confidence: bool,
) -> list[Evaluation]:
    """Each structure's part of a prediction."""
    gradient = hasattr(core, "grad_forces_name")
    forces_name = core.grad_forces_name if gradient else "forces"
    stress_name = core.grad_stress_name if gradient and core.has_stress else "stress"
    ends = np.cumsum([len(atoms) for atoms in frames])[:-1]
    energies = out["energy"].double().cpu().numpy().reshape(-1)
    forces = np.split(out[forces_name].double().cpu().numpy().reshape(-1, 3), ends)
    stresses = out[stress_name].double().cpu().numpy() if stress_name in out else None
    extra: list[dict[str, np.ndarray]] = [{} for _ in frames]
    if confidence:
        edges = core.heads["confidence"].bin_edges.double()
        error = out["confidence"].double() @ (0.5 * (edges[1:] + edges[:-1]))
        parts = np.split(error.cpu().numpy(), ends)
        extra = [{"forces_error_predicted": part} for part in parts]
    return [
        Evaluation(
            energy=float(energies[k]),
            forces=forces[k],
            stress=stresses.reshape(-1, 6)[k] if wanted[k] and stresses is not None else None,
            extra=extra[k],
        )
        for k in range(len(frames))
    ]
