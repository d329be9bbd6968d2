"""Our side of the process boundary: start a teacher's process, ask it, notice its death."""

from __future__ import annotations

import contextlib
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from mlff_distiller.errors import TeacherError
from mlff_distiller.teachers.wire import LARGEST_ARRAYS, FrameError, read_frame, write_frame
from mlff_distiller.teachers.worker import MARK, end_marked

_WORKER = Path(__file__).with_name("worker.py")
_TAIL_BYTES = 16_384
_TAIL_LINES = 15
_GRACE_SECONDS = 5.0
_LOOK_MS = 200
"""How often a worker that is waited for is looked after."""

_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "WANDB_MODE": "offline",
}


class WorkerDied(TeacherError):
    """The teacher's process ended while an answer was awaited."""


class WorkerHung(WorkerDied):
    """It was ended, because no answer came in time."""


def find_python(python: str | None) -> str:
    """The interpreter to run a teacher in, as an absolute path; None is our own."""
    if python is None:
        return sys.executable
    found = shutil.which(os.path.expanduser(python))
    if found is None:
        raise TeacherError(
            f"the teacher's interpreter {python!r} cannot be run",
            expected="the path of a Python executable, e.g. /path/to/venv/bin/python",
            found="no executable file there",
        )
    return os.path.abspath(found)


