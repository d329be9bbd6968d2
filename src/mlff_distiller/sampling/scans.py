"""Scans of a crystal's cell: volume, and the six independent strains.

They are cheap, and what equations of state and elastic constants are made of, yet rare in
dynamics at one density.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from ase import Atoms
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from mlff_distiller.structure import bare


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class ScanSettings:
    """How a cell is scanned.

    ``volumes`` structures have volume factors evenly in ``volume_range``; for each of the six
    strain components there are ``strains`` of each sign, up to ``max_strain``.
    """

    volumes: Annotated[int, Field(ge=0)] = 11
    volume_range: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.85, 1.15)
    strains: Annotated[int, Field(ge=0)] = 2
    max_strain: Annotated[float, Field(gt=0, lt=0.5)] = 0.03


_VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def scan(
    seeds: Sequence[Atoms], settings: ScanSettings
) -> tuple[list[Atoms], list[dict[str, Any]]]:
    """Strained copies of every seed that is periodic in three directions, and their provenance.

    Seeds with held atoms are left out, for a strain would move them. Atoms keep their scaled
    positions. Provenance: ``source`` (scan), ``seed``, ``branch`` (0, for they are akin to the
    seed), ``strain`` (xx yy zz yz xz xy; shear as the tensor's component).
    """
    frames, origins = [], []
    for index, atoms in enumerate(seeds):
        if not atoms.pbc.all() or atoms.constraints:
            continue
        for strain in _strains(settings):
            frame = bare(atoms)
            frame.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            frames.append(frame)
            voigt = [round(float(strain[pair]), 6) for pair in _VOIGT]
            origins.append({"source": "scan", "seed": index, "branch": 0, "strain": voigt})
    return frames, origins


def _strains(settings: ScanSettings) -> list[np.ndarray]:
    factors = np.linspace(*settings.volume_range, settings.volumes)
    strains = [(factor ** (1 / 3) - 1.0) * np.eye(3) for factor in factors if factor != 1.0]
    sizes = settings.max_strain * np.arange(1, settings.strains + 1) / max(1, settings.strains)
    for a, b in _VOIGT:
        for size in sizes:
            for sign in (-1.0, 1.0):
                strain = np.zeros((3, 3))
                strain[a, b] = strain[b, a] = sign * size
                strains.append(strain)
    return strains
