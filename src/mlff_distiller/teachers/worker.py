"""The teacher's side of the process boundary: run by file path, it answers until end of file.

The interpreter may be another environment's, with only NumPy, ASE and the teacher's library. So
``mlff_distiller`` is not imported: a stand-in package with the same ``__path__`` is put in its
place, through which the few light modules needed here are found, whereas ``__init__.py`` is read
only if somebody asks it for a name. Nothing here may import what such an interpreter lacks.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

_TEACHERS = Path(__file__).resolve().parent
_LEAST_DESCRIPTOR = 64
"""Lowest descriptor of our pipes: libraries close or write to low ones."""

MARK = "MLFF_DISTILLER_TEACHER"
"""The variable that a worker, and whatever it starts, can be told by."""


class _Package(ModuleType):
    """A package whose ``__init__.py`` runs when a name of it is first asked for."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        self.__path__ = [str(folder)]
        self.__package__ = name

    def __getattr__(self, name: str) -> Any:
        initializer = Path(self.__path__[0]) / "__init__.py"
        if name.startswith("__") or "__file__" in vars(self) or not initializer.is_file():
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.__file__ = str(initializer)
        exec(compile(initializer.read_bytes(), initializer, "exec"), vars(self))
        return getattr(self, name)


def _isolate() -> None:
    """Make our light modules importable, and nothing else.

    Run by path, Python puts this folder first on ``sys.path``, where a family's file would hide
    the library it is named after.
    """
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != _TEACHERS]
    sys.modules["mlff_distiller"] = _Package("mlff_distiller", _TEACHERS.parent)
    sys.modules["mlff_distiller.teachers"] = _Package("mlff_distiller.teachers", _TEACHERS)


