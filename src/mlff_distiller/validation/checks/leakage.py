"""Whether test frames are in the training set under another name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from mlff_distiller.sampling import find_similar
from mlff_distiller.validation.check import Check, Measured
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.verdict import Finding

NEAR = 0.01
"""Share of the descriptors' spread: atoms displaced by some 0.005 Å, which a step of dynamics
does. Independent frames of a crystal at 50 K, displaced by 0.03 Å each, differ by more."""


@dataclass(frozen=True)
class Leakage:
    """Near-duplicates, turned, moved and renumbered ones included."""

    n_test: int
    pairs: np.ndarray  # (m, 2) test frame, training frame

    @property
    def fraction(self) -> float | None:
        """Share of test frames that are repeated; None without test frames."""
        return len(np.unique(self.pairs[:, 0])) / self.n_test if self.n_test else None


def leakage(test: Sequence[Atoms], training: Sequence[Atoms]) -> Leakage:
    """Test frames that a training frame repeats, up to displacements of some 0.005 Å.

    Errors on such frames say how well the student remembers, not how well it knows.
    """
    if not test or not training:
        return Leakage(len(test), np.zeros((0, 2), dtype=np.int64))
    return Leakage(len(test), find_similar(test, training, tolerance=NEAR))


def _measure(subject: Subject) -> Measured:
    leak = leakage(subject.test, subject.training)
    words = f"test and training: {leak.pairs[:3].tolist()}"
    return Measured({"leaked_fraction": Finding(leak.fraction, words)})


CHECK = Check(
    ("leaked_fraction",), _measure, lambda subject: bool(subject.test and subject.training)
)
