"""Whether memory grows steadily during a run: the host's and a GPU's."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import torch
import warp as wp
from ase import Atoms

from mlff_distiller.md import Ensemble
from mlff_distiller.md.record import ForceField, OnStep, steps_of
from mlff_distiller.md.statistics import Estimate, growth
from mlff_distiller.measure.meters import host_bytes
from mlff_distiller.validation.check import Check, Measured
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.verdict import Finding

_NAME = "memory_growth_kB_per_step"
_N_MARKS = 100
_WARM_UP = 0.1
"""Share of the steps in which caches fill."""


def _measure(subject: Subject) -> Measured:
    """From the end of the thermostatted run; a leak's slope beyond three of its errors."""
    if not subject.nvt[0].completed:
        return Measured({_NAME: Finding(None, "the run from which it would begin broke off")})
    n = subject.settings.memory_steps
    ensemble = subject.thermostat(subject.settings.temperature_K[0], 4000)
    begin, on_step = subject.nvt[0].frame(-1), subject.progress("memory")
    found = memory_growth(subject.force_field, begin, ensemble, n, on_step)
    worst = Finding(None, f"{n} steps are too few")
    for place, one in found.items():
        if one["grows"] is None:
            continue
        slope = Estimate(1e-3 * one["growth_bytes_per_step"], 1e-3 * one["growth_error"])
        beyond = slope.beyond_noise(0.0) if one["grows"] else 0.0
        if worst.value is None or beyond > worst.value:
            words = f"{place}: {slope.value:.3g} ± {slope.error:.2g} kB per step"
            worst = Finding(beyond, words)
    return Measured({_NAME: worst}, {"memory": found})


def memory_growth(
    force_field: ForceField,
    atoms: Atoms,
    ensemble: Ensemble,
    n_steps: int,
    on_step: OnStep = lambda done, total: None,
) -> dict[str, dict[str, Any]]:
    """`growth` of ``host`` and, where one is used, ``gpu``, over a run that keeps no frames.

    The host's is the resident memory of this process and its children (teachers have one of their
    own); the GPU's what torch and Warp hold in this process.
    """
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    pids = [process.pid for process in processes]
    device = _gpu(force_field)
    every = max(1, n_steps // _N_MARKS)
    heap = _heap()
    reads: dict[str, Callable[[], int]] = {"host": lambda: host_bytes(pids)}
    reads |= {"heap": heap} if heap is not None else {}
    reads |= {"gpu": lambda: _held(device)} if device is not None else {}
    steps: list[int] = []
    marks: dict[str, list[int]] = {place: [] for place in reads}
    gc.freeze()  # what is there already needs no look at each mark, which takes 0.1 s
    try:
        for row in steps_of(force_field, atoms, ensemble, n_steps, every):
            on_step(row.step, n_steps)
            if row.step < _WARM_UP * n_steps:
                continue
            gc.collect()  # Python's cycles are not a leak, however late it frees them
            steps.append(row.step)
            for place, read in reads.items():
                marks[place].append(read())
    finally:
        gc.unfreeze()
    return {
        place: {
            **growth(np.array(steps, float), np.array(own, float)),
            "step": steps,
            "MB": [round(1e-6 * mark, 3) for mark in own],
        }
        for place, own in marks.items()
    }


class _MallInfo(ctypes.Structure):
    """glibc's ``mallinfo2``; of all arenas."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def _heap() -> Callable[[], int] | None:
    """Reads the bytes that malloc has given out; None where the C library does not tell."""
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError, TypeError):  # not glibc, or one older than 2.33
        return None
    mallinfo.restype = _MallInfo

    def read() -> int:
        now = mallinfo()
        return int(now.uordblks + now.hblkhd)

    return read


def _gpu(force_field: ForceField) -> torch.device | None:
    if force_field.student is not None:
        device = force_field.student.device
        return device if device.type == "cuda" else None
    return torch.device("cuda") if torch.cuda.is_initialized() else None


def _held(device: torch.device) -> int:
    index = device.index or 0
    return int(
        torch.cuda.memory_allocated(index) + wp.get_mempool_used_mem_current(f"cuda:{index}")
    )


CHECK = Check((_NAME,), _measure)
