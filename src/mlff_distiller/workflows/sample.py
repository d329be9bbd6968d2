"""Structures to label: generated from a few seeds, or selected from those there are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from pydantic import ValidationError

from mlff_distiller import sampling
from mlff_distiller.batch import check_structure
from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.durable import new_path, replacing
from mlff_distiller.errors import ConfigError, DistillerError, StructureError, from_pydantic
from mlff_distiller.labeling import FilesOrAtoms, read_structures
from mlff_distiller.structure import enlarge
from mlff_distiller.teachers import TeacherGaveUp, load_teacher
from mlff_distiller.workflows.distill import read_seeds
from mlff_distiller.workflows.train import OnProgress

Method = Literal["tree", "md", "scan", "approach", "pool", "probe"]


def sample(
    structures: FilesOrAtoms,
    out: str | Path,
    method: Method = "tree",
    *,
    number: int = 100,
    select: int | None = None,
    teacher: str | BaseCalculator | None = None,
    student: str | Path | None = None,
    temperature_K: Sequence[float] = (300.0,),
    pressure_GPa: Sequence[float] = (),
    seed: int = 0,
    device: str = "auto",
    teacher_python: str | None = None,
    allow_download: bool = False,
    teacher_timeout_s: float | None = None,
    on_progress: OnProgress = lambda stage, done, total, news: None,
) -> list[Atoms]:
    """Write structures to label to the new extxyz file ``out``; returns them.

    Each carries its origin in ``info``, which tells `labeling.read_structures` what is kin. Those
    of ``tree`` and ``md`` are appended as they are made, with the energies (eV) and forces (eV/Å)
    that were computed for them: what an interrupted call wrote is good.

    Parameters
    ----------
    structures
        Files that ASE reads (every frame in them) or ``Atoms``, or one of either; for ``pool``
        also datasets.
    method
        ``tree`` grows rattle-relax trees and ``md`` runs molecular dynamics, with the forces of
        either ``teacher`` or ``student``. ``scan`` strains cells; ``approach`` pushes pairs of
        atoms together; ``probe`` displaces structures both ways along a random direction, to
        train on Hessians. ``pool`` generates none and selects from ``structures``.
    number
        Structures to generate, or pairs of them (``probe``); ``scan`` and ``pool`` ignore it.
    select
        Keep this many, those farthest from each other.
    teacher
        A registered name, ``FAMILY:PATH``, ``ase:package.module:factory``, or an ASE calculator.
    teacher_timeout_s
        See `TeacherCalculator`.
    student
        Folder of a student or of a run, or a ``nep.txt``.
    temperature_K, pressure_GPa
        Taken in turn. With pressures ``md`` is NPT, without NVT.

    Raises
    ------
    ConfigError
        ``out`` exists, ``select`` exceeds what there is to choose from, or ``method`` is unknown
        or lacks what it needs.
    StructureError
        A structure cannot be read or evaluated, or gives ``method`` nothing to do.
    TeacherError
        The teacher cannot be started.
    """
    out = Path(out)
    with new_path(out):
        if len(pressure_GPa) and method != "md":
            raise ConfigError(
                f"--method {method} does not take a pressure",
                expected="--pressure with --method md only",
            )
        if method == "pool" and select is None:
            raise ConfigError(
                "--method pool needs a number of structures to select", expected="--select N"
            )
        if method in ("tree", "md"):
            _check_selection(select, number)
            seeds = _large(read_seeds(structures))
            with _calculator(
                teacher,
                student,
                device,
                teacher_python,
                allow_download,
                teacher_timeout_s,
                on_progress,
            ) as source:
                label = _FileLabeler(source, out)
                _evaluate(
                    method, seeds, label, number, temperature_K, pressure_GPa, seed, on_progress
                )
            frames = label.frames
            if select is None:
                return frames
        else:
            frames = _construct(method, structures, number, seed)
            _check_selection(select, len(frames))
        if select is not None:
            frames = _most_different(frames, select, seed, on_progress)
        with replacing(out) as partial:
            _append(partial, frames)
        return frames


def _check_selection(select: int | None, most: int) -> None:
    if select is not None and select > most:
        raise ConfigError(
            "--select asks for more structures than there are",
            expected=f"at most {most}",
            found=select,
            remedy="lower --select, raise --number, or give more structures",
        )


def _large(seeds: Sequence[Atoms]) -> list[Atoms]:
    smallest = sampling.RattleSettings().min_atoms
    return [enlarge(atoms, smallest) if atoms.pbc.any() else atoms for atoms in seeds]


@contextmanager
def _calculator(
    teacher: str | BaseCalculator | None,
    student: str | Path | None,
    device: str,
    python: str | None,
    allow_download: bool,
    timeout_s: float | None,
    on_progress: OnProgress,
) -> Iterator[Calculator]:
    """The teacher, started, so that it says itself why it cannot; or the student."""
    if student is not None and teacher is None:
        yield StudentCalculator(student, device=device)
        return
    if teacher is None or student is not None:
        raise ConfigError(
            "sampling by tree or md needs the forces of one model",
            expected="either --teacher or --student",
        )
    with load_teacher(
        teacher, device=device, python=python, allow_download=allow_download, timeout_s=timeout_s
    ) as source:
        on_progress("teacher", 1, 1, source.identity.name)
        yield source


class _FileLabeler:
    """The samplers' ``label``: evaluates structures and appends them to a file."""

    def __init__(self, calculator: Calculator, out: Path) -> None:
        self.calculator, self.out = calculator, out
        self.frames: list[Atoms] = []

    def __call__(
        self, frames: Sequence[Atoms], provenance: Sequence[dict[str, Any]]
    ) -> list[dict[str, np.ndarray] | None]:
        answers: list[dict[str, np.ndarray] | None] = []
        done = []
        for atoms, origin in zip(frames, provenance, strict=True):
            known = atoms.copy()
            try:
                energy = self.calculator.get_potential_energy(known)
                forces = self.calculator.get_forces(known)
            except DistillerError as error:
                if origin["source"] == "seed" or isinstance(error, TeacherGaveUp):
                    raise
                answers.append(None)
                continue
            known.info.update(origin)
            known.calc = SinglePointCalculator(known, energy=energy, forces=forces)
            done.append(known)
            answers.append({"energy": energy, "forces": forces})
        _append(self.out, done)
        self.frames += done
        return answers


