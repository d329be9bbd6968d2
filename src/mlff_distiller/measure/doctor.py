"""``doctor``: what works on this machine, what does not, and what to do about it.

Whatever can be tried is tried: kernels are compiled, run and compared with the CPU, a graph is
recorded and replayed, a file is written. Nothing here raises; a check that fails says why.
"""

from __future__ import annotations

import importlib.util
import os
import stat
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import psutil
import torch

from mlff_distiller.kernels.compiling import cache_folder
from mlff_distiller.measure.machine import cpu_name, installed
from mlff_distiller.measure.nvml import open_nvml
from mlff_distiller.teachers import registered_teachers

Status = Literal["ok", "absent", "failed"]

_TOLERANCE = 1e-5
_WRITTEN_MIB = 64
_SLOW_DISK_MB_PER_S = 30.0


@dataclass(frozen=True)
class Check:
    """One thing looked at. ``absent``: not here, and not needed by whatever does without it."""

    name: str
    status: Status
    found: str
    remedy: str = ""


def checks(disk: str | Path = ".") -> Iterator[Check]:
    """All checks, in the order in which a reader wants them, each when it is done.

    Parameters
    ----------
    disk
        A folder on the disk whose write speed is measured; 64 MiB are written there and removed.
    """
    tries: list[tuple[str, Callable[[], Check]]] = [
        ("packages", _packages),
        ("processor", _processor),
        ("threads", _threads),
        ("memory", _memory),
        ("torch", _torch),
        ("kernels, cpu", partial(_warp, "cpu")),
        ("kernel cache", _kernel_cache),
    ]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        name = f"cuda:{index}"
        tries += [
            (name, partial(_gpu, index)),
            (f"torch, {name}", partial(_torch_on, name)),
            (f"kernels, {name}", partial(_warp, name)),
            (f"graphs, {name}", partial(_graphs, name)),
            (f"clocks, {name}", partial(_clocks, index)),
        ]
    if not count:
        tries.append(("cuda", _no_cuda))
    tries += [
        ("triton", partial(_triton, "cuda:0" if count else None)),
        ("nvml", partial(_nvml, count > 0)),
        ("teachers", _teachers),
        ("disk", partial(_disk, Path(disk))),
    ]
    for name, attempt in tries:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield attempt()
        except Exception as error:
            yield Check(name, "failed", f"{type(error).__name__}: {error}"[:500])


# -- the host ------------------------------------------------------------------------------------


def _packages() -> Check:
    wanted = ("mlff-distiller", "torch", "warp-lang", "numpy", "ase", "vesin")
    found = installed(wanted)
    text = f"Python {sys.version.split()[0]}, " + ", ".join(f"{k} {v}" for k, v in found.items())
    # A carried checkout has no metadata of its own, and a library may have none either.
    lacking = [
        name
        for name, module in {"warp-lang": "warp", "ase": "ase", "vesin": "vesin"}.items()
        if name not in found and importlib.util.find_spec(module) is None
    ]
    if lacking:
        return Check("packages", "failed", f"no {', '.join(lacking)}", _pip(" ".join(lacking)))
    return Check("packages", "ok", text)


def _processor() -> Check:
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    text = f"{cpu_name()}, {cores} cores for this process, load {load:.1f}"
    if load > 1.2 * cores:
        return Check("processor", "ok", text, "others compute here too: timings will scatter")
    return Check("processor", "ok", text)


def _threads() -> Check:
    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    asked = os.environ.get("OMP_NUM_THREADS")
    text = f"{threads} for torch and the kernels" + (f", OMP_NUM_THREADS={asked}" if asked else "")
    if threads > cores:
        remedy = f"more threads than cores make steps slower: export OMP_NUM_THREADS={cores}"
        return Check("threads", "failed", text, remedy)
    return Check("threads", "ok", text)


def _memory() -> Check:
    memory = psutil.virtual_memory()
    text = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB are free"
    return Check("memory", "ok", text)


