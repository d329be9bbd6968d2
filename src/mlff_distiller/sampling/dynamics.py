"""Structures from molecular dynamics: the teacher's own, or the student's with the teacher judging.

A *walker* is a trajectory cut into segments. Each segment draws new velocities from the
Maxwell-Boltzmann distribution and runs Langevin dynamics (NVT), in a cell that follows the pressure
if that is wanted (NPT). The teacher's segments end when the structure has decorrelated from the one
they began with::

    |c(t)| < decorrelation for 20 fs,    c(t) = sum F(0)·F(t) / sqrt(sum |F(0)|^2 sum |F(t)|^2)

(20 fs, for a bond with hydrogen swings through zero every 5 fs) or after ``longest_fs``. The
student's steps cost next to nothing, so its segments last as long as it can be trusted. Only the
structures at the ends of segments are labelled. A segment of the teacher's depends on its first
structure, on its number and on where its walker began alone, so an interrupted walk continues from
its last labelled structure and repeats at most one segment; the student's run as batches, see
`segments`, and are run again. Walks from other structures, and the teacher's and the
student's from the same ones, have other random forces: with the same ones a solid ends up on one
and the same trajectory.

`walk` is the teacher's dynamics: valid, but every step costs an evaluation of the teacher.
`explore` is the student's: steps are free, the teacher is asked at the ends of segments only, and
a walker that has strayed where the student is wrong goes back to where it was still right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from mlff_distiller.errors import DistillerError
from mlff_distiller.sampling.rattle import Labeler
from mlff_distiller.sampling.reach import reach_eV_per_atom
from mlff_distiller.sampling.segments import run_segment, run_segments
from mlff_distiller.sampling.walkers import DynamicsSettings, Walker

_FIRST_BRANCH = {"student": 100_000, "dynamics": 200_000}
"""Trees have the numbers below; every walker is a branch of its own, from first to last."""


def walk(
    group: Sequence[Walker],
    calculator: Calculator,
    label: Labeler,
    n_labels: int,
    settings: DynamicsSettings,
    seed: int = 0,
    known: Mapping[tuple[int, int], Atoms] | None = None,
    on_label: Callable[[int], None] = lambda n: None,
) -> int:
    """Dynamics by ``calculator`` (the teacher) until ``n_labels`` structures are labelled.

    Provenance: ``source`` (dynamics), ``seed``, ``branch``, ``walker``, ``segment``,
    ``temperature_K``, ``pressure_GPa``, ``segment_fs``. ``known`` gives the structures that an
    earlier call labelled, by walker and segment.
    """
    known = known or {}
    n, fruitless = 0, 0
    while n < n_labels:
        walker = min(group, key=lambda walker: walker.segment)
        walker.reach_fs = settings.longest_fs
        found = known.get((walker.number, walker.segment))
        if found is None:
            moved, lasted = run_segment(walker, calculator, settings, seed, until_decorrelated=True)
        else:
            moved, lasted = found.copy(), None
            moved.set_constraint(walker.atoms.constraints)  # labels know of none
        origin = _origin(walker, "dynamics", lasted)
        walker.segment += 1
        [labels] = label([moved], [origin]) if moved is not None else [None]
        if labels is None or moved is None:
            # A teacher that fails may have to be restarted each time.
            fruitless += 5 if walker.failure else 1
            if fruitless >= 20 * len(group):
                raise DistillerError(
                    f"the teacher's dynamics stopped at {n} labels: every walker broke down",
                    expected=f"{n_labels} labels",
                    found=walker.failure or None,
                    remedy="choose structures the teacher can evaluate"
                    if walker.failure
                    else "shorten dynamics.time_step_fs or lower the temperature",
                )
            continue
        walker.atoms, fruitless = moved, 0
        n += 1
        on_label(n)
    return n


def explore(
    group: Sequence[Walker],
    calculator: Calculator,
    label: Labeler,
    n_labels: int,
    settings: DynamicsSettings,
    tolerance: float,
    seed: int = 0,
    source: Mapping[str, Any] | None = None,
    on_label: Callable[[int], None] = lambda n: None,
    seeds: Sequence[Atoms] = (),
) -> list[float]:
    """Dynamics by ``calculator`` (the student); the teacher labels where each segment ends.

    Returns, for each of about ``n_labels`` new labels, the student's relative force error::

        sum |F_student - F_teacher| / sum |F_teacher|

    (one minus the fidelity). A walker whose error is below ``tolerance`` goes on from there, and
    its next segment may be twice as long, up to ``longest_fs``; another goes back to where its
    segment began, and its next one may be half as long. Where ``seeds`` are given, one that has
    left the reach of its temperature, by the teacher's energies, begins at its seed again. All
    walkers move in turn and are labelled in one call of ``label``. ``source`` is added to the
    provenance.
    """
    errors: list[float] = []
    lowest: dict[tuple[int, float], float] = {}
    fruitless = 0
    while len(errors) < n_labels:
        moving = sorted(group, key=lambda walker: walker.segment)[: n_labels - len(errors)]
        frames, origins, movers, predictions = [], [], [], []
        ends = run_segments(moving, calculator, settings, seed)
        for walker, (moved, lasted) in zip(moving, ends, strict=True):
            origin = {**_origin(walker, "student", lasted), **(source or {})}
            walker.segment += 1
            if moved is None:
                walker.reach_fs = max(settings.shortest_fs, 0.5 * walker.reach_fs)
                continue
            moved.calc = calculator
            predictions.append(moved.get_forces(apply_constraint=False))
            moved.calc = None
            frames.append(moved)
            origins.append(origin)
            movers.append(walker)
        answers = label(frames, origins) if frames else []
        before = len(errors)
        for walker, moved, predicted, answer in zip(
            movers, frames, predictions, answers, strict=True
        ):
            if answer is None:
                continue
            error = relative_error(predicted, answer["forces"])
            errors.append(error)
            walker.errors.append(error)
            if error < tolerance:
                walker.atoms = moved
                walker.reach_fs = min(settings.longest_fs, 2.0 * walker.reach_fs)
            else:
                walker.reach_fs = max(settings.shortest_fs, 0.5 * walker.reach_fs)
            alike = (walker.seed_index, walker.pressure_GPa)
            energy = float(answer["energy"]) / len(moved)
            lowest[alike] = min(energy, lowest.get(alike, energy))
            above = energy - lowest[alike]
            if seeds and above > reach_eV_per_atom(walker.temperature_K):
                walker.atoms = seeds[walker.seed_index].copy()
                walker.reach_fs = settings.shortest_fs
        on_label(len(errors))
        fruitless = fruitless + 1 if len(errors) == before else 0
        if fruitless >= 20:
            break  # the student's dynamics cannot take a step; the caller trains it further
    return errors


def relative_error(forces: np.ndarray, reference: np.ndarray) -> float:
    """``sum |F - F_ref| / sum |F_ref|`` over all components."""
    scale = float(np.abs(reference).sum())
    return float(np.abs(forces - reference).sum()) / max(scale, 1e-12)


def _origin(walker: Walker, source: str, lasted_fs: float | None) -> dict[str, Any]:
    origin = {
        "source": source,
        "seed": walker.seed_index,
        "branch": _FIRST_BRANCH[source] + walker.number,
        "walker": walker.number,
        "segment": walker.segment,
        "temperature_K": walker.temperature_K,
        "pressure_GPa": walker.pressure_GPa,
    }
    return origin if lasted_fs is None else {**origin, "segment_fs": lasted_fs}
