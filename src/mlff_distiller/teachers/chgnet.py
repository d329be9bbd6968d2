"""CHGNet: charge-informed graph networks whose package carries the weights of three of them.

Mended here: the library takes every structure for a crystal and fails without a cell, so
directions that are not periodic get a vacuum wider than its cutoff, which leaves energy and forces
as they are; fractional coordinates are float32, so atoms are wrapped into the cell first; stress
is 3x3 under ASE's name; per-atom energies are summed in float64.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mlff_distiller.teachers.family import (
    Evaluation,
    Family,
    Loaded,
    licence_of,
    local_file,
    no_argument,
    torch_device,
)

_MODELS = {"chgnet": "0.3.0", "chgnet-0.3.0": "0.3.0", "chgnet-0.2.0": "0.2.0"}
_MODELS["chgnet-r2scan"] = "r2scan"


def _resolve(name: str, argument: str | None) -> tuple[str, dict[str, Any]]:
    if name == "chgnet" and argument is not None:
        absolute = local_file(argument, f"chgnet:{argument}")
        return f"chgnet:{Path(absolute).name}", {"path": absolute}
    no_argument(name, argument)
    model = _MODELS[name]
    return f"chgnet-{model}", {"model": model}


FAMILY = Family(
    name="chgnet",
    package="chgnet",
    install='"mlff-distiller[chgnet]"',
    requirements="chgnet",
    licence="Modified BSD (BSD-3-Clause)",
    usage="chgnet:PATH",
    teachers={
        "chgnet": "CHGNet 0.3.0: 94 elements, GGA/GGA+U of the Materials Project trajectories",
        "chgnet-0.3.0": "the same by its version",
        "chgnet-0.2.0": "CHGNet as first published",
        "chgnet-r2scan": "CHGNet transferred to r2SCAN",
    },
    resolve=_resolve,
)


def in_vacuum(atoms: Atoms, cutoff: float) -> Atoms:
    """A fully periodic copy in which no images meet along directions that were not periodic.

    Those lattice vectors are replaced by normals to the periodic ones, longer than the structure
    by ``2 * cutoff`` (Å). Atoms keep their order, and are wrapped.
    """
    boxed = Atoms(atoms.numbers, atoms.positions, pbc=True)
    cell = np.where(atoms.pbc[:, None], atoms.cell.array, 0.0)
    normals = atoms.cell.new(cell).complete().array
    for axis in np.flatnonzero(~atoms.pbc):
        along = boxed.positions @ normals[axis]
        cell[axis] = (np.ptp(along) + 2.0 * cutoff) * normals[axis]
        boxed.positions += (cutoff - along.min()) * normals[axis]
    boxed.cell = cell
    boxed.wrap()
    return boxed


def load(arguments: dict[str, Any], device: str, allow_download: bool) -> Loaded:
    """Load a bundled model or a checkpoint; see `mlff_distiller.teachers.family`."""
    import chgnet
    from chgnet.model.dynamics import CHGNetCalculator
    from chgnet.model.model import CHGNet

    device = torch_device(device)
    local = "path" in arguments
    if local:
        path, model = Path(arguments["path"]), CHGNet.from_file(arguments["path"])
    else:
        folder = Path(chgnet.__file__).parent / "pretrained" / arguments["model"]
        path = next(folder.glob("*.pth.tar"))
        model = CHGNet.load(model_name=arguments["model"], use_device=device, verbose=False)
    calculator = CHGNetCalculator(
        model, use_device=device, on_isolated_atoms="ignore", return_site_energies=True
    )
    cutoff = float(model.graph_converter.atom_graph_cutoff)

    def evaluate(atoms: Atoms, stress: bool) -> Evaluation:
        calculator.calculate(in_vacuum(atoms, cutoff), task="efs" if stress else "ef")
        results = calculator.results
        return Evaluation(
            energy=float(np.sum(results["energies"], dtype=np.float64)),
            forces=results["forces"],
            stress=results["stress"] if stress else None,
        )

    return Loaded(
        evaluate=evaluate,
        version=importlib.metadata.version("chgnet"),
        licence="see the model's source" if local else licence_of("chgnet"),
        device=device,
        weights=[path],
        elements=range(1, model.atom_embedding.embedding.num_embeddings + 1),
        settings={"precision": "float32"},
    )
