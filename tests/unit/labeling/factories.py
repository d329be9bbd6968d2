"""ASE calculators by name, found in the current folder; copied there by the tests."""

import os
import signal
import time
from pathlib import Path

from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT


def emt():
    return EMT()


class Slow(EMT):
    """Takes a moment, and says on the disk who works."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        Path(f"working.{os.getpid()}").touch()
        time.sleep(0.1)
        super().calculate(atoms, properties, system_changes)


class Choosy(EMT):
    """Fails on large structures until it is told not to."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        if len(atoms) > 4 and not Path("cured").exists():
            raise ValueError("more than four are a crowd")
        super().calculate(atoms, properties, system_changes)


class Triple(EMT):
    """Forces that are not the energy's slope."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results["forces"] = 3.0 * self.results["forces"]


class Hanging(EMT):
    """Never answers for structures that are large."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        if len(atoms) > 4:
            Path("hanging").touch()
            time.sleep(600)
        super().calculate(atoms, properties, system_changes)


class Charged(EMT):
    """Adds ten times the charges of atoms, and the moments."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results["energy"] += 10 * atoms.get_initial_charges().sum()
        self.results["energy"] += atoms.get_initial_magnetic_moments().sum()
        self.results["free_energy"] = self.results["energy"]
        self.results.pop("energies", None)


def die_first(path, number):
    """Return ``number``; the first caller of all kills its worker instead."""
    try:
        Path(path).touch(exist_ok=False)
    except FileExistsError:
        return number
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("dead")
