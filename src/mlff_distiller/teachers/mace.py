"""MACE: higher-order equivariant message passing; its foundation models, and models from files.

A SPEC is a model's name, or ``mace`` with files, then after a colon, separated by commas, files
and options; several files are a committee and answer by their mean:

    mace-mp-0-medium
    mace-mh-1:head=omat_pbe,precision=float64
    mace:a.model,b.model,precision=float64

The library alone reads its checkpoints, which are pickles: use those of people you trust. Mended
here: where the library builds vectors from float32 positions, atoms are wrapped or centred first;
where it stretches a cell along fixed axes, directions that are not periodic get a vacuum along
their normals instead; its total energy is a sum in the model's precision, so per-atom energies are
summed in float64; an unknown head is refused, not replaced; weights are never fetched unless that
is allowed.
"""

from __future__ import annotations

import importlib.metadata
import os
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
    force_spread,
    in_vacuum,
    local_file,
    torch_device,
    total_charge,
)

_ASL = "ASL (Academic Software License: no commercial use)"
PUBLIC: dict[str, tuple[str, str, str, str]] = {
    "mace-mp-0": ("mp", "medium", "MIT", "the same as mace-mp-0-medium"),
    "mace-mp-0-small": ("mp", "small", "MIT", "MACE-MP-0a: 89 elements, PBE+U of MPtrj"),
    "mace-mp-0-medium": ("mp", "medium", "MIT", "the same, medium"),
    "mace-mp-0-large": ("mp", "large", "MIT", "the same, large"),
    "mace-mp-0b-small": ("mp", "small-0b", "MIT", "core repulsion and isolated atoms mended"),
    "mace-mp-0b-medium": ("mp", "medium-0b", "MIT", "the same, medium"),
    "mace-mp-0b2-small": ("mp", "small-0b2", "MIT", "stabler at high pressure"),
    "mace-mp-0b2-medium": ("mp", "medium-0b2", "MIT", "the same, medium"),
    "mace-mp-0b2-large": ("mp", "large-0b2", "MIT", "the same, large"),
    "mace-mp-0b3-medium": ("mp", "medium-0b3", "MIT", "phonons mended"),
    "mace-mpa-0-medium": ("mp", "medium-mpa-0", "MIT", "trained on MPtrj and sAlex"),
    "mace-omat-0-small": ("mp", "small-omat-0", _ASL, "trained on OMat24"),
    "mace-omat-0-medium": ("mp", "medium-omat-0", _ASL, "the same, medium"),
    "mace-matpes-pbe-0": ("mp", "mace-matpes-pbe-0", _ASL, "MatPES, PBE without U"),
    "mace-matpes-r2scan-0": ("mp", "mace-matpes-r2scan-0", _ASL, "MatPES, r2SCAN"),
    "mace-mh-0": ("mp", "mh-0", _ASL, "materials, molecules and surfaces; needs head=NAME"),
    "mace-mh-1": ("mp", "mh-1", _ASL, "its successor; needs head=NAME"),
    "mace-off23-small": ("off", "small", _ASL, "organic molecules and liquids: 10 elements, SPICE"),
    "mace-off23-medium": ("off", "medium", _ASL, "the same, medium"),
    "mace-off23-large": ("off", "large", _ASL, "the same, large"),
    "mace-omol-0": ("omol", "extra_large", _ASL, "molecules with charge and spin, OMol25"),
}
"""Foundation models: the library's loader, its name there, licence of the weights, what it is."""

_PRECISIONS = ("float32", "float64")
_OPTIONS = ("precision", "head")
_USAGE = "NAME[:PATH[,PATH...]][,KEY=VALUE...], KEY one of precision (float32, float64), head"


def _resolve(name: str, argument: str | None) -> tuple[str, dict[str, Any]]:
    spec = name if argument is None else f"{name}:{argument}"
    paths: list[str] = []
    options: dict[str, str] = {}
    for word in (argument or "").split(",") if argument is not None else ():
        key, equals, text = (part.strip() for part in word.partition("="))
        if not equals:
            paths.append(local_file(key, spec))
        elif key in _OPTIONS and text:
            options[key] = text
        else:
            raise TeacherError(
                f"teacher {spec!r}: cannot understand {word!r}", expected=_USAGE, found=word
            )
    if options.get("precision", _PRECISIONS[0]) not in _PRECISIONS:
        raise TeacherError(
            f"teacher {spec!r}: unknown precision",
            expected=" or ".join(_PRECISIONS),
            found=options["precision"],
        )
    if name == "mace" and not paths:
        raise TeacherError(
            "teacher 'mace' has many models, and none is named",
            expected="mace:PATH or one of " + ", ".join(PUBLIC),
            found=spec,
        )
    name = "mace-mp-0-medium" if name == "mace-mp-0" else name
    shown = [Path(path).name for path in paths]
    shown += [f"head={options['head']}"] if "head" in options else []
    full = f"{name}:{','.join(shown)}" if shown else name
    return full, {"model": name, "paths": paths, **options}


