"""What is to be labelled: every structure once, with its name and its kin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io.formats import filetype

from mlff_distiller.dataset import Dataset, dataset_folder, structure_hash
from mlff_distiller.dataset.formats.ase_files import structures
from mlff_distiller.dataset.formats.doubts import problem_of
from mlff_distiller.dataset.importing import Kin
from mlff_distiller.errors import StructureError
from mlff_distiller.structure import bare, warn_of_what_labels_lack

FilesOrAtoms = str | Path | Atoms | Sequence[str | Path | Atoms]
"""Files, datasets or structures; or one of them."""

_KIN = ("seed", "branch", "walker", "segment", "step", "probe")
"""What ``sample`` writes with a structure."""


@dataclass(frozen=True)
class Structure:
    """One structure to label."""

    atoms: Atoms
    """Without calculator or arrays, but with charge and spin."""
    origin: dict[str, Any]
    """``file`` and ``frame``; ``seed`` and ``branch`` are equal for kin."""

    @property
    def name(self) -> str:
        return f"{self.origin['file']}, frame {self.origin['frame']}"


@dataclass(frozen=True)
class Structures:
    """Different structures in the order of their files."""

    all: tuple[Structure, ...]
    digest: str
    """SHA-256 of what they are, in order."""
    n_repeated: int
    """Exact repetitions, which were left out."""


def read_frames(source: str | Path) -> list[Atoms]:
    """Every frame of a file that ASE reads.

    Raises
    ------
    StructureError
        It cannot be read, or the reader would have to guess elements or places of atoms.
    """
    try:
        frames = list(structures(Path(source), filetype(str(source))))
        if not frames:
            raise ValueError("no structure in it")
        for index, atoms in enumerate(frames):
            if problem := problem_of(atoms):
                raise StructureError(f"{source}, frame {index}: {problem}")
        return frames
    except StructureError:
        raise
    except Exception as error:  # ASE's readers let whatever they stumble over through
        raise StructureError(
            f"cannot read structures from {source}",
            expected="a file that ASE reads (extxyz, cif, POSCAR, ...)",
            found=f"{type(error).__name__}: {error}",
        ) from error


def as_list(sources: FilesOrAtoms) -> list[str | Path | Atoms]:
    """``sources``, also where there is a single one."""
    return [sources] if isinstance(sources, str | Path | Atoms) else list(sources)


def read_structures(sources: FilesOrAtoms) -> Structures:
    """Structures of files that ASE reads, of datasets, or ``Atoms``; not checked in any way.

    Frames are kin if ``sample`` made them in one tree or walk, if they are of one group of a
    dataset, or if no atom moved by 0.1 Å since the last frame.
    """
    found: dict[str, Structure] = {}
    repeated, kin = 0, Kin()
    for number, source in enumerate(as_list(sources)):
        for frame, (atoms, about, name) in enumerate(_frames(source)):
            kept = bare(atoms)
            group = kin.group(number, kept, name)
            file = source.get_chemical_formula() if isinstance(source, Atoms) else str(source)
            origin = {"file": file, "frame": frame, **_kin(about, number, group)}
            key = structure_hash(kept)
            repeated += key in found
            found.setdefault(key, Structure(kept, origin))
    if not found:
        raise StructureError("no structures were given", expected="at least one")
    digest = sha256("\n".join(found).encode()).hexdigest()
    return Structures(tuple(found.values()), digest, repeated)


def _frames(source: str | Path | Atoms) -> Iterator[tuple[Atoms, dict[str, Any], str]]:
    """Each with what is said about it, and the name of its kin, if they have one."""
    if isinstance(source, Atoms):
        warn_of_what_labels_lack([source], source.get_chemical_formula())
        yield source, source.info, ""
    elif (dataset_folder(source) / "manifest.json").is_file():
        for record in Dataset(source).iterate():
            yield record.atoms, dict(record.provenance), f"group {record.group}"
    else:
        frames = read_frames(source)
        warn_of_what_labels_lack(frames, source)
        for atoms in frames:
            yield atoms, atoms.info, ""


def _kin(about: dict[str, Any], number: int, group: int) -> dict[str, int]:
    """Seeds of different files differ; frames that say nothing are of a ``group``."""
    told = {name: int(about[name]) for name in _KIN if _is_whole(about.get(name))}
    if "seed" in told:
        branch = told.get("branch", told.get("walker", 0))
        return {**told, "seed": number * 10**6 + told["seed"], "branch": branch}
    return {"seed": number * 10**6 + group % 10**6, "branch": 1}


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def batches(structures: Sequence[Structure], most_atoms: int) -> list[list[Structure]]:
    """Consecutive structures, cut where a batch would exceed ``most_atoms``; 0: one by one."""
    cut: list[list[Structure]] = []
    n_atoms = 0
    for structure in structures:
        size = len(structure.atoms)
        if not cut or n_atoms + size > most_atoms:
            cut.append([])
            n_atoms = 0
        cut[-1].append(structure)
        n_atoms += size
    return cut


def share(structures: Sequence[Structure], shard: tuple[int, int]) -> Sequence[Structure]:
    """Every n-th of ``structures``, from the i-th on; ``shard`` is (i, n), i from 1 on."""
    number, count = shard
    return structures[number - 1 :: count]
