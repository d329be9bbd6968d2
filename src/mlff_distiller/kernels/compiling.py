"""Compiled Warp kernels: where they are kept, and how they are launched on CPU cores and GPUs.

Warp's configuration is the user's: what is set here is set back before returning.
"""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import warp as wp
from torch import Tensor

from mlff_distiller.errors import KernelError

SMALLEST_RANGE = 32
"""Atoms below which a further thread costs more than it saves."""
IN_VECTORS = "-march=native -mreassociate -fno-signed-zeros -freciprocal-math -ffp-contract=fast"
"""Compiler flags: a CPU sums in vectors only with leave to reorder; NaN and infinity keep their
meaning."""
RANGES_PER_THREAD = 4
"""So that a core that others use as well holds up a quarter of its share only."""

_NO_DRIVER = b"Could not find or load the NVIDIA CUDA driver"

_configuration = threading.Lock()


@cache
def cache_folder() -> Path:
    """A folder for compiled kernels that only this user can read and write.

    Machine code found there is run. Where the user's cache is not private, kernels go to a new
    temporary folder, and are compiled once per process.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "mlff-distiller" / "kernels"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
        if own and not found.st_mode & 0o077:
            with tempfile.TemporaryFile(dir=folder):
                return folder
    except OSError:
        pass
    temporary = tempfile.mkdtemp(prefix="mlff-distiller-kernels-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return Path(temporary)


@contextmanager
def _quiet(**settings: Any) -> Iterator[None]:
    with _configuration:
        settings["log_level"] = wp.LOG_ERROR
        before = {name: getattr(wp.config, name) for name in settings}
        try:
            for name, value in settings.items():
                setattr(wp.config, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(wp.config, name, value)


@cache
def _start() -> None:
    """Start Warp. Its library warns by itself where there is no GPU, as if that were a fault."""
    try:
        errors = os.dup(2)
    except OSError:  # closed
        wp.init()
        return
    with tempfile.TemporaryFile() as told:
        os.dup2(told.fileno(), 2)
        try:
            wp.init()
        finally:
            os.dup2(errors, 2)
            os.close(errors)
            told.seek(0)
            os.write(2, b"".join(line for line in told if _NO_DRIVER not in line))


def warp_device(device: str) -> wp.Device:
    """The Warp device of torch's name for it; starts Warp when first called."""
    try:
        with _quiet():
            _start()
            return wp.get_device("cuda:0" if device == "cuda" else device)
    except Exception as error:
        raise KernelError(f"NVIDIA Warp cannot use the device {device!r}: {error}") from error


def load(module: wp.Module, device: wp.Device) -> None:
    """Compile ``module`` for ``device``, or load what was compiled before."""
    with _quiet(kernel_cache_dir=str(cache_folder() / wp.config.version)):
        try:
            wp.load_module(module, device=device, block_dim=module.options["block_dim"])
        except Exception as error:
            raise KernelError(
                f"the kernels {module.name} cannot be compiled or loaded: {error}"
            ) from error


@cache
def _pool(n_threads: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process: a fork has none of its parent's."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="kernel")


@contextmanager
def recording() -> Iterator[None]:
    """While a CUDA graph is recorded: an older one that the garbage collector frees spoils it."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


class Launch:
    """Kernels over ``n`` atoms one after another, recorded, to be called any number of times.

    Each kernel takes the number of its launch's first atom as its first argument, and is run by
    ``threads`` threads for each atom. On the CPU a
    launch runs on one core and leaves Python's lock to others, so ranges of atoms run on
    ``n_threads`` of them; a range passes through all ``steps`` before the call returns.
    """

    def __init__(
        self,
        steps: Sequence[tuple[wp.Kernel, Sequence[Any]]],
        n: int,
        device: wp.Device,
        n_threads: int = 1,
        threads: int = 1,
    ) -> None:
        n_ranges = 1
        if device.is_cpu and n_threads > 1:
            n_ranges = max(1, min(n_threads * RANGES_PER_THREAD, n // SMALLEST_RANGE))
        bounds = [n * k // n_ranges for k in range(n_ranges + 1)]
        self._ranges = [
            [
                wp.launch(
                    kernel,
                    (stop - start) * threads,
                    [start, *arguments],
                    device=device,
                    block_dim=kernel.module.options["block_dim"],
                    record_cmd=True,
                )
                for kernel, arguments in steps
            ]
            for start, stop in pairwise(bounds)
        ]
        self._n_threads = n_threads

    def __call__(self) -> None:
        if len(self._ranges) == 1:
            _run(self._ranges[0])
        else:
            for _ in _pool(self._n_threads, os.getpid()).map(_run, self._ranges):
                pass


def _run(commands: Sequence[Any]) -> None:
    for command in commands:
        command.launch()


class OnTensors:
    """Runs kernels of ``module`` on tensors of a device, on PyTorch's stream there.

    A kernel's first argument is the number of a launch's first thread.
    """

    def __init__(self, module: wp.Module, device: torch.device) -> None:
        self._device, self._stream = warp_device(str(device)), None
        load(module, self._device)
        if device.type == "cuda":
            self._stream = wp.stream_from_torch(torch.cuda.current_stream(device))

    def __call__(self, kernel: wp.Kernel, n: int, *arguments: Any) -> None:
        """``n`` threads of ``kernel``; tensors are contiguous."""
        if not n:
            return
        given = [
            _described(own, declared.type.dtype) if isinstance(own, Tensor) else own
            for declared, own in zip(kernel.adj.args[1:], arguments, strict=True)
        ]
        if self._stream is None:
            Launch([(kernel, given)], n, self._device, torch.get_num_threads())()
        else:
            size = kernel.module.options["block_dim"]
            wp.launch(kernel, n, [0, *given], stream=self._stream, block_dim=size)


@cache
def _description() -> Any:
    """What Warp hands to a kernel for an array: address and shape."""
    return type(wp.from_torch(torch.zeros(1), return_ctype=True))


def _described(tensor: Tensor, dtype: Any) -> Any:
    """One-dimensional, of elements ``dtype``. As `wp.from_torch`, in a tenth of its time."""
    size = wp.types.type_size_in_bytes(dtype)
    length = tensor.numel() * tensor.element_size() // size
    described = _description()(tensor.data_ptr(), 0, 1, (length,), (size,))
    described._ref = tensor
    return described