FAMILY = Family(
    name="mace",
    package="mace",
    install="mace-torch",
    requirements="mace-torch",
    licence="MIT; weights MIT or ASL",
    usage="mace:PATH[,PATH...][,KEY=VALUE...]",
    teachers={
        name: about + ("; academic use only" if licence is _ASL else "")
        for name, (_, _, licence, about) in PUBLIC.items()
    },
    resolve=_resolve,
)


def load(arguments: dict[str, Any], device: str, allow_download: bool) -> Loaded:
    """Load a foundation model or files through the library; see `family`."""
    from mace import data
    from mace.calculators import MACECalculator
    from mace.tools import torch_geometric, torch_tools

    name, device = arguments["model"], torch_device(device)
    paths = arguments["paths"] or [_weights(name, allow_download)]
    kind = PUBLIC[name][0] if name in PUBLIC else ""
    # As the library: '' keeps the file's own. Totals of molecules are thousands of eV.
    usual = {"": "", "mp": "float32"}.get(kind, "float64")
    head = arguments.get("head", "omol" if kind == "omol" else None)
    try:
        calculator: Any = MACECalculator(
            model_paths=list(paths),
            device=device,
            default_dtype=arguments.get("precision", usual),
            **({} if head is None else {"head": head}),
        )
    except ValueError as error:
        if "head" not in str(error).lower():
            raise
        raise _no_head(name, None, str(error).rpartition("heads are: ")[2]) from error
    if head is not None and head not in calculator.available_heads:
        raise _no_head(name, head, ", ".join(calculator.available_heads))
    models = calculator.models
    for path, model in zip(paths, models, strict=True):
        _check_kind(path, model)
    cutoff = float(calculator.r_max)
    precision = str(next(models[0].parameters()).dtype).removeprefix("torch.")
    heeded = tuple(_heeded(model) for model in models)
    keys = data.KeySpecification(info_keys={"total_charge": "charge", "total_spin": "spin"})

    def graph(atoms: Atoms) -> Any:
        config = data.config_from_atoms(
            _prepared(atoms, cutoff, any(heeded)), key_specification=keys, head_name=calculator.head
        )
        return data.AtomicData.from_config(
            config, z_table=calculator.z_table, cutoff=cutoff, heads=calculator.available_heads
        )

    def evaluate_many(frames: Sequence[Atoms], wanted: Sequence[bool]) -> list[Evaluation]:
        with torch_tools.default_dtype(precision):
            graphs = [graph(atoms) for atoms in frames]
        batch = torch_geometric.Batch.from_data_list(graphs).to(calculator.device)
        stress = any(wanted)
        out = [model(batch.clone().to_dict(), compute_stress=stress) for model in models]
        return _split(out, models, frames, wanted)

    return Loaded(
        evaluate=lambda atoms, stress: evaluate_many([atoms], [stress])[0],
        evaluate_many=evaluate_many,
        version=importlib.metadata.version("mace-torch"),
        licence="see the model's source" if arguments["paths"] else PUBLIC[name][2],
        device=device,
        weights=[Path(path) for path in paths],
        elements=[int(z) for z in calculator.z_table.zs],
        settings={"members": len(models), "precision": precision, "head": calculator.head},
        uses=tuple(key for key in ("charge", "spin") if all(key in own for own in heeded)),
    )


