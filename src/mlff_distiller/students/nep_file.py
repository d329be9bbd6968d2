"""``nep.txt``: the file that GPUMD and calorine read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ase.data import atomic_numbers

from mlff_distiller.batch import Batch
from mlff_distiller.durable import write_text
from mlff_distiller.errors import StudentError
from mlff_distiller.kernels.nep import Shape
from mlff_distiller.neighbors import edge_vectors, neighbor_list
from mlff_distiller.students.nep import NEP
from mlff_distiller.students.repulsion import UNIVERSAL

_RESERVED_BIAS = -20.0
"""tanh(20) = 1 in float32 and float64: a neuron with no weights and this bias adds w1 exactly."""
_LARGEST_FILE = 64 << 20
_SLOTS_MARGIN = 1.25


def read_nep(path: str | Path) -> NEP:
    """Read a NEP4 file, ours or anybody's, as a float64 student.

    A neuron without input weights is a constant: it becomes the reference energy of its element,
    so that float32 evaluation keeps the precision of the rest.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise StudentError(f"{path} is not a NEP file", found=f"{path.stat().st_size} bytes")
        lines = path.read_text(encoding="ascii").splitlines()
        return _parse(lines)
    except (ValueError, IndexError, KeyError, StopIteration) as error:
        raise StudentError(
            f"{path} is not a readable NEP4 potential",
            expected="a header of nep4[_zbl], [zbl], cutoff, n_max, basis_size, l_max, ANN; "
            "then one number per line",
            found=f"{type(error).__name__}: {error}",
        ) from error
    except OSError as error:
        raise StudentError(f"cannot read {path}", found=error.strerror or str(error)) from error


def _parse(lines: list[str]) -> NEP:
    rows = iter(line.split() for line in lines if line.strip())
    kind, count, *elements = next(rows)
    if kind not in ("nep4", "nep4_zbl") or int(count) != len(elements):
        raise ValueError(f"first line {kind!r} {count!r} with {len(elements)} elements")
    for symbol in elements:
        atomic_numbers[symbol]
    n_types = len(elements)
    header: dict[str, list[str]] = {}
    wanted = [
        *(["zbl"] if kind == "nep4_zbl" else []),
        "cutoff",
        "n_max",
        "basis_size",
        "l_max",
        "ANN",
    ]
    for name in wanted:
        key, *values = next(rows)
        if key != name:
            raise ValueError(f"line {key!r} where {name!r} belongs")
        header[name] = values
    radii = [float(value) for value in header["cutoff"]]
    if len(radii) == 4:
        cutoffs = ((radii[0], radii[1]),) * n_types
    elif len(radii) == 2 * n_types + 2:
        cutoffs = tuple((radii[2 * t], radii[2 * t + 1]) for t in range(n_types))
    else:
        raise ValueError(f"{len(radii)} numbers after cutoff")
    # q222 was 2 until 2026, and is 1 since; flags of more descriptors follow since then.
    l_max, q222, q1111, *more = [int(value) for value in header["l_max"]] + [0, 0]
    if not 0 < l_max <= 4 or q222 not in (0, 1, 2) or q1111 not in (0, 1):
        raise ValueError(f"l_max {header['l_max']}: l from 1 to 4, then 2, 1 or 0, then 1 or 0")
    if any(more):
        raise ValueError(f"l_max {header['l_max']}: descriptors after q_1111 are not supported")
    n_radial, n_angular = (int(value) for value in header["n_max"])
    k_radial, k_angular = (int(value) for value in header["basis_size"])
    shape = Shape(
        n_radial,
        n_angular,
        k_radial,
        k_angular,
        l_max,
        q222 > 0,
        q1111 == 1,
        int(header["ANN"][0]),
    )
    numbers = np.array([float(row[0]) for row in rows])
    if not np.isfinite(numbers).all():
        raise ValueError("numbers that are not finite")

    flexible = "zbl" in header and float(header["zbl"][1]) == 0.0
    n_pairs = n_types * (n_types + 1) // 2 if flexible else 0
    taken = 0

    def take(*sizes: int) -> torch.Tensor:
        nonlocal taken
        size = math.prod(sizes)
        if taken + size > len(numbers):
            raise ValueError(f"{len(numbers)} numbers, more are needed")
        taken += size
        return torch.from_numpy(numbers[taken - size : taken].reshape(sizes).copy())

    w0, b0, w1 = [], [], []
    for _ in range(n_types):
        w0.append(take(shape.neurons, shape.n_descriptors))
        b0.append(take(shape.neurons))
        w1.append(take(shape.neurons))
    b1 = take()
    c_radial = take(n_radial + 1, k_radial + 1, n_types, n_types).permute(2, 3, 0, 1)
    c_angular = take(n_angular + 1, k_angular + 1, n_types, n_types).permute(2, 3, 0, 1)
    scaler = take(shape.n_descriptors)
    zbl = None
    if "zbl" in header:
        if len(header["zbl"]) > 2:
            raise ValueError("zbl with a factor of covalent radii is not supported")
        own = take(n_pairs, 10) if flexible else None
        zbl = _zbl_table(n_types, [float(value) for value in header["zbl"]], own)
    if taken != len(numbers):
        raise ValueError(f"{len(numbers)} numbers where {taken} belong")

    student = NEP(tuple(elements), shape, cutoffs, zbl)
    tensors = {
        "w0": torch.stack(w0),
        "b0": torch.stack(b0),
        "w1": torch.stack(w1),
        "b1": b1,
        "c_radial": c_radial,
        "c_angular": c_angular,
        "scaler": scaler,
    }
    constant = (tensors["w0"] == 0).all(-1)  # (T, neurons)
    offsets = tensors["w1"] * torch.tanh(-tensors["b0"])
    student.reference_energies.copy_((offsets * constant).sum(1))
    tensors["w1"] = torch.where(constant, 0.0, tensors["w1"])
    with torch.no_grad():
        for name, value in tensors.items():
            getattr(student, name).copy_(value)
    return student


