"""Series for plots, and frames for the viewer."""

import base64

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from mlff_distiller.md import Ensemble
from mlff_distiller.validation.series import movie, series
from mlff_distiller.validation.trajectory import Trajectory


def trajectory(atoms: Atoms, n: int, ensemble: str = "nvt", why: str = "") -> Trajectory:
    """Atoms that drift by 0.05 Å a frame along x, and tremble."""
    rng = np.random.default_rng(0)
    walk = np.arange(n)[:, None, None] * np.array([0.05, 0.0, 0.0])
    positions = atoms.positions + walk + 0.02 * rng.normal(size=(n, len(atoms), 3))
    velocities = rng.normal(size=(n, len(atoms), 3))
    return Trajectory(
        *(atoms, Ensemble(ensemble=ensemble, temperature_K=(300.0,)), 1.0, n, not why),
        *(0.004 * np.arange(n), positions, velocities, rng.normal(size=n), why),
    )


def places(film: dict) -> np.ndarray:
    packed = np.frombuffer(base64.b64decode(film["positions"]), "<i2")
    return film["scale"] * packed.reshape(len(film["time_ps"]), len(film["kinds"]), 3)


def test_frames_of_a_molecule_are_those_of_the_run():
    run = trajectory(molecule("CH3CH2OH"), 345)
    film = movie(run)
    assert len(film["time_ps"]) == 100
    assert film["time_ps"][0] == 0.0
    assert film["time_ps"][-1] == pytest.approx(0.004 * 344)
    assert film["cell"] is None
    assert film["scale"] < 1e-3
    np.testing.assert_allclose(places(film)[[0, -1]], run.positions[[0, -1]], atol=film["scale"])
    symbols = [film["elements"][kind]["symbol"] for kind in film["kinds"]]
    assert symbols == run.atoms.get_chemical_symbols()
    assert {own["symbol"]: own["color"] for own in film["elements"]}["O"] == "#ff0d0d"


def test_frames_of_a_crystal_are_wrapped_as_little_as_can_be():
    atoms = bulk("Cu", cubic=True) * 2
    run = trajectory(atoms, 300)  # the last frame is two cells away
    seen = places(movie(run))
    scaled = seen @ np.linalg.inv(atoms.cell.array)
    assert scaled.min() > -0.11
    assert scaled.max() < 1.11
    images = (seen[-1] - run.positions[-1]) @ np.linalg.inv(atoms.cell.array)
    np.testing.assert_allclose(images, images.round(), atol=1e-3)
    still = trajectory(atoms, 20).part(0, 1)
    assert places(movie(still)).shape == (1, 32, 3)
    jumps = np.abs(np.diff(places(movie(trajectory(atoms, 3))), axis=0))
    assert jumps.max() < 0.3


def test_large_systems_have_fewer_frames_or_none():
    atoms = bulk("Cu", cubic=True) * 7  # 1,372 atoms
    assert len(movie(trajectory(atoms, 200))["time_ps"]) == 100_000 // 1372
    assert movie(trajectory(bulk("Cu", cubic=True) * 8, 2)) is None
    assert movie(trajectory(atoms, 2).part(0, 0)) is None


def test_the_run_that_broke_is_shown():
    atoms = molecule("H2O")
    warm, free = trajectory(atoms, 50), trajectory(atoms, 50, "nve")
    broken = trajectory(atoms, 7, "nve", "it exploded")
    assert series([warm], [free])["movie"]["ensemble"] == "nvt"
    assert series([None], [free])["movie"]["ensemble"] == "nve"
    film = series([warm, warm], [free, broken])["movie"]
    assert film["ensemble"] == "nve"
    assert len(film["time_ps"]) == 7
    early = trajectory(atoms, 3, "nvt", "NaN")
    assert series([early], [None])["runs"][0]["nve"] is None
    assert len(series([early], [None])["movie"]["time_ps"]) == 3
    assert series([None], [None]) == {"runs": [], "movie": None}


def test_long_series_are_thinned():
    atoms = molecule("H2O")
    found = series([trajectory(atoms, 5001)], [None])["runs"][0]["nvt"]
    assert len(found["time_ps"]) == len(found["temperature_K"]) == 1667
