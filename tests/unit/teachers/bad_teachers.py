"""ASE calculators that do what must not harm us. Copied into a folder of its own by the tests."""

import os
import signal
import socket
import sys
import time

import numpy as np
from ase.calculators.calculator import Calculator, all_changes

print("chatter at import, on stdout")
os.write(1, b"MLFD\xff\xff\xff\xff" * 3)  # looks like the protocol
N_BUILT = 0


class Moody(Calculator):
    """Energy = number of atoms; what it does depends on the first atom.

    He raises, Li answers NaN, Be leaves the process, B prints, C is killed, N answers forces of
    the wrong shape, F is told to exit, Na sleeps.
    """

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012
    device = f"pid-{os.getpid()}"

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        forces = np.zeros((len(atoms), 3))
        match atoms.get_chemical_symbols()[0]:
            case "He":
                raise ValueError("helium is beneath me")
            case "Li":
                forces[-1, 2] = np.nan
            case "Be":
                print("famous last words", file=sys.stderr)
                os._exit(7)
            case "B":
                print("noise " * 20_000)
                os.write(1, b"\x00" * 200_000)
                os.system("echo noise of a child; echo more >&2")
                sys.stdin.read()
            case "C":
                os.kill(os.getpid(), signal.SIGKILL)
            case "N":
                forces = np.zeros((len(atoms), 2))
            case "F":
                sys.exit(3)
            case "Na":
                time.sleep(60)
        self.results = {"energy": float(len(atoms)), "forces": forces, "stress": np.zeros(6)}


class Modules(Moody):
    """Energy = how many packages are imported that a bare environment lacks."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        names = ("torch", "pydantic", "h5py", "vesin", "safetensors", "mlff_distiller.batch")
        self.results["energy"] = float(sum(name in sys.modules for name in names))


class Package(Moody):
    """Energy = how many names of the real packages can be had here."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        from mlff_distiller import load_teacher
        from mlff_distiller.teachers import TeacherIdentity

        super().calculate(atoms, properties, system_changes)
        self.results["energy"] = float(callable(load_teacher) + callable(TeacherIdentity))


class Environment(Moody):
    """Energy = how many of the variables that keep libraries offline are set."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
        self.results["energy"] = float(sum(os.environ.get(name) == "1" for name in names))


class Online(Moody):
    """Connects to an address that leads nowhere (RFC 5737) when an atom is H, by name when O."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        if atoms.get_chemical_symbols()[0] == "H":
            with socket.socket() as tried:
                tried.settimeout(0.05)
                tried.connect(("192.0.2.1", 80))
        else:
            socket.getaddrinfo("weights.invalid", 443)


class Charged(Moody):
    """Energy = info's charge + 10 info's spin + sum of initial charges + 100 sum of moments."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results["energy"] = float(
            atoms.info.get("charge", 0.0)
            + 10 * atoms.info.get("spin", 0.0)
            + atoms.get_initial_charges().sum()
            + 100 * atoms.get_initial_magnetic_moments().sum()
        )


class Smeared(Moody):
    """An electronic temperature: free energy and energy differ."""

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results |= {"energy": -1.0, "free_energy": -2.0, "num_edges": 3}
        del self.results["stress"]


def forking():
    """Start a child that would outlive this process and knows nothing of exec."""
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    with open("child", "w") as stream:
        stream.write(str(child))
    return Moody()


def no_calculator():
    """Give something else."""
    return 42


def library_missing():
    """Fail to import."""
    import a_library_that_is_missing  # noqa: F401


class Shares(Moody):
    """Energies of atoms: those of Cu sum to the energy, those of Al do not, and others are odd.

    Ag's are as many as a committee's members, Au's are NaN.
    """

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        n = len(atoms)
        self.results["energies"] = {
            "Cu": np.linspace(0.0, 2.0, n) if n > 1 else np.ones(1),
            "Al": np.full(n, 1.0 + 2e-6),
            "Ag": np.full(n + 1, 1.0),
            "Au": np.full(n, np.nan),
        }[atoms.get_chemical_symbols()[0]]


class Own:
    """Looks like a number to who asks."""

    def __float__(self):
        return 1.0


class Odd(Moody):
    """Results that are no real numbers, by the first atom."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        n = len(atoms)
        odd = {
            "K": {"energy": 1.0 + 2.0j},
            "Ca": {"energy": np.complex128(1.0)},
            "Sc": {"energy": Own()},
            "Ti": {"energy": "1.0"},
            "V": {"forces": np.zeros((n, 3), complex)},
            "Cr": {"forces": np.full((n, 3), None)},
            "Mn": {"forces": Own()},
            "Fe": {"stress": np.zeros(6, complex)},
            "Co": {"energy": None},
            "Ni": {"energy": np.arange(2.0)},
            "Cu": {"energy": np.array([2.0])},
        }
        self.results |= odd.get(atoms.get_chemical_symbols()[0], {})


class Intruder(Moody):
    """Writes to, and closes, whatever it has open."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        for number in map(int, os.listdir("/proc/self/fd")):
            if atoms.get_chemical_symbols()[0] == "O" or number < 64:
                try:
                    os.write(number, b"MLFD\x02\x00\x00\x00{}")
                except OSError:
                    continue
        os.closerange(3, 64)


class Deaf(Moody):
    """Ignores SIGTERM, and sleeps where the first atom is Na."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        super().calculate(atoms, properties, system_changes)


def sleepy():
    """Take a minute to load."""
    time.sleep(60)
    return Moody()


def daemonic():
    """Start a daemon: twice forked, in a session of its own."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            with open("daemon", "w") as stream:
                stream.write(str(os.getpid()))
            time.sleep(60)
        os._exit(0)
    os.wait()
    while not os.path.exists("daemon") or not os.path.getsize("daemon"):
        time.sleep(0.01)
    return Moody()
