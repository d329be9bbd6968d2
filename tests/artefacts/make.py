"""What users of a version have on their disks, made by that version, in the current folder.

python make.py COMMIT; README.md says how and why.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import plotly.offline
from ase.build import bulk
from ase.io import write

TEACHER = """from ase.calculators.emt import EMT


def teacher():
    return EMT()
"""
SMALL = [
    "training.checkpoint_seconds=0",
    "training.validations=3",
    "training.md_steps=10",
    "nep.neurons=6",
    "nep.n_max_radial=3",
    "nep.n_max_angular=2",
    "nep.basis_size_radial=5",
    "nep.basis_size_angular=4",
    "nep.cutoff_radial_A=4.5",
    "nep.cutoff_angular_A=3.5",
    "device=cpu",
]
DISTILL = [
    *["distill", "cu.extxyz", "--teacher", "ase:copper:teacher", "--out", "run"],
    *[
        "--student",
        "nep",
        "labels=20",
        "training.updates=150",
        "active.rounds=1",
        "active.walkers=2",
    ],
    *["active.updates=30", "sampling.min_atoms=4", "evaluation.time_ps=0.1"],
    *["evaluation.equilibration_ps=0.02", "evaluation.n_frames=4"],
    "evaluation.speed_sizes=[4, 16]",
    *SMALL,
]
TRAIN = [
    *["train", "run/dataset", "--student", "painn-8x1", "--out", "trained"],
    *["training.updates=60", *SMALL],
]
VALIDATE = [
    *["validate", "cu.extxyz", "--student", "run", "--teacher", "ase:copper:teacher"],
    *["--config", "short.yaml", "--time-ps", "0.2", "--device", "cpu", "--out", "proof"],
]
MD = [
    *["md", "cu.extxyz", "--student", "run/student", "--ensemble", "npt", "--temperature", "100"],
    *["--frames-every", "5", "--log-every", "5", "--replicas", "2", "--device", "cpu"],
    *["--dtype", "float64"],
]
COMMANDS = {
    "distill": DISTILL,
    "train": TRAIN,
    "validate": VALIDATE,
    "md": [*MD, "--time-ps", "0.02", "--out", "md.extxyz"],
    "whole": [*MD, "--time-ps", "0.04", "--out", "whole.extxyz"],
}


def run(words):
    from mlff_distiller import cli

    sys.argv = ["mlff-distiller", *words]
    try:
        cli.main()
    except SystemExit as end:
        return end.code or 0


def main(commit):
    # A page carries 4.5 MB of plotly.js; here it says so instead.
    plotly.offline.get_plotlyjs = lambda: "/* plotly.js was left out of this artefact */"
    import mlff_distiller

    cell = bulk("Cu", cubic=True)
    write("cu.extxyz", cell)
    Path("copper.py").write_text(TEACHER)
    Path("short.yaml").write_text(
        "{time_step_fs: 2.0, equilibration_ps: 0.05, friction_per_ps: 20, record_every: 1,"
        " large_atoms: 32, memory_steps: 20}\n"
    )
    codes = {name: run(words) for name, words in COMMANDS.items()}
    rows = []
    for folder in ("run/student", "trained/student"):
        for seed in range(3):
            atoms = (cell * (1, 1, 2)).copy()
            atoms.rattle(0.1, seed=seed)
            atoms.calc = mlff_distiller.StudentCalculator(folder, device="cpu", dtype="float64")
            rows.append(
                {
                    "student": folder,
                    "positions": atoms.positions.tolist(),
                    "cell": atoms.cell.array.tolist(),
                    "numbers": atoms.numbers.tolist(),
                    "energy": atoms.get_potential_energy(),
                    "forces": atoms.get_forces().tolist(),
                    "stress": atoms.get_stress().tolist(),
                }
            )
    made = {
        "commit": commit,
        "version": version("mlff-distiller"),
        "commands": COMMANDS,
        "exit_codes": codes,
        "predictions": rows,
    }
    Path("made.json").write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
