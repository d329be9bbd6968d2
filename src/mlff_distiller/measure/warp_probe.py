"""A Warp kernel small enough to compile at once."""

from __future__ import annotations

import tempfile

import numpy as np
import warp as wp

from mlff_distiller.kernels.compiling import warp_device

_N = 1000


def run(device: str) -> float:
    """The largest error of 2 x + y² against NumPy. Compiles every time; nothing is kept."""
    where = warp_device(device)
    module = wp.Module("mlff_distiller_probe", None)
    module.options.update(enable_backward=False)

    @wp.kernel(module=module)
    def axpy(x: wp.array(dtype=float), y: wp.array(dtype=float), out: wp.array(dtype=float)):
        i = wp.tid()
        out[i] = 2.0 * x[i] + y[i] * y[i]

    x, y = np.linspace(-1, 1, _N, dtype=np.float32), np.linspace(0, 2, _N, dtype=np.float32)
    before = wp.config.kernel_cache_dir, wp.config.log_level
    with tempfile.TemporaryDirectory() as folder:
        wp.config.kernel_cache_dir, wp.config.log_level = folder, wp.LOG_ERROR
        try:
            wp.load_module(module, device=where)
            out = wp.zeros(_N, dtype=float, device=where)
            arrays = [wp.array(values, dtype=float, device=where) for values in (x, y)]
            wp.launch(axpy, _N, [*arrays, out], device=where)
            return float(np.abs(out.numpy() - (2.0 * x + y * y)).max())
        finally:
            wp.config.kernel_cache_dir, wp.config.log_level = before
