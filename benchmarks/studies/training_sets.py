"""Label sets of liquid water and 3BPA by the ANI-1ccx ensemble.

    python training_sets.py structures water water.extxyz --model ANI --out sets/water
    python training_sets.py structures 3bpa train_300K.xyz --model ANI --out sets/3bpa
    python training_sets.py labels sets/water/train.safetensors --model ANI \
        --device cuda --out labelled/water/train.safetensors
    python training_sets.py teacher-md sets/water/starts.safetensors --model ANI \
        --replicas 16 --device cuda --out labelled/water/test.safetensors
    python training_sets.py teacher-md labelled/water/train.safetensors --model ANI \
        --replicas 24 --frames 24 --every-fs 50 --seed 7 --max-spread 6 --device cuda \
        --add-to labelled/water/train.safetensors --out labelled/water/more.safetensors
    python training_sets.py tree labelled/water/more.safetensors --model ANI \
        --number 800 --add-to labelled/water/more.safetensors --out labelled/water/tree.safetensors
    python training_sets.py approach labelled/water/more.safetensors --model ANI \
        --number 480 --add-to labelled/water/tree.safetensors --out labelled/water/all.safetensors

ANI is the file of ``ani_torch.py convert``. ``structures``, on a CPU: a rattle-relax tree and short
dynamics by the teacher make a first nep student, whose dynamics is labelled and makes a second,
whose dynamics are the structures; half of the liquid's walkers live in strained cells.
``starts`` are equilibrated by the student from other seeds, for ``teacher-md``: test frames of the
teacher's own dynamics. Of a set of many frames a walker only the last one starts; ``--add-to`` puts
the frames behind those of a labelled set. ``tree``: rattled and relaxed from there, for bonds that
are shorter and longer than dynamics makes them; ``approach``: pairs of molecules, or of atoms,
pushed together, of 120 frames drawn at random.
"""

import argparse
import math
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from ani_torch import ANI, forces_by_skin
from ase.data import atomic_masses
from ase.io import read
from label_sets import load_extra, load_set, save_set, stored, to_batch
from safetensors.torch import load_file
from walks import fit_nep, langevin, rounded, strained, student_walks

from mlff_distiller.batch import Batch
from mlff_distiller.sampling import ApproachSettings, RattleSettings, approach, grow
from mlff_distiller.students import NEPSettings

RECIPES = {
    "water": {
        "temperatures_K": (300.0, 350.0, 400.0, 500.0),
        "tree": 60,
        "teacher_walkers": 8,  # of 150 fs, a frame every 15 fs
        "given": 40,  # labelled for the students
        "all_given": 0,  # in the set
        "nep": NEPSettings(cutoff_radial_A=4.5, cutoff_angular_A=3.5),
        "updates": (2_000, 3_500),
        "second": (16, 10),  # walkers, frames of each
        "last": (40, 250),
        "strain": 0.01,
        "starts": 16,
        "max_force_eV_per_A": 20.0,
    },
    "3bpa": {
        "temperatures_K": (300.0, 350.0, 400.0, 500.0),
        "tree": 100,
        "teacher_walkers": 16,
        "given": 200,
        "all_given": 500,
        "nep": NEPSettings(),
        "updates": (4_000, 8_000),
        "second": (32, 10),
        "last": (60, 50),
        "strain": 0.0,
        "starts": 64,
        "max_force_eV_per_A": 20.0,
    },
}
WALK = {"time_step_fs": 0.5, "equilibration_fs": 1_000.0, "every_fs": 20.0}
FRICTION_PER_PS = 10.0


def labelled(labels):
    """Tensors of ``labels`` (``ani_torch.Labels``) for a set."""
    return {
        "energy": labels.energy,
        "forces": labels.forces.float(),
        "stress": labels.stress,
        "spread": labels.spread.float(),
    }


# -- steps ----------------------------------------------------------------------------------------


