"""Probes of the Hessian: two structures, displaced both ways along a random direction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from ase import Atoms

DISPLACEMENT_A = 0.02
"""Root mean square over atoms: the error of the difference quotient, some (0.02 Å)^2 times a fourth
derivative, and that of a teacher in float32, 1e-5 eV/Å over 0.04 Å, are both well below 1 %."""


def probes(
    frames: Sequence[Atoms], number: int, seed: int, displacement_A: float = DISPLACEMENT_A
) -> Iterator[tuple[Atoms, Atoms]]:
    """``number`` pairs x + h d and x - h d of ``frames`` in turn, d normal of length one.

    ``(F(x - h d) - F(x + h d)) / 2h`` is the Hessian times d, up to O(h^2): a teacher's from two
    calls, whatever the teacher. Atoms move as constraints allow. ``info`` of both names
    ``seed``, the number of the frame, and ``probe``; labels keep it.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(frames))
    for probe in range(number):
        parent = int(order[probe % len(frames)])
        frame = frames[parent]
        direction = rng.normal(size=(len(frame), 3))
        step = displacement_A * np.sqrt(len(frame)) * direction / np.linalg.norm(direction)
        pair = []
        for sign in (1.0, -1.0):
            moved = frame.copy()
            moved.calc = None
            moved.set_positions(moved.positions + sign * step)
            moved.info.update(seed=parent, branch=1, probe=probe)
            pair.append(moved)
        yield pair[0], pair[1]
