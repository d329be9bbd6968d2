"""A clock that tests move, and calculators that take time on it."""

import mmap

import numpy as np
from ase.calculators.calculator import Calculator, all_changes

from mlff_distiller.errors import StudentError


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Timed(Calculator):
    """No forces; every evaluation takes ``ms``, give or take ``jitter``, the first one 100 ms."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012

    def __init__(self, clock, ms, jitter=0.0, seed=0):
        super().__init__()
        self.clock, self.ms, self.jitter, self.n = clock, ms, jitter, 0
        self.rng = np.random.default_rng(seed)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        own = self.ms * (1.0 + self.jitter * self.rng.random())
        self.clock.now += 1e-3 * (100.0 if self.n == 0 else own)
        self.n += 1
        zeros = np.zeros((len(atoms), 3))
        self.results = {"energy": 0.0, "free_energy": 0.0, "forces": zeros, "stress": np.zeros(6)}


class Leaky(Timed):
    """Keeps 16 kB of memory at every evaluation: more than what else comes and goes meanwhile."""

    def calculate(self, *arguments, **named):
        super().calculate(*arguments, **named)
        pages = mmap.mmap(-1, 16_384)
        pages.write(b"x" * 16_384)
        self.__dict__.setdefault("pages", []).append(pages)


class Failing(Timed):
    """Gives up after ten evaluations."""

    def calculate(self, *arguments, **named):
        super().calculate(*arguments, **named)
        if self.n > 10:
            raise StudentError("enough")
