"""What every teacher must do, whatever its origin: physics, ASE's conventions, and bad days.

>>> from mlff_distiller.testing import assert_teacher
>>> assert_teacher("7net-0")  # doctest: +SKIP
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import all_properties
from ase.filters import FrechetCellFilter
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS, FIRE

from mlff_distiller.errors import DistillerError, StructureError, UnknownElementError
from mlff_distiller.properties import LABELS, SUM_WITHIN
from mlff_distiller.structure import random_rotation, thermalise
from mlff_distiller.teachers import TeacherCalculator, load_teacher
from mlff_distiller.teachers.session import is_crystal
from mlff_distiller.testing.laws import close

Labels = dict[str, np.ndarray]

_STENCIL = {1: 2 / 3, -1: -2 / 3, 2: -1 / 12, -2: 1 / 12}
"""Derivative from E(x + k h), times h; its error is of order h^4."""

_SHARE = 10.0
"""An atom's own energy is noisier than the mean over atoms, by which energies are compared."""


@dataclass(frozen=True)
class Tolerance:
    """How well a teacher can be expected to keep the laws in its precision."""

    energy: float
    """eV per atom, between two ways to ask the same."""
    forces: float
    """eV/Å; for stress, eV/Å³."""
    slope: float
    """Tolerance of finite differences: relative, and absolute in eV/Å (a tenth of it in eV/Å³)."""
    step: float
    """Å, and a tenth of it as strain: wide enough for the energy's rounding."""


TOLERANCES = {
    "float64": Tolerance(energy=1e-7, forces=1e-6, slope=1e-4, step=0.005),
    "float32": Tolerance(energy=1e-5, forces=2e-4, slope=2e-3, step=0.02),
}


def assert_teacher(
    teacher: str | TeacherCalculator,
    structures: Sequence[Atoms] | None = None,
    *,
    tolerance: Tolerance | None = None,
    direct: bool = False,
) -> None:
    """All of ``TEACHER_LAWS``; some 40 evaluations per structure and one start of its process.

    Parameters
    ----------
    teacher
        A SPEC or a calculator. It is left running if it was given as a calculator.
    structures
        Small ones it knows, off their minima; by default an eight-atom crystal, a molecule and
        one atom of elements it knows.
    tolerance
        By default of the ``precision`` among the teacher's settings, else that of float32.
    direct
        Whether it predicts forces and stress instead of deriving them from the energy: then
        they are not compared with finite differences, and ``tolerance`` may have to be wider.

    Raises
    ------
    AssertionError
        Naming the law, with figures.
    """
    calculator = load_teacher(teacher) if isinstance(teacher, str) else teacher
    try:
        settings = calculator.identity.settings
        wide = tolerance or TOLERANCES.get(str(settings.get("precision")), TOLERANCES["float32"])
        frames = _known_to(calculator) if structures is None else list(structures)
        for law in TEACHER_LAWS:
            if direct and law is assert_derivatives:
                continue
            try:
                law(calculator, frames, wide)
            except DistillerError as error:
                raise AssertionError(f"{law.__name__}: the teacher failed: {error}") from error
    finally:
        if isinstance(teacher, str):
            calculator.close()


def _known_to(teacher: TeacherCalculator) -> list[Atoms]:
    """A rattled, sheared crystal, a molecule and an atom of elements the teacher knows."""
    crystals = [bulk("NaCl", "rocksalt", 5.64, cubic=True), bulk("C", cubic=True), bulk("Cu") * 2]
    molecules = [molecule("CH3CH2OH"), molecule("H2O"), molecule("H2")]
    known = teacher.elements
    chosen = [
        next(
            (atoms.copy() for atoms in group if known and set(atoms.numbers.tolist()) <= known),
            None,
        )
        for group in (crystals, molecules)
    ]
    frames = [atoms for atoms in chosen if atoms is not None]
    if not frames:
        raise StructureError(
            f"there is no structure to try teacher {teacher.spec!r} on",
            expected="a teacher that says which elements it knows, C, O, Na or Cu among them",
            remedy="pass structures=[...]",
        )
    for atoms in frames:
        atoms.set_cell(atoms.cell.array @ [[1, 0.05, 0], [0, 1.02, 0.1], [0, 0, 0.97]], True)
        atoms.rattle(0.05, seed=2)
    return [*frames, Atoms([frames[-1].symbols[0]])]


def _ask(
    teacher: TeacherCalculator, frames: Sequence[Atoms], law: str, batch_size: int | None = None
) -> list[Labels]:
    answers = []
    labelled = teacher.label(frames, batch_size=batch_size)
    for atoms, answer in zip(frames, labelled, strict=True):
        assert answer.labels is not None, f"{law}: no label for {atoms.symbols}: {answer.error}"
        answers.append(answer.labels)
    return answers


