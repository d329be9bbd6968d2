"""What is made of frames again and again: kept while there is room, else made ahead by a thread."""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil
import torch
from torch import Tensor

_Made = TypeVar("_Made")
_OF_A_TENSOR = 600
"""Bytes that a small tensor takes besides its values, measured."""
_SHARE = 0.5
"""Share of the free memory to take: the rest is for updates, and for other programs."""


class Room:
    """Bytes that may still be kept, until the first thing that does not fit."""

    def __init__(self, n_bytes: float) -> None:
        self._left = n_bytes

    def take(self, n_bytes: int) -> bool:
        """Whether there was room for ``n_bytes``, which then are taken."""
        fits = n_bytes <= self._left
        self._left = self._left - n_bytes if fits else 0
        return fits


class Cache(Generic[_Made]):
    """What ``make`` gives for numbers, as often as asked for, whatever the room.

    The first things made are kept until ``room`` is full: where each is used once in an epoch, that
    spares as much work as any choice of things would.
    """

    def __init__(self, make: Callable[[Sequence[int]], list[_Made]], room: Room | None) -> None:
        self._make, self._room = make, room
        self._kept: dict[int, _Made] = {}
        self._ready: dict[int, _Made] = {}
        self._coming: tuple[list[int], Future[list[_Made]]] | None = None
        self._thread: ThreadPoolExecutor | None = None

    def get(self, numbers: Sequence[int]) -> list[_Made]:
        """What is made of each of ``numbers``, in order; missing items are made in one call."""
        self.wait()
        missing = [n for n in numbers if n not in self._kept and n not in self._ready]
        if missing:
            self._receive(missing, self._make(missing))
        found = [self._kept[n] if n in self._kept else self._ready[n] for n in numbers]
        self._ready = {}
        return found

    def all_of(self, n: int) -> list[_Made] | None:
        """All of 0 .. n - 1 if they are kept and there is room for a copy, which is reserved."""
        self.wait()
        if len(self._kept) < n:
            return None
        made = [self._kept[number] for number in range(n)]
        fits = self._room is None or self._room.take(sum(n_bytes(one) for one in made))
        return made if fits else None

    def prepare(self, numbers: Sequence[int]) -> None:
        """Begin to make what the next ``get`` will ask for, in a thread, where it is missing."""
        self.wait()
        missing = [n for n in numbers if n not in self._kept]
        if missing:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "mlff-distiller-frames")
            self._coming = missing, self._thread.submit(self._make, missing)

    def wait(self) -> None:
        """Until the thread is idle; its error is raised here."""
        if self._coming is not None:
            (numbers, future), self._coming = self._coming, None
            self._receive(numbers, future.result())

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._coming = self._thread = None

    def _receive(self, numbers: Sequence[int], made: Sequence[_Made]) -> None:
        for number, one in zip(numbers, made, strict=True):
            room = self._room is None or self._room.take(n_bytes(one))
            (self._kept if room else self._ready)[number] = one


def n_bytes(value: Any) -> int:
    """That the tensors of a dataclass, a mapping or a sequence take."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size() + _OF_A_TENSOR
    if is_dataclass(value):
        return sum(n_bytes(getattr(value, field.name)) for field in fields(value))
    parts = value.values() if isinstance(value, Mapping) else value
    return sum(n_bytes(own) for own in parts)


def room_on(device: torch.device, memory_GB: float | None, n_processes: int) -> Room:
    """``memory_GB`` (10^9 bytes), or half of what is free on ``device``; a share of each process.

    On a CPU, what a container, a batch system's cgroup or ``ulimit -v`` leaves counts as free.
    """
    if memory_GB is not None:
        return Room(memory_GB * 1e9 / n_processes)
    if device.type == "cuda":
        return Room(_SHARE * torch.cuda.mem_get_info(device)[0])
    used = psutil.Process().memory_info()
    free = [psutil.virtual_memory().available, *(own - used.rss for own in _cgroup_limits())]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        free.append(limit - used.vms)
    return Room(_SHARE * max(0, min(free)) / n_processes)


def _cgroup_limits() -> list[int]:
    """Bytes that the control groups of this process, and those around them, allow it; Linux."""
    found = []
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            kind, file = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
            own = Path("/sys/fs/cgroup", kind, path.lstrip("/"))
            for folder in (own, *own.parents[: len(Path(path).parts) - 1]):
                with suppress(OSError, ValueError):  # "max": no limit
                    found.append(int((folder / file).read_text(encoding="ascii")))
    return found
