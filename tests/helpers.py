"""What tests share: commands without an interpreter each, small students, structures."""

import contextlib
import io
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from mlff_distiller import cli
from mlff_distiller.kernels.nep import Shape
from mlff_distiller.students import NEP, PaiNN
from mlff_distiller.students.painn_setup import initialise

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def command(*words: object, environment: Mapping[str, str] = MappingProxyType({})) -> Done:
    """``mlff-distiller WORDS`` by its entry point, without the seconds an interpreter takes."""
    output, errors = io.StringIO(), io.StringIO()
    on_termination = signal.getsignal(signal.SIGTERM)
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        patch.setattr(sys, "argv", ["mlff-distiller", *map(str, words)])
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            with pytest.raises(SystemExit) as end:
                cli.main()
        finally:
            signal.signal(signal.SIGTERM, on_termination)
    return Done(end.value.code or 0, output.getvalue(), errors.getvalue())


@contextlib.contextmanager
def running(*words: object, **options: Any) -> Iterator[subprocess.Popen]:
    """A program beside the test, which ctrl-C can interrupt and which no failure leaves behind."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    program = list(map(str, words))
    with subprocess.Popen(program, preexec_fn=interruptible, **(pipes | options)) as process:
        try:
            yield process
        finally:
            process.kill()


def interruptible() -> None:
    """What a shell starts in the background ignores ctrl-C, and so does all that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def begin(function: Callable, *arguments: Any) -> None:
    """What `start` runs in a process of its own."""
    interruptible()
    function(*arguments)


def alone(*words: object) -> None:
    """The command as a process that `start` made runs it: on one thread, so that sums are equal."""
    torch.set_num_threads(1)
    sys.argv = ["mlff-distiller", *map(str, words)]
    cli.main()


def random_nep(
    elements: tuple[str, ...] = ("H", "O"), *, zbl: bool = True, seed: int = 0, cutoff: float = 4.5
) -> NEP:
    """A float64 NEP with random parameters and order-one forces."""
    shape = Shape(4, 3, 6, 5, 4, True, True, 12)
    universal = (0.18175, 3.1998, 0.50986, 0.94229, 0.28022, 0.4029, 0.02817, 0.20162)
    row = ((0.6, 1.3, *universal),) * len(elements)
    student = NEP(
        elements,
        shape,
        ((cutoff, 0.8 * cutoff),) * len(elements),
        (row,) * len(elements) if zbl else None,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4
            )
        student.scaler.fill_(0.3)
        student.reference_energies.copy_(-torch.arange(1.0, len(elements) + 1, dtype=torch.float64))
    return student.eval()


def random_painn(
    elements: tuple[str, ...] = ("H", "O"),
    *,
    zbl: bool = True,
    layers: int = 3,
    max_moment: int = 3,
    seed: int = 0,
    cutoff: float = 4.5,
) -> PaiNN:
    """A float64 PaiNN with random parameters and order-one forces."""
    universal = (0.18175, 3.1998, 0.50986, 0.94229, 0.28022, 0.4029, 0.02817, 0.20162)
    row = ((0.6, 1.3, *universal),) * len(elements)
    table = (row,) * len(elements) if zbl else None
    student = PaiNN(elements, cutoff, 12, layers, 8, 0.2, max_moment=max_moment, zbl=table)
    student.scale.fill_(0.2)
    initialise(student, torch.Generator().manual_seed(seed))
    student.reference_energies.copy_(-torch.arange(1.0, len(elements) + 1, dtype=torch.float64))
    return student.eval()


def rattled(atoms: Atoms, amount: float = 0.08, seed: int = 0) -> Atoms:
    atoms = atoms.copy()
    atoms.positions += np.random.default_rng(seed).normal(0.0, amount, (len(atoms), 3))
    return atoms


def structures() -> dict[str, Atoms]:
    """Structures of H and O in every kind of box that has broken somebody's code."""
    ice = Atoms("H2O", molecule("H2O").positions, cell=[3.1, 3.4, 2.9], pbc=True)
    skewed = Atoms("H2OH2O", cell=[[4.0, 0, 0], [2.9, 3.1, 0], [-1.7, 2.2, 3.5]], pbc=True)
    skewed.set_scaled_positions(np.random.default_rng(3).random((6, 3)))
    left_handed = ice.copy()
    left_handed.set_cell(ice.cell.array[[1, 0, 2]])
    slab = Atoms(
        "H2OO",
        np.vstack([molecule("H2O").positions, [0.5, 0.4, 2.0]]),
        cell=[3.2, 3.5, 12.0],
        pbc=[True, True, False],
    )
    wire = Atoms("OH", [[0, 0, 0], [0.3, 0.2, 1.1]], cell=[0, 0, 2.3], pbc=[False, False, True])
    return {
        "molecule": molecule("H2O"),
        "small cell": ice,
        "skewed cell": skewed,
        "left-handed cell": left_handed,
        "slab": slab,
        "wire without other vectors": wire,
        "one atom, tiny cell": Atoms("O", cell=bulk("Cu", a=3.4).cell, pbc=True),
        "unwrapped": Atoms(
            "H2O", np.add(molecule("H2O").positions, [7.3, -11.0, 40.0]), cell=ice.cell, pbc=True
        ),
    }
