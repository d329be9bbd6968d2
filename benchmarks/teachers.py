"""Every teacher at hand: what it gives, whether it is its library's own, and how fast it labels.

    python benchmarks/teachers.py --out benchmarks/results/teachers_cpu.json \\
        --teacher 7net-0 --teacher mace:random /path/to/mace-env/bin/python

Each ``--teacher`` is a SPEC and, if need be, the interpreter of its environment. The file
``random`` of an Orb or MACE model stands for random weights, made by the library itself: speed and
agreement need no others. Teachers that cannot be loaded are listed and left out; without
``--teacher`` all bundled ones are tried. ``--table FILE`` prints the table of an earlier run.

Frames a second are medians of repeats over a set of molecules (hexane, 20 atoms) and of crystals
(diamond, 32 atoms), all displaced: by the library's calculator in a process of its own, by
`TeacherCalculator.label` one by one (which sends arrays to another process), and in batches of
``batch_atoms`` atoms. Agreement is the largest difference from the library's calculator, one by one
and batched, over two crystals and two molecules in periodic boxes.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk

from mlff_distiller.errors import TeacherError
from mlff_distiller.teachers import load_teacher
from mlff_distiller.teachers.mace import PUBLIC
from mlff_distiller.teachers.registry import parse_spec

HERE = Path(__file__).resolve().parent
MAKERS = HERE.parent / "tests" / "unit" / "teachers"
BUNDLED = [
    "7net-0",
    "7net-0_22May2024",
    "7net-l3i5",
    "7net-mf-0:PBE",
    "7net-mf-0:R2SCAN",
    "chgnet",
    "chgnet-0.2.0",
    "chgnet-r2scan",
    "ani-1x",
]


def hexane() -> Atoms:
    """A zigzag with bonds of 1.54 and 1.09 Å."""
    symbols, positions = "", []
    for k in range(6):
        side = (-1) ** k
        carbon = np.array([1.257 * k, 0.445 * side, 0.0])
        hydrogens = [[0, 0.63 * side, 0.89], [0, 0.63 * side, -0.89]]
        if k in (0, 5):
            hydrogens.append([-0.89 if k == 0 else 0.89, -0.63 * side, 0])
        symbols += "C" + "H" * len(hydrogens)
        positions += [carbon, *(carbon + hydrogens)]
    return Atoms(symbols, positions)


def displaced(atoms, n):
    frames = [atoms.copy() for _ in range(n)]
    for seed, frame in enumerate(frames):
        frame.rattle(0.05, seed=seed)
    return frames


def boxed(atoms):
    atoms = atoms.copy()
    atoms.center(vacuum=7.0)
    atoms.pbc = True
    return atoms


def with_random_weights(spec, python, folder):
    """``NAME:random`` with the file's name in place of ``random``, which is made if need be."""
    head, _, rest = spec.partition(":")
    if not re.match(r"random\b", rest):
        return spec, False
    folder = folder / f"{head}-{zlib.crc32(python.encode())}"
    folder.mkdir(exist_ok=True)
    path = folder / "random.model"
    if not path.exists():
        (folder / "none.json").write_text("[]")
        precision = "float64" if head.startswith("mace") else "float32-highest"
        maker = "mace_reference.py" if head.startswith("mace") else "orb_reference.py"
        words = [path, "medium"] if head.startswith("mace") else [head, path]
        command = [python, MAKERS / maker, *words, precision]
        command += [folder / "none.json", folder / "out.json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not path.exists():
            raise TeacherError(
                f"no random weights for {spec!r}", found=done.stderr.strip()[-300:] or done.stdout
            )
    return spec.replace("random", str(path), 1), True


def row_of(atoms):
    return {
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell.array.tolist(),
        "pbc": atoms.pbc.tolist(),
    }


def ask_the_library(spec, python, identity, compare, timed, repeats):
    source = parse_spec(spec)
    public = PUBLIC.get(source.arguments.get("model"), ())[:2]  # MACE's own names of its models
    request = {
        "family": source.family,
        "arguments": {**source.arguments, "public": public},
        "device": identity.device,
        "precision": identity.settings.get("precision"),
        "compare": [row_of(atoms) for atoms in compare],
        "timed": {name: [row_of(atoms) for atoms in frames] for name, frames in timed.items()},
        "repeats": repeats,
    }
    done = subprocess.run(
        [python, str(HERE / "library_answers.py")],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    if "ANSWERS" not in done.stdout:
        return None, done.stderr.strip()[-300:]
    return json.loads(done.stdout.rpartition("ANSWERS")[2]), None


def difference(labelled, known):
    """Largest by label: energy an atom, forces, stress."""
    worst = {}
    for answer, other in zip(labelled, known, strict=True):
        for name, value in answer.labels.items():
            error = float(np.abs(value - np.array(other[name])).max())
            error /= len(answer.atoms) if name == "energy" else 1
            worst[name] = max(worst.get(name, 0.0), error)
    return worst


def speeds(teacher, frames, repeats):
    """Frames a second one by one and, if the teacher knows them, in batches; turn by turn."""
    ways = {"one_by_one": {"batch_size": 1}}
    if teacher.batch_atoms() > 1:
        ways["batched"] = {"batch_size": teacher.batch_atoms()}
    seconds = {way: [] for way in ways}
    for repeat in range(repeats + 1):
        for way, options in ways.items():
            start = time.perf_counter()
            answers = teacher.label(frames, **options)
            if any(answer.error for answer in answers):
                return {way: next(a.error for a in answers if a.error)[:200]}
            if repeat:  # the first compiles and fills caches
                seconds[way].append(time.perf_counter() - start)
    return {way: round(len(frames) / statistics.median(own), 3) for way, own in seconds.items()}


def measure(spec, python, random, arguments):
    crystals = displaced(bulk("C", cubic=True) * (2, 2, 1), max(2, arguments.frames // 2))
    molecules = displaced(hexane(), max(2, arguments.frames))
    timed = {"molecules": molecules, "crystals": crystals}
    compare = [*crystals[:2], *(boxed(atoms) for atoms in molecules[:2])]
    slab = crystals[0].copy()
    slab.pbc = [True, True, False]
    start = time.perf_counter()
    with load_teacher(spec, device=arguments.device, python=python) as teacher:
        identity = teacher.identity
        started = time.perf_counter() - start
        together = teacher.label(compare, batch_size=sum(map(len, compare)))
        failed = [answer.error for answer in together if answer.error]
        if failed:
            raise TeacherError("it fails on the comparison", found=failed[0])
        alone = teacher.label(compare, batch_size=1)
        [free], [open_] = teacher.label(molecules[:1]), teacher.label([slab])
        rates = {name: speeds(teacher, frames, arguments.repeats) for name, frames in timed.items()}
        row = {
            "teacher": identity.name,
            "family": identity.family,
            "version": identity.version,
            "licence": identity.licence,
            "weights": "random" if random else identity.weights_sha256,
            "device": identity.device,
            "settings": identity.settings,
            "start_s": round(started, 1),
            "largest_force": float(max(np.abs(a.labels["forces"]).max() for a in together)),
            "load_average": round(os.getloadavg()[0], 1),
            "batch_atoms": teacher.batch_atoms(),
            "supports": {
                "energy": True,
                "forces": True,
                "stress": "stress" in together[0].labels,
                "no_stress_for_molecules": free.error is None and "stress" not in free.labels,
                "molecules": free.error is None,
                "mixed_pbc": open_.error is None,
                "batch": teacher.batch_atoms() > 1,
                "ensemble": "forces_spread" in together[0].extra,
            },
        }
    told, why = ask_the_library(
        spec, python or sys.executable, identity, compare, timed, arguments.repeats
    )
    row["agreement"] = None
    if told is None:
        row["no_comparison"] = why
    else:
        row["agreement"] = {
            "one_by_one": difference(alone, told["answers"]),
            "batched": difference(together, told["answers"]),
        }
        for name, rate in told["frames_per_s"].items():
            rates[name]["library"] = rate if isinstance(rate, str) else round(rate, 3)
    row["frames_per_s"] = rates
    return row


def table(report):
    """The rows as Markdown."""

    def rate(value):
        return "–" if not isinstance(value, float | int) else f"{value:.3g}"

    def yes(value):
        return "yes" if value else "no"

    lines = [
        "| Teacher | Library | Stress | Slabs | Batch | Spread | ΔE/atom (eV) | ΔF (eV/Å) |"
        " Δσ (eV/Å³) | Molecules/s: library, one by one, batched | Crystals/s: the same |",
        "|" + "---|" * 11,
    ]
    for row in report["rows"]:
        worst = {"energy": None, "forces": None, "stress": None}
        for answers in (row["agreement"] or {}).values():
            for name, value in answers.items():
                worst[name] = max(worst[name] or 0.0, value)
        shown = ["–" if value is None else f"{value:.0e}" for value in worst.values()]
        shown = ["0" if value == "0e+00" else value for value in shown]
        rates = [
            ", ".join(rate(row["frames_per_s"][kind].get(how)) for how in
                      ("library", "one_by_one", "batched"))
            for kind in ("molecules", "crystals")
        ]  # fmt: skip
        name = f"`{row['teacher']}`"
        if row["weights"] == "random":
            model = row["teacher"].partition(":")[0]
            model = "MACE, as large as MP-0-medium" if model == "mace" else f"`{model}`"
            name = f"{model}, random weights, {row['settings']['precision']}"
        elif row["settings"].get("members", 1) > 1:
            name = f"{row['family']}, {row['settings']['members']} files"
        supports = row["supports"]
        cells = [
            name,
            f"{row['family']} {row['version']}",
            yes(supports["stress"]),
            yes(supports["mixed_pbc"]),
            yes(supports["batch"]),
            yes(supports["ensemble"]),
            *shown,
            *rates,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def about(arguments):
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = re.findall(r"model name\s*:\s*(.*)", cpuinfo.read_text())
        processor = names[0] if names else processor
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    facts = {
        "machine": processor,
        "cpu_count": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("ase", "numpy")},
        "commit": commit.stdout.strip(),
        "device": arguments.device,
        "repeats": arguments.repeats,
        "frames": arguments.frames,
    }
    if arguments.device != "cpu":
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        try:
            facts["gpu"] = subprocess.run(
                query, capture_output=True, text=True, check=False
            ).stdout.strip()
        except FileNotFoundError:
            facts["gpu"] = "unknown"
    return facts


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--teacher", nargs="+", action="append", default=[])
    parser.add_argument("--more", action="store_true", help="add to the rows of --out")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.table.read_text())))
        return
    report = {"about": about(arguments), "rows": [], "unavailable": {}}
    if arguments.more and arguments.out.exists():
        report = json.loads(arguments.out.read_text())
    with tempfile.TemporaryDirectory() as folder:
        for spec, *rest in arguments.teacher or [[name] for name in BUNDLED]:
            python = rest[0] if rest else None
            try:
                full, random = with_random_weights(spec, python or sys.executable, Path(folder))
                report["rows"].append(measure(full, python, random, arguments))
            except TeacherError as error:
                report["unavailable"][spec] = str(error)[:500]
            print(spec, json.dumps(report["unavailable"].get(spec) or report["rows"][-1]))
            sys.stdout.flush()
            if arguments.out:
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


if __name__ == "__main__":
    main()
