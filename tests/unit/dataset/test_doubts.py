"""What ASE's readers guess is refused, and what a calculation did not finish is no label."""

import gzip
import warnings
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write

from mlff_distiller.dataset.formats import read_frames
from mlff_distiller.errors import StructureError
from mlff_distiller.labeling.structures import read_frames as read_structures

BOX = "ITEM: BOX BOUNDS pp pp pp\n0 9\n0 9\n0 9\n"


def dump(columns: str, *rows: str) -> str:
    head = f"ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n{len(rows)}\n{BOX}ITEM: ATOMS {columns}\n"
    return head + "".join(f"{row}\n" for row in rows)


DATA = "made\n\n2 atoms\n2 atom types\n0 9 xlo xhi\n0 9 ylo yhi\n0 9 zlo zhi\n\n"
ROWS = "Atoms # atomic\n\n1 1 0 0 0\n2 2 0 0 2\n"


def atom(name: str, element: str, x: float, place: str = " ", share: float = 1.0) -> str:
    return (
        f"ATOM      1 {name:<4}{place}ALA A   1    {x:8.3f}{0:8.3f}{0:8.3f}{share:6.2f}"
        f"{0:6.2f}          {element:>2}\n"
    )


GUESSES = {
    "names.gro": ("made\n 1\n    1ALA     CA    1   0.1     0.1     0.1\n 1 1 1\n", "elements"),
    "types.dump": (dump("id type x y z", "1 1 0 0 0", "2 2 0 0 2"), "elements to its types"),
    "types.dump.gz": (dump("id type x y z", "1 1 0 0 0"), "elements to its types"),
    "second.dump": (
        dump("id element x y z", "1 Cu 0 0 0") + dump("id type x y z", "1 1 0 0 0"),
        "elements to its types",
    ),
    "heavy.dump": (dump("id type mass x y z", "1 1 3.024 0 0 0"), "mass of 3.024 u"),
    "types.lammps-data": (DATA + ROWS, "elements to its types"),
    "beads.lammps-data": (DATA + "Masses\n\n1 63.55\n2 54.0\n\n" + ROWS, "mass of 54 u"),
    "names.pdb": (atom(" CA ", "", 0.0), "the element of an atom"),
    "places.pdb": (atom(" CA ", "C", 0, "A") + atom(" CA ", "C", 0.3, "B"), "alternate locations"),
    "shares.pdb": (atom(" CA ", "C", 0.0, share=0.5), "occupied in part, by 0.5"),
}


@pytest.mark.parametrize("name", GUESSES)
def test_a_guess_of_the_reader_is_refused(name: str, tmp_path: Path) -> None:
    text, words = GUESSES[name]
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    with pytest.raises(StructureError, match=words):
        read_structures(path)


def test_what_says_its_elements_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.dump").write_text(dump("id type element x y z", "1 1 Al 0 0 0", "2 2 O 0 0 2"))
    (tmp_path / "b.dump").write_text(dump("id type mass x y z", "1 1 26.98 0 0 0"))
    (tmp_path / "c.pdb").write_text(
        "CRYST1    1.000    1.000    1.000  90.00  90.00  90.00 P 1           1\n"
        + atom(" CA ", "C", 0.0, "A")
        + atom("CA  ", "CA", 3.0, share=0.0)
        + "END\n"
    )
    assert str(read_structures(tmp_path / "a.dump")[0].symbols) == "AlO"
    assert str(read_structures(tmp_path / "b.dump")[0].symbols) == "Al"
    [atoms] = read_structures(tmp_path / "c.pdb")
    assert str(atoms.symbols) == "CCa"
    assert not atoms.pbc.any()
    assert atoms.cell.rank == 0


def test_every_model_of_a_pdb_has_its_cell(tmp_path: Path) -> None:
    model = "MODEL        1\n" + atom(" CA ", "C", 0.0) + "ENDMDL\n"
    cell = "CRYST1    9.000    8.000    7.000  90.00  90.00  90.00 P 1           1\n"
    (tmp_path / "a.pdb").write_text(cell + 2 * model + "END\n")
    frames = read_structures(tmp_path / "a.pdb")
    assert [atoms.cell.lengths().tolist() for atoms in frames] == [[9.0, 8.0, 7.0]] * 2
    assert all(atoms.pbc.all() for atoms in frames)


