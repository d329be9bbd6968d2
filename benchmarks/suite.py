"""Does one command, with its defaults, end approved? A row per system.

    python benchmarks/suite.py STRUCTURES --out suite                       # all, one after another
    python benchmarks/suite.py STRUCTURES --only water ethanol --out suite --max-hours 0.5
    python benchmarks/suite.py --system mine=my.cif:7net-0:600 --out suite

STRUCTURES is a folder of starting structures by the names of `SYSTEMS`; those that ASE builds need
none. ``--system NAME=FILE:TEACHER:TEMPERATURE`` adds your own. Each run is `mlff-distiller distill`
in ``out/NAME``, which continues where it stopped; ``suite.json`` has a row for each, and
``suite.html`` shows them. ``--jobs`` runs several at once, which makes each slower: times of such
a run are those of a shared machine, and say so.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ase.build import bulk, molecule
from ase.io import write

SYSTEMS: dict[str, tuple[str, float]] = {
    "si": ("7net-0", 300.0),
    "nacl": ("7net-0", 300.0),
    "hfo2": ("7net-0", 300.0),
    "cuni": ("7net-0", 300.0),
    "cuco": ("7net-0", 300.0),
    "water": ("7net-0", 300.0),
    "ethanol": ("ani-1x", 300.0),
    "hcno": ("ani-1x", 300.0),
    "quartz_strained": ("7net-0", 300.0),
    "diamond": ("7net-0", 600.0),
    "aluminium": ("7net-0", 500.0),
    "methanol": ("ani-1x", 300.0),
}
"""Teacher and temperature (K) of each; the last three are built here."""
BUILT = {
    "diamond": lambda: bulk("C", cubic=True) * 2,
    "aluminium": lambda: bulk("Al", cubic=True) * 3,
    "methanol": lambda: molecule("CH3OH"),
}


def run(name: str, file: Path, teacher: str, kelvin: float, arguments: Any) -> dict[str, Any]:
    """One system, as a command of its own: its row."""
    out = arguments.out / name
    command = [
        *(sys.executable, "-m", "mlff_distiller", "distill", str(file), "--teacher", teacher),
        *("--temperature", str(kelvin), "--out", str(out), *arguments.options),
    ]
    if arguments.max_hours:
        command += ["--max-hours", str(arguments.max_hours)]
    began = time.monotonic()
    with (arguments.out / f"{name}.log").open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    row = {"system": name, "teacher": teacher, "temperature_K": kelvin, "exit": done.returncode}
    row["seconds"] = round(time.monotonic() - began, 1)
    path = out / "report.json"
    if not path.exists():
        return {**row, "status": "no report"}
    report = json.loads(path.read_text())
    goal, accuracy = report["goal"], report["accuracy"]
    best = goal["turns"][goal["best"]]
    return {
        **row,
        "status": report["verdict"]["status"],
        "student": best["step"]["student"],
        "labels": best["n_labels"],
        "updates": best["step"]["updates"],
        "turns": len(goal["turns"]),
        "turn_seconds": round(sum(turn["seconds"] for turn in goal["turns"]), 1),
        "fidelity_test": accuracy["test"]["forces_fidelity"],
        "fidelity_own": accuracy["student_md"]["forces_fidelity"],
        "speedup": report["speed"][0]["speedup"] if report["speed"] else None,
        "reasons": report["verdict"]["reasons"],
        "ended": goal["ended"],
        "course": goal["turns"],
    }


def page(rows: list[dict[str, Any]]) -> str:
    """The rows as a table; the course of each is in the report of its run."""
    names = [name for name in rows[0] if name not in ("course", "reasons", "exit")]
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in names)

    def cell(value: Any) -> str:
        shown = f"{value:.3f}" if isinstance(value, float) and value < 10 else value
        shown = f"{value:.0f}" if isinstance(value, float) and value >= 10 else shown
        return f"<td>{html.escape(str(shown))}</td>"

    body = "".join(
        f"<tr class='{row['status']}'>{''.join(cell(row.get(name, '')) for name in names)}</tr>"
        for row in rows
    )
    look = "body{font:15px system-ui;margin:2em}td,th{padding:.3em .8em;text-align:left}"
    look += ".approved td:nth-child(5){color:#197a3d}.rejected td:nth-child(5){color:#b3261e}"
    return f"<!doctype html><meta charset=utf-8><title>Suite</title><style>{look}</style><table><tr>{head}</tr>{body}</table>"  # noqa: E501


def systems(arguments: Any) -> dict[str, tuple[Path, str, float]]:
    """Name, file, teacher and temperature of all that were asked for."""
    found = {}
    for name, (teacher, kelvin) in SYSTEMS.items():
        if name in BUILT:
            file = arguments.out / f"{name}.extxyz"
            write(file, BUILT[name]())
        elif arguments.structures is None:
            continue
        else:
            file = arguments.structures / f"{name}.extxyz"
        found[name] = (file, teacher, kelvin)
    for own in arguments.system:
        name, _, rest = own.partition("=")
        file, teacher, kelvin = rest.rsplit(":", 2)
        found[name] = (Path(file), teacher, float(kelvin))
    chosen = arguments.only or list(found)
    return {name: found[name] for name in chosen}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("structures", nargs="?", type=Path, help="folder of starting structures")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", help="names of systems")
    parser.add_argument("--system", action="append", default=[], metavar="NAME=FILE:TEACHER:KELVIN")
    parser.add_argument("--max-hours", type=float)
    parser.add_argument("--jobs", type=int, default=1, help="systems at a time")
    parser.add_argument(
        "--options", type=shlex.split, default=[], help="further options of distill, in quotes"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        about = {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            "cores": os.cpu_count(),
            "systems_at_a_time": arguments.jobs,
            "largest_process_GB": round(memory, 2),
            "versions": {name: version(name) for name in ("mlff-distiller", "torch")},
            "options": arguments.options,
        }
        (arguments.out / "suite.json").write_text(json.dumps({**about, "rows": rows}, indent=1))
        (arguments.out / "suite.html").write_text(page(rows))
        course = {k: v for k, v in row.items() if k not in ("course", "reasons")}
        print(json.dumps(course), flush=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        waiting = [
            pool.submit(run, name, *own, arguments) for name, own in systems(arguments).items()
        ]
        for one in waiting:
            keep(one.result())


if __name__ == "__main__":
    main()
