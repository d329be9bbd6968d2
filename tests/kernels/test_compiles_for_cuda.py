"""Every kernel compiles for GPUs, also where there is none: Warp brings the compiler."""

import pytest
import warp as wp

from mlff_distiller.engines.painn import WARPS
from mlff_distiller.kernels import warp_adjoints, warp_descent, warp_estimates, warp_gather
from mlff_distiller.kernels.compiling import warp_device
from mlff_distiller.kernels.dynamics import warp as dynamics
from mlff_distiller.kernels.dynamics import warp_watch
from mlff_distiller.kernels.neighbors import warp as neighbors
from mlff_distiller.kernels.nep import Shape, warp_errors, warp_training
from mlff_distiller.kernels.nep import warp as nep
from mlff_distiller.kernels.nep.warp import Specialization
from mlff_distiller.kernels.painn import native
from mlff_distiller.kernels.painn import warp as painn
from mlff_distiller.kernels.types import WARP

SHAPE = Shape(4, 3, 6, 5, 4, True, True, 12)
OF_NEP = Specialization(
    SHAPE, one_type=False, has_zbl=True, float64=False, device="cuda", lanes=WARP
)
OF_PAINN = native.Shape(32, 8, 3, 5.0, 1e-6, 0.25, True, True, False)
MODULES = {
    "neighbors": lambda: neighbors.build("cuda"),
    "dynamics": lambda: dynamics.build("cuda", langevin=True, coupled=True),
    "watch": lambda: warp_watch.build("cuda"),
    "nep": lambda: nep.build(OF_NEP),
    "errors": lambda: warp_errors.build_errors(OF_NEP),
    "estimates": lambda: warp_estimates.build("cuda", wp.float32, 1e6),
    "training": lambda: warp_training.build(SHAPE, float64=False, device="cuda", lanes=WARP),
    "painn": lambda: painn.build(OF_PAINN, "cuda"),
    "painn of few atoms": lambda: painn.build(OF_PAINN, "cuda", WARPS, chained=True),
    "adjoints": lambda: warp_adjoints.build(float64=False, device="cuda"),
    "descent": lambda: warp_descent.build(6, float64=False, device="cuda"),
    "gather": lambda: warp_gather.build(float64=False, device="cuda"),
}


@pytest.mark.parametrize("name", MODULES)
def test_it_compiles(name, tmp_path):
    warp_device("cpu")
    module = MODULES[name]().module
    wp.compile_aot_module(module, arch=80, module_dir=tmp_path, use_ptx=True)
    assert [file.suffix for file in tmp_path.iterdir() if file.suffix == ".ptx"] == [".ptx"]


def test_steps_in_one_kernel_see_what_earlier_ones_wrote(tmp_path):
    """Not so if they read through the cache for what never changes."""
    warp_device("cpu")
    module = MODULES["painn of few atoms"]().module
    wp.compile_aot_module(module, arch=80, module_dir=tmp_path, use_ptx=True)
    (ptx,) = tmp_path.glob("*.ptx")
    (chain,) = (own for own in ptx.read_text().split(".entry ") if own.startswith("chain"))
    assert "ld.global" in chain
    assert "ld.global.nc" not in chain
