"""Write docs/gallery.md: the approved students of the suite, from its results.

python benchmarks/gallery.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/suite_h200.json"
PAGE = ROOT / "docs/gallery.md"
HOURS = "0.142"
BUILT = {
    "si": ("Silicon, 64 atoms", 'bulk("Si", "diamond", a=5.43, cubic=True) * 2'),
    "nacl": ("Rock salt, 64 atoms", 'bulk("NaCl", "rocksalt", a=5.64, cubic=True) * 2'),
    "ethanol": ("Ethanol, one molecule", 'molecule("CH3CH2OH")'),
}
"""Title of a system, and the expression that builds its structure with ASE."""
OTHERS = {
    "cuco": (
        "CO on Cu(111), 38 atoms",
        """```python
from ase.build import add_adsorbate, fcc111, molecule

atoms = fcc111("Cu", (3, 3, 4), vacuum=8.0)
add_adsorbate(atoms, molecule("CO"), 1.9, "ontop", mol_index=1)  # carbon down
atoms.write("cuco.extxyz")
```""",
    ),
    "hfo2": (
        "HfO₂, 12 atoms",
        "The structure is the first frame of `tests/data/systems/hfo2.extxyz` in SevenNet's "
        "repository, without its labels: save it as `hfo2.extxyz`.",
    ),
    "cuni": (
        "CuNi alloy, 108 atoms",
        """```python
import numpy as np
from ase.build import bulk

atoms = bulk("Cu", "fcc", a=3.58, cubic=True) * 3
atoms.symbols[np.random.default_rng(0).permutation(108)[:54]] = "Ni"
atoms.write("cuni.extxyz")
```

This run drew other places.""",
    ),
    "water": (
        "Liquid water, 64 molecules",
        "The structure is the first frame of `examples/water/data/data_0` in the repository of "
        "DeePMD-kit: save it as `water.extxyz`.",
    ),
}
"""Title of a system, and where its structure comes from."""

HEAD = """# Gallery

Students that one command made, each from one structure, and that passed every check. They are not
shipped: make yours by the same command. It took the seconds of the table on a GPU, and takes longer
on a CPU. What you get differs from these rows by chance and by version.

| System | Teacher | Student | Labels | Held out | Own MD | Speed-up | Seconds |
|---|---|---|---|---|---|---|---|
"""
END = """
## Conditions

{what}. Device: {device}; {cores} cores; {versions}. Commit {commit}, {date}.

*Held out* and *own MD* are fidelities of forces, on structures that did not train and on the
student's own dynamics: 1 − Σ|F_student − F_teacher| / Σ|F_teacher|. *Speed-up* is of a step in ASE,
on the smallest system. *Seconds* are those of the whole command, with two to six runs on the card
at a time.

Of {n} systems {left} were rejected with this budget: [Results](results.md) has them too.
`benchmarks/gallery.py` writes this page from `benchmarks/results/suite_h200.json`.
"""


def structure(name: str) -> tuple[str, str]:
    """Title of a system, and Markdown that says how to get its structure."""
    if name in OTHERS:
        return OTHERS[name]
    title, expression = BUILT[name]
    what = expression.split("(")[0]
    lines = [f"from ase.build import {what}", "", f"atoms = {expression}"]
    lines += [f'atoms.write("{name}.extxyz")']
    return title, "\n".join(["```python", *lines, "```"])


def page(suite: dict[str, Any]) -> str:
    """The page of the approved rows, those of highest fidelity first."""
    rows = [row for row in suite["rows"] if row["status"] == "approved"]
    rows.sort(key=lambda row: -row["fidelity_test"])
    table, parts = [], []
    for row in rows:
        title, how = structure(row["system"])
        name, teacher = row["system"], row["teacher"]
        cells = [title, f"`{teacher}`", f"`{row['student']}`", row["labels"]]
        cells += [f"{row['fidelity_test']:.3f}", f"{row['fidelity_own']:.3f}"]
        cells += [f"{row['speedup']:.0f} ×", f"{row['seconds']:.0f}"]
        table.append("| " + " | ".join(map(str, cells)) + " |")
        command = f"mlff-distiller distill {name}.extxyz --teacher {teacher} --out {name}"
        command += f" --temperature {row['temperature_K']:g}" if row["temperature_K"] != 300 else ""
        command += f" --max-hours {HOURS}"
        parts.append(f"\n## {title}\n\n{how}\n\n```bash\n{command}\n```\n")
    versions = ", ".join(f"{name} {own}" for name, own in suite["versions"].items())
    end = END.format(
        **suite
        | {"versions": versions, "n": len(suite["rows"]), "left": len(suite["rows"]) - len(rows)}
    )
    return HEAD + "\n".join(table) + "\n" + "".join(parts) + end


if __name__ == "__main__":
    PAGE.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
