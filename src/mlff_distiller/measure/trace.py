"""What PyTorch's profiler, and Python's own, see of some steps."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torch_profile

STEP = "md step"
"""Name of the range around steps."""
_NOT_WORK = (STEP, "Activity Buffer Request")
_ROWS = 30

Steps = Callable[[int], object]


def trace(
    steps: Steps, sizes: Sequence[int], *, on_gpu: bool, path: Path | None = None
) -> dict[str, Any]:
    """Tables of kernels, copies, operators and Python functions, per step, in µs.

    Parameters
    ----------
    sizes
        Steps of each range: one by one, or many at once where a graph holds many.
    path
        Where a Chrome trace is written, as .json.gz.
    """
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with torch_profile(activities=activities):
        steps(1)  # the profiler starts slowly
    with torch_profile(activities=activities) as profiler:
        for size in sizes:
            with record_function(STEP):
                steps(size)
                if on_gpu:
                    torch.cuda.synchronize()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(path))
    n = sum(sizes)
    python = cProfile.Profile()
    python.runcall(steps, n)
    return {
        "n_steps": n,
        **tables(profiler.key_averages(), n),
        "functions": _table(_functions(python), n),
    }


def tables(averages: Iterable[Any], n: int) -> dict[str, Any]:
    """``gpu`` (None if nothing ran there) and ``operators`` of PyTorch's averages over n steps."""
    seen = [one for one in averages if one.key not in _NOT_WORK]
    host = [one for one in seen if one.device_type.name == "CPU"]
    work = [one for one in seen if one.device_type.name == "CUDA"]
    operators = [(one.key, one.count, one.self_cpu_time_total) for one in host]
    return {"gpu": _gpu(work, host, n) if work else None, "operators": _table(operators, n)}


def _gpu(work: Sequence[Any], host: Sequence[Any], n: int) -> dict[str, Any]:
    kernels = [one for one in work if not one.key.startswith(("Memcpy", "Memset"))]
    launches = [one for one in host if "Launch" in one.key]
    waits = [one for one in host if "Synchronize" in one.key]
    copies = [one for one in work if one.key.startswith("Memcpy")]
    return {
        "busy_us": sum(one.self_device_time_total for one in work) / n,
        "n_kernels": sum(one.count for one in kernels) / n,
        "n_launches": sum(one.count for one in launches) / n,
        "launch_us": sum(one.self_cpu_time_total for one in launches) / n,
        "wait_us": sum(one.self_cpu_time_total for one in waits) / n,
        "copies": _table([(c.key, c.count, c.self_device_time_total) for c in copies], n),
        "kernels": _table([(k.key, k.count, k.self_device_time_total) for k in kernels], n),
    }


def _functions(python: cProfile.Profile) -> list[tuple[str, int, float]]:
    """Python functions by their own time: name, calls, µs."""
    found = []
    for (file, _, name), row in pstats.Stats(python).stats.items():  # type: ignore[attr-defined]
        where = "" if file == "~" else "/".join(Path(file).parts[-2:]) + ":"
        found.append((where + name, row[1], 1e6 * row[2]))
    return found


def _table(rows: Iterable[tuple[str, int, float]], n: int) -> list[dict[str, Any]]:
    """The longest first: how often per step, µs per step and each, share of all."""
    rows = sorted(rows, key=lambda row: -row[2])
    total = sum(us for _, _, us in rows) or 1.0
    return [
        {"name": name, "n": count / n, "us": us / n, "mean_us": us / count, "share": us / total}
        for name, count, us in rows[:_ROWS]
    ]
