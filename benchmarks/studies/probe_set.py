"""Probes of the Hessian around the first frames that ``students.py`` draws from a label set.

    python probe_set.py sets/3bpa/train.safetensors --number 500 --out probes.safetensors

The pairs are structures without labels, for ``training_sets.py labels``.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from label_sets import save_set, stored
from students import split

from mlff_distiller.sampling import probes


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", type=Path)
    parser.add_argument("--number", type=int, default=250)
    parser.add_argument("--frames", type=int, default=250, help="to probe around")
    parser.add_argument("--seed", type=int, default=0, help="of the split and the directions")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    training, _ = split(arguments.set, arguments.frames, arguments.seed)
    frames = [replace(frame, labels={}).to_atoms()[0] for frame in training]
    made = list(probes(frames, arguments.number, arguments.seed))
    lengths = [float(np.linalg.norm(a.positions - b.positions)) for a, b in made]
    about = {
        "frames": arguments.frames,
        "seed": arguments.seed,
        "mean_distance_A": float(np.mean(lengths)),
    }
    pairs = [atoms for pair in made for atoms in pair]
    save_set(arguments.out, stored(pairs), about)


if __name__ == "__main__":
    main()
