"""Orb-v3-conservative-inf with random weights, as a teacher to time:
``ase:benchmarks.orb_random:calculator``, from the repository's root. Its forces mean nothing.

Settings are those that orb-models loads its own weights with: float32 with TF32 products
("float32-high"), parameters without gradients, neighbours by its default."""


def calculator(compiled=False):
    """``compiled``, as orb-models does by default: faster, after a minute or more of compiling."""
    import torch
    from orb_models.forcefield import pretrained

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    try:  # from 0.6 on
        from orb_models.forcefield.forcefield_adapter import ForcefieldAtomsAdapter
        from orb_models.forcefield.inference.calculator import ORBCalculator

        settings = {}
        extra = {"atoms_adapter": ForcefieldAtomsAdapter(radius=6.0, max_num_neighbors=120)}
    except ImportError:
        from orb_models.forcefield.atomic_system import SystemConfig
        from orb_models.forcefield.calculator import ORBCalculator

        settings = {"system_config": SystemConfig(radius=6.0, max_num_neighbors=120)}
        extra = {}
    model = pretrained.orb_v3_conservative_architecture(device=device, **settings).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if compiled:
        model.compile(mode="default", dynamic=True)
    return ORBCalculator(model, device=device, **extra)
