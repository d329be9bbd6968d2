"""Which cheap number tells the error of a student's forces: a table, and how the library's does.

    python error_estimates.py sets/si --student nep --updates 800 --out error_estimates.json

``SET/train.extxyz`` and ``held_out.extxyz``, made by ``error_sets.py``, train a student and judge
it; every other file there is a domain it was not trained for. Half of ``held_out`` calibrates. All
numbers are calibrated alike: a power of the distance, a scale for each element, and a limit. One
atom's error is also a matter of luck; ``local`` ones are root mean squares over it and its
neighbours, weighted as distances are.
"""

import argparse
import dataclasses
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from ase.io import read
from scipy.stats import spearmanr

from mlff_distiller.batch import Batch
from mlff_distiller.durable import write_json
from mlff_distiller.neighbors import edge_vectors, neighbor_list
from mlff_distiller.students import error_model as lib
from mlff_distiller.students import load_student, save_student
from mlff_distiller.workflows.config import Config
from mlff_distiller.workflows.train import train_student

BINS = 8


def trained(folder, student, updates, sets, where):
    """A student of that name and its error model, from disk where an earlier call left it."""
    place = where / f"{folder.name}-{student}"
    if not place.exists():
        config = dataclasses.replace(Config(), student=student, device="cpu")
        training = dataclasses.replace(config.training, updates=updates, md_checks=0)
        config = dataclasses.replace(config, training=training)
        made, _ = train_student(sets["train"], sets["calibration"], config)
        made.error_model = lib.fit_error_model(made, sets["train"], sets["calibration"])
        save_student(made, place, about={}, card="", frames=sets["train"])
    return load_student(place)


@torch.no_grad()
def looked_at(student, frames):
    """Of each atom: features, type, error of force, frame; and pairs with their distance."""
    rows, pairs, start = [], [], 0
    for number, frame in enumerate(frames):
        near = neighbor_list(frame, student.cutoff)
        types = student.types(frame.atomic_numbers)
        vectors = edge_vectors(frame, near)
        r = vectors.norm(dim=1)
        given = (types, near.i, near.j, vectors.to(student.dtype))
        hidden = student.environments(*given).double()
        raw = student.descriptors(*given).double() if hasattr(student, "descriptors") else hidden
        found = student.predict(types, frame, near).forces.double()
        apart = (found - frame.labels["forces"].double()).norm(dim=1)
        rows.append((hidden, raw, types, apart, torch.full_like(types, number)))
        pairs.append(torch.stack([near.i + start, near.j + start, r]))
        start += frame.n_atoms
    return [torch.cat(own) for own in zip(*rows, strict=True)], torch.cat(pairs, 1)


def gathered(squares, pairs, how, cutoff):
    """Over neighbours: none, their largest, or the mean weighted by a cosine of the distance."""
    i, j, r = pairs[0].long(), pairs[1].long(), pairs[2]
    if how == "own":
        return squares.sqrt()
    if how == "largest":
        return squares.scatter_reduce(0, i, squares[j], "amax").sqrt()
    weights = torch.ones_like(r) if how == "mean" else 0.5 + 0.5 * torch.cos(np.pi * r / cutoff)
    total = squares.index_add(0, i, weights * squares[j])
    return (total / torch.ones_like(squares).index_add(0, i, weights)).sqrt()


def distances(seen, feature, how, student):
    """By domain: (n_atoms,) of one method, whitened by the training set."""
    hidden, kinds = seen["train"][0][feature], seen["train"][0][2]
    parts = [lib._whitening(hidden[kinds == kind]) for kind in range(len(student.elements))]
    found = {}
    for name, (rows, pairs) in seen.items():
        squares = torch.zeros(len(rows[2]), dtype=torch.float64)
        for kind, (mean, whitening) in enumerate(parts):
            own = rows[2] == kind
            squares[own] = ((rows[feature][own] - mean) @ whitening.T).square().sum(1)
        found[name] = gathered(squares, pairs, how, student.cutoff)
    return found


def calibrated(found, seen, n_types):
    """Estimates by domain, and their limit; as `fit_error_model` does."""
    kinds, of_fresh = seen["train"][0][2], seen["calibration"][0][2]
    edge = torch.ones(n_types, dtype=torch.float64)
    edge = edge.scatter_reduce(0, kinds, found["train"], "amax", include_self=False)
    gamma = {name: own / edge[seen[name][0][2]] for name, own in found.items()}
    squares = seen["calibration"][0][3].square()
    power = lib._power(gamma["calibration"], squares)
    scale = lib._scales(gamma["calibration"] ** power, squares, of_fresh, n_types)
    errors = {name: scale[seen[name][0][2]] * own**power for name, own in gamma.items()}
    typical, largest = float(squares.mean().sqrt()), float(errors["train"].max())
    return errors, max(lib._TOO_LARGE * typical, lib._MARGIN * largest), power


def auroc(score, positive):
    ranks = score.argsort().argsort().astype(float)
    n, rest = positive.sum(), (~positive).sum()
    return float((ranks[positive].sum() - n * (n - 1) / 2) / (n * rest)) if n and rest else None