def _torch() -> Check:
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    a = torch.linspace(-1, 1, 4096, dtype=torch.float64).view(64, 64)
    error = float(((a @ a.T) - (a.unsqueeze(1) * a).sum(-1)).abs().max())
    status: Status = "ok" if error < 1e-9 else "failed"
    return Check(
        "torch", status, f"{torch.__version__}, built {built}; matmul right to {error:.0e}"
    )


def _kernel_cache() -> Check:
    folder = cache_folder()
    mode = stat.S_IMODE(folder.stat().st_mode)
    if folder.name.startswith("mlff-distiller-kernels-"):
        return Check(
            "kernel cache",
            "failed",
            "the user's cache is not private: kernels are compiled in every process",
            "chmod 700 ~/.cache/mlff-distiller ~/.cache/mlff-distiller/kernels",
        )
    return Check("kernel cache", "ok", f"private (mode {mode:o})")


def _warp(device: str) -> Check:
    name = f"kernels, {device}"
    remedy = _pip("warp-lang")
    try:
        from mlff_distiller.measure import warp_probe
    except ImportError as error:
        return Check(name, "failed", f"NVIDIA Warp cannot be imported: {error}", remedy)
    began = time.perf_counter()
    off = warp_probe.run(device)
    return _compared(name, off, f"compiled by Warp in {time.perf_counter() - began:.1f} s")


def _compared(name: str, error: float, how: str) -> Check:
    if error <= _TOLERANCE:
        return Check(name, "ok", f"{how}, right to {error:.0e}")
    return Check(
        name,
        "failed",
        f"{how}, but wrong by {error:.3g}",
        "results of this device are not to be trusted: try another driver, or device='cpu'",
    )


def _disk(folder: Path) -> Check:
    folder.mkdir(parents=True, exist_ok=True)
    block = os.urandom(1 << 20)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as stream:
        began = time.perf_counter()
        for _ in range(_WRITTEN_MIB):
            stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())
        seconds = time.perf_counter() - began
    rate = _WRITTEN_MIB * 2**20 / 1e6 / seconds
    free = psutil.disk_usage(str(folder)).free / 2**30
    text = f"{rate:.0f} MB/s to {folder}, written and synced; {free:.1f} GiB are free"
    if rate < _SLOW_DISK_MB_PER_S:
        return Check("disk", "ok", text, "slow: write fewer frames, or to another disk")
    return Check("disk", "ok", text)


# -- the GPU -------------------------------------------------------------------------------------


def _no_cuda() -> Check:
    nvml, _ = open_nvml()
    if torch.version.cuda is None:
        found = "this torch is built for CPUs"
        if nvml is None:
            return Check("cuda", "absent", found + ", and no NVIDIA driver answers")
        name = nvml.about()["name"]
        remedy = "install torch's CUDA build: pip install torch"
        return Check("cuda", "failed", f"{found}, though there is a GPU ({name})", remedy)
    if nvml is None:
        return Check("cuda", "absent", "no NVIDIA driver answers: everything runs on the CPU")
    return Check(
        "cuda",
        "failed",
        f"torch for CUDA {torch.version.cuda} cannot use the GPU under driver "
        f"{nvml.about()['driver']}",
        "a newer driver, or a torch built for an older CUDA; see also CUDA_VISIBLE_DEVICES",
    )


def _gpu(index: int) -> Check:
    p = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    nvml, _ = open_nvml(index)
    driver = nvml.about()["driver"] if nvml else "unknown"
    text = (
        f"{p.name}, compute capability {p.major}.{p.minor}, driver {driver}, "
        f"CUDA {torch.version.cuda}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB are free"
    )
    if p.major < 7:
        return Check(f"cuda:{index}", "failed", text, "Triton needs compute capability 7.0")
    return Check(f"cuda:{index}", "ok", text)


def _torch_on(device: str) -> Check:
    a = torch.linspace(-1, 1, 65536, dtype=torch.float64).view(256, 256)
    error = float(((a.to(device) @ a.T.to(device)).cpu() - a @ a.T).abs().max())
    return _compared(f"torch, {device}", error, "a matrix product ran")