def _weights(name: str, allow_download: bool) -> str:
    """A foundation model in the library's own cache; fetched by the library if that is allowed."""
    from mace.calculators import foundations_models as public
    from mace.tools.utils import get_cache_dir

    kind, key, licence, _ = PUBLIC[name]
    fetch: Callable[[], Any]
    if kind == "mp":
        url = public.mace_mp_urls.get(key, "")
        # Here the library leaves only letters, digits and underscores of the file's name.
        file = "".join(c for c in os.path.basename(url) if c.isalnum() or c == "_")
        fetch = lambda: public.download_mace_mp_checkpoint(key)  # noqa: E731
    elif kind == "off":
        url = file = f"MACE-OFF23_{key}.model"
        fetch = lambda: public.mace_off(key, device="cpu", return_raw_model=True)  # noqa: E731
    else:
        url = file = "MACE-omol-0-extra-large-1024.model"
        fetch = lambda: public.mace_omol(key, device="cpu", return_raw_model=True)  # noqa: E731
    if not url:
        raise TeacherError(
            f"mace-torch {importlib.metadata.version('mace-torch')} has no model {name!r}",
            remedy="install a newer mace-torch",
        )
    path = Path(get_cache_dir()) / file
    if not path.is_file() and allow_download:
        fetch()
    if not path.is_file():
        raise TeacherError(
            f"the weights of {name!r} are not on this machine",
            expected=f"a copy of {url} as {path}, or a local file",
            remedy="allow the download (--allow-download), or fetch the file elsewhere and name "
            f"it: mace:PATH (licence of these weights: {licence})",
        )
    return str(path)


def _no_head(name: str, head: str | None, available: str) -> TeacherError:
    return TeacherError(
        f"teacher {name!r} has several heads, each a surface of its own; say which"
        if head is None
        else f"teacher {name!r} has no head {head!r}",
        expected=f"head=NAME with one of {available}",
        found=head,
    )


def _check_kind(path: str, model: Any) -> None:
    """`TeacherError` unless it is a MACE for energies that stands on its own."""
    from mace.modules import MACE

    kind = type(model).__name__
    if not isinstance(model, MACE) or kind == "PolarMACE":
        raise TeacherError(
            f"{path} is not a MACE model that this teacher can read",
            expected="MACE or ScaleShiftMACE, as saved by training (not compiled)",
            found=kind,
            remedy="use it through the library's calculator: ase:package.module:factory",
        )


def _heeded(model: Any) -> tuple[str, ...]:
    """Which of charge and spin a model embeds."""
    embedded = getattr(model, "embedding_specs", None) or {}
    return tuple(key for key in ("charge", "spin") if f"total_{key}" in embedded)


def _prepared(atoms: Atoms, cutoff: float, charged: bool) -> Atoms:
    """Fully periodic and wrapped, or centred at the origin; with charge and spin if need be."""
    if atoms.pbc.any():
        box = in_vacuum(atoms, cutoff)
    else:
        box = Atoms(atoms.numbers, atoms.positions - atoms.positions.mean(0))
    if charged:
        charge = total_charge(atoms)
        odd = int(atoms.numbers.sum() - charge) % 2
        box.info |= {"charge": float(charge), "spin": float(atoms.info.get("spin") or 1 + odd)}
    return box


def _split(
    out: Sequence[dict[str, Any]],
    models: Sequence[Any],
    frames: Sequence[Atoms],
    wanted: Sequence[bool],
) -> list[Evaluation]:
    """Each structure's part of the members' predictions, and their mean."""
    ends = np.cumsum([len(atoms) for atoms in frames])[:-1]
    energy = np.mean([_energies(o, m, ends) for o, m in zip(out, models, strict=True)], axis=0)
    shares = np.split(np.mean([_shares(o) for o in out], axis=0), ends)
    members = np.stack([o["forces"].detach().double().cpu().numpy() for o in out])
    committees = np.split(members, ends, axis=1)
    stress = None
    if any(wanted):
        stress = np.mean([o["stress"].detach().double().cpu().numpy() for o in out], axis=0)
    several = len(out) > 1
    return [
        Evaluation(
            energy=float(energy[k]),
            forces=committees[k].mean(0),
            stress=stress[k] if wanted[k] and stress is not None else None,
            extra={"forces_spread": force_spread(committees[k])} if several else {},
            energies=shares[k],
        )
        for k in range(len(frames))
    ]


def _energies(out: dict[str, Any], model: Any, ends: np.ndarray) -> np.ndarray:
    """One member's total energies (n_frames,)."""
    if hasattr(model, "embedding_readout"):  # a part of the energy that no atom has
        return np.asarray(out["energy"].detach().double().cpu().numpy())
    return np.array([part.sum() for part in np.split(_shares(out), ends)])


def _shares(out: dict[str, Any]) -> np.ndarray:
    """One member's energies of atoms."""
    return np.asarray(out["node_energy"].detach().double().cpu().numpy())