def _claim_pipes() -> tuple[Any, Any]:
    """Take the parent's pipes for the protocol; whatever the library prints goes to stderr."""
    moved = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _LEAST_DESCRIPTOR) for number in (0, 1)]
    requests = os.fdopen(moved[0], "rb", buffering=0)
    replies = os.fdopen(moved[1], "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    def close_in_child() -> None:
        requests.close()
        replies.close()

    # A child that kept them open would hide this process's death from the parent.
    os.register_at_fork(after_in_child=close_in_child)
    return requests, replies


def end_marked(mark: str) -> None:
    """Kill every other process that has inherited ``mark``: daemons have left their group.

    Where there is no ``/proc`` there is no telling.
    """
    wanted = f"{MARK}={mark}".encode()
    for name in os.listdir("/proc") if mark and os.path.isdir("/proc") else ():
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as stream:
                if wanted in stream.read().split(b"\0"):
                    os.kill(int(name), signal.SIGKILL)
        except OSError:  # gone, or another user's
            continue


def _end() -> None:
    """End at once, and with us whatever the library started; never returns."""
    end_marked(os.environ.get(MARK, ""))
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(0)


def _watch_parent() -> None:
    """End when the parent dies, even in the middle of a long evaluation."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        _end()

    threading.Thread(target=watch, daemon=True).start()


def _stay_offline() -> None:
    """Refuse connections and look-ups beyond this machine, whichever library tries them."""
    own = {"", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::", os.uname().nodename}

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect":
            address = arguments[1]
            host = address[0] if isinstance(address, tuple) else ""
        elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
            host = arguments[0] or ""
        else:
            return
        if (host.decode() if isinstance(host, bytes) else str(host)) not in own:
            raise ConnectionRefusedError(
                f"the teacher tried to reach {host!r}; downloads need allow_download=True"
            )

    sys.addaudithook(audit)


def _load(header: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from mlff_distiller.errors import TeacherError

    if not header["allow_download"]:
        _stay_offline()
    try:
        family = importlib.import_module(header["module"])
        loaded = family.load(header["arguments"], header["device"], header["allow_download"])
    except ModuleNotFoundError as error:
        raise TeacherError(
            f"teacher {header['name']!r} needs the Python package {error.name!r}",
            expected=f"{error.name!r} importable by {sys.executable}",
            found=error,
            remedy=header["remedy"],
        ) from error
    return loaded, told_of(loaded)


def told_of(loaded: Any) -> dict[str, Any]:
    """What a teacher that is loaded says of itself, as JSON."""
    from mlff_distiller.teachers.family import digest

    return {
        "version": loaded.version,
        "licence": loaded.licence,
        "device": loaded.device,
        "weights_sha256": digest([Path(path) for path in loaded.weights]),
        "settings": dict(loaded.settings),
        "elements": None if loaded.elements is None else [int(z) for z in loaded.elements],
        "uses": None if loaded.uses is None else list(loaded.uses),
        "batch_atoms": _batch_atoms(loaded),
        "crystals_alone": loaded.batch_atoms is None and loaded.device == "cpu",
    }


def _batch_atoms(loaded: Any) -> int:
    """Most atoms of a batch; 0 if the teacher knows none."""
    if loaded.evaluate_many is None:
        return 0
    return int(loaded.batch_atoms or (96 if loaded.device == "cpu" else 2048))


def evaluated(loaded: Any, header: dict[str, Any], arrays: dict[str, Any]) -> tuple[Any, Any]:
    """Answer for ``header["frames"]``; names of frame k's arrays, in and out, begin with "k."."""
    from mlff_distiller.errors import TeacherError

    wanted = [bool(frame["stress"]) for frame in header["frames"]]
    frames = [_structure(frame["info"], arrays, k) for k, frame in enumerate(header["frames"])]
    started = time.perf_counter()
    if len(frames) == 1:
        answers = [loaded.evaluate(frames[0], wanted[0])]
    else:
        answers = loaded.evaluate_many(frames, wanted)
    seconds = time.perf_counter() - started
    if len(answers) != len(frames):
        raise TeacherError(
            "the teacher answered for a different number of structures",
            expected=len(frames),
            found=len(answers),
        )
    results: dict[str, Any] = {}
    for k, (answer, stress) in enumerate(zip(answers, wanted, strict=True)):
        results |= {f"{k}.{name}": value for name, value in _results(answer, stress).items()}
    return {"seconds": seconds}, results


def _structure(info: dict[str, float], arrays: dict[str, Any], k: int) -> Any:
    from ase import Atoms

    atoms = Atoms(
        arrays[f"{k}.numbers"],
        arrays[f"{k}.positions"],
        cell=arrays[f"{k}.cell"],
        pbc=arrays[f"{k}.pbc"].astype(bool),
    )
    if f"{k}.charges" in arrays:
        atoms.set_initial_charges(arrays[f"{k}.charges"])
    if f"{k}.magmoms" in arrays:
        atoms.set_initial_magnetic_moments(arrays[f"{k}.magmoms"])
    atoms.info.update(info)
    return atoms


def _results(answer: Any, stress: bool) -> dict[str, Any]:
    from mlff_distiller.teachers.family import full_stress

    energy = _number("energy", answer.energy)
    free = energy
    if answer.free_energy is not None:
        free = _number("free energy", answer.free_energy)
    results = {"energy": energy, "free_energy": free, "forces": answer.forces}
    if stress and answer.stress is not None:
        results["stress"] = full_stress(answer.stress)
    if answer.energies is not None:
        results["energies"] = answer.energies
    return {**results, **{f"extra.{name}": value for name, value in answer.extra.items()}}


def _number(name: str, value: Any) -> float:
    import numpy as np

    from mlff_distiller.errors import TeacherError

    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "fiu":
        raise TeacherError(
            f"the teacher's {name} is not a real number",
            expected="a float, eV",
            found=f"{type(value).__name__} of dtype {array.dtype}, shape {array.shape}",
        )
    return float(array.item())


def described(error: BaseException) -> dict[str, Any]:
    """An exception as JSON; ``clean`` if the library never saw the structure."""
    from mlff_distiller.errors import DistillerError, StructureError

    if not isinstance(error, DistillerError):
        try:
            words = str(error)[:4000]
        except Exception:
            words = "an error that cannot say what it is"
        return {
            "problem": f"{type(error).__name__}: {words}",
            "expected": None,
            "found": f"raised at {_place(error)}",
            "remedy": "",
            "foreign": True,
            "clean": False,
        }
    return {
        "problem": error.problem,
        "expected": None if error.expected is None else str(error.expected)[:4000],
        "found": None if error.found is None else str(error.found)[:4000],
        "remedy": error.remedy,
        "foreign": False,
        "clean": isinstance(error, StructureError),
    }


def _place(error: BaseException) -> str:
    """File, line and text of where ``error`` was raised."""
    frames = traceback.format_tb(error.__traceback__)
    return frames[-1].strip()[:1000] if frames else "an unknown place"


def main() -> None:
    """Answer ``load`` once, then ``evaluate`` until end of file."""
    _isolate()
    requests, replies = _claim_pipes()
    _watch_parent()
    try:
        import ase  # noqa: F401
        import numpy  # noqa: F401
    except ModuleNotFoundError as error:
        sys.exit(
            f"{sys.executable} lacks {error.name!r}, which every teacher's environment needs; "
            f"run: {sys.executable} -m pip install numpy ase"
        )
    from mlff_distiller.teachers.wire import frame, read_frame, write

    loaded = None
    while True:
        try:
            header, arrays = read_frame(requests)
        except EOFError:
            _end()
        answer: dict[str, Any]
        results: dict[str, Any] = {}
        try:
            if header["command"] == "load":
                loaded, answer = _load(header)
            else:
                answer, results = evaluated(loaded, header, arrays)
            reply = frame({**answer, "id": header["id"]}, results)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            reply = frame({"error": described(error), "id": header["id"]})
        write(replies, reply)


if __name__ == "__main__":
    main()
