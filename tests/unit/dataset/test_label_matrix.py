"""One crystal, slab, molecule and their labels in every format, spelling, unit and sign.

The files are written here, by hand or by ASE, from the right values; the import must give these
back, or refuse in words.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db import connect
from ase.io import write

from mlff_distiller.dataset import Dataset
from mlff_distiller.dataset.formats import Conventions
from mlff_distiller.dataset.importing import import_frames
from mlff_distiller.errors import ConfigError, DatasetError

PBC = {"crystal": [True] * 3, "slab": [True, True, False], "molecule": [False] * 3}
ENERGY = -7.25
FORCES = np.array([[0.5, -0.25, 0.125], [-0.5, 0.25, -0.125]])
STRESS = np.array([[0.01, 0.002, 0.003], [0.002, -0.02, 0.004], [0.003, 0.004, 0.05]])
"""eV, eV/Å, eV/Å³ and positive under tension: what the dataset must hold."""
ENERGIES = {"eV": 1.0, "hartree": units.Hartree, "Ry": units.Ry, "kcal/mol": units.kcal / units.mol}
LENGTHS = {"angstrom": 1.0, "bohr": units.Bohr, "nm": 10.0}
PRESSURES = {"eV/angstrom^3": 1.0, "GPa": units.GPa, "kbar": 0.1 * units.GPa}
ORDERS = {
    "xx,yy,zz,yz,xz,xy": [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)],
    "xx,yy,zz,xy,yz,zx": [(0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (0, 2)],
}


def structure(kind: str = "crystal") -> Atoms:
    atoms = bulk("NaCl", "rocksalt", 5.6)
    atoms.positions += [[0.1, 0.2, 0.3], [0.4, 0.5, 0.7]]
    atoms.pbc = PBC[kind]
    return atoms


@dataclass(frozen=True)
class Case:
    """A file, what is said of it, and what must come of it."""

    name: str
    write: Callable[[Path], None]
    said: dict[str, Any] = field(default_factory=dict)
    format: str | None = None
    kind: str = "crystal"
    has_stress: bool = False
    info: dict[str, float] = field(default_factory=dict)


def numbers(array: np.ndarray) -> str:
    return " ".join(map(repr, np.asarray(array, float).ravel().tolist()))


def xyz(
    *words: str, kind: str = "crystal", column: str = "forces", factor: float = 1.0,
    energy: str | None = None, length: float = 1.0, lattice: str = "Lattice",
    properties: str = "Properties", pbc: str | None = "",
) -> str:  # fmt: skip
    """One frame; ``factor`` times the forces are in ``column``, lengths in units of ``length``."""
    atoms = structure(kind)
    if pbc == "":
        pbc = 'pbc="' + " ".join("FT"[int(axis)] for axis in atoms.pbc) + '"'
    comment = [f"energy={ENERGY!r}" if energy is None else energy]
    comment += [f'{lattice}="{numbers(atoms.cell.array / length)}"'] if lattice else []
    comment += [f"{properties}=species:S:1:pos:R:3:{column}:R:3", *([pbc] if pbc else []), *words]
    rows = [
        f"{symbol} {numbers(position / length)} {numbers(factor * force)}\n"
        for symbol, position, force in zip(atoms.symbols, atoms.positions, FORCES, strict=True)
    ]
    return f"{len(atoms)}\n{' '.join(comment)}\n{''.join(rows)}"


def text(content: str, compress: Callable[[bytes], bytes] = bytes) -> Callable[[Path], None]:
    return lambda path: Path(path).write_bytes(compress(content.encode())) and None


def keys_and_units() -> list[Case]:
    made = []
    for key, column, sign in (
        ("REF_energy", "REF_forces", 1), ("dft_energy", "dft_force", 1),
        ("TotEnergy", "forces_ref", 1), ("total_energy", "gradient", -1), ("energy", "dE_grad", -1),
    ):  # fmt: skip
        for unit, length in (("eV", "angstrom"), ("hartree", "bohr"), ("kcal/mol", "angstrom")):
            scale = sign * LENGTHS[length] / ENERGIES[unit]
            content = xyz(
                column=column, factor=scale, energy=f"{key}={ENERGY / ENERGIES[unit]!r}",
                length=LENGTHS[length],
            )  # fmt: skip
            said = {
                "energy_key": key, "forces_key": column, "energy_unit": unit,
                "forces_unit": f"{unit}/{length}",
            }  # fmt: skip
            said |= {"length_unit": length} if length != "angstrom" else {}
            made.append(Case(f"{column} {unit[:4]}.xyz", text(content), said))
    return made


def stresses() -> list[Case]:
    made = []
    for kind in ("crystal", "slab"):
        for unit, sign in zip(PRESSURES, ("tension", "compression", "tension"), strict=True):
            value = STRESS / PRESSURES[unit] * (1 if sign == "tension" else -1)
            said = {"stress_unit": unit, "stress_sign": sign}
            for name in ("stress", "REF_stress"):
                content = xyz(f'{name}="{numbers(value)}"', kind=kind)
                given = said | ({} if name == "stress" else {"stress_key": name})
                case = Case(f"{kind} {name} {unit[:2]}.xyz", text(content), given, None, kind, True)
                made.append(case)
        for unit, sign in (("eV", "compression"), ("hartree", "tension")):
            volume = abs(np.linalg.det(structure().cell.array))
            value = STRESS * volume / ENERGIES[unit] * (-1 if sign == "compression" else 1)
            said = {"virial_key": "virial", "stress_unit": unit, "stress_sign": sign}
            content = xyz(f'virial="{numbers(value)}"', kind=kind)
            made.append(Case(f"{kind} virial {unit}.xyz", text(content), said, None, kind, True))
    for order, places in ORDERS.items():
        for name in ("stress", "my_stress"):
            six = numbers(np.array([STRESS[place] for place in places]))
            said = {
                "stress_key": name, "stress_unit": "eV/angstrom^3", "stress_sign": "tension",
                "voigt_order": order,
            }  # fmt: skip
            content = xyz(f'{name}="{six}"')
            made.append(Case(f"{name} {order[9:]}.xyz", text(content), said, None, "crystal", True))
    content = xyz(f'stress="{numbers(STRESS)}"')
    made.append(Case("no stress.xyz", text(content), {"stress_key": "none"}))
    return made


def spellings() -> list[Case]:
    made = [
        Case("lattice.xyz", text(xyz(lattice="lattice", properties="properties", pbc=None))),
        Case("LATTICE.xyz", text(xyz(lattice="LATTICE", properties="PROPERTIES", pbc=None))),
        Case("spaces.xyz", text(xyz(pbc=None).replace("Lattice=", "Lattice = "))),
        Case("windows.xyz", text(xyz().replace("\n", "\r\n"))),
        Case("blank end.xyz", text(xyz() + "\n\n")),
        Case("upper.XYZ", text(xyz())),
        Case("charge.xyz", text(xyz("charge=1", "spin=2")), info={"charge": 1, "spin": 2}),
        Case("total.xyz", text(xyz("total_charge=-1")), info={"charge": -1}),
        Case("a.xyz.gz", text(xyz(), gzip.compress)),
        Case("a.extxyz.xz", text(xyz(), lzma.compress)),
        Case("a.xyz.bz2", text(xyz(), bz2.compress)),
        Case("train.dat", text(xyz()), format="extxyz"),
    ]
    for number, pbc in enumerate((
        'pbc="F F F"', "pbc=[False,False,False]", 'pbc="[False False False]"', 'PBC="f f f"',
        'pbc="0 0 0"', "pbc='False False False'",
    )):  # fmt: skip
        made.append(Case(f"pbc {number}.xyz", text(xyz(pbc=pbc)), kind="molecule"))
    made.append(Case("slab.xyz", text(xyz(kind="slab")), kind="slab"))
    return made


def calculated(kind: str, *, constrained: bool) -> Atoms:
    atoms = structure(kind)
    if constrained:
        atoms.set_constraint(FixAtoms([0]))
    results = {"energy": ENERGY, "forces": FORCES.copy()}
    if kind == "crystal":
        results["stress"] = np.array([STRESS[place] for place in ORDERS["xx,yy,zz,yz,xz,xy"]])
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def by_ase() -> list[Case]:
    """ASE's own files hold ASE's units, and forces as they are before constraints."""
    made = []
    for kind in PBC:
        for constrained in (False, True):
            atoms = calculated(kind, constrained=constrained)
            for name in ("a.traj", "a.db", "a.json", "a.extxyz"):
                if name == "a.extxyz" and kind == "crystal":
                    said = {"stress_unit": "eV/angstrom^3", "stress_sign": "tension"}
                else:
                    said = {}

                def to(path: Path, atoms: Atoms = atoms, name: str = name) -> None:
                    if name in ("a.db", "a.json"):
                        with connect(path) as database:
                            database.write(atoms)
                    else:
                        write(path, atoms)

                fixed = " fixed" if constrained else ""
                case = Case(f"{kind}{fixed} {name}", to, said, None, kind, kind == "crystal")
                made.append(case)
    return made


def nep() -> list[Case]:
    volume = abs(np.linalg.det(structure().cell.array))
    virial = f'virial="{numbers(-STRESS * volume)}"'
    return [
        Case("a.nep", text(xyz(virial)), {}, "nep", "crystal", True),
        Case("b.nep", text(xyz(column="force", lattice="lattice", pbc=None)), {}, "nep"),
        Case("c.nep", text(xyz(virial.upper(), column="Force")), {}, "nep", "crystal", True),
        Case("d.nep", text(xyz(kind="slab", energy=f"Energy = {ENERGY!r}")), {}, "nep", "slab"),
        Case("e.nep", text(xyz("charge=1")), {}, "nep", info={"charge": 1}),
    ]


def deepmd() -> list[Case]:
    def to(path: Path, kind: str, names: bool, virial: bool) -> None:
        atoms, inside = structure(kind), Path(path) / "set.000"
        inside.mkdir(parents=True)
        (Path(path) / "type.raw").write_text("0\n1\n")
        if names:
            (Path(path) / "type_map.raw").write_text("Na\nCl\n")
        arrays = {"coord": atoms.positions, "energy": np.array([ENERGY]), "force": FORCES}
        if kind == "molecule":
            (Path(path) / "nopbc").touch()
        else:
            arrays["box"] = atoms.cell.array
        if virial:
            arrays["virial"] = -STRESS * atoms.get_volume()
        for name, array in arrays.items():
            rows = array if name == "energy" else array.reshape(1, -1)
            np.save(inside / f"{name}.npy", rows.astype(np.float64))

    return [
        Case("sys 1", lambda p: to(p, "crystal", True, True), {}, None, "crystal", True),
        Case("sys 2", lambda p: to(p, "crystal", False, False), {"type_map": ("Na", "Cl")}),
        Case("sys 3", lambda p: to(p, "molecule", True, False), {}, None, "molecule"),
    ]


def hdf5() -> list[Case]:
    def spice(path: Path) -> None:
        atoms = structure("molecule")
        with h5py.File(path, "w") as file:
            group = file.create_group("salt")
            group["atomic_numbers"] = atoms.numbers
            group["conformations"] = atoms.positions[None] / units.Bohr
            group["dft_total_energy"] = np.array([ENERGY / units.Hartree])
            group["dft_total_gradient"] = -FORCES[None] * units.Bohr / units.Hartree

    def mace(path: Path, kind: str, voigt: bool) -> None:
        atoms = structure(kind)
        with h5py.File(path, "w") as file:
            group = file.create_group("config_batch_0/config_0")
            group["atomic_numbers"], group["positions"] = atoms.numbers, atoms.positions
            group["cell"], group["pbc"] = atoms.cell.array, atoms.pbc
            own = group.create_group("properties")
            own["energy"], own["forces"] = ENERGY, FORCES
            if kind == "crystal":
                six = np.array([STRESS[place] for place in ORDERS["xx,yy,zz,yz,xz,xy"]])
                own["stress"] = six if voigt else STRESS

    return [
        Case("spice.h5", spice, kind="molecule"),
        Case("mace.h5", lambda p: mace(p, "crystal", False), has_stress=True),
        Case("voigt.h5", lambda p: mace(p, "crystal", True), has_stress=True),
        Case("slab.h5", lambda p: mace(p, "slab", False), kind="slab"),
    ]


CASES = [*keys_and_units(), *stresses(), *spellings(), *by_ase(), *nep(), *deepmd(), *hdf5()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_right_values_come_in(case: Case, tmp_path: Path) -> None:
    path = tmp_path / case.name
    case.write(path)
    report = import_frames([path], tmp_path / "out", Conventions(**case.said), format=case.format)
    assert (report.n_imported, report.n_rejected) == (1, 0), list(tmp_path.glob("out/*"))
    [record] = Dataset(tmp_path / "out").iterate()
    wanted = structure(case.kind)
    assert record.atoms.numbers.tolist() == wanted.numbers.tolist()
    assert record.atoms.pbc.tolist() == wanted.pbc.tolist()
    assert np.abs(record.atoms.positions - wanted.positions).max() < 1e-12
    if wanted.pbc.any():
        assert np.abs(record.atoms.cell.array - wanted.cell.array).max() < 1e-12
    assert record.atoms.info == case.info
    assert float(record.labels["energy"]) == pytest.approx(ENERGY, rel=1e-12)
    assert np.abs(record.labels["forces"] - FORCES).max() < 1e-6
    assert ("stress" in record.labels) == case.has_stress
    if case.has_stress:
        assert np.abs(record.labels["stress"] - STRESS).max() < 1e-12


NINE = numbers(STRESS)
REFUSED = {
    "other names": (xyz(column="REF_forces"), {}, "numbers for the forces"),
    "short names": (
        xyz(column="dft_force", energy="DFT_E=-1.5"),
        {},
        "(?s)numbers for the energy.*numbers for the forces.*DFT_E; dft_force.*--energy-unit eV",
    ),
    "shorter names": (
        xyz(column="dft_F", energy="dft_E=-1.5"),
        {},
        "(?s)numbers for the energy.*numbers for the forces.*dft_E; dft_F.*--forces-unit eV",
    ),
    "no unit": (xyz(column="f_force"), {"forces_key": "f_force"}, "unit of 'f_force' is not given"),
    "two energies": (xyz("REF_energy=-3"), {}, "numbers for the energy"),
    "one unit": (xyz(), {"energy_unit": "hartree"}, "unit of 'forces' is not given"),
    "other unit": (xyz(), {"forces_unit": "hartree/bohr"}, "unit of 'energy' is not given"),
    "a length": (xyz(), {"length_unit": "bohr"}, "(?s)unit of 'energy'.*unit of 'forces'"),
    "a stress": (xyz(f'stress="{NINE}"'), {}, "unit and sign of 'stress' are not given"),
    "no sign": (xyz(f'stress="{NINE}"'), {"stress_unit": "GPa"}, "unit and sign of 'stress'"),
    "which stress": (xyz(f'virial="{NINE}"'), {}, "numbers for the stress"),
    "a pressure's unit": (
        xyz(f'virial="{NINE}"'),
        {"virial_key": "virial", "stress_unit": "GPa", "stress_sign": "tension"},
        "not a unit of a virial",
    ),
    "no order": (
        xyz('stress="1 2 3 4 5 6"'),
        {"stress_key": "stress", "stress_unit": "GPa", "stress_sign": "tension"},
        "six numbers, whose order is not given",
    ),
    "an order": (
        xyz('stress="1 2 3 4 5 6"'),
        {"stress_key": "stress", "stress_unit": "GPa", "stress_sign": "tension",
         "voigt_order": "xx,yy,zz,xx,xz,xy"},
        "--voigt-order is wrong",
    ),
    "empty": ("", {}, "is empty"),
    "cut": (xyz()[:-40] + "\n", {}, None),
    "early": (xyz().rsplit("Cl", 1)[0], {}, "ends early"),
    "no number": ("two\n" + xyz()[2:], {}, "not the start of an extended XYZ frame"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_left_open_is_asked_in_words(name: str, tmp_path: Path) -> None:
    content, said, words = REFUSED[name]
    path = tmp_path / "a.xyz"
    path.write_text(content)
    if words is None:  # a row that lacks a number is the frame's own fault
        assert import_frames([path], tmp_path / "out", Conventions(**said)).n_rejected == 1
        return
    with pytest.raises((DatasetError, ConfigError), match=words) as error:
        import_frames([path], tmp_path / "out", Conventions(**said))
    assert "Error" not in str(error.value)
    assert not (tmp_path / "out").exists()


REJECTED = {
    "no forces": (xyz(column="weights"), {}, "no forces; --forces-key names it if it is one of w"),
    "no energy": (
        xyz("U0=-1.5", "frame=7", energy="gap=1.1"),
        {},
        "no energy; --energy-key names it if it is one of gap, U0",
    ),
    "another key": (xyz(), {"forces_key": "F", "forces_unit": "eV/angstrom"}, "no forces (no 'F')"),
    "nan": (xyz(energy="energy=nan"), {}, "energy is not finite"),
    "inf": (xyz(factor=np.inf), {}, "forces is not finite"),
    "too large": (xyz(factor=1e40), {}, "forces is not finite, or too large"),
    "no cell": (
        xyz(f'virial="{NINE}"', kind="molecule", lattice=""),
        {"virial_key": "virial", "stress_unit": "eV", "stress_sign": "tension"},
        "a virial needs a cell",
    ),
    "asymmetric": (
        xyz(f'stress="{numbers(np.arange(9))}"'),
        {"stress_unit": "GPa", "stress_sign": "tension"},
        "stress is not symmetric",
    ),
    "pbc": (xyz(pbc='pbc="None"'), {}, "is not three of T and F"),
    "no cell that repeats": (xyz(lattice=""), {}, "lattice vector 0, which is zero"),
    "dummy": (xyz().replace("Na ", "X "), {}, "the number of atom 0 is not that of an element"),
    "charge": (xyz("charge=plus"), {}, "charge"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_a_frame_that_is_wrong_is_named_with_the_reason(name: str, tmp_path: Path) -> None:
    content, said, words = REJECTED[name]
    path = tmp_path / "a.xyz"
    path.write_text(content)
    report = import_frames([path], tmp_path / "out", Conventions(**said))
    assert (report.n_imported, report.n_rejected) == (0, 1)
    [line] = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert words in json.loads(line)["problem"]
    assert json.loads(line)["file"] == str(path)


def test_the_matrix_is_large() -> None:
    assert len(CASES) >= 40
