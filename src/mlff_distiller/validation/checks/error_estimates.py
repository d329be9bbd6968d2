"""Whether the student knows where it is wrong: its estimates compared with the errors found."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import rankdata, spearmanr

from mlff_distiller import plotting
from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.md.record import Array
from mlff_distiller.plotting import Panel
from mlff_distiller.students.error_model import ErrorModel
from mlff_distiller.validation.accuracy import Compared
from mlff_distiller.validation.check import Check, Measured, Tree
from mlff_distiller.validation.subject import Subject

_BINS = 10
_LARGE = 3.0
"""Times the typical error, from where on an error is one that ought to be told."""
_PLACES = {"test": "test structures", "student_md": "its own MD"}


def _model(subject: Subject) -> ErrorModel | None:
    student = subject.force_field.student
    return None if student is None else student.error_model


def _applies(subject: Subject) -> bool:
    return bool(subject.compared) and _model(subject) is not None


def _measure(subject: Subject) -> Measured:
    model, calculator = _model(subject), subject.force_field.calculator
    if model is None or not isinstance(calculator, StudentCalculator):
        return Measured()
    found = {
        name: _judged(*_both(calculator, compared), model.typical, model.limit)
        for name, compared in subject.compared.items()
    }
    ours = {"typical_eV_per_A": model.typical, "limit_eV_per_A": model.limit}
    return Measured(numbers={"error_estimates": {**ours, **found}})


def _both(calculator: StudentCalculator, compared: Compared) -> tuple[Array, Array]:
    """Estimated errors, and those found (n_atoms,), eV/Å. Cost: one evaluation per frame."""
    estimated, apart = [], []
    for frame, mine, theirs in zip(
        compared.frames, compared.mine.forces, compared.theirs.forces, strict=True
    ):
        calculator.calculate(frame)
        estimated.append(calculator.extra["forces_error"])
        apart.append(np.linalg.norm(mine - theirs, axis=1))
    return np.concatenate(estimated), np.concatenate(apart)


def _judged(estimated: Array, found: Array, typical: float, limit: float) -> dict[str, Any]:
    """Three numbers, and root mean squares of both in bins of equally many atoms."""
    bins = [own for own in np.array_split(np.argsort(estimated), _BINS) if len(own)]
    large = found > _LARGE * typical
    ranks, n, rest = rankdata(estimated), int(large.sum()), int((~large).sum())
    return {
        "n_atoms": len(found),
        "rank_correlation": float(spearmanr(estimated, found)[0]) if len(found) > 1 else None,
        "auroc_of_large_errors": float((ranks[large].sum() - n * (n + 1) / 2) / (n * rest))
        if n and rest
        else None,
        "fraction_above_limit": float((estimated > limit).mean()),
        "estimated_eV_per_A": [float(np.sqrt((estimated[own] ** 2).mean())) for own in bins],
        "found_eV_per_A": [float(np.sqrt((found[own] ** 2).mean())) for own in bins],
    }


def _panels(measured: Tree, series: Tree) -> list[Panel]:
    known = measured.get("error_estimates")
    if not known:
        return []
    traces, all_values = [], []
    for number, (name, words) in enumerate(_PLACES.items()):
        if name in known:
            x, y = (
                plotting.array(known[name][f"{key}_eV_per_A"]) for key in ("estimated", "found")
            )
            keep = (x > 0) & (y > 0)
            x, y = x[keep], y[keep]
            traces.append(plotting.line(x, y, words, *plotting.look(number)))
            all_values += [*x, *y]
    if not all_values:
        return [Panel("Errors that it expects", None)]
    ends = np.array([min(all_values), max(all_values)])
    traces.append(plotting.line(ends, ends, "as expected", plotting.GREY, "dot"))
    axes = [plotting.log_axis(f"{words} (eV/Å)", ends) for words in ("Expected error", "Error")]
    note = "Root mean squares over a tenth of the atoms each, by the error that was expected."
    return [Panel("Errors that it expects", plotting.figure(traces, *axes), note)]


CHECK = Check((), _measure, _applies, short=True, section="errors", panels=_panels)
