"""What production runs met and a student did not know, brought back to the run it is from.

Each harvest is a folder ``RUN/harvest/NN``: ``structures.traj``, which a turn of its own labels and
trains on, and ``offered.json``, the hashes of all that it was chosen from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms

from mlff_distiller.batch import check_structure
from mlff_distiller.dataset import Dataset, structure_hash
from mlff_distiller.durable import read_json, write_json
from mlff_distiller.errors import StructureError
from mlff_distiller.labeling import Labeler, open_labels, read_structures
from mlff_distiller.sampling import descriptors, select
from mlff_distiller.sampling.similar import find_similar
from mlff_distiller.teachers import TeacherCalculator
from mlff_distiller.workflows import seeds
from mlff_distiller.workflows.train import OnProgress

_MOST = 200
"""Structures of one harvest that are labelled."""
_COMPARED = 2000
"""The most labels, evenly spaced, with which new structures are compared."""
_SEED = 1_000_000
"""Added to a harvest's number to name its kin: no seed structure has such a number."""


def read_harvest(sources: Sequence[str | Path]) -> list[Atoms]:
    """The different structures of files that ASE reads, datasets, and folders of such files.

    Raises
    ------
    StructureError
        A source cannot be read, or a structure evaluated.
    """
    files: list[str | Path] = []
    for source in map(Path, sources):
        is_pool = source.is_dir() and not (source / "manifest.json").is_file()
        found = sorted(source.glob("*.extxyz")) if is_pool else [source]
        if not found:
            raise StructureError(
                f"{source} holds no harvest",
                expected="a dataset, a file of structures, or a folder of .extxyz files",
            )
        files += found
    structures = read_structures(files).all
    for structure in structures:
        check_structure(structure.atoms, structure.name)
    return [structure.atoms for structure in structures]


def most_different(frames: Sequence[Atoms], known: Sequence[Atoms], n: int) -> list[Atoms]:
    """Up to ``n`` of ``frames`` that resemble neither each other nor ``known`` ones."""
    repeated = set(find_similar(frames)[:, 1].tolist()) | set(find_similar(frames, known)[:, 0])
    new = [atoms for k, atoms in enumerate(frames) if k not in repeated]
    if len(new) <= n:
        return new
    features = descriptors([*known, *new])
    chosen = select(features, n, chosen=range(len(known)))
    return [new[k - len(known)] for k in sorted(chosen.tolist())]


def bring(out: Path, sources: Sequence[str | Path], on_progress: OnProgress) -> None:
    """Keep what is new in ``sources`` as the next harvest of the run ``out``, which has not ended.

    What was offered before is left out, also what was not chosen then.
    """
    frames = {structure_hash(atoms): atoms for atoms in read_harvest(sources)}
    number = 0
    while (folder_of(out, number) / "offered.json").exists():
        for key in read_json(folder_of(out, number) / "offered.json")["structures"]:
            frames.pop(key, None)
        number += 1
    known = []
    if (out / "dataset" / "manifest.json").exists():
        labels = Dataset(out / "dataset")
        places = np.unique(np.linspace(0, len(labels) - 1, min(len(labels), _COMPARED)).astype(int))
        known = labels.read(places).to_atoms() if len(labels) else []
    chosen = most_different(list(frames.values()), known, _MOST)
    on_progress("harvest", len(chosen), len(chosen), f"{len(frames)} new, {len(chosen)} to label")
    if chosen:
        (out / "report.json").unlink(missing_ok=True)  # it says that the run has ended
        folder = folder_of(out, number)
        seeds.save_structures(folder / "structures.traj", chosen)
        write_json(folder / "offered.json", {"structures": sorted(frames)})


def folder_of(out: Path, number: int) -> Path:
    """Where the run's harvest of that number is."""
    return out / "harvest" / f"{number:02d}"


def waiting(out: Path, number: int) -> list[Atoms]:
    """The structures of a harvest; none if there is none of that number."""
    folder = folder_of(out, number)
    there = (folder / "offered.json").exists()
    return seeds.read_structures(folder / "structures.traj") if there else []


def label_harvest(
    out: Path, number: int, teacher: TeacherCalculator, on_progress: OnProgress
) -> None:
    """Label the structures of a harvest, all of which train."""
    frames = waiting(out, number)
    with open_labels(out / "dataset", teacher.identity) as writer:
        label = Labeler(writer, teacher)
        for start in range(0, len(frames), 16):
            part = frames[start : start + 16]
            origins = [
                {"source": "harvest", "seed": _SEED + number, "branch": 0, "frame": start + k}
                for k in range(len(part))
            ]
            label(part, origins)
            on_progress("label", start + len(part), len(frames), label.news)
