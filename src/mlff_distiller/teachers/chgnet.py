"""CHGNet: charge-informed graph networks whose package carries the weights of three of them.

Mended here: the library takes every structure for a crystal and fails without a cell, so
directions that are not periodic get a vacuum wider than its cutoff, which leaves energy and forces
as they are; fractional coordinates are float32, so atoms are wrapped into the cell first; the
library divides stress by a signed volume, which turns its sign in a left-handed cell; per-atom
energies are summed in float64.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import ase.units
import numpy as np
from ase import Atoms

from mlff_distiller.errors import TeacherError
from mlff_distiller.teachers.family import (
    Evaluation,
    Family,
    Loaded,
    in_vacuum,
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
    install="chgnet",
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


def _handedness(atoms: Atoms) -> float:
    return float(np.sign(np.linalg.det(atoms.cell.array)))


def _tensors(path: Path) -> dict[str, Any]:
    """A checkpoint's weights and settings; what else it holds, and would run, is refused."""
    import torch

    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return content["model"]  # type: ignore[no-any-return]
    except (OSError, RuntimeError, LookupError, TypeError, EOFError, UnpicklingError) as error:
        raise TeacherError(
            f"the CHGNet checkpoint {path} cannot be read",
            expected="tensors, numbers and text alone, as the library's own have them",
            found=f"{type(error).__name__}: {str(error).splitlines()[0]}",
            remedy="if you trust its source, load it with CHGNet.from_file, and save "
            "{'model': model.as_dict()} with torch.save",
        ) from error


def load(arguments: dict[str, Any], device: str, allow_download: bool) -> Loaded:
    """Load a bundled model or a checkpoint; see `mlff_distiller.teachers.family`."""
    import chgnet
    from chgnet.model.model import CHGNet
    from pymatgen.io.ase import AseAtomsAdaptor

    device = torch_device(device)
    local = "path" in arguments
    if local:
        path = Path(arguments["path"])
        model = CHGNet.from_dict(_tensors(path))
    else:
        folder = Path(chgnet.__file__).parent / "pretrained" / arguments["model"]
        path = next(folder.glob("*.pth.tar"))
        model = CHGNet.load(model_name=arguments["model"], use_device=device, verbose=False)
    model = model.to(device)
    model.graph_converter.set_isolated_atom_response("ignore")
    cutoff = float(model.graph_converter.atom_graph_cutoff)

    def together(frames: Sequence[Atoms], stress: bool) -> list[Evaluation]:
        graphs = [
            model.graph_converter(AseAtomsAdaptor.get_structure(in_vacuum(atoms, cutoff)))
            for atoms in frames
        ]
        answers: Any = model.predict_graph(
            graphs,
            task="efs" if stress else "ef",
            return_site_energies=True,
            batch_size=len(graphs),
        )
        return [
            Evaluation(
                energy=float(np.sum(answer["site_energies"], dtype=np.float64)),
                forces=answer["f"],
                stress=_handedness(atoms) * ase.units.GPa * answer["s"] if stress else None,
                energies=answer["site_energies"],
            )
            for atoms, answer in zip(
                frames, [answers] if len(graphs) == 1 else answers, strict=True
            )
        ]

    def evaluate_many(frames: Sequence[Atoms], wanted: Sequence[bool]) -> list[Evaluation]:
        answers = together(frames, any(wanted))
        return [
            answer if stress else replace(answer, stress=None)
            for answer, stress in zip(answers, wanted, strict=True)
        ]

    return Loaded(
        evaluate=lambda atoms, stress: together([atoms], stress)[0],
        evaluate_many=evaluate_many,
        version=importlib.metadata.version("chgnet"),
        licence="see the model's source" if local else licence_of("chgnet"),
        device=device,
        weights=[path],
        elements=range(1, model.atom_embedding.embedding.num_embeddings + 1),
        settings={"precision": "float32"},
    )
