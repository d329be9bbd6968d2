"""DeePMD's folders of NumPy arrays: ``type.raw``, ``type_map.raw``, ``nopbc``, ``set.*/*.npy``.

Å, eV, eV/Å; ``virial`` in eV, nine numbers, positive under compression: ``-V * stress``;
``charge_spin`` (DeePMD-kit 3.2) in e and a multiplicity, 0 where none is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols

from mlff_distiller.dataset.formats.frame import Conventions, Frame, stress_from_virial
from mlff_distiller.dataset.record import Record
from mlff_distiller.durable import replacing
from mlff_distiller.errors import DatasetError
from mlff_distiller.structure import STATE


def is_system(path: Path) -> bool:
    """Whether ``path`` is a folder of one system."""
    return (path / "type.raw").is_file()


def read(path: Path, conventions: Conventions) -> Iterator[Frame]:
    """Frames of one system, or of all systems below a folder; those of one system are kin."""
    conventions.only("deepmd", "type_map")
    systems = [path] if is_system(path) else sorted(file.parent for file in path.rglob("type.raw"))
    if not systems:
        raise DatasetError(f"{path} holds no DeePMD system: no type.raw in it or below")
    index = 0
    maps = [_type_map(system, conventions) for system in systems]
    for number, (system, names) in enumerate(zip(systems, maps, strict=True)):
        kin = str(system.relative_to(path.parent))
        try:
            for frame in _system(system, names):
                done = (number + frame.progress) / len(systems)
                yield Frame(index, frame.atoms, frame.labels, kin, frame.problem, done)
                index += 1
        except DatasetError as error:
            if len(systems) == 1:
                raise
            yield Frame(index, Atoms(), kin=kin, problem=f"the rest of it: {error.problem}")
            index += 1


def _system(system: Path, names: Sequence[str]) -> Iterator[Frame]:
    types = np.array(_integers(system / "type.raw"))
    periodic = not (system / "nopbc").exists()
    sets = sorted(system.glob("set.*"))
    if not sets:
        raise DatasetError(f"{system} holds no set.* folder")
    for number, folder in enumerate(sets):
        coordinates = _load(folder / "coord.npy", 3 * len(types))
        n = len(coordinates)
        cells = _load(folder / "box.npy", 9, n) if periodic else None
        energies = _load(folder / "energy.npy", 1, n)
        forces = _load(folder / "force.npy", 3 * len(types), n)
        has_virial = periodic and (folder / "virial.npy").exists()
        virials = _load(folder / "virial.npy", 9, n) if has_virial else None
        states = folder / "charge_spin.npy"
        of_all = _load(states, 2, n) if states.exists() else None
        mixed = folder / "real_atom_types.npy"
        kinds = _load(mixed, len(types), n) if mixed.exists() else None
        if kinds is not None and (kinds % 1 != 0).any():
            raise DatasetError(f"{mixed} holds something other than whole numbers")
        for k in range(n):
            own = types if kinds is None else np.asarray(kinds[k]).astype(int)
            real = own >= 0  # mixed systems are filled up with atoms of type -1
            if own.max(initial=0) >= len(names):
                raise DatasetError(
                    f"{system} has a type without a name", expected=names, found=int(own.max())
                )
            atoms = Atoms(
                [names[kind] for kind in own[real]],
                np.asarray(coordinates[k], np.float64).reshape(-1, 3)[real],
                cell=None if cells is None else np.asarray(cells[k], np.float64).reshape(3, 3),
                pbc=periodic,
            )
            if of_all is not None:
                charge, spin = of_all[k].tolist()
                atoms.info |= {"charge": charge} | ({"spin": spin} if spin else {})
            labels = {
                "energy": np.array(float(energies[k].item())),
                "forces": np.asarray(forces[k], np.float64).reshape(-1, 3)[real],
            }
            try:
                if virials is not None:
                    virial = np.asarray(virials[k], np.float64).reshape(3, 3)
                    labels["stress"] = stress_from_virial(virial, atoms, "virial")
            except DatasetError as error:
                yield Frame(0, atoms, problem=error.problem)
                continue
            yield Frame(0, atoms, labels, progress=(number + (k + 1) / n) / len(sets))


def write(folder: Path, records: Iterable[Record]) -> int:
    """One system a composition (elements in order) under ``folder``; the number of frames.

    Frames with a stress, or a charge or spin, are a system, and those without another: in one of
    DeePMD's, all frames have a virial or none has. Open boundaries in part of the directions are
    refused: the format has none.
    """
    systems: dict[tuple[bool, bool, bool, bytes], list[Record]] = {}
    for record in records:
        pbc = record.atoms.pbc
        if pbc.any() and not pbc.all():
            raise DatasetError(
                "a frame is periodic along some of its vectors only, which DeePMD cannot say",
                found=pbc.tolist(),
            )
        has_stress, has_state = "stress" in record.labels, _has_state(record)
        kind = bool(pbc.all()), has_stress, has_state, record.atoms.numbers.tobytes()
        systems.setdefault(kind, []).append(record)
    folder.mkdir(parents=True, exist_ok=True)
    for (periodic, *_), own in systems.items():
        stem = name = own[0].atoms.get_chemical_formula() + ("" if periodic else "-nopbc")
        number = 1
        while (folder / name).exists():
            number += 1
            name = f"{stem}-{number}"
        with replacing(folder / name) as partial:
            _write_system(partial, own, periodic=periodic)
    return sum(map(len, systems.values()))


def _write_system(folder: Path, records: list[Record], *, periodic: bool) -> None:
    inside = folder / "set.000"
    inside.mkdir(parents=True)
    numbers = records[0].atoms.numbers
    names, types = np.unique(numbers, return_inverse=True)
    (folder / "type_map.raw").write_text("".join(f"{chemical_symbols[z]}\n" for z in names))
    (folder / "type.raw").write_text("".join(f"{kind}\n" for kind in types))
    arrays = {
        "coord": [record.atoms.positions.ravel() for record in records],
        "energy": [record.labels["energy"] for record in records],
        "force": [record.labels["forces"].ravel() for record in records],
    }
    if _has_state(records[0]):
        arrays["charge_spin"] = [
            [record.atoms.info.get(name) or 0.0 for name in STATE] for record in records
        ]
    if periodic:
        arrays["box"] = [record.atoms.cell.array.ravel() for record in records]
        if "stress" in records[0].labels:
            arrays["virial"] = [
                (-record.labels["stress"] * record.atoms.get_volume()).ravel() for record in records
            ]
    else:
        (folder / "nopbc").touch()
    for name, rows in arrays.items():
        np.save(inside / f"{name}.npy", np.array(rows, np.float64), allow_pickle=False)


def _has_state(record: Record) -> bool:
    return not record.atoms.info.keys().isdisjoint(STATE)


def _type_map(system: Path, conventions: Conventions) -> list[str]:
    path = system / "type_map.raw"
    if path.is_file():
        names = path.read_text(encoding="utf-8").split()
    elif conventions.type_map is not None:
        names = list(conventions.type_map)
    else:
        raise DatasetError(
            f"{system} has no type_map.raw: its types are not assigned to elements",
            expected="--type-map with an element for each type",
            remedy="for example --type-map O,H",
        )
    unknown = [name for name in names if name not in atomic_numbers]
    if unknown:
        raise DatasetError(f"{path}: there is no element {unknown[0]!r}")
    return names


def _integers(path: Path) -> list[int]:
    try:
        return [int(word) for word in path.read_text(encoding="utf-8").split()]
    except ValueError as error:
        raise DatasetError(
            f"{path} holds something other than whole numbers", found=error
        ) from None


def _load(path: Path, width: int, n_rows: int | None = None) -> np.ndarray:
    """(n, width), not yet in memory; never unpickled."""
    try:
        # unlike np.load this reads nothing but arrays: no archives, and no pickles
        array: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(f"{path} is not a plain NumPy array", found=error) from error
    if array.dtype.kind not in "fiu":
        raise DatasetError(f"{path} holds no numbers", found=array.dtype)
    if array.ndim == 0 or array.size != len(array) * width or n_rows not in (None, len(array)):
        expected = f"({'n' if n_rows is None else n_rows}, {width})"
        raise DatasetError(f"{path} has the wrong shape", expected=expected, found=array.shape)
    return array.reshape(len(array), width)