def _append(out: Path, frames: Sequence[Atoms]) -> None:
    """All of ``frames`` in one piece, so that an interruption or a full disk cuts none in two."""
    if not frames:
        return
    text = StringIO()
    write(text, list(frames), format="extxyz")
    before = out.stat().st_size if out.exists() else 0
    try:
        with out.open("a", encoding="utf-8") as stream:
            stream.write(text.getvalue())
    except OSError:
        with suppress(OSError):
            os.truncate(out, before)
            if not before:
                out.unlink()
        raise


def _evaluate(
    method: Method,
    seeds: Sequence[Atoms],
    label: _FileLabeler,
    number: int,
    temperature_K: Sequence[float],
    pressure_GPa: Sequence[float],
    seed: int,
    on_progress: OnProgress,
) -> None:
    """Generate ``number`` structures by a method that needs forces."""

    def shown(n: int) -> None:
        on_progress("sample", n, number, "")

    try:
        trees = sampling.RattleSettings(temperature_K=tuple(temperature_K))
    except ValidationError as error:
        raise from_pydantic(error) from error
    if method == "tree":
        sampling.grow(seeds, label, number, trees, seed, shown)
        return
    dynamics = sampling.DynamicsSettings()
    if pressure_GPa:
        dynamics = replace(dynamics, ensemble="npt", pressures_GPa=tuple(pressure_GPa))
    group = sampling.walkers(seeds, trees.temperature_K, dynamics)
    sampling.walk(group, label.calculator, label, number, dynamics, seed, None, shown)


def _construct(method: Method, structures: FilesOrAtoms, number: int, seed: int) -> list[Atoms]:
    """Structures by a method that needs no forces."""
    if method == "pool":
        return _pool(structures)
    seeds = read_seeds(structures)
    if method == "probe":
        return [atoms for pair in sampling.probes(seeds, number, seed) for atoms in pair]
    if method == "scan":
        frames, origins = sampling.scan(seeds, sampling.ScanSettings())
        problem, expected = "no cell can be scanned", "a structure periodic in three directions"
        remedy = "give a crystal, or sample by --method tree or md"
    elif method == "approach":
        settings = sampling.ApproachSettings()
        frames, origins = sampling.approach(_large(seeds), number, settings, seed)
        problem, expected = "no atoms can be pushed together", "atoms closer than 4 Å to each other"
        remedy = ""
    else:
        known = ", ".join(get_args(Method))
        raise ConfigError("unknown method of sampling", expected=known, found=method)
    if not frames:
        formulas = ", ".join(atoms.get_chemical_formula() for atoms in seeds[:3])
        raise StructureError(problem, expected=expected, found=formulas, remedy=remedy)
    for atoms, origin in zip(frames, origins, strict=True):
        atoms.info.update(origin)
    return frames


def _pool(structures: FilesOrAtoms) -> list[Atoms]:
    """The different structures given, each with its file, frame and kin."""
    frames = []
    for structure in read_structures(structures).all:
        check_structure(structure.atoms, structure.name)
        structure.atoms.info.update(structure.origin)
        frames.append(structure.atoms)
    return frames


def _most_different(
    frames: Sequence[Atoms], n: int, seed: int, on_progress: OnProgress
) -> list[Atoms]:
    features = sampling.descriptors(
        frames, on_frame=lambda done: on_progress("describe", done, len(frames), "")
    )
    chosen = sampling.select(
        features, n, seed, on_choice=lambda done: on_progress("select", done, n, "")
    )
    return [frames[k] for k in sorted(chosen.tolist())]