def _zbl_table(
    n_types: int, radii: list[float], own: torch.Tensor | None
) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """zbl[t][u] from one pair of radii for all, or from ``own`` (n_pairs, 10), t <= u."""
    rows = [[(radii[0], radii[1], *UNIVERSAL)] * n_types for _ in range(n_types)]
    if own is not None:
        pairs = [(t, u) for t in range(n_types) for u in range(t, n_types)]
        for (t, u), numbers in zip(pairs, own.tolist(), strict=True):
            rows[t][u] = rows[u][t] = tuple(numbers)
    return tuple(tuple(row) for row in rows)


def export_nep(student: NEP, folder: Path, frames: Sequence[Batch]) -> dict[str, str]:
    """Write ``nep.txt`` into ``folder``, with tables as large as ``frames`` need."""
    write_nep(student, folder / "nep.txt", max_neighbors=most_neighbors(frames, student))
    return {"nep.txt": "GPUMD and calorine; `mlff-distiller export` writes what LAMMPS needs"}


def most_neighbors(frames: Sequence[Batch], student: NEP) -> tuple[int, int]:
    """The most neighbours any atom has within the radial and the angular cutoff."""
    radial = angular = 0
    largest = max(pair[1] for pair in student.cutoffs)
    for frame in frames:
        pairs = neighbor_list(frame, student.cutoff)
        counts = torch.bincount(pairs.i, minlength=frame.n_atoms)
        radial = max(radial, int(counts.max()))
        inside = edge_vectors(frame, pairs).norm(dim=1) < largest
        angular = max(angular, int(torch.bincount(pairs.i[inside], minlength=frame.n_atoms).max()))
    return radial, angular


def write_nep(
    student: NEP, path: str | Path, *, max_neighbors: tuple[int, int], digits: int = 7
) -> None:
    """Write ``student`` as nep.txt; reference energies take one more neuron (exact).

    ``max_neighbors`` are the most radial and angular neighbours seen in the training data;
    engines allocate these with a margin of a quarter. ``digits`` follow the point.
    """
    shape = student.shape
    parameters = student.nep4()
    slots = [min(819, math.ceil(_SLOTS_MARGIN * max(1, most))) for most in max_neighbors]
    kind = "nep4" if student.zbl is None else "nep4_zbl"
    header = [f"{kind} {len(student.elements)} {' '.join(student.elements)}"]
    header += [] if student.zbl is None else ["zbl 0 0"]
    same = len(set(student.cutoffs)) == 1
    cutoffs = student.cutoffs[:1] if same else student.cutoffs
    header += [
        "cutoff "
        + " ".join(f"{value:.10g}" for pair in cutoffs for value in pair)
        + " {} {}".format(*slots),
        f"n_max {shape.n_max_radial} {shape.n_max_angular}",
        f"basis_size {shape.basis_size_radial} {shape.basis_size_angular}",
        f"l_max {shape.l_max} {2 * shape.has_q222} {int(shape.has_q1111)}",
        f"ANN {shape.neurons + 1} 0",
    ]
    blocks = []
    for t in range(len(student.elements)):
        blocks += [parameters.w0[t], torch.zeros(shape.n_descriptors)]
        blocks += [parameters.b0[t], torch.tensor([_RESERVED_BIAS])]
        blocks += [parameters.w1[t], student.reference_energies[t : t + 1]]
    blocks += [parameters.b1, parameters.c_radial.permute(2, 3, 0, 1)]
    blocks += [parameters.c_angular.permute(2, 3, 0, 1), parameters.scaler]
    if student.zbl is not None:
        n_types = len(student.elements)
        blocks += [
            torch.tensor(student.zbl[t][u], dtype=torch.float64)
            for t in range(n_types)
            for u in range(t, n_types)
        ]
    numbers = np.concatenate(
        [block.detach().double().reshape(-1).cpu().numpy() for block in blocks]
    )
    write_text(
        Path(path),
        "\n".join([*header, *(f"{number:{digits + 8}.{digits}e}" for number in numbers)]) + "\n",
    )
