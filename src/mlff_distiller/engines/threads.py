"""PyTorch's modes and threads, and streams of a GPU, where others have set theirs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
import warp as wp

T = TypeVar("T")

_forked = threading.Event()
"""Set in a forked process: the threads that PyTorch has there were the parent's, and are gone."""
os.register_at_fork(after_in_child=_forked.set)


@contextmanager
def own_modes() -> Iterator[None]:
    """Whatever modes the caller has set."""
    with torch.inference_mode(False), torch.device("cpu"):
        yield


def own_helpers(evaluate: Callable[[], T]) -> T:
    """In a fork by a new thread, with helpers of its own."""
    if not _forked.is_set():
        return evaluate()
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(evaluate).result()


@contextmanager
def on_stream(device: wp.Device) -> Iterator[None]:
    """What torch does here follows what Warp has launched, and the other way round."""
    if not device.is_cuda:
        yield
        return
    warps = torch.cuda.ExternalStream(device.stream.cuda_stream, wp.device_to_torch(device))
    with torch.cuda.stream(warps):
        yield