class Teacher:
    """Labels frames, and keeps them and their labels in the order asked."""

    def __init__(self, model):
        self.model, self.frames, self.answers = model, [], []

    def __call__(self, frames, provenance=None):
        frames = [rounded(atoms) for atoms in frames]
        for atoms, source in zip(frames, provenance or [], strict=False):
            atoms.info = {
                "temperature_K": source.get("temperature_K", math.nan),
                "walker": source["seed"],
            }
        labels = self.model.label(Batch.from_atoms(frames))
        forces = labels.forces.split([len(atoms) for atoms in frames])
        answers = [
            {"energy": energy.numpy(), "forces": own.numpy(), "stress": stress.numpy()}
            for energy, own, stress in zip(labels.energy, forces, labels.stress, strict=True)
        ]
        self.frames += frames
        self.answers += answers
        return answers

    def batches(self, max_force_eV_per_A):
        """One labelled batch a frame; those with a larger force are left out."""
        batches = []
        for atoms, answer in zip(self.frames, self.answers, strict=True):
            if not np.abs(answer["forces"]).max() < max_force_eV_per_A:
                continue
            batch, labels = Batch.from_atoms([atoms]), {}
            for name, value in answer.items():
                value = torch.as_tensor(value)
                labels[name] = value.float() if name == "forces" else value.unsqueeze(0)
            batches.append(replace(batch, labels=labels))
        return batches


def replicas_md(model, starts, temperature_K, seed, n_frames, *, equilibration_fs, every_fs):
    """``n_frames`` frames of every start's Langevin dynamics, all moving together."""
    batch = Batch.from_atoms(starts).to(model.device)
    temperatures = torch.as_tensor(temperature_K, dtype=torch.float64)  # (n_starts,)
    steps = langevin(
        forces_by_skin(model, batch),
        batch.positions,
        torch.from_numpy(atomic_masses).to(model.device)[batch.atomic_numbers],
        temperatures.to(model.device)[batch.system_idx].unsqueeze(1),
        WALK["time_step_fs"],
        FRICTION_PER_PS,
        torch.Generator(model.device).manual_seed(seed),
    )
    first, stride = (round(span / WALK["time_step_fs"]) for span in (equilibration_fs, every_fs))
    frames, kinetic = [], []
    for step, (positions, _, temperature) in enumerate(steps, 1):
        if step >= first and (step - first) % stride == 0:
            kinetic.append(float(temperature.mean()))
            now = positions.cpu().split([len(atoms) for atoms in starts])
            for k, (atoms, own) in enumerate(zip(starts, now, strict=True)):
                frame = atoms.copy()
                frame.positions = own.numpy()
                frame.info = {"temperature_K": float(temperatures[k]), "walker": seed + k}
                frames.append(rounded(frame))
        if len(kinetic) == n_frames:
            return frames, float(np.mean(kinetic))
    raise RuntimeError("unreachable: dynamics has no end")


