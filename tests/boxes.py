"""Any box: cells of every shape and turn, periodic along some vectors or none."""

import numpy as np
from ase import Atoms
from hypothesis import strategies as st


def turned(rng: np.random.Generator) -> np.ndarray:
    """A rotation or, as often, one with a reflection."""
    return np.linalg.qr(rng.normal(size=(3, 3)))[0]


@st.composite
def boxes(draw, least_atoms: int = 1, most_atoms: int = 6, least: float = 2.0) -> Atoms:
    """H and O at random places in and around a cell with edges of ``least`` to 8 Å."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6), "seed"))
    n = draw(st.integers(least_atoms, most_atoms), "atoms")
    edges = [draw(st.floats(least, 8.0), "edge, Å") for _ in range(3)]
    skew = draw(st.floats(0.0, 1.2), "skew")
    cell = np.diag(edges) @ (np.eye(3) + skew * np.triu(rng.uniform(-1, 1, (3, 3)), 1))
    return Atoms(
        rng.choice(["H", "O"], n),
        rng.uniform(-1.0, 2.0, (n, 3)) @ cell,
        cell=cell,
        pbc=[draw(st.booleans(), f"periodic along {axis}") for axis in "abc"],
    )


def rotated(atoms: Atoms, turn: np.ndarray) -> Atoms:
    """All of it, the cell too."""
    new = atoms.copy()
    new.set_cell(atoms.cell.array @ turn)
    new.positions = atoms.positions @ turn
    return new