@pytest.mark.parametrize("occupancies", [[0.5, 0.5], [0.4, 1.0]])
def test_partial_occupancy_is_no_structure(occupancies: list[float], tmp_path: Path) -> None:
    sites = f"Cu1 Cu 0 0 0 {occupancies[0]}\nAu1 Au 0 0 {occupancies[1] - 0.5:g} {occupancies[1]}\n"
    loop = "_label _type_symbol _fract_x _fract_y _fract_z _occupancy".replace(" _", " _atom_site_")
    lengths = "".join(f"_cell_length_{axis} 3.8\n_cell_angle_{angle} 90\n" for axis, angle in (
        ("a", "alpha"), ("b", "beta"), ("c", "gamma"),
    ))  # fmt: skip
    keys = "_atom_site" + "\n".join(loop.split()) + "\n"
    text = f"data_x\n{lengths}_space_group_name_H-M_alt 'P 1'\nloop_\n{keys}{sites}"
    (tmp_path / "a.cif").write_text(text)
    with pytest.raises(StructureError, match="frame 0: a site is occupied in part"):
        read_structures(tmp_path / "a.cif")
    [frame] = read_frames(tmp_path / "a.cif")
    assert "occupied in part" in frame.problem
    (tmp_path / "a.cif").write_text(text.replace(sites, "Cu1 Cu 0 0 0 1.0\n"))
    assert str(read_structures(tmp_path / "a.cif")[0].symbols) == "Cu"


def outcar(atoms: Atoms, *runs: tuple[int, str, float]) -> str:
    """As VASP writes it: (electronic steps, why they ended, energy) of each ionic step."""
    names, counts = np.unique(atoms.get_chemical_symbols(), return_counts=True)
    text = " vasp.6.3.0 20Jan22 complex\n"
    text += "".join(f" POTCAR:    PAW_PBE {name} 22Jun2005\n" for name in names)
    text += f"   ions per type = {' '.join(map(str, counts))}\n"
    text += "   ISPIN  =      1    spin polarized calculation?\n   NELM   =      3;   NELMIN=  2\n"
    for number, (steps, why, energy) in enumerate(runs, 1):
        text += "".join(f"--- Iteration {number:6d}({k + 1:4d})  ---\n" for k in range(steps))
        text += f"------------ aborting loop {why} ----------\n" if why else ""
        text += "      direct lattice vectors                 reciprocal lattice vectors\n"
        for row in atoms.cell:
            text += "  ".join(f"{x:14.9f}" for x in [*row, 0.0, 0.0, 0.0]) + "\n"
        text += " POSITION                                       TOTAL-FORCE (eV/Angst)\n ---\n"
        for row in atoms.positions:
            text += "  ".join(f"{x:12.5f}" for x in [*row, 0.1, 0.0, 0.0]) + "\n"
        text += " ---\n  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)\n  -------\n"
        text += f"  free  energy   TOTEN  =  {energy:16.8f} eV\n\n"
        text += f"  energy  without entropy= {energy:12.8f}  energy(sigma->0) = {energy:12.8f}\n"
    return text


def test_an_scf_that_stopped_is_no_label(tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True)
    reached = "because EDIFF is reached"
    runs = [(2, reached, -7.0), (3, "", 18.3), (3, reached, -7.1), (2, reached, -7.1)]
    runs += [(1, "because hard stop was set", 1.0), (2, "EDIFF was not reached", 2.0)]
    runs += [(2, "", -7.2)]
    (tmp_path / "OUTCAR").write_text(outcar(atoms, *runs))
    frames = list(read_frames(tmp_path / "OUTCAR"))
    assert [k for k, frame in enumerate(frames) if frame.problem] == [1, 2, 4, 5]
    assert [float(frame.labels["energy"]) for frame in frames if frame.labels] == [-7.0, -7.1, -7.2]
    assert "stopped before it converged" in frames[1].problem


