"""Draw docs/accuracy_speed.svg: accuracy against speed for silicon, from committed results.

Speeds are those of ``results/md_benchmark_h200.json``, of SevenNet-0 and the students of
``silicon/``; the students' fidelity is what ``silicon/README.md`` states.
"""

import argparse
import json
import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
SYSTEM = "silicon:64"
NAMES = {"7net-0": "SevenNet-0 (teacher)", "nep": "nep", "painn": "painn-32x2"}
COLOURS = {"7net-0": "#555555", "nep": "#0072b2", "painn": "#d55e00"}
RUNS = {
    ("nve", "7net-0", "ase"): "through ASE",
    ("nve", "nep", "ase"): "through ASE",
    ("nve", "nep", "run_md"): "run_md",
    ("compiled", "painn", "run_md"): "run_md, compiled",
    ("nve", "painn", "ase"): "through ASE",
}


def fidelities(readme):
    """Of ``nep`` and ``painn``, as percentages; 100 for the teacher itself."""
    words = re.search(r"held-out structures (\d\.\d+) and (\d\.\d+)", readme)
    return {"7net-0": 100.0, "nep": 100 * float(words[1]), "painn": 100 * float(words[2])}


def points(result, fidelity):
    """(model, how it ran, ns per day, fidelity in %) for each of ``RUNS``."""
    for (part, model, engine), how in RUNS.items():
        for row in result[part]:
            if (row["model"], row["engine"], row["system"]) == (model, engine, SYSTEM):
                yield model, how, row["ns_per_day"], fidelity[model]


def draw(rows, about, path):
    """Write the figure; text stays text and the file is the same each time."""
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "0", "font.family": "sans-serif"})
    figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
    for model, how, speed, fidelity in rows:
        ase = how == "through ASE"
        face = "white" if ase and model != "7net-0" else COLOURS[model]
        marker = "s" if model == "7net-0" else "o"
        axes.plot(speed, fidelity, marker, color=COLOURS[model], mfc=face, ms=9)
        left = model == "7net-0" or not ase
        axes.annotate(
            f"{NAMES[model]}, {how}\n{speed:,.{1 if speed < 10 else 0}f} ns/day",
            (speed, fidelity),
            xytext=(-4 if left else 4, -12 if model == "nep" else 12),
            textcoords="offset points",
            ha="left" if left else "right",
            va="top" if model == "nep" else "bottom",
            fontsize=9,
            color=COLOURS[model],
        )
    axes.set(
        xscale="log", xlim=(1, 60_000), ylim=(97.3, 100.8), yticks=[97.5, 98, 98.5, 99, 99.5, 100]
    )
    axes.set_xlabel("speed, ns per day (64 atoms of silicon, 1 fs)")
    axes.set_ylabel("force fidelity, %")
    axes.set_title(about, fontsize=9, loc="left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "accuracy_speed.svg")
    arguments = parser.parse_args()
    result = json.loads((HERE / "results" / "md_benchmark_h200.json").read_text())
    fidelity = fidelities((HERE / "silicon" / "README.md").read_text())
    about = result["about"]
    title = f"One {about['device']}, commit {about['commit']}; fidelity on held-out structures"
    draw(list(points(result, fidelity)), title, arguments.out)


if __name__ == "__main__":
    main()