def _same(law: str, found: Labels, expected: Labels, tolerance: Tolerance) -> None:
    """``expected`` may have been turned or renumbered by the caller."""
    per_atom = {"energy": len(expected["forces"]), "energies": _SHARE}
    for name in (name for name in LABELS if name in found and name in expected):
        within = tolerance.energy * per_atom[name] if name in per_atom else tolerance.forces
        close(f"{law}: {name}", found[name], expected[name], within)
    assert found.keys() == expected.keys(), f"{law}: has {set(found)}, expected {set(expected)}"


def assert_conventions(
    teacher: TeacherCalculator, structures: Sequence[Atoms], tolerance: Tolerance
) -> None:
    """ASE's keys, types and shapes; copies handed out; stress of crystals; energies add up."""
    for atoms in structures:
        law = f"conventions, {atoms.symbols}"
        atoms = atoms.copy()
        atoms.calc = teacher
        forces = atoms.get_forces()
        results = teacher.results
        unknown = results.keys() - set(all_properties)
        assert not unknown, f"{law}: results hold {unknown}, which ASE does not know"
        for name in ("energy", "free_energy"):
            kind = type(results.get(name))
            assert kind is float, f"{law}: {name} must be a float, found {kind.__name__}"
        shapes: dict[str, tuple[int, ...]] = {"forces": (len(atoms), 3)}
        shapes |= {"stress": (6,)} if "stress" in results else {}
        shapes |= {"energies": (len(atoms),)} if "energies" in results else {}
        for name, shape in shapes.items():
            value = results[name]
            assert value.shape == shape, f"{law}: {name} must be {shape}, found {value.shape}"
            assert value.dtype == np.float64, f"{law}: {name} must be float64, not {value.dtype}"
            assert np.isfinite(value).all(), f"{law}: {name} is not finite"
        assert is_crystal(atoms) or "stress" not in results, (
            f"{law}: stress must exist only for structures periodic in three directions"
        )
        if "energies" in results:
            total, within = results["energies"].sum(), SUM_WITHIN * len(atoms)
            close(f"{law}: sum of energies", total, results["free_energy"], within)
        before = forces.copy()
        forces += 1e3
        close(f"{law}: forces after a caller changed his", atoms.get_forces(), before, 0.0)


def assert_derivatives(
    teacher: TeacherCalculator, structures: Sequence[Atoms], tolerance: Tolerance
) -> None:
    """``F . u = -dE/du`` and ``stress : e = dE/de / V`` along random directions u, strains e."""
    rng = np.random.default_rng(0)
    for atoms in structures:
        [now] = _ask(teacher, [atoms], "derivatives")
        for _ in range(2):
            along = rng.normal(size=(len(atoms), 3))
            along /= np.linalg.norm(along)

            def moved(amount: float, atoms: Atoms = atoms, u: np.ndarray = along) -> Atoms:
                other: Atoms = atoms.copy()
                other.positions += amount * u
                return other

            slope = _slope(teacher, moved, tolerance.step)
            force = float((now["forces"] * along).sum())
            within = tolerance.slope * (1.0 + float(np.linalg.norm(now["forces"])))
            close(f"derivatives, {atoms.symbols}: force against -dE/dr", force, -slope, within)
            if "stress" not in now:
                continue
            strain = rng.normal(size=(3, 3))
            strain = (strain + strain.T) / np.linalg.norm(strain + strain.T)

            def bent(amount: float, atoms: Atoms = atoms, e: np.ndarray = strain) -> Atoms:
                other: Atoms = atoms.copy()
                other.set_cell(atoms.cell.array @ (np.eye(3) + amount * e), scale_atoms=True)
                return other

            slope = _slope(teacher, bent, 0.1 * tolerance.step) / atoms.get_volume()
            stress = float((now["stress"] * strain).sum())
            within = tolerance.slope * (0.1 + float(np.linalg.norm(now["stress"])))
            close(f"derivatives, {atoms.symbols}: stress against dE/de/V", stress, slope, within)


def _slope(teacher: TeacherCalculator, change: Callable[[float], Atoms], step: float) -> float:
    answers = _ask(teacher, [change(k * step) for k in _STENCIL], "derivatives")
    weights = _STENCIL.values()
    return sum(w * float(a["energy"]) for w, a in zip(weights, answers, strict=True)) / step


def assert_symmetries(
    teacher: TeacherCalculator, structures: Sequence[Atoms], tolerance: Tolerance
) -> None:
    """Nothing depends on where the system is, which image an atom is, its number or our axes."""
    rng = np.random.default_rng(0)
    for atoms in structures:
        moved, turned, order = atoms.copy(), atoms.copy(), rng.permutation(len(atoms))
        hops = rng.integers(-2, 3, (len(atoms), 3)) * atoms.pbc
        moved.positions += hops @ atoms.cell.array + rng.normal(size=3)
        turn = random_rotation(rng)
        turned.set_cell(atoms.cell.array @ turn.T)
        turned.positions = atoms.positions @ turn.T
        mirrored = atoms.copy()  # the same lattice by other vectors, which are left-handed
        mirrored.set_cell(atoms.cell.array[[1, 0, 2]])
        mirrored.pbc = atoms.pbc[[1, 0, 2]]
        frames = [atoms, moved, turned, atoms[order], mirrored]
        now, *others = _ask(teacher, frames, "symmetries")
        expected = {
            "moved": now,
            "rotated": now | {"forces": now["forces"] @ turn.T},
            "renumbered": {
                name: value[order] if LABELS[name].per == "atom" else value
                for name, value in now.items()
            },
            "with a left-handed cell": now,
        }
        if "stress" in now:
            expected["rotated"] = expected["rotated"] | {"stress": turn @ now["stress"] @ turn.T}
        for (how, known), found in zip(expected.items(), others, strict=True):
            _same(f"symmetries, {atoms.symbols} {how}", found, known, tolerance)


