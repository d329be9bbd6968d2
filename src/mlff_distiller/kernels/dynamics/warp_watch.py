"""What looks at estimated errors during dynamics, without the host: two kernels, a thread an atom.

``count`` keeps, of each system, the largest error met and how many were above the limit, and the
first step at which one was; ``keep`` copies the state of each look up to that step, and that of the
step itself. Both do nothing where ``halt`` is set: the step was not finished.
"""

from dataclasses import dataclass
from functools import cache

import warp as wp

NEVER = (1 << 63) - 1
"""In ``first_step``, until an error is above the limit."""


@dataclass(frozen=True)
class Kernels:
    """In the order of their use."""

    module: wp.Module
    count: wp.Kernel
    keep: wp.Kernel


@cache
def build(device: str) -> Kernels:
    """Kernels for ``device``, "cpu" or "cuda"; compiled when first loaded."""
    module = wp.Module(f"mlff_distiller_watch_{device}", None)
    module.options.update(
        enable_backward=False,
        block_dim=1 if device == "cpu" else 128,
        default_grid_stride=False,
    )
    kernel = wp.kernel(module=module)

    @kernel
    def count(
        first: int,
        halt: wp.array(dtype=int),
        step: wp.array(dtype=wp.int64),
        system_idx: wp.array(dtype=int),
        errors: wp.array(dtype=wp.float64),
        limit: wp.float64,
        largest: wp.array(dtype=wp.float64),
        n_untrusted: wp.array(dtype=wp.int64),
        first_step: wp.array(dtype=wp.int64),
    ):
        i = first + wp.tid()
        if halt[0] != 0:
            return
        if errors[i] > largest[system_idx[i]]:  # few ever are, and atomics wait for each other
            wp.atomic_max(largest, system_idx[i], errors[i])
        if errors[i] > limit:
            wp.atomic_add(n_untrusted, system_idx[i], wp.int64(1))
            wp.atomic_min(first_step, 0, step[0])

    @kernel
    def keep(
        first: int,
        halt: wp.array(dtype=int),
        step: wp.array(dtype=wp.int64),
        system_idx: wp.array(dtype=int),
        first_atom: wp.array(dtype=int),
        errors: wp.array(dtype=wp.float64),
        positions: wp.array(dtype=wp.vec3d),
        velocities: wp.array(dtype=wp.vec3d),
        lattice: wp.array(dtype=wp.mat33d),
        first_step: wp.array(dtype=wp.int64),
        n_looks: wp.array(dtype=wp.int64),
        good_step: wp.array(dtype=wp.int64),
        good_positions: wp.array(dtype=wp.vec3d),
        good_velocities: wp.array(dtype=wp.vec3d),
        good_lattice: wp.array(dtype=wp.mat33d),
        bad_errors: wp.array(dtype=wp.float64),
        bad_positions: wp.array(dtype=wp.vec3d),
        bad_velocities: wp.array(dtype=wp.vec3d),
        bad_lattice: wp.array(dtype=wp.mat33d),
    ):
        i = first + wp.tid()
        if halt[0] != 0:
            return
        s = system_idx[i]
        now = step[0]
        if i == 0:
            n_looks[0] = n_looks[0] + wp.int64(1)
        if first_step[0] > now:
            good_positions[i] = positions[i]
            good_velocities[i] = velocities[i]
            if i == first_atom[s]:
                good_lattice[s] = lattice[s]
            if i == 0:
                good_step[0] = now
        elif first_step[0] == now:
            bad_errors[i] = errors[i]
            bad_positions[i] = positions[i]
            bad_velocities[i] = velocities[i]
            if i == first_atom[s]:
                bad_lattice[s] = lattice[s]

    return Kernels(module, count, keep)