def environment(
    python: str | None, device: str, allow_download: bool, threads: int | None
) -> dict[str, str]:
    """Variables of a teacher's process: ours, offline unless asked, GPU memory shared.

    ``threads`` of the CPU where ours do not say how many.
    """
    variables = dict(os.environ)
    if python is not None:  # ours would put our packages into another environment
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
            variables.pop(name, None)
    if allow_download:
        for name in _OFFLINE:
            variables.pop(name, None)
    else:
        variables |= _OFFLINE
    variables |= {"PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1"}
    variables["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if device == "cpu":
        variables["JAX_PLATFORMS"] = "cpu"
    if threads is not None:
        variables.setdefault("OMP_NUM_THREADS", str(threads))
    return variables


class _Tail:
    """The last bytes of a stream, read by a thread so that the writer never blocks."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._kept = bytearray()
        self._thread = threading.Thread(target=self._drain, args=(stream,), daemon=True)
        self._thread.start()

    def _drain(self, stream: IO[bytes]) -> None:
        with stream:
            while block := stream.read(4096):
                self._kept += block
                del self._kept[:-_TAIL_BYTES]

    def text(self) -> str:
        """The last lines; waits a moment for what a dying process still wrote."""
        self._thread.join(timeout=1.0)
        lines = bytes(self._kept).decode(errors="replace").strip().splitlines()
        return "\n".join(lines[-_TAIL_LINES:])


class _Replies:
    """What a worker answers, awaited until ``deadline`` and while the process lives.

    Its pipe alone does not tell: a program that it started may hold it open.
    """

    def __init__(self, process: Any, deadline: float) -> None:
        self._stream = process.stdout
        self._pid, self._deadline = process.pid, deadline
        self._poll = select.poll()
        self._poll.register(self._stream, select.POLLIN)

    def readinto(self, buffer: memoryview) -> int:
        while not self._poll.poll(_LOOK_MS):
            if time.monotonic() > self._deadline:
                raise TimeoutError
            if _has_ended(self._pid) and not self._poll.poll(0):
                return 0
        return int(self._stream.readinto(buffer))


def _has_ended(pid: int) -> bool:
    """Whether our child has, without reaping it: its number stays its own."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


class Worker:
    """A running teacher's process. Not for two threads at a time.

    Parameters
    ----------
    name
        The teacher's, for messages.
    python, folder
        Interpreter and working folder.
    """

    def __init__(self, name: str, python: str, folder: str, variables: Mapping[str, str]) -> None:
        self.name, self._asked, mark = name, 0, uuid.uuid4().hex
        try:
            self._process = subprocess.Popen(
                [python, str(_WORKER)],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=folder,
                env={**variables, MARK: mark},
                start_new_session=True,  # ctrl-C is for us; and its own children end with it
            )
        except OSError as error:
            raise TeacherError(
                f"teacher {name!r}: its process could not be started",
                expected=f"{python} to run in {folder}",
                found=error,
            ) from error
        if self._process.stderr is None:
            raise TeacherError(f"teacher {name!r}: its process has no stderr")
        self._tail = _Tail(self._process.stderr)
        self._end = weakref.finalize(self, _stop, self._process, mark, os.getpid())

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def usable(self) -> bool:
        """Whether it can be asked. After a fork it cannot: polling finds no child of the copy."""
        return self._end.alive and self._process.poll() is None

    def request(
        self,
        header: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray] | None = None,
        largest_answer: int = LARGEST_ARRAYS,
        seconds: float = math.inf,
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Send, and wait for this many seconds. If this raises, the process is gone."""
        requests: Any = self._process.stdin
        replies: Any = _Replies(self._process, time.monotonic() + seconds)
        self._asked += 1
        try:
            write_frame(requests, {**header, "id": self._asked}, arrays)
            told, results = read_frame(replies, largest_answer)
            if told.pop("id", None) != self._asked:
                raise FrameError("an answer to nothing that was asked")
            return told, results
        except (EOFError, BrokenPipeError):
            raise self._death() from None
        except TimeoutError:
            self.close(at_once=True)
            raise WorkerHung(
                f"teacher {self.name!r}: no answer within {seconds:.0f} s; its process was ended",
                remedy="if it is only slow, allow it more: --teacher-timeout SECONDS",
            ) from None
        except FrameError as error:
            self.close(at_once=True)
            raise WorkerDied(
                f"teacher {self.name!r}: its process answered with something unreadable",
                found=error,
            ) from error
        except BaseException:  # ctrl-C: the answer to this question must not meet the next one
            self.close(at_once=True)
            raise

    def _death(self) -> WorkerDied:
        ended = _clear_group(self._process.pid)
        code = self._process.wait()
        if not ended:
            ending = "closed its pipes"
        elif code < 0:
            names = {number.value: number.name for number in signal.Signals}
            ending = f"was ended by {names.get(-code, 'a signal')} (exit code {code})"
        else:
            ending = f"ended with exit code {code}"
        memory = code == -signal.SIGKILL
        tail = self._tail.text()
        self.close(at_once=True)
        return WorkerDied(
            f"teacher {self.name!r}: its process {ending} before it answered",
            found="its last words:\n" + tail if tail else "no output",
            remedy="it may have run out of memory: try a smaller structure" if memory else "",
        )

    def kill(self) -> None:
        """End it from another thread; the one that waits for an answer notices."""
        _kill(self._process)

    def close(self, at_once: bool = False) -> None:
        """End the process: it is asked to and given a few seconds, or killed ``at_once``."""
        if at_once and self._end.alive:
            _kill(self._process)
        self._end()


def _clear_group(pid: int) -> bool:
    """Kill what is left of a dying worker's group, such as a program its calculator had started.

    It is given a moment to end by itself; returned is whether it did. It is not reaped before the
    group is gone, so that no other process can have taken its number.
    """
    deadline = time.monotonic() + _GRACE_SECONDS
    ended = False
    with contextlib.suppress(ProcessLookupError, PermissionError):
        while not ended and time.monotonic() < deadline:
            time.sleep(0.01)
            ended = _has_ended(pid)
        os.killpg(pid, signal.SIGKILL)
    return ended


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _stop(process: subprocess.Popen[bytes], mark: str, owner: int) -> None:
    """Close the pipes, which tells the worker to end, and reap it; its daemons end too.

    Not from a fork of ``owner``, which started it and goes on with it.
    """
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        _kill(process)
        process.wait()
    if os.getpid() == owner:
        end_marked(mark)
