"""What may guard an evaluation or a simulation by its student's own estimate of its errors."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mlff_distiller.engines.engine import Engine, Estimates
from mlff_distiller.errors import ConfigError, UntrustedError
from mlff_distiller.students import Student

EVERY = 50
"""Steps between looks: one costs some part of a step."""


def check_guard(guard: str, known: Sequence[str], student: Student) -> None:
    """Raise ``ConfigError`` if ``guard`` is not ``known``, or the student cannot tell."""
    if guard not in known:
        raise ConfigError("unknown guard", expected=", ".join(known), found=guard)
    if guard != "off" and student.error_model is None:
        raise ConfigError(
            f"guard={guard} needs a student that estimates its errors",
            expected="one that this version has trained, with labels that were held out",
            found="a student without an error model",
            remedy="train it again, or take guard=off",
        )


class Looks:
    """At intervals among evaluations of an engine, a look at what the student knows of its atoms.

    Parameters
    ----------
    guard
        ``warn`` once, ``stop`` by an error, or ``off``.
    every
        Evaluations from a look to the next; the first has one.

    Raises
    ------
    ConfigError
        There is no such guard, or the student has no error model for it.
    """

    def __init__(self, student: Student, guard: str, every: int) -> None:
        check_guard(guard, ("off", "warn", "stop"), student)
        self._model = None if guard == "off" else student.error_model
        self._stops, self._every = guard == "stop", max(1, int(every))
        self._n_seen = self.n_atoms = self.n_untrusted = 0

    def after(
        self, engine: Engine, numbers: NDArray[np.int_], stacklevel: int = 2
    ) -> Estimates | None:
        """Look, if it is time, at what ``engine`` has just evaluated, atoms of these ``numbers``.

        Raises
        ------
        UntrustedError
            The guard is to ``stop``, and an atom's estimate is above the student's limit.
        """
        if self._model is None:
            return None
        due, self._n_seen = self._n_seen % self._every == 0, self._n_seen + 1
        found = engine.estimates() if due else None
        if found is None:
            return None
        errors, limit = found.errors, self._model.limit
        n_untrusted = int((errors > limit).sum())
        self.n_atoms += len(errors)
        self.n_untrusted += n_untrusted
        if not n_untrusted:
            return found
        worst = int(errors.argmax())
        words = (
            f"the student does not know this structure: the estimated force error of atom {worst} "
            f"({chemical_symbols[numbers[worst]]}) is {errors[worst]:.3g} eV/Å"
        )
        if self._stops:
            raise UntrustedError(
                words,
                expected=f"at most {limit:.3g} eV/Å",
                remedy="label such structures, and train on them",
            )
        if self.n_untrusted == n_untrusted:
            warnings.warn(f"{words}, above {limit:.3g} eV/Å", stacklevel=stacklevel + 1)
        return found
