"""``train.xyz`` of GPUMD's nep: extended XYZ with names, units and signs that the format fixes.

Names are of any case: ``energy`` (eV), ``force`` or ``forces`` (eV/Å) and ``virial`` (eV, nine
numbers, positive under compression: ``-V * stress``); ``lattice`` means periodic in all directions
unless ``pbc`` says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from ase.geometry import complete_cell

from mlff_distiller.dataset.formats.extxyz import blocks, parse, write_frame
from mlff_distiller.dataset.formats.frame import Conventions, Frame, stress_from_virial
from mlff_distiller.dataset.record import Record
from mlff_distiller.errors import DatasetError
from mlff_distiller.structure import bare


def read(path: Path, conventions: Conventions) -> Iterator[Frame]:
    """Frames of a ``train.xyz``."""
    conventions.only("nep")
    for index, (text, line, progress) in enumerate(blocks(path)):
        try:
            atoms = parse(re.sub(r"[ \t]*=[ \t]*", "=", text))
            results = {} if atoms.calc is None else dict(atoms.calc.results)
            known = {**atoms.info, **atoms.arrays, **results}
            known = {name.lower(): value for name, value in known.items()}
            energy = known.get("energy")
            forces = known.get("forces", known.get("force"))
            if forces is None and len(atoms) == 1:
                forces = np.zeros((1, 3))  # by symmetry
            if energy is None or forces is None:
                raise ValueError(f"no {'energy' if energy is None else 'forces'}")
            if "virial" not in known and known.get("stress") is not None:
                raise ValueError("a stress instead of a virial; read it with --format extxyz")
            labels = {
                "energy": np.array(float(energy)),
                "forces": np.asarray(forces, np.float64).reshape(len(atoms), 3),
            }
            if known.get("virial") is not None:
                virial = np.asarray(known["virial"], np.float64).reshape(3, 3)
                labels["stress"] = stress_from_virial(virial, atoms, "virial")
        except (TypeError, ValueError, DatasetError) as error:
            problem = getattr(error, "problem", str(error)).split("\n")[0]
            yield Frame(index, parse("0\n\n"), problem=f"line {line}: {problem}", progress=progress)
            continue
        atoms.info = {name.lower(): value for name, value in atoms.info.items()}
        yield Frame(index, bare(atoms), labels, progress=progress)


def write(stream: IO[str], record: Record) -> None:
    """One frame. nep takes every direction for periodic: others get a box of 100 Å around it."""
    atoms = record.atoms.copy()
    header: dict[str, object] = {"energy": float(record.labels["energy"])}
    if "charge" in atoms.info:
        header["charge"] = float(atoms.info["charge"])
    if "stress" in record.labels and atoms.cell.rank == 3:
        header["virial"] = -record.labels["stress"] * atoms.get_volume()
    if not atoms.pbc.all():
        axes = complete_cell(np.where(atoms.pbc[:, None], atoms.cell.array, 0.0))
        extents = np.ptp(atoms.positions @ axes.T, axis=0) + 100.0
        atoms.cell = np.where(atoms.pbc[:, None], axes, extents[:, None] * axes)
    write_frame(stream, atoms, header, {"forces": record.labels["forces"]})
