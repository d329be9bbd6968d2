"""What a teacher's library says by its own ASE calculator, and how fast; none of our code is used.

    PYTHON library_answers.py < request.json

The request holds ``family`` and ``arguments`` as `mlff_distiller.teachers` understood a SPEC,
``device``, ``precision``, ``compare`` (structures to answer for), ``timed`` (sets of structures by
name) and ``repeats``. The last line printed is ANSWERS and JSON.
"""

import json
import os
import statistics
import sys
import time

import numpy as np
from ase import Atoms


def sevennet(arguments, device, precision):
    from sevenn.calculator import SevenNetCalculator

    model = arguments.get("path") or arguments["model"]
    return [SevenNetCalculator(model, device=device, modal=arguments["modal"])]


def chgnet(arguments, device, precision):
    from chgnet.model.dynamics import CHGNetCalculator
    from chgnet.model.model import CHGNet

    if "path" in arguments:
        model = CHGNet.from_file(arguments["path"])
    else:
        model = CHGNet.load(model_name=arguments["model"], use_device=device, verbose=False)
    return [CHGNetCalculator(model, use_device=device, on_isolated_atoms="ignore")]


def ani(arguments, device, precision):
    import torchani
    from torchani import neurochem

    folder = os.path.join(os.path.dirname(torchani.__file__), "resources", "ani-1x_8x")
    constants = neurochem.Constants(folder + "/rHCNO-5.2R_16-3.5A_a4-8.params")
    networks = neurochem.load_model_ensemble(constants.species, folder + "/train", 8)
    shifts = neurochem.load_sae(folder + "/sae_linfit.dat")
    model = torchani.nn.Sequential(torchani.AEVComputer(**constants), networks, shifts).double()
    return [torchani.ase.Calculator(constants.species, model.to(device))]


def fennol(arguments, device, precision):
    from fennol.ase import FENNIXCalculator

    return [FENNIXCalculator(path, use_float64=True) for path in arguments["paths"]]


def orb(arguments, device, precision):
    from orb_models.forcefield import pretrained

    path = {"weights_path": arguments["path"]} if arguments["path"] else {}
    loaded = pretrained.ORB_PRETRAINED_MODELS[arguments["model"]](
        **path, device=device, precision=precision, compile=False
    )
    if isinstance(loaded, tuple):
        from orb_models.forcefield.inference.calculator import ORBCalculator

        return [ORBCalculator(*loaded, device=device)]
    from orb_models.forcefield.calculator import ORBCalculator

    return [ORBCalculator(loaded, device=device)]


def mace(arguments, device, precision):
    from mace import calculators

    head = {"head": arguments["head"]} if "head" in arguments else {}
    if arguments["paths"]:
        return [
            calculators.MACECalculator(path, device=device, default_dtype=precision, **head)
            for path in arguments["paths"]
        ]
    kind, name = arguments["public"]  # such as mp, medium
    make = getattr(calculators, f"mace_{kind}")
    return [make(name, device=device, default_dtype=precision, **head)]


def ase(arguments, device, precision):
    import importlib

    sys.path.append(os.getcwd())
    module, _, factory = arguments["factory"].partition(":")
    return [getattr(importlib.import_module(module), factory)()]


def ask(calculators, row):
    """The mean over the calculators; stress of crystals first, as some need a second pass."""
    answers = []
    for calculator in calculators:
        atoms = Atoms(row["numbers"], row["positions"], cell=row["cell"], pbc=row["pbc"])
        atoms.calc = calculator
        own = {"stress": atoms.get_stress(voigt=False)} if all(row["pbc"]) else {}
        own |= {"forces": atoms.get_forces(), "energy": atoms.get_potential_energy()}
        answers.append(own)
    return {
        name: np.mean([np.asarray(own[name], dtype=float).tolist() for own in answers], axis=0)
        for name in answers[0]
    }


def chgnet_stress_is_square(calculators):
    """CHGNet's stress is (3, 3) already, which ASE's getter would take for Voigt's six."""
    from ase.stress import full_3x3_to_voigt_6_stress

    for calculator in calculators:
        plain = calculator.calculate

        def calculate(*words, plain=plain, calculator=calculator, **options):
            plain(*words, **options)
            stress = np.asarray(calculator.results["stress"])
            if stress.shape == (3, 3):
                calculator.results["stress"] = full_3x3_to_voigt_6_stress(stress)

        calculator.calculate = calculate


def main():
    request = json.load(sys.stdin)
    build = globals()[request["family"]]

    def fresh():
        calculators = build(request["arguments"], request["device"], request["precision"])
        if request["family"] == "chgnet":
            chgnet_stress_is_square(calculators)
        return calculators

    calculators, answers = fresh(), []
    for row in request["compare"]:
        if request["family"] == "fennol":  # it stumbles over the size of the structure before
            calculators = fresh()
        answers.append(ask(calculators, row))
    speed = {}
    for name, rows in request["timed"].items():
        try:
            calculators = fresh() if request["family"] == "fennol" else calculators
            ask(calculators, rows[0])
            seconds = []
            for _ in range(request["repeats"]):
                start = time.perf_counter()
                for row in rows:
                    ask(calculators, row)
                seconds.append(time.perf_counter() - start)
            speed[name] = len(rows) / statistics.median(seconds)
        except Exception as error:
            speed[name] = f"{type(error).__name__}: {error}"[:200]
    told = [{name: value.tolist() for name, value in answer.items()} for answer in answers]
    print("\nANSWERS" + json.dumps({"answers": told, "frames_per_s": speed}))


if __name__ == "__main__":
    main()
