"""Energy and gradient of an atom on a CPU: C++ whose vectors hold neighbours.

Warp's own compiler compiles it, so nothing has to be installed. ``simd/atom.h`` has the formulas.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import warp as wp
from numpy.typing import NDArray

from mlff_distiller.kernels.nep.reference import Shape
from mlff_distiller.kernels.nep.warp_functions import FORCE_GRID, Types
from mlff_distiller.kernels.types import vec6d

FOLDER = Path(__file__).with_name("simd")
SHARED = ("mlffd_vector.h", "mlffd_atom.h")
"""Headers that the pair style of LAMMPS is compiled with as well."""
_BYTES = (16, 32, 64)
"""Sizes of vectors that processors have, in bytes."""
_N_STEP = 3
"""Numbers of n that a block of the angular sums takes; coefficients are padded to whole blocks."""

Reals = NDArray[np.floating[Any]]


def sizes(shape: Shape, *, has_zbl: bool, float64: bool) -> str:
    """The constants that the sources are compiled for."""
    numbers = {
        "N_RADIAL": shape.n_max_radial + 1,
        "N_ANGULAR": shape.n_max_angular + 1,
        "K_RADIAL": shape.basis_size_radial + 1,
        "K_ANGULAR": shape.basis_size_angular + 1,
        "L_MAX": shape.l_max,
        "HAS_Q222": int(shape.has_q222),
        "HAS_Q1111": int(shape.has_q1111),
        "HAS_ZBL": int(has_zbl),
        "NEURONS": shape.neurons,
        "NEURONS_PADDED": _padded(shape.neurons, float64=float64),
        "N_STEP": _N_STEP,
    }
    lines = "".join(f"constexpr int {name} = {value};\n" for name, value in numbers.items())
    real = "double" if float64 else "float"
    return f"namespace mlffd {{\n\ntypedef {real} Real;\n{lines}\n}}    // namespace mlffd\n"


def build_options(shape: Shape, *, has_zbl: bool, float64: bool) -> dict[str, Any]:
    """Options of a Warp module: the sources, and the sizes that they are for."""
    grid = f"namespace mlffd {{ constexpr Real FORCE_GRID = {FORCE_GRID}; }}\n"
    sources = (FOLDER / name for name in (*SHARED, "mlffd_gradients.h"))
    text = re.sub(r'#include ".*"', "", "".join(file.read_text() for file in sources))
    source = sizes(shape, has_zbl=has_zbl, float64=float64) + grid + text
    return {
        "cpu_compiler_flags": "-march=native -ffp-contract=fast",
        "extra_build_options": wp.ModuleBuildOptions(extra_cpu_preamble=source),
    }


def _padded(neurons: int, *, float64: bool) -> int:
    """Length of a network's rows, enough for whole vectors of any processor."""
    lengths = []
    for size in _BYTES:
        width = size // (8 if float64 else 4)
        vectors = -(-neurons // width)
        blocks = -(-vectors // 14)
        lengths.append(blocks * -(-vectors // blocks) * width)
    return max(lengths)


def packed_pairs(
    cutoffs: Reals,  # (P, 2) Å
    zbl: Reals,  # (P, ZBL_SIZE)
    c_radial: Reals,  # (P, n, k)
    c_angular: Reals,  # (P, n, k)
) -> Reals:
    """(P, numbers) as ``Pair`` of ``mlffd_atom.h`` has them."""
    n_pairs, rows = len(cutoffs), c_angular.shape[1]
    halves_r, halves_a = 0.5 * c_radial, 0.5 * c_angular
    halves_a = np.pad(halves_a, ((0, 0), (0, -rows % _N_STEP), (0, 0)))
    parts = (
        *(cutoffs, zbl[:, :2], zbl[:, 2:3] * zbl[:, 3::2], zbl[:, 4::2]),
        *(halves_r, halves_a, halves_r.sum(2), halves_a.sum(2)),
    )
    return np.concatenate([part.reshape(n_pairs, -1) for part in parts], 1)


def packed_networks(w0: Reals, b0: Reals, w1: Reals, *, float64: bool) -> Reals:
    """(T, numbers) as ``Network`` has them, from (T, neurons, descriptors) and (T, neurons)."""
    neurons = w0.shape[1]
    missing = _padded(neurons, float64=float64) - neurons
    rows = np.concatenate([w0.transpose(0, 2, 1), b0[:, None], w1[:, None]], 1)
    return np.pad(rows, ((0, 0), (0, 0), (0, missing))).reshape(len(w0), -1)


def gradients_by_vectors(kernel: Callable[..., Any], types: Types) -> wp.Kernel:
    """``kernel`` decorates what becomes a Warp kernel, of a module with the ``flags``."""
    real, vec3 = types.real, types.vec3

    @wp.func_native(
        """
    const mlffd::Slots slots = {
        counts.data[i],
        (const int *) ((const char *) neighbors.data + i * (long long) neighbors.strides[0]),
        (const int *) ((const char *) images.data + i * (long long) images.strides[0]),
        (mlffd::Real *) ((char *) g.data + i * (long long) g.strides[0]),
    };
    mlffd::gradients(
        i, slots, (const double *) positions.data, (const double *) shifts.data, types.data,
        n_types, pairs.data, networks.data, reference.data, energies.data + i,
        (double *) (virials.data + i));
    """
    )
    def of_atom(
        i: int,
        positions: wp.array(dtype=wp.vec3d),
        shifts: wp.array(dtype=wp.vec3d),
        types: wp.array(dtype=int),
        n_types: int,
        counts: wp.array(dtype=int),
        neighbors: wp.array2d(dtype=int),
        images: wp.array2d(dtype=int),
        pairs: wp.array(dtype=real),
        networks: wp.array(dtype=real),
        reference: wp.array(dtype=wp.float64),
        g: wp.array2d(dtype=vec3),
        energies: wp.array(dtype=wp.float64),
        virials: wp.array(dtype=vec6d),
    ): ...

    @kernel
    def gradients(
        first: int,
        skip: wp.array(dtype=int),
        positions: wp.array(dtype=wp.vec3d),
        shifts: wp.array(dtype=wp.vec3d),
        types: wp.array(dtype=int),
        n_types: int,
        counts: wp.array(dtype=int),
        neighbors: wp.array2d(dtype=int),
        images: wp.array2d(dtype=int),
        pairs: wp.array(dtype=real),
        networks: wp.array(dtype=real),
        reference: wp.array(dtype=wp.float64),
        g: wp.array2d(dtype=vec3),
        energies: wp.array(dtype=wp.float64),
        virials: wp.array(dtype=vec6d),
    ):
        i = first + wp.tid()
        if skip[0] != 0:
            return
        of_atom(
            i,
            positions,
            shifts,
            types,
            n_types,
            counts,
            neighbors,
            images,
            pairs,
            networks,
            reference,
            g,
            energies,
            virials,
        )

    return gradients