def _graphs(device: str) -> Check:
    """A graph of torch's, replayed with other input."""
    with torch.cuda.device(device):
        x = torch.zeros(256, device=device)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            y = 2.0 * x + 1.0
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = 2.0 * x + 1.0
        x.fill_(3.0)
        graph.replay()
        error = float((y - 7.0).abs().max())
    return _compared(f"graphs, {device}", error, "a CUDA graph was recorded and replayed")


def _clocks(index: int) -> Check:
    name = f"clocks, cuda:{index}"
    nvml, reason = open_nvml(index)
    if nvml is None:
        return Check(name, "absent", reason, _pip("nvidia-ml-py"))
    seen, about = nvml.read(), nvml.about()
    text = (
        f"SM {_or(seen.sm_clock_MHz)} of {_or(about['max_sm_clock_MHz'])} MHz, "
        f"{_or(seen.power_W)} of {_or(about['power_limit_W'])} W, {_or(seen.temperature_C)} °C"
    )
    if about["throttled_by"]:
        held = ", ".join(about["throttled_by"])
        return Check(name, "failed", text, f"held down by {held}: timings are not the card's best")
    return Check(name, "ok", text)


def _triton(device: str | None) -> Check:
    """Broken is worse than missing: ``torch.compile`` trips over it."""
    try:
        if importlib.util.find_spec("triton") is None:
            if device is None:
                return Check("triton", "absent", "not installed; it has no use without a GPU")
            return Check("triton", "failed", "not installed", _pip("triton"))
        from mlff_distiller.measure import triton_probe
    except Exception as error:
        return Check(
            "triton",
            "failed",
            f"installed, but cannot be imported: {type(error).__name__}: {error}"[:500],
            _pip("--force-reinstall triton") + ", in the version that torch names",
        )
    release = installed(("triton",)).get("triton", "")
    if device is None:
        return Check("triton", "ok", f"{release}; not run, because there is no GPU")
    began = time.perf_counter()
    try:
        off = triton_probe.run(device)
    except Exception as problem:
        return Check(
            "triton",
            "failed",
            f"{release} cannot compile or run a kernel: {type(problem).__name__}: {problem}"[:500],
            "it needs a C compiler, Python's headers, and a version made for this torch",
        )
    return _compared("triton", off, f"{release} compiled in {time.perf_counter() - began:.1f} s")


def _nvml(needed: bool) -> Check:
    nvml, reason = open_nvml()
    if nvml is not None:
        return Check("nvml", "ok", f"answers, driver {nvml.about()['driver']}")
    if needed:
        remedy = _pip("nvidia-ml-py") if "package" in reason else ""
        return Check("nvml", "absent", f"{reason}; power, clocks and use are not measured", remedy)
    return Check("nvml", "absent", f"{reason}; there is no GPU to ask about")


# -- teachers ------------------------------------------------------------------------------------


def _teachers() -> Check:
    packages = {
        row.family: (row.package, row.install) for row in registered_teachers() if row.package
    }
    distributions = {"sevenn": "sevenn", "orb_models": "orb-models", "mace": "mace-torch"}
    found = []
    for family, (package, _) in packages.items():
        if importlib.util.find_spec(package) is not None:
            name = distributions.get(package, package)
            found.append(f"{family} ({name} {installed((name,)).get(name, 'of unknown version')})")
    if found:
        lacking = [f for f, (p, _) in packages.items() if importlib.util.find_spec(p) is None]
        more = f"; not {', '.join(lacking)}" if lacking else ""
        return Check("teachers", "ok", ", ".join(found) + more)
    _, install = next(iter(packages.values()))
    return Check(
        "teachers",
        "absent",
        "none is installed: nothing can be labelled here, students run without",
        f"pip install {install}, or --teacher-python with another environment's Python",
    )


def _or(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f}"


def _pip(what: str) -> str:
    return f"{Path(sys.executable).name} -m pip install {what}"
