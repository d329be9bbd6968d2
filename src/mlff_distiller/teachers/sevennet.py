"""SevenNet: equivariant potentials whose package carries the weights of four of them.

Mended here: the library's stress for a non-periodic structure is garbage, so it is dropped; its
total energy is a float32 sum, so the per-atom energies are summed in float64 instead.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
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
                "teacher '7net-mf-0' has several surfaces, and none is named",
                expected=" or ".join(f"7net-mf-0:{modal}" for modal in _MODALS),
                found=name if argument is None else f"{name}:{argument}",
                remedy="names of surfaces are written in capitals",
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
    install="sevenn",
    requirements="sevenn",
    licence="MIT",
    usage="sevennet:PATH[:MODAL]",
    teachers={**_TEACHERS, "7net-mf-0": "SevenNet-MF-0; needs its surface, see above"},
    resolve=_resolve,
)


def load(arguments: dict[str, Any], device: str, allow_download: bool) -> Loaded:
    """Load a bundled model or a checkpoint; see `mlff_distiller.teachers.family`."""
    from sevenn import _keys as key
    from sevenn.atom_graph_data import AtomGraphData
    from sevenn.calculator import SevenNetCalculator
    from sevenn.train.dataload import unlabeled_atoms_to_graph
    from sevenn.util import pretrained_name_to_path
    from torch_geometric.data import Batch

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
            expected="sevennet:PATH:MODAL with one of its modals, in their own case",
            found=error,
        ) from error
    if modal is not None and calculator.modal is None:
        raise TeacherError(
            f"the SevenNet checkpoint {path} has one surface only",
            expected="sevennet:PATH",
            found=f"modal {modal!r}",
        )

    model: Any = calculator.model
    model.set_is_batch_data(True)

    def graph(atoms: Atoms) -> Any:
        data = AtomGraphData.from_numpy_dict(unlabeled_atoms_to_graph(atoms, calculator.cutoff))
        if calculator.modal is not None:
            data[key.DATA_MODALITY] = calculator.modal
        return data

    def evaluate_many(frames: Sequence[Atoms], wanted: Sequence[bool]) -> list[Evaluation]:
        graphs = Batch.from_data_list([graph(atoms) for atoms in frames])
        output = model(graphs.to(calculator.device))
        ends = np.cumsum([len(atoms) for atoms in frames])[:-1]
        energies, forces = (
            np.split(output[name].detach().cpu().numpy(), ends)
            for name in (key.ATOMIC_ENERGY, key.PRED_FORCE)
        )
        # Its stress has the opposite sign, and the order xx yy zz xy yz xz.
        stresses = -output[key.PRED_STRESS].detach().cpu().numpy()[:, [0, 1, 2, 4, 5, 3]]
        return [
            Evaluation(
                energy=float(np.sum(energies[k], dtype=np.float64)),
                forces=forces[k],
                stress=stresses[k] if wanted[k] else None,
                energies=energies[k].ravel(),
            )
            for k in range(len(frames))
        ]

    return Loaded(
        evaluate=lambda atoms, stress: evaluate_many([atoms], [stress])[0],
        evaluate_many=evaluate_many,
        version=importlib.metadata.version("sevenn"),
        licence="see the model's source" if local else licence_of("sevenn"),
        device=device,
        weights=[Path(path)],
        elements=sorted(calculator.type_map),
        settings={"modal": modal, "precision": "float32"},
    )
