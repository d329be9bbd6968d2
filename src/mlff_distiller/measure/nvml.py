"""What NVIDIA's management library (NVML) says of a GPU; every reading may be missing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlff_distiller.errors import KernelError

_THROTTLES = {
    0x4: "power cap",
    0x8: "slowdown by hardware",
    0x20: "thermal slowdown (driver)",
    0x40: "thermal slowdown (hardware)",
    0x80: "power brake",
}


@dataclass(frozen=True)
class Reading:
    """What the GPU reports at one moment; None where it does not say."""

    utilisation_percent: float | None
    power_W: float | None
    sm_clock_MHz: float | None
    temperature_C: float | None
    memory_bytes: int | None
    """In use by all processes."""


class Nvml:
    """One GPU, by torch's index; ``CUDA_VISIBLE_DEVICES`` is obeyed.

    Raises
    ------
    KernelError
        There is no library, no driver, or no such GPU; the text says which.
    """

    def __init__(self, index: int = 0, library: Any = None) -> None:
        self._nvml = _library() if library is None else library
        try:
            self._nvml.nvmlInit()
            self._handle = self._nvml.nvmlDeviceGetHandleByIndex(_physical(index))
        except Exception as error:
            raise KernelError(f"NVML does not answer: {error}") from error

    def read(self) -> Reading:
        n, h = self._nvml, self._handle
        power = _try(lambda: n.nvmlDeviceGetPowerUsage(h))
        return Reading(
            _try(lambda: float(n.nvmlDeviceGetUtilizationRates(h).gpu)),
            None if power is None else 1e-3 * power,
            _try(lambda: float(n.nvmlDeviceGetClockInfo(h, 1))),
            _try(lambda: float(n.nvmlDeviceGetTemperature(h, 0))),
            self.read_memory(),
        )

    def read_memory(self) -> int | None:
        """Bytes in use by all processes."""
        used = _try(lambda: self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)
        return None if used is None else int(used)

    def about(self) -> dict[str, Any]:
        """Name, driver, limits, and what holds the clocks down."""
        n, h = self._nvml, self._handle
        power = _try(lambda: n.nvmlDeviceGetEnforcedPowerLimit(h))
        reasons = _try(lambda: int(n.nvmlDeviceGetCurrentClocksThrottleReasons(h)))
        throttles = [text for bit, text in _THROTTLES.items() if reasons and reasons & bit]
        return {
            "name": _text(_try(lambda: n.nvmlDeviceGetName(h))),
            "driver": _text(_try(n.nvmlSystemGetDriverVersion)),
            "max_sm_clock_MHz": _try(lambda: float(n.nvmlDeviceGetMaxClockInfo(h, 1))),
            "power_limit_W": None if power is None else 1e-3 * power,
            "persistence": _try(lambda: bool(n.nvmlDeviceGetPersistenceMode(h))),
            "throttled_by": None if reasons is None else throttles,
        }


def open_nvml(index: int = 0, library: Any = None) -> tuple[Nvml | None, str]:
    """The GPU, or None and why there is none."""
    try:
        return Nvml(index, library), ""
    except KernelError as error:
        return None, error.problem


def _library() -> Any:
    try:
        import pynvml
    except ImportError as error:
        raise KernelError(
            "power, clocks and utilisation need the package nvidia-ml-py",
            remedy="pip install nvidia-ml-py",
        ) from error
    return pynvml


def _physical(index: int) -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    with contextlib.suppress(ValueError, IndexError):
        return int(visible[index])
    return index


def _try(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception:  # the library's own errors: not supported here, in a virtual machine, ...
        return None


def _text(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value
