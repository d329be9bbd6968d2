"""Orb-v3-conservative-inf with random weights, as a teacher to time:
``ase:benchmarks.orb_random:calculator``, from the repository's root. Its forces mean nothing."""


def calculator():
    import torch
    from orb_models.forcefield import pretrained

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    try:  # from 0.6 on
        from orb_models.forcefield.forcefield_adapter import ForcefieldAtomsAdapter
        from orb_models.forcefield.inference.calculator import ORBCalculator

        model = pretrained.orb_v3_conservative_architecture(device=device).eval()
        adapter = ForcefieldAtomsAdapter(radius=6.0, max_num_neighbors=120)
        return ORBCalculator(model, adapter, device=device)
    except ImportError:
        from orb_models.forcefield.atomic_system import SystemConfig
        from orb_models.forcefield.calculator import ORBCalculator

        config = SystemConfig(radius=6.0, max_num_neighbors=120)
        model = pretrained.orb_v3_conservative_architecture(device=device, system_config=config)
        return ORBCalculator(model.eval(), device=device)
