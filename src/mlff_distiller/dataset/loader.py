"""Batches of about equal numbers of atoms, made by threads ahead of their use; exact resume."""

from __future__ import annotations

import hashlib
import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from mlff_distiller.batch import Batch
from mlff_distiller.dataset.pairs import Packed, Pairs, pack, pairs_of
from mlff_distiller.dataset.store import Dataset
from mlff_distiller.errors import DatasetError, DistillerError
from mlff_distiller.neighbors import LARGEST_BY_IMAGES, Neighbors, neighbor_list

_Tensors = TypeVar("_Tensors", Batch, Packed, Neighbors)
_own = threading.local()


class AtomicDataLoader:
    """Iterating gives one epoch: each of ``indices`` once, over all ranks together.

    With ``cutoff`` (Å) an item is ``(Batch, Neighbors)``, as ``training.minibatch.collate`` gives,
    otherwise a ``Batch``; on ``device`` if there is one. The order is drawn from (seed, epoch): a
    full permutation, cut where a batch would exceed ``atoms_per_batch``; a larger frame is a batch
    of its own. All ranks have equally many batches. Each complete iteration is followed by the next
    epoch.

    ``workers`` threads read, check and search neighbours up to ``prefetch`` batches ahead; they
    end with the iteration, however it ends. For a GPU they do so on streams of their own, which
    yours waits for; systems up to ``LARGEST_BY_IMAGES`` are searched there, and two threads are
    best, since more wait for Python's lock. Of pairs found on the CPU up to ``pair_cache_bytes``
    are kept, 5 bytes each, so that later epochs need not search them. Memory beside that: the
    batches ahead and 16 bytes an index. A new iteration ends the one before. May be pickled, and
    used after a fork.

    ``DatasetError`` names a record that cannot be loaded, ``IndexError`` one that does not exist.
    """

    def __init__(
        self,
        dataset: Dataset,
        indices: Sequence[int] | np.ndarray,
        *,
        atoms_per_batch: int,
        cutoff: float | None = None,
        seed: int = 0,
        shuffle: bool = True,
        prefetch: int = 4,
        workers: int = 2,
        device: torch.device | str | None = None,
        pair_cache_bytes: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        for name, value, least in (
            ("atoms_per_batch", atoms_per_batch, 1),
            ("prefetch", prefetch, 1),
            ("workers", workers, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise DatasetError(f"{name} is too small", expected=f">= {least}", found=value)
        if not 0 <= rank < world_size:
            raise DatasetError("no such rank", expected=f"0 to {world_size - 1}", found=rank)
        self.dataset, self.indices = dataset, dataset.numbers(indices)
        self.atoms_per_batch, self.cutoff = atoms_per_batch, cutoff
        self.seed, self.shuffle, self.epoch = seed, shuffle, 0
        self.prefetch, self.workers = prefetch, workers
        self.device = None if device is None else torch.device(device)
        self.rank, self.world_size = rank, world_size
        self._sizes = dataset.n_atoms[self.indices]
        self._pairs: dict[int, Pairs] = {}
        self._pair_bytes_left = pair_cache_bytes
        self._done = 0  # batches handed out in this epoch
        self._start = 0  # batch the next iteration begins with
        self._plan: tuple[int, list[np.ndarray]] | None = None
        self._running: weakref.ref[Generator[Any]] | None = None

    def __len__(self) -> int:
        """Batches of this epoch."""
        return len(self.batches())

    def __iter__(self) -> Iterator[Any]:
        running = self._running() if self._running else None
        if running is not None:
            running.close()
        self._done, self._start = self._start, 0
        iteration = self._serve()
        self._running = weakref.ref(iteration)
        return iteration

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_running": None, "_plan": None}

    def set_epoch(self, epoch: int) -> None:
        """Iterate ``epoch`` next, from its start unless ``load_state`` said otherwise."""
        if epoch < 0:
            raise DatasetError("the epoch is too small", expected=">= 0", found=epoch)
        if epoch != self.epoch:
            self.epoch, self._done, self._start = epoch, 0, 0

    def state(self) -> dict[str, Any]:
        """What ``load_state`` needs; JSON. Batches handed out count as done. Equal on all ranks."""
        return {"epoch": self.epoch, "batch": self._done, "plan": self._fingerprint()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The next iteration gives the batches that were still to come, to the bit.

        ``DatasetError`` unless records, seed and sizes of batches are those of the saved loader.
        """
        plan = self._fingerprint()
        if state.get("plan") != plan:
            raise DatasetError(
                "this position in the data is of another loader",
                expected=f"plan {plan}",
                found=state.get("plan"),
                remedy="use the same records, seed, atoms_per_batch and number of ranks as before",
            )
        epoch, batch = state.get("epoch"), state.get("batch")
        if not isinstance(epoch, int) or not isinstance(batch, int) or min(epoch, batch) < 0:
            raise DatasetError("this is no position in the data", found=dict(state))
        self.epoch, self._done, self._start = epoch, batch, batch

    def batches(self) -> list[np.ndarray]:
        """Record numbers of each batch that this rank gets in this epoch."""
        if self._plan is None or self._plan[0] != self.epoch:
            order = np.arange(len(self.indices))
            if self.shuffle:
                order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
            parts = [
                order[first:end] for first, end in cut(self._sizes[order], self.atoms_per_batch)
            ]
            own = share_out(parts, self.world_size)[self.rank :: self.world_size]
            if self.shuffle:  # within a batch order is nothing, but files are read forwards
                own = [np.sort(self.indices[part]) for part in own]
            else:
                own = [self.indices[part] for part in own]
            self._plan = self.epoch, own
        return self._plan[1]

    def _serve(self) -> Generator[Any]:
        upcoming = iter(self.batches()[self._done :])
        pool = ThreadPoolExecutor(self.workers, "AtomicDataLoader")
        try:
            waiting = deque(
                pool.submit(self._make, records)
                for records in itertools.islice(upcoming, self.prefetch)
            )
            while waiting:
                sample, found, ready = waiting.popleft().result()
                waiting.extend(
                    pool.submit(self._make, records) for records in itertools.islice(upcoming, 1)
                )
                self._keep(found)
                self._done += 1
                yield self._delivered(sample, ready)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        self.epoch, self._done = self.epoch + 1, 0

    def _make(self, records: np.ndarray) -> tuple[Any, dict[int, Pairs], torch.cuda.Event | None]:
        """A batch, by record its pairs that the CPU searched, and what to wait for on a GPU.

        Runs in a thread.
        """
        try:
            if self._stays:
                return *self._load(records), None
            if getattr(_own, "device", None) != self.device:
                _own.device, _own.stream = self.device, torch.cuda.Stream(self.device)
            with torch.cuda.stream(_own.stream):  # beside whatever the consumer's does
                return *self._load(records), _own.stream.record_event()
        except Exception as error:
            raise self._blame(records, error) from error

    def _load(self, records: np.ndarray) -> tuple[Any, dict[int, Pairs]]:
        batch = self.dataset.read(records)
        if self.cutoff is None:
            return self._moved(batch), {}
        if not self._stays and int(batch.atoms_per_system.max()) <= LARGEST_BY_IMAGES:
            batch = self._moved(batch)
            return (batch, neighbor_list(batch, self.cutoff)), {}
        numbers = records.tolist()
        known = {k: self._pairs[n] for k, n in enumerate(numbers) if n in self._pairs}
        parts = pairs_of(batch, known, self.cutoff)
        found = {n: part for n, part in zip(numbers, parts, strict=True) if n not in self._pairs}
        return (self._moved(batch), self._moved(pack(parts)).unpack()), found

    def _blame(self, records: np.ndarray, error: Exception) -> DatasetError:
        """The error that names the first record which cannot be loaded alone."""
        name = f"records {records.tolist()}"
        for record in records:
            try:
                self._load(np.array([record]))
            except Exception as own:
                name, error = f"record {record}", own
                break
        return DatasetError(
            f"{name} of dataset {self.dataset.folder} cannot be loaded",
            found=getattr(error, "problem", error),
            remedy=(error.remedy if isinstance(error, DistillerError) else "")
            or "`mlff-distiller data verify` lists what is damaged",
        )

    def _keep(self, found: dict[int, Pairs]) -> None:
        """Runs in the consumer's thread only: needs no lock."""
        for number, pairs in found.items():
            if number not in self._pairs and pairs.n_bytes <= self._pair_bytes_left:
                self._pairs[number] = pairs
                self._pair_bytes_left -= pairs.n_bytes

    def _moved(self, tensors: _Tensors) -> _Tensors:
        if self._stays:
            return tensors
        return _each(tensors, lambda own: own.pin_memory().to(self.device, non_blocking=True))

    def _delivered(self, sample: Any, ready: torch.cuda.Event | None) -> Any:
        """What a worker made; the consumer's stream waits until it is there."""
        if ready is None:
            return sample
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(ready)

        def keep(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)  # memory of the worker's stream, now used by this one
            return tensor

        if isinstance(sample, Batch):
            return _each(sample, keep)
        return tuple(_each(part, keep) for part in sample)

    @property
    def _stays(self) -> bool:
        return self.device is None or self.device.type == "cpu"

    def _fingerprint(self) -> str:
        settings = [self.seed, self.shuffle, self.atoms_per_batch, self.world_size]
        digest = hashlib.sha256(repr(settings).encode())
        digest.update(self.indices.tobytes() + self._sizes.tobytes())
        return digest.hexdigest()[:16]


def cut(sizes: np.ndarray, most: int) -> list[tuple[int, int]]:
    """(first, last + 1) of runs as long as their ``sizes`` (n,) sum up to at most ``most``.

    An entry that exceeds ``most`` is a run of its own.
    """
    runs, first, total = [], 0, 0
    for number, size in enumerate(sizes.tolist()):
        if total + size > most and number > first:
            runs.append((first, number))
            first, total = number, 0
        total += size
    return [*runs, (first, len(sizes))] if len(sizes) else runs


def share_out(parts: list[np.ndarray], world_size: int) -> list[np.ndarray]:
    """``parts``, of which the longest are halved until ``world_size`` divides their number."""
    parts = list(parts)
    while len(parts) % world_size:
        longest = int(np.argmax([len(part) for part in parts]))
        part = parts[longest]
        if len(part) < 2:
            raise DatasetError(
                "batches of one frame each cannot be shared out equally",
                expected=f"a number of frames that {world_size} ranks divide",
                found=len(parts),
                remedy="raise atoms_per_batch",
            )
        parts[longest : longest + 1] = [part[: len(part) // 2], part[len(part) // 2 :]]
    return parts


def _each(tensors: _Tensors, change: Callable[[Tensor], Tensor]) -> _Tensors:
    """The same with every tensor, also those of mappings, changed."""
    changed: dict[str, Any] = {}
    for field in fields(tensors):
        value = getattr(tensors, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = change(value)
        elif isinstance(value, Mapping):
            changed[field.name] = {name: change(own) for name, own in value.items()}
    return replace(tensors, **changed)
