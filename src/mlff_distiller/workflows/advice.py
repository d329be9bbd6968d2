"""What to do after a rejection: a sentence per failed check, with the command to type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ase import units

from mlff_distiller.students.registry import FASTEST
from mlff_distiller.workflows.goal import Goal, Turn
from mlff_distiller.workflows.turns import Turns


def advice(verdict: Mapping[str, Any], turns: Turns) -> list[str]:
    """One sentence per failed check of the best student: the number, and what to type.

    The first says that the structure did not last, where it did not.
    """
    return of_start(turns.best) + [
        sentence(check, turns.best, turns.goal)
        for check in verdict["checks"]
        if not check["passed"]
    ]


def of_start(turn: Turn) -> list[str]:
    """That the structures begun with change into others: what limits every student.

    Energies below theirs by more than thermal motion holds, 3/2 kT per atom, tell: a structure
    that is relaxed has less than its dynamics, and one taken from dynamics as much.
    """
    kelvin = max(turn.temperature_K, default=0.0)
    motion, fell = 1.5 * units.kB * kelvin, turn.fell_eV_per_atom or 0.0
    if not 0.0 < motion < fell:
        return []
    return [
        "The structure does not last: in the student's dynamics the teacher's energy falls by "
        f"{fell:.2g} eV/atom, and motion at {kelvin:g} K has {motion:.2g}. Check its elements, "
        "cell and space group, or begin with what it turns into (student_md)."
    ]


def sentence(check: Mapping[str, Any], best: Turn, goal: Goal) -> str:
    """What a failed check asks for, with the number behind it."""
    name, value, limit = check["name"], check["value"], check["limit"]
    if name.endswith("forces_fidelity"):
        where = "on held-out structures" if name.startswith("test") else "in its own dynamics"
        found = "was not measured" if value is None else f"is {100 * value:.1f} %"
        return (
            f"The force fidelity {where} {found}, and {100 * limit:g} % is needed: "
            f"{_more(best, goal)}."
        )
    if name == "nve_completed":
        return (
            "Its dynamics breaks: look at the last frames in student_md; lower --temperature, or "
            f"{_more(best, goal)}."
        )
    if name.startswith("nve_drift"):
        found = "is not known well enough" if value is None else f"is {value:.3g} meV/atom/ps"
        return (
            f"The energy drift {found}, and {limit:g} is allowed: halve the time step "
            "(evaluation.time_step_fs=0.25), or run longer to know it better "
            "(evaluation.time_ps=50)."
        )
    if name == "speedup":
        found = "was not measured" if value is None else f"is {value:.3g} ×"
        faster = f"take a faster student (--student {FASTEST}), or "
        return (
            f"The speed-up {found}, and {limit:g} × is needed: "
            f"{'' if best.step.student == FASTEST else faster}"
            "accept it (evaluation.limits.speedup=1)."
        )
    found = "was not measured" if value is None else f"is {value:.3g}"
    return f"{name} {found}, and the limit is {limit:g}: {_more(best, goal)}."


def _more(best: Turn, goal: Goal) -> str:
    """More of what the student lacks most, as options to type."""
    settings = goal.settings
    fit = best.fit_error or 0.0
    if len(goal.ladder) == 1 and fit > best.error - fit:
        return f"a more accurate student than {best.step.student} may reach it (--student auto)"
    # A turn that has begun is finished: it may have taken longer than was allowed.
    hours = float(f"{2 * max(settings.max_hours, best.seconds / 3600):.2g}")
    more = f"--max-hours {hours:g}"
    if best.n_labels > 0.5 * settings.max_labels:
        more = f"--max-labels {2 * settings.max_labels} {more}"
    return f"the same command goes on with {more}"
