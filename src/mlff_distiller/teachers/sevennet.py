"""SevenNet: equivariant potentials whose package carries the weights of four of them.

Mended here: the library's stress for a non-periodic structure is garbage, so it is dropped; its
total energy is a float32 sum, so the per-atom energies are summed in float64 instead.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mlff_distiller.errors import TeacherError
from mlff_distiller.teachers.family import (
    Evaluation,
    Family,
    Loaded,
    licence_of,
    local_file,
    no_argument,
    torch_device,
)

_MODALS = ("PBE", "R2SCAN")
_TEACHERS = {
    "7net-0": "SevenNet-0 (11 July 2024): 89 elements, PBE of the Materials Project trajectories",
    "7net-0_22May2024": "SevenNet-0 as first released",
    "7net-l3i5": "SevenNet-l3i5: more accurate and about twice as slow as 7net-0",
    "7net-mf-0:PBE": "SevenNet-MF-0, multi-fidelity: its PBE surface",
    "7net-mf-0:R2SCAN": "SevenNet-MF-0, multi-fidelity: its r2SCAN surface",
}


def _resolve(name: str, argument: str | None) -> tuple[str, dict[str, Any]]:
    if name == "7net-mf-0":
        if argument not in _MODALS:
            raise TeacherError(
                "teacher '7net-mf-0' has several surfaces; say which",
                expected=" or ".join(f"7net-mf-0:{modal}" for modal in _MODALS),
                found=name if argument is None else f"{name}:{argument}",
            )
        return f"{name}:{argument}", {"model": name, "modal": argument}
    if name != "sevennet":
        no_argument(name, argument)
        return name, {"model": name, "modal": None}
    path, modal = argument or "", None
    if ":" in path and not Path(path).expanduser().is_file():
        path, _, modal = path.rpartition(":")
    absolute = local_file(path, f"sevennet:{argument or ''}")
    suffix = "" if modal is None else f":{modal}"
    return f"sevennet:{Path(absolute).name}{suffix}", {"path": absolute, "modal": modal}


FAMILY = Family(
    name="sevennet",
    package="sevenn",
    install='"mlff-distiller[sevennet]"',
    requirements="sevenn",
    licence="MIT",
    usage="sevennet:PATH[:MODAL]",
    teachers={**_TEACHERS, "7net-mf-0": "SevenNet-MF-0; needs its surface, see above"},
    resolve=_resolve,
)


def load(arguments: dict[str, Any], device: str, allow_download: bool) -> Loaded:
    """Load a bundled model or a checkpoint; see `mlff_distiller.teachers.family`."""
    from sevenn.calculator import SevenNetCalculator
    from sevenn.util import pretrained_name_to_path

    local = "path" in arguments
    path = arguments["path"] if local else pretrained_name_to_path(arguments["model"])
    modal = arguments["modal"]
    device = torch_device(device)
    try:
        calculator: Any = SevenNetCalculator(path, device=device, modal=modal)
    except ValueError as error:
        if "modal" not in str(error):
            raise
        raise TeacherError(
            f"the SevenNet checkpoint {path} has several surfaces",
            expected="sevennet:PATH:MODAL with one of its modals",
            found=error,
        ) from error
    if modal is not None and calculator.modal is None:
        raise TeacherError(
            f"the SevenNet checkpoint {path} has one surface only",
            expected="sevennet:PATH",
            found=f"modal {modal!r}",
        )

    def evaluate(atoms: Atoms, stress: bool) -> Evaluation:
        calculator.calculate(atoms, ["energy", "forces", "stress"])
        results = calculator.results
        return Evaluation(
            energy=float(np.sum(results["energies"], dtype=np.float64)),
            forces=results["forces"],
            stress=results["stress"] if stress else None,
        )

    return Loaded(
        evaluate=evaluate,
        version=importlib.metadata.version("sevenn"),
        licence="see the model's source" if local else licence_of("sevenn"),
        device=device,
        weights=[Path(path)],
        elements=sorted(calculator.type_map),
        settings={"modal": modal, "precision": "float32"},
    )