@pytest.mark.parametrize(
    ("columns", "rows", "told"),
    [
        ("id type element x y z", ("1 1 C 0 0 0", "2 2 C 0 0 2"), "all atoms are C, of 2 types"),
        ("id element x y z", ("1 C 0 0 0", "2 C 0 0 2"), "all atoms are C:"),
        ("id type element x y z", ("1 1 C 0 0 0", "2 2 O 0 0 2"), ""),
        ("id element mass x y z", ("1 C 12.011 0 0 0", "2 C 12.011 0 0 2"), ""),
    ],
)
def test_elements_that_lammps_writes_by_default(
    columns: str, rows: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    (tmp_path / "a.lammpstrj").write_text(dump(columns, *rows))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(read_structures(tmp_path / "a.lammpstrj")[0]) == 2
    assert ["all atoms are C" in str(one.message) for one in caught] == [True] * bool(told)
    assert not told or told in str(caught[0].message)


def test_masses_tell_that_c_is_none(tmp_path: Path) -> None:
    text = dump("id element mass x y z", "1 C 26.98 0 0 0", "2 C 26.98 0 0 2")
    (tmp_path / "a.lammpstrj").write_text(text)
    with pytest.raises(StructureError, match="does not assign elements to its types"):
        read_structures(tmp_path / "a.lammpstrj")


def as_with_ml(text: str, n_only: int) -> str:
    """Each step with what VASP's force field says of it first, and ``n_only`` more at the end."""
    said = (
        "  ML FORCE on cell =-STRESS in cart. coord. units (eV/cell)\n"
        "  in kB       9.00000     9.00000     9.00000     0.00000     0.00000     0.00000\n"
        "      direct lattice vectors                 reciprocal lattice vectors\n"
        + 3 * "     9.0 9.0 9.0 9.0 9.0 9.0\n"
        + "  POSITION                                       TOTAL-FORCE (eV/Angst) (ML)\n ---\n"
        + 4
        * "      0.00000      0.00000      0.00000         9.000000      9.000000      9.000000\n"
        + " ---\n  ML FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)\n  -------\n"
        "  free  energy ML TOTEN  =       -99.00000000 eV\n\n"
        "  ML energy  without entropy=      -99.00000000  ML energy(sigma->0) =      -99.00000000\n"
    )
    first, *steps = text.split("      direct lattice vectors")
    return (said + "      direct lattice vectors").join([first, *steps]) + n_only * said


def test_what_vasp_predicts_is_no_label(tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True)
    reached = "because EDIFF is reached"
    text = as_with_ml(outcar(atoms, (2, reached, -7.0), (3, reached, -7.1)), 2)
    (tmp_path / "OUTCAR").write_text(text)
    frames = list(read_frames(tmp_path / "OUTCAR"))
    assert len(frames) == 4
    assert float(frames[0].labels["energy"]) == -7.0
    assert np.abs(frames[0].labels["forces"] - [0.1, 0.0, 0.0]).max() < 1e-9
    assert np.allclose(frames[0].atoms.cell, atoms.cell)
    assert "stopped before" in frames[1].problem
    assert all("own force field has predicted" in frame.problem for frame in frames[2:])
    with pytest.raises(StructureError, match=r"(?s)no structure of step 2.*XDATCAR"):
        read_structures(tmp_path / "OUTCAR")


def test_a_run_of_predictions_alone_has_no_labels(tmp_path: Path) -> None:
    text = as_with_ml(outcar(bulk("Cu", cubic=True)), 3)
    (tmp_path / "OUTCAR").write_text(text)
    frames = list(read_frames(tmp_path / "OUTCAR"))
    assert ["predicted" in frame.problem for frame in frames] == [True] * 3


def test_energies_and_forces_of_vasp_have_their_dispersion(tmp_path: Path) -> None:
    text = outcar(bulk("Cu", cubic=True), (2, "because EDIFF is reached", -7.0))
    text = text.replace("(eV/Angst)", "(eV/Angst),        FORCE-w/o vdW (eV/Angst)")
    text = text.replace("0.10000       0.00000       0.00000", "0.1 0.0 0.0 9.0 NaN 9.0")
    text = text.replace("-7.00000000 eV", "-7.00000000 eV    w/o vdW =       -6.00000000 eV")
    text = text.replace("-7.00000000  ener", "-7.00000000 eV    w/o vdW =      -6.00000000  ener")
    text = text.replace("-7.00000000\n", "-7.00000000 eV    w/o vdW =      -6.00000000\n")
    assert text.count("w/o vdW") == 4
    (tmp_path / "OUTCAR").write_text(text)
    [frame] = read_frames(tmp_path / "OUTCAR")
    assert float(frame.labels["energy"]) == -7.0
    assert np.abs(frame.labels["forces"] - [0.1, 0.0, 0.0]).max() < 1e-9


def test_steps_without_positions_are_named_and_the_others_read(tmp_path: Path) -> None:
    """As ``NWRITE = 0`` leaves them."""
    reached = "because EDIFF is reached"
    text = outcar(bulk("Cu", cubic=True), (2, reached, -7.0), (2, reached, -7.1))
    first, second = text[: (cut := text.rindex(" POSITION"))], text[cut:]
    (tmp_path / "OUTCAR").write_text(first + second[second.index("  FREE ENERGIE") :])
    frames = list(read_frames(tmp_path / "OUTCAR"))
    assert [bool(frame.problem) for frame in frames] == [False, True]
    assert "NWRITE" in frames[1].problem


def test_more_species_than_vasp_counts_are_refused(tmp_path: Path) -> None:
    text = outcar(bulk("NaCl", "rocksalt", 5.6), (2, "because EDIFF is reached", -7.0))
    names = "".join(f" POTCAR:    PAW_PBE {name} 22Jun2005\n" for name in ("Cl", "Na"))
    text = text.replace("complex\n", "complex\n" + names)  # VASP says them twice
    (tmp_path / "OUTCAR").write_text(text.replace("ions per type = 1 1", "ions per type = 1"))
    with pytest.raises(StructureError, match=r"(?s)how many atoms.*vasprun"):
        list(read_frames(tmp_path / "OUTCAR"))


def test_a_structure_without_atoms_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("0\n\n")
    with pytest.raises(StructureError, match="frame 0: it has no atoms"):
        read_structures(tmp_path / "a.xyz")


def test_joined_outputs_are_refused(tmp_path: Path) -> None:
    step = (2, "because EDIFF is reached", -7.0)
    parts = [outcar(atoms, step) for atoms in (bulk("Cu"), bulk("Si"))]
    (tmp_path / "OUTCAR").write_text("".join(parts))
    with pytest.raises(StructureError, match="several joined outputs"):
        list(read_frames(tmp_path / "OUTCAR"))
    with pytest.raises(StructureError, match="several joined outputs"):
        read_structures(tmp_path / "OUTCAR")


def vasprun(*steps: int) -> str:
    vectors = "".join(f"<v>{' '.join(map(str, row))}</v>" for row in 3.6 * np.eye(3))
    place = (
        f'<structure {{}}><crystal><varray name="basis">{vectors}</varray></crystal>'
        '<varray name="positions"><v>0 0 0</v></varray></structure>'
    )
    energy = '<energy><i name="e_fr_energy">-3.7</i><i name="e_0_energy">-3.7</i></energy>'
    scf = f"<scstep>{energy}</scstep>"
    forces = '<varray name="forces"><v>0 0 0</v></varray>'
    text = (
        '<modeling><parameters><i type="int" name="NELM">3</i>'
        '<i type="int" name="NELM">1</i></parameters><kpoints></kpoints>'
        '<atominfo><array name="atoms"><set><rc><c>Cu</c><c>1</c></rc></set></array></atominfo>'
    )
    text += place.format('name="initialpos"')
    for n in steps:
        text += f"<calculation>{n * scf}{place.format('')}{forces}{energy}</calculation>"
    return text + "</modeling>"


def test_the_last_step_allowed_is_one_too_few(tmp_path: Path) -> None:
    (tmp_path / "vasprun.xml").write_text(vasprun(2, 3, 1))
    frames = list(read_frames(tmp_path / "vasprun.xml"))
    assert [bool(frame.problem) for frame in frames] == [False, True, False]


def test_the_energy_that_a_dump_lacks_is_not_zero(tmp_path: Path) -> None:
    (tmp_path / "a.dump").write_text(dump("id element x y z fx fy fz", "1 Al 0 0 0 0.1 0 0"))
    [frame] = read_frames(tmp_path / "a.dump")
    assert frame.problem == "no energy"


def test_structures_are_read_like_labels(tmp_path: Path) -> None:
    """One door: names in any case, compressed or not, as for `data import`."""
    text = '1\nlattice="9 0 0 0 9 0 0 0 9" properties=species:S:1:pos:R:3\nCu 0 0 0\n'
    (tmp_path / "a.xyz").write_text(text)
    (tmp_path / "b.xyz.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("a.xyz", "b.xyz.gz"):
        [atoms] = read_structures(tmp_path / name)
        assert atoms.cell.lengths().tolist() == [9.0] * 3
        assert atoms.pbc.all()


def test_a_file_may_have_an_at_sign_in_its_name(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(tmp_path / "a@b.traj", bulk("Cu"))
        assert len(read_structures(tmp_path / "a@b.traj")) == 1