def judged(estimates, limit, seen, typical, cutoff):
    """What one method's estimates are worth."""
    outside = [name for name in estimates if name not in ("train", "calibration", "held_out")]
    every = ["held_out", *outside]
    e = {name: estimates[name].numpy() for name in every}
    true = {name: seen[name][0][3].numpy() for name in every}
    local = {
        name: gathered(seen[name][0][3].square(), seen[name][1], "weighted", cutoff).numpy()
        for name in every
    }
    all_e, all_true = (np.concatenate([own[name] for name in every]) for own in (e, true))
    order = np.array_split(all_e.argsort(), BINS)
    domains = {}
    for name in every:
        bad, told = true[name] > 5.0 * typical, e[name] > limit
        frame = seen[name][0][4].numpy()
        off = np.unique(frame[local[name] > 5.0 * typical])
        bad_frames, told_frames = np.unique(frame[bad]), np.unique(frame[told])
        domains[name] = {
            "force_rmse_eV_per_A": float(np.sqrt((true[name] ** 2).mean())),
            "estimated_rms_eV_per_A": float(np.sqrt((e[name] ** 2).mean())),
            "rank_correlation": float(spearmanr(e[name], true[name])[0]),
            "rank_correlation_local": float(spearmanr(e[name], local[name])[0]),
            "largest_estimate_over_typical": float(e[name].max() / typical),
            "atoms_above_5_typical": float(bad.mean()),
            "atoms_told": float(told.mean()),
            "caught_of_those_atoms": float(told[bad].mean()) if bad.any() else None,
            "caught_of_their_frames": float(np.isin(bad_frames, told_frames).mean())
            if bad.any()
            else None,
            "frames_told": len(told_frames) / len(np.unique(frame)),
            "frames_off_locally": len(off) / len(np.unique(frame)),
            "caught_of_frames_off_locally": float(np.isin(off, told_frames).mean())
            if len(off)
            else None,
        }
    return {
        "limit_over_typical": limit / typical,
        "rank_correlation_held_out": float(spearmanr(e["held_out"], true["held_out"])[0]),
        "rank_correlation_all": float(spearmanr(all_e, all_true)[0]),
        "rank_correlation_local": float(
            spearmanr(all_e, np.concatenate([local[name] for name in every]))[0]
        ),
        "auroc_above_3_typical": auroc(all_e, all_true > 3.0 * typical),
        "false_alarms_held_out": float((e["held_out"] > limit).mean()),
        "reliability_eV_per_A": [
            [float(np.sqrt((own[part] ** 2).mean())) for own in (all_e, all_true)] for part in order
        ],
        "domains": domains,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sets", type=Path, nargs="+")
    parser.add_argument("--student", default="nep")
    parser.add_argument("--updates", type=int, default=800)
    parser.add_argument("--students", type=Path, default=Path("students"))
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    content = json.loads(given.out.read_text()) if given.out.exists() else {}
    content |= {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    rows = content.setdefault("rows", {})
    for folder in given.sets:
        sets = {
            path.stem: [Batch.from_atoms([atoms]) for atoms in read(path, ":")]
            for path in sorted(folder.glob("*.extxyz"))
        }
        sets["calibration"], sets["held_out"] = sets["held_out"][::2], sets["held_out"][1::2]
        student = trained(folder, given.student, given.updates, sets, given.students)
        began = time.monotonic()
        model = lib.fit_error_model(student, sets["train"], sets["calibration"])
        seconds = time.monotonic() - began
        seen = {name: looked_at(student, frames) for name, frames in sets.items()}
        typical = float(seen["held_out"][0][3].square().mean().sqrt())
        methods = {}
        for feature, name in ((0, "last layer"), (1, "descriptor")):
            if name == "descriptor" and not hasattr(student, "descriptors"):
                continue
            for how in ("own", "largest", "mean", "weighted"):
                found = distances(seen, feature, how, student)
                estimates, limit, power = calibrated(found, seen, len(student.elements))
                methods[f"{name}, {how}"] = {
                    "power": power,
                    **judged(estimates, limit, seen, typical, student.cutoff),
                }
        rows[f"{folder.name}, {given.student}"] = {
            "typical_eV_per_A": typical,
            "n_atoms": {name: len(own[0][2]) for name, own in seen.items()},
            "fit_seconds": seconds,
            "library": {"power": model.power, "limit_eV_per_A": model.limit},
            "methods": methods,
        }
        write_json(given.out, content)
        print(folder.name, given.student, f"typical {typical:.3f} eV/Å, fit {seconds:.1f} s")
        for name, own in methods.items():
            caught = " ".join(
                f"{k}:{d['estimated_rms_eV_per_A'] / d['force_rmse_eV_per_A']:.2f}/"
                f"{d['frames_off_locally']:.2f}/{d['caught_of_frames_off_locally']}/"
                f"{d['frames_told']:.2f}"
                for k, d in own["domains"].items()
            )
            print(
                f"  {name:22s} limit {own['limit_over_typical']:.1f} p {own['power']:.2f} "
                f"rank {own['rank_correlation_held_out']:.2f} {own['rank_correlation_all']:.2f} "
                f"{own['rank_correlation_local']:.2f} "
                f"auroc {own['auroc_above_3_typical'] or 0:.3f} "
                f"false {own['false_alarms_held_out']:.1e} {caught}",
                flush=True,
            )


if __name__ == "__main__":
    main()
