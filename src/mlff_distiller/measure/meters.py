"""What is read during the steps: memory of the processes, and the GPU's state over time."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
import psutil
import torch

from mlff_distiller.md.statistics import growth
from mlff_distiller.measure.nvml import Nvml, Reading, open_nvml

MOST_POINTS = 200
"""Points kept of a series."""
SECONDS_BETWEEN_READINGS = 0.1


def host_bytes(pids: Sequence[int]) -> int:
    """Resident memory of these processes; those that have ended count nothing."""
    total = 0
    for pid in pids:
        try:
            total += psutil.Process(pid).memory_info().rss
        except psutil.Error:
            continue
    return total


@dataclass
class MemoryMeter:
    """Host and GPU memory at some steps.

    GPU memory is what all processes use (a teacher has one of its own); where NVML does not say,
    CUDA does.
    """

    host: Callable[[], int]
    gpu: Callable[[], int] | None = None
    steps: array[int] = field(default_factory=lambda: array("q"))
    host_marks: array[int] = field(default_factory=lambda: array("q"))
    gpu_marks: array[int] = field(default_factory=lambda: array("q"))

    def mark(self, step: int) -> None:
        self.steps.append(step)
        self.host_marks.append(self.host())
        if self.gpu is not None:
            self.gpu_marks.append(self.gpu())

    def summary(self) -> dict[str, Any]:
        """Start is before the first call; growth is over the steady steps, from step 0 on."""
        return {
            "host": self._of(self.host_marks),
            "gpu": self._of(self.gpu_marks) if self.gpu is not None else None,
        }

    def _of(self, marks: array[int]) -> dict[str, Any]:
        steps, values = np.array(self.steps), np.array(marks)
        steady = steps >= 0
        keep = thinned(len(values))
        return {
            "start_MiB": _mib(values[0]),
            "peak_MiB": _mib(values.max()),
            "end_MiB": _mib(values[-1]),
            **growth(steps[steady], values[steady]),
            "series": {
                "step": steps[keep].tolist(),
                "MiB": [_mib(value) for value in values[keep]],
            },
        }


def gpu_memory(device: str) -> Callable[[], int] | None:
    """Reads the memory in use on ``device``; None for a CPU."""
    if not device.startswith("cuda"):
        return None
    index = torch.device(device).index or 0
    nvml, _ = open_nvml(index)
    if nvml is not None and nvml.read().memory_bytes is not None:
        return lambda: nvml.read_memory() or 0

    def used() -> int:
        free, total = torch.cuda.mem_get_info(index)
        return int(total - free)

    return used


class Telemetry:
    """Reads the GPU ten times per second, in a thread of its own, while its block runs."""

    def __init__(self, nvml: Nvml | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._nvml, self._clock = nvml, clock
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self.times: list[float] = []
        self.readings: list[Reading] = []

    def __enter__(self) -> Self:
        if self._nvml is not None:
            self._thread = threading.Thread(target=self._run, args=(self._nvml,), daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, nvml: Nvml) -> None:
        began = self._clock()
        while True:
            self.times.append(self._clock() - began)
            self.readings.append(nvml.read())
            if self._end.wait(SECONDS_BETWEEN_READINGS):
                return

    def summary(self) -> dict[str, Any] | None:
        """Mean and extremes of each quantity, and its course; None if nothing was read."""
        if not self.readings:
            return None
        keep = thinned(len(self.readings))
        found: dict[str, Any] = {"time_s": [round(self.times[k], 3) for k in keep]}
        for name in ("utilisation_percent", "power_W", "sm_clock_MHz", "temperature_C"):
            values = [getattr(reading, name) for reading in self.readings]
            known = [value for value in values if value is not None]
            if not known:
                found[name] = None
                continue
            found[name] = {
                "mean": float(np.mean(known)),
                "min": min(known),
                "max": max(known),
                "series": [values[k] for k in keep],
            }
        power = [r.power_W for r in self.readings]
        if len(power) > 1 and all(value is not None for value in power):
            found["energy_J"] = float(np.trapezoid(np.array(power, float), self.times))
        return found


def thinned(n: int) -> list[int]:
    """At most MOST_POINTS of ``range(n)``, evenly, with both ends."""
    keep: list[int] = np.unique(np.linspace(0, n - 1, MOST_POINTS).astype(int)).tolist()
    return keep


def _mib(value: Any) -> float:
    return round(float(value) / 2**20, 3)