def assert_labels(
    teacher: TeacherCalculator, structures: Sequence[Atoms], tolerance: Tolerance
) -> None:
    """``label`` agrees with ``calculate``, and a batch with its structures one by one."""
    frames = [*structures, *reversed(structures)]
    together = _ask(teacher, frames, "labels", batch_size=sum(map(len, frames)))
    for k, atoms in enumerate(frames):
        [alone] = _ask(teacher, [atoms], "labels")
        _same(f"labels, {atoms.symbols} in a batch and alone", together[k], alone, tolerance)
        atoms = atoms.copy()
        atoms.calc = teacher
        found = {"forces": atoms.get_forces()}
        found["energy"] = np.array(atoms.get_potential_energy(force_consistent=True))
        if "stress" in alone:
            found["stress"] = atoms.get_stress(voigt=False)
        if "energies" in alone:
            found["energies"] = atoms.get_potential_energies()
        if "forces_spread" in alone:
            found["forces_spread"] = teacher.extra["forces_spread"]
        _same(f"labels, {atoms.symbols} by calculate", found, alone, tolerance)


def assert_bad_structures_are_harmless(
    teacher: TeacherCalculator, structures: Sequence[Atoms], tolerance: Tolerance
) -> None:
    """What cannot be evaluated is refused, and what comes after is as before."""
    law = "bad structures"
    good = structures[0]
    broken, unknown = good.copy(), good.copy()
    broken.positions[0, 1] = np.nan
    strange = set(range(1, 119)) - (teacher.elements or set(range(1, 119)))
    unknown.numbers[-1] = max(strange, default=int(good.numbers[-1]))
    [before] = _ask(teacher, [good], law)
    first, *refused, last = teacher.label([good, Atoms(), broken, unknown, good])
    for atoms, answer in zip((Atoms(), broken, unknown), refused, strict=True):
        wrong = atoms is not unknown or bool(strange)
        assert not wrong or answer.labels is None, f"{law}: {atoms.symbols} got a label"
    for answer in (first, last):
        assert answer.labels is not None, f"{law}: a good structure next to them: {answer.error}"
        _same(f"{law}: a good structure next to them", answer.labels, before, tolerance)
    if strange:
        try:
            teacher.calculate(unknown)
        except UnknownElementError:
            pass
        else:
            raise AssertionError(f"{law}: {unknown.symbols} was calculated")
        assert not teacher.results, f"{law}: results are left after a failure"
    [after] = _ask(teacher, [good], law)
    _same(f"{law}: a good structure after them", after, before, tolerance)


def assert_identity(
    teacher: TeacherCalculator, structures: Sequence[Atoms], tolerance: Tolerance
) -> None:
    """It says who it is; a copy, which starts a process of its own, is the same and answers so."""
    identity = teacher.identity
    for name in ("name", "family", "version", "licence", "device"):
        assert getattr(identity, name), f"identity: its {name} is empty"
    [ours] = _ask(teacher, structures[:1], "identity")
    with copy.deepcopy(teacher) as twin:
        [theirs] = _ask(twin, structures[:1], "identity of a copy")
        assert twin.identity.fingerprint() == identity.fingerprint(), "identity of a copy differs"
    _same("identity: a copy in a process of its own", theirs, ours, tolerance)


def assert_runs_in_ase(
    teacher: TeacherCalculator, structures: Sequence[Atoms], tolerance: Tolerance
) -> None:
    """Three steps each of dynamics, an optimiser and, where there is stress, a cell filter."""
    for atoms in structures:
        atoms = atoms.copy()
        atoms.calc = teacher
        thermalise(atoms, 300.0, np.random.default_rng(0))
        runs: list[Any] = [VelocityVerlet(atoms, 0.5 * units.fs), BFGS(atoms, logfile=None)]
        atoms.get_forces()
        if "stress" in teacher.results:
            runs.append(FIRE(FrechetCellFilter(atoms), logfile=None))
        for run in runs:
            run.run(steps=3)
            name = f"{type(run).__name__}, {atoms.symbols}"
            assert np.isfinite(atoms.positions).all(), f"{name}: positions are not finite"


TEACHER_LAWS: tuple[Callable[[TeacherCalculator, Sequence[Atoms], Tolerance], None], ...] = (
    assert_conventions,
    assert_derivatives,
    assert_symmetries,
    assert_labels,
    assert_bad_structures_are_harmless,
    assert_identity,
    assert_runs_in_ase,
)
