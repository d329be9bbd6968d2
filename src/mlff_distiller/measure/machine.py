"""On what, and with what, something was measured."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from mlff_distiller.measure.nvml import open_nvml

PACKAGES = ("mlff-distiller", "torch", "warp-lang", "triton", "numpy", "ase", "vesin")
TEACHER_PACKAGES = ("sevenn", "chgnet", "orb-models", "mace-torch", "torchani", "fennol", "jax")


def describe(device: str) -> dict[str, Any]:
    """When, by what command and where: the ``about`` of a result."""
    return {
        "date": today(),
        "command": command_line(),
        "device": device_name(device),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "memory_GiB": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": describe_gpu(device),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": installed((*PACKAGES, *TEACHER_PACKAGES)),
        "commit": commit(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def today() -> str:
    """Date and time for readers."""
    return time.strftime("%d %B %Y, %H:%M UTC", time.gmtime())


def command_line() -> str:
    """Our command that runs in this process; '' in a script of somebody else's."""
    program = Path(sys.argv[0])
    ours = program.name == "mlff-distiller" or program.parent.name == "mlff_distiller"
    return shlex.join(["mlff-distiller", *sys.argv[1:]]) if ours else ""


def device_name(device: str) -> str:
    """The GPU's or the processor's."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu_name()


def cpu_name() -> str:
    """The processor's, as the kernel tells it."""
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe_gpu(device: str) -> dict[str, Any] | None:
    """What matters about the GPU; None for a CPU."""
    if not device.startswith("cuda"):
        return None
    index = torch.device(device).index or 0
    properties = torch.cuda.get_device_properties(index)
    nvml, reason = open_nvml(index)
    return {
        "memory_GiB": round(properties.total_memory / 2**30, 1),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        **(nvml.about() if nvml else {"nvml": reason}),
    }


def installed(names: tuple[str, ...]) -> dict[str, str]:
    """Versions of those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Commit of the checkout this runs from, with "+" if changed; None if it is installed."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "--short", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--", "src") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, check=True)
    return done.stdout.decode().strip()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