def teacher_md(starts, model, arguments):
    """``replicas_md`` as the command line says."""
    rng, hot = np.random.default_rng(arguments.seed), arguments.temperature
    starts = [
        strained(starts[k % len(starts)], rng, arguments.strain * (k // len(hot) % 2))
        for k in range(arguments.replicas)
    ]
    return replicas_md(
        model,
        starts,
        np.resize(hot, len(starts)),
        arguments.seed,
        arguments.frames,
        equilibration_fs=arguments.equilibration_fs,
        every_fs=arguments.every_fs,
    )


def rattled(starts, teacher, number, seed):
    """``number`` structures of rattle-relax trees from ``starts``, less those of wild forces."""
    settings = RattleSettings(trees=len(starts))
    grow(starts, teacher, number, settings, seed)
    limit = settings.max_force_eV_per_A
    return [
        atoms
        for atoms, answer in zip(teacher.frames, teacher.answers, strict=True)
        if np.abs(answer["forces"]).max() < limit
    ]


def collided(starts, number, seed):
    """``number`` structures of pairs pushed together; a frame's are its own walker."""
    seeds = [batch.to_atoms()[0] for batch in to_batch(subset(starts, 120, seed)).systems()]
    frames, origins = approach(seeds, number, ApproachSettings(), seed)
    for atoms, origin in zip(frames, origins, strict=True):
        atoms.info = {"temperature_K": math.nan, "walker": origin["seed"]}
    return [rounded(atoms) for atoms in frames]


def make_structures(system, seeds, model, out, seed, about):
    """Training structures, and starts for ``teacher-md``, into the folder ``out``."""
    recipe, rng = RECIPES[system], np.random.default_rng(seed)
    strain, temperatures = recipe["strain"], recipe["temperatures_K"]
    limit = {"max_force_eV_per_A": recipe["max_force_eV_per_A"]}
    picked = [seeds[k] for k in rng.permutation(len(seeds))]

    def walkers(number):
        """So many starts: of those for one temperature, every other one in a strained cell."""
        chosen = [picked[k % len(picked)] for k in range(number)]
        odd = [k // len(temperatures) % 2 for k in range(number)]
        return [strained(own, rng, strain * k) for own, k in zip(chosen, odd, strict=True)]

    teacher = Teacher(model)
    tree = RattleSettings(temperature_K=temperatures, sigma_cell=2 * strain)
    grow(picked[:10], teacher, recipe["tree"], tree, seed)
    starts = walkers(recipe["teacher_walkers"])
    hot = np.resize(temperatures, len(starts))
    frames, _ = replicas_md(model, starts, hot, seed, 10, equilibration_fs=15.0, every_fs=15.0)
    teacher([*frames, *picked[: recipe["given"]]])
    batches = teacher.batches(**limit)
    student, about["student_1"] = fit_nep(batches, recipe["updates"][0], seed, recipe["nep"])
    print(about["student_1"], flush=True)

    number, each = recipe["second"]
    short = {**WALK, **limit, "equilibration_fs": 200.0, "every_fs": 50.0}
    frames, about["exploded_1"] = student_walks(
        student, walkers(number), temperatures, each, seed + 1_000, **short
    )
    teacher(frames)
    batches = teacher.batches(**limit)
    student, about["student_2"] = fit_nep(batches, recipe["updates"][1], seed + 1, recipe["nep"])
    about["labels_of_students"] = len(batches)
    print(about["student_2"], flush=True)

    long = {**WALK, **limit, "equilibration_fs": 2_000.0}
    starts = [picked[-1 - k % len(picked)] for k in range(recipe["starts"])]
    frames, _ = student_walks(student, starts, (300.0,), 1, seed + 900_000, **long)
    save_set(out / "starts.safetensors", stored(frames), {**about, "frames": len(frames)})

    given = [rounded(atoms) for atoms in seeds[: recipe["all_given"]]]

    def keep(frames):
        about["frames"] = {"student": len(frames), "given": len(given)}
        save_set(out / "train.safetensors", stored(frames + given), about)

    number, each = recipe["last"]
    frames, about["exploded_2"] = student_walks(
        student, walkers(number), temperatures, each, seed + 2_000, keep, **WALK, **limit
    )
    keep(frames)


def subset(path, number, seed):
    """The tensors of ``number`` systems of a set, drawn at random; all if None."""
    tensors = load_file(path)
    if number is None or number >= len(tensors["n_atoms"]):
        return tensors
    chosen = np.random.default_rng(seed).choice(len(tensors["n_atoms"]), number, replace=False)
    return picked(tensors, sorted(chosen.tolist()))


def picked(tensors, chosen):
    """The tensors of the systems ``chosen`` (indices)."""
    sizes, n_atoms = tensors["n_atoms"].tolist(), len(tensors["positions"])
    found = {}
    for name, value in tensors.items():
        rows = value.split(sizes) if len(value) == n_atoms else value.unsqueeze(1)
        found[name] = torch.cat([rows[k] for k in chosen])
    return found


def label_file(path, model, out, about, number=None, seed=0, max_spread=math.inf):
    """Label the structures of ``path`` and write them with their labels as ``out``.

    Those are left out where the networks differ by more than ``max_spread`` (eV/Å) on some force.
    """
    started = time.perf_counter()
    tensors = subset(path, number, seed)
    batch = to_batch(tensors)
    total = batch.n_systems
    labels = model.label(batch, on_done=lambda n: print(f"\r{n}/{total}", end="", flush=True))
    spreads = labels.spread.split(tensors["n_atoms"].tolist())
    agreed = [k for k, own in enumerate(spreads) if float(own.max()) <= max_spread]
    about |= {"frames": len(agreed), "label_s": round(time.perf_counter() - started, 2)}
    about["left_out"] = total - len(agreed)
    save_set(out, picked({**tensors, **labelled(labels)}, agreed), about)
    print(f"\n{about['label_s']} s; mean force spread {labels.spread.mean():.4f} eV/Å, ", end="")
    print(f"largest force {labels.forces.abs().max():.1f} eV/Å")


def frames_of(path):
    """``Atoms`` of a set."""
    return [batch.to_atoms()[0] for batch in load_set(path)]


def command():
    """The part of a command line that all steps share."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    steps = parser.add_subparsers(dest="step", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--model", type=Path, required=True, help="of ani_torch.py convert")
    shared.add_argument("--out", type=Path, required=True)
    shared.add_argument("--seed", type=int, default=1)
    shared.add_argument("--device", default="cpu")
    shared.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    shared.add_argument(
        "--max-spread",
        type=float,
        default=math.inf,
        help="leave out frames on whose forces the networks differ by more, eV/Å",
    )
    step = steps.add_parser("structures", parents=[shared])
    step.add_argument("system", choices=list(RECIPES))
    step.add_argument("seeds", type=Path)
    step = steps.add_parser("labels", parents=[shared])
    step.add_argument("structures", type=Path)
    step.add_argument("--number", type=int, help="only so many, drawn at random")
    step = steps.add_parser("teacher-md", parents=[shared])
    step.add_argument("starts", type=Path)
    step.add_argument("--replicas", type=int, required=True)
    step.add_argument("--frames", type=int, default=4, help="of each replica")
    step.add_argument("--temperature", type=float, nargs="+", default=[300.0], help="K, in turn")
    step.add_argument("--strain", type=float, default=0.0, help="of every other replica's cell")
    step.add_argument("--equilibration-fs", type=float, default=1_000.0)
    step.add_argument("--every-fs", type=float, default=100.0)
    grown = steps.add_parser("tree", parents=[shared])
    grown.add_argument("starts", type=Path)
    grown.add_argument("--number", type=int, required=True, help="of structures")
    pushed = steps.add_parser("approach", parents=[shared])
    pushed.add_argument("starts", type=Path)
    pushed.add_argument("--number", type=int, required=True, help="of structures")
    for adding in (step, grown, pushed):
        adding.add_argument(
            "--add-to", type=Path, help="a labelled set, which becomes part of the output"
        )
    return parser.parse_args()


def main():
    arguments = command()
    model = ANI(arguments.model, arguments.device, getattr(torch, arguments.dtype))
    fast = ANI(arguments.model, arguments.device, torch.float32)  # for dynamics
    about = {
        "teacher": model.constants["files"],
        "settings": {name: str(value) for name, value in vars(arguments).items()},
        "machine": torch.cuda.get_device_name() if model.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
    }
    started = time.perf_counter()
    if arguments.step == "structures":
        recipe = {**RECIPES[arguments.system], "nep": asdict(RECIPES[arguments.system]["nep"])}
        about |= {"recipe": recipe, "dynamics": WALK}
        seeds = read(arguments.seeds, ":")
        for atoms in seeds:
            atoms.calc = None
        make_structures(arguments.system, seeds, fast, arguments.out, arguments.seed, about)
    elif arguments.step == "labels":
        given = arguments.number, arguments.seed, arguments.max_spread
        label_file(arguments.structures, model, arguments.out, about, *given)
    else:
        walkers = [int(w) for w in load_extra(arguments.starts, "walker")]
        starts = list(dict(zip(walkers, frames_of(arguments.starts), strict=True)).values())
        if arguments.step == "tree":
            frames = rattled(starts, Teacher(fast), arguments.number, arguments.seed)
        elif arguments.step == "approach":
            frames = collided(arguments.starts, arguments.number, arguments.seed)
        else:
            frames, about["kinetic_K"] = teacher_md(starts, fast, arguments)
        about["structures_s"] = round(time.perf_counter() - started, 2)
        save_set(arguments.out, stored(frames), about)
        label_file(arguments.out, model, arguments.out, about, max_spread=arguments.max_spread)
        if arguments.add_to is not None:
            ours, theirs = load_file(arguments.out), load_file(arguments.add_to)
            ours["walker"] += 1 + int(theirs["walker"].max())
            about["frames"] += len(theirs["n_atoms"])
            together = {name: torch.cat([theirs[name], own]) for name, own in ours.items()}
            save_set(arguments.out, together, about)
    print(f"{time.perf_counter() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
