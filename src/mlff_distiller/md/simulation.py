"""``Simulation``: systems that stay on the device, step by step."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import warp as wp
from ase import Atoms, units
from numpy.typing import NDArray

from mlff_distiller.engines.engine import Engine
from mlff_distiller.kernels.compiling import Launch, load, recording
from mlff_distiller.kernels.dynamics import warp as integrators
from mlff_distiller.kernels.types import vec6d
from mlff_distiller.md.ensemble import Ensemble, explosion, seeds_of
from mlff_distiller.md.files import Frame
from mlff_distiller.md.initial import check_frames, first_velocities, held, n_degrees, template
from mlff_distiller.md.state import Observables, State

if TYPE_CHECKING:
    from mlff_distiller.md.watch import Watch

STEPS_A_GRAPH = 16
LARGEST_BLOCK = 512
"""Steps between two looks of the host at a GPU."""
BLOCK_SECONDS = 0.5
"""So that an interruption is answered soon."""

Array = NDArray[np.float64]
_MODES = {
    "isotropic": integrators.ISOTROPIC,
    "anisotropic": integrators.ANISOTROPIC,
    "triclinic": integrators.TRICLINIC,
}


class Simulation:
    """Dynamics of one or several systems under one student, on the device.

    Parameters
    ----------
    engine
        With room for the same ``frames``; see ``choose_engine``.
    frames
        Momenta are taken as they are; where all are zero, new ones are drawn. ``FixAtoms`` holds
        atoms in place; other constraints are refused.

    Raises
    ------
    DynamicsError
        The settings do not fit the structures.
    """

    def __init__(self, engine: Engine, frames: Sequence[Atoms], ensemble: Ensemble) -> None:
        self.engine, self.ensemble = engine, ensemble
        self.watch: Watch | None = None
        self.device = engine.device
        self.templates = [template(atoms) for atoms in frames]
        check_frames(frames, ensemble)
        sizes = [len(atoms) for atoms in frames]
        self._ends = np.cumsum(sizes)
        self._pbc = np.stack([atoms.pbc for atoms in frames])
        masses = np.concatenate([atoms.get_masses() for atoms in frames])
        fixed = np.concatenate([held(atoms) for atoms in frames])
        self.time_step_fs = ensemble.step_fs(*frames)
        self._with_graphs = self.device.is_cuda and engine.capturable
        self._steps_listed = self.seconds_a_step = 0.0
        self._block = STEPS_A_GRAPH
        self._n_rebuilds = 0
        self._begin: list[Callable[[], None]] = []
        self._end: list[Callable[[], None]] = []
        self._graphs: dict[int, Any] = {}
        self._temperatures = np.broadcast_to(np.array(ensemble.temperature_K, float), len(frames))
        self._allocate(masses, fixed)
        cell = np.stack([atoms.cell.array for atoms in frames])
        positions = np.concatenate([atoms.positions for atoms in frames])
        seeds = seeds_of(ensemble.seed, len(frames)).tolist()
        started = zip(frames, self._temperatures, seeds, strict=True)
        moving = [first_velocities(*own) for own in started]
        velocities = np.concatenate(moving)
        of_each = zip(frames, moving, strict=True)
        self._n_dof = np.array([n_degrees(*own, ensemble) for own in of_each], dtype=np.float64)
        self._dof_on_device.assign(self._n_dof)
        self.load(State(0, positions, velocities, cell))
        hottest = float(self.observables().temperature_K.max())
        self.max_temperature_K = ensemble.explodes_at_K(hottest, self._n_dof)

    # -- setting up ----------------------------------------------------------------------------

    def _allocate(self, masses: Array, fixed: NDArray[np.bool_]) -> None:
        e, systems = self.ensemble, self.engine.systems
        n, n_systems = systems.n_atoms, systems.n_systems
        self._is_coupled = e.has_bussi or e.ensemble == "npt"
        self._kernels = integrators.build(
            "cpu" if self.device.is_cpu else "cuda",
            langevin=e.has_langevin,
            coupled=self._is_coupled,
        )
        load(self._kernels.module, self.device)
        pressures = np.broadcast_to(np.array(e.pressure_GPa), n_systems) * units.GPa
        one = np.broadcast_to(np.eye(3), (n_systems, 3, 3)).copy()
        with wp.ScopedDevice(self.device):
            self.velocities = wp.zeros(n, dtype=wp.vec3d)
            self._masses = wp.array(masses, dtype=wp.float64)
            self._inverse_masses = wp.array(np.where(fixed, 0.0, 1.0 / masses), dtype=wp.float64)
            self.step_on_device, self.halt, self._broken = (
                wp.zeros(1, dtype=dtype) for dtype in (wp.int64, int, int)
            )
            self._partial = wp.zeros(systems.n_chunks, dtype=vec6d)
            self._seeds = wp.array(seeds_of(e.seed, n_systems), dtype=wp.uint64)
            self._thermal = wp.array(units.kB * self._temperatures, dtype=wp.float64)
            self._pressures = wp.array(pressures, dtype=wp.float64)
            self._dof_on_device = wp.zeros(n_systems, dtype=wp.float64)
            self._factor = wp.array(np.ones(n_systems), dtype=wp.float64)
            self._growth, self._shrinkage = (wp.array(one, dtype=wp.mat33d) for _ in range(2))
            self._kept_positions, self._kept_velocities = (
                wp.zeros(n, dtype=wp.vec3d) for _ in range(2)
            )
            self._kept_lattice = wp.zeros(n_systems, dtype=wp.mat33d)
        self._kept_step = 0
        self._last_listed: tuple[wp.array, Array] | None = None

    def _record(self) -> None:
        """The launches of a step; again when arrays were replaced."""
        e, f, near, k = self.ensemble, self.engine, self.engine.neighbors, self._kernels
        systems, dt = f.systems, wp.float64(self.time_step_fs * units.fs)
        n, is_npt = systems.n_atoms, e.ensemble == "npt"

        def launch(kernel: wp.Kernel, size: int, *arguments: object) -> Launch:
            return Launch([(kernel, arguments)], size, self.device, f.n_threads)

        moving = (self._masses, self.velocities, self._partial)
        self._kinetic = launch(k.kinetic, systems.n_chunks, self.halt, systems.chunks, *moving)
        begin: list[Callable[[], None]] = []
        if self._is_coupled:
            decay = np.exp(-self.time_step_fs / e.thermostat_time_fs) if e.has_bussi else 1.0
            rate = e.compressibility_per_GPa / units.GPa * self.time_step_fs / e.barostat_time_fs
            couple = (
                *(self.halt, self.step_on_device, self._seeds, systems.first_chunk, self._partial),
                *(self._thermal, self._dof_on_device, wp.float64(decay), f.totals),
                *(_MODES[e.pressure_coupling] if is_npt else integrators.FIXED, self._pressures),
                *(wp.float64(rate), wp.float64(near.cutoff), wp.float64(near.skin)),
                *(near.dual, near.lattice, near.stretch, near.limit_squared),
                *(self._factor, self._growth, self._shrinkage, near.moved, self._broken),
            )
            begin += [self._kinetic, launch(k.couple, systems.n_systems, *couple)]
            if is_npt:
                begin.append(near.shifting(self.halt))
        kept = wp.float64(np.exp(-1e-3 * e.friction_per_ps * self.time_step_fs))
        advance = (
            *(self.halt, self.step_on_device, self._seeds, dt, kept, self._thermal),
            *(self._factor, self._growth, self._shrinkage, wp.float64(e.max_step_A**2)),
            *(systems.system_idx, systems.first_atom, self._inverse_masses, f.forces),
            *(f.positions, self.velocities, near.lattice, near.stretch, near.limit_squared),
            *(near.laps, near.built, near.inside, near.moved, self._broken),
        )
        self._begin = [*begin, launch(k.advance, n, *advance)]
        kick = (dt, self._inverse_masses, f.forces, self.velocities, near.moved)
        self._end = [f.compute]
        self._end += [f.total] if is_npt else []
        self._end.append(launch(k.kick, n, *kick, self.halt, self.step_on_device))
        self._graphs = {}
        if self.watch is not None:
            self.watch.record()

    # -- steps ---------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Number of steps done."""
        return int(self.step_on_device.numpy()[0])

    @property
    def time_ps(self) -> float:
        return 1e-3 * self.time_step_fs * self.step

    @property
    def n_rebuilds(self) -> int:
        """How often neighbours were searched again."""
        return self._n_rebuilds

    def advance(self, n_steps: int) -> None:
        """Do ``n_steps`` steps.

        Raises
        ------
        DynamicsError
            A position or velocity is not finite, or exceeds its limit. The state is then the last
            good one, some steps earlier.
        UntrustedError
            The ``watch`` has met what the student does not know, and is to stop there.
        """
        done, target = self.step, self.step + n_steps
        while done < target:
            self.keep(done)
            block = min(target - done, self._block_size())
            began = time.perf_counter()
            self._launch(done, done + block)
            now = self._settle(done)
            self.seconds_a_step = (time.perf_counter() - began) / max(1, now - done)
            self._steps_listed += now - done
            done = now
            if self.watch is not None:
                self.watch.settle(done)

    def _launch(self, start: int, end: int) -> None:
        """Steps from ``start`` to ``end``, and the watch's looks before that."""
        while start < end:
            stop = end if self.watch is None else min(end, self.watch.next_look(start))
            if self._with_graphs:
                self._launch_graphs(stop - start)
                if not self._with_graphs:
                    return
            else:
                for step in range(start, stop):
                    _call(self._begin)
                    _call(self._end)
                    if self.engine.neighbors.moved.numpy()[0]:
                        self._find_neighbors(step)
            if self.watch is not None and stop < end:
                self.watch.look()
            start = stop

    def _block_size(self) -> int:
        size = self._block if self._with_graphs else LARGEST_BLOCK
        if self.seconds_a_step > 0:
            size = min(size, max(1, int(BLOCK_SECONDS / self.seconds_a_step)))
        return size

    def _launch_graphs(self, n_steps: int) -> None:
        """A graph of many steps as often as it fits, then one of a single step."""
        for size in (STEPS_A_GRAPH, 1):
            for _ in range(n_steps // size):
                if size not in self._graphs and not self._capture(size):
                    return
                wp.capture_launch(self._graphs[size])
            n_steps %= size

    def _capture(self, n_steps: int) -> bool:
        try:
            with (
                recording(),
                wp.ScopedCapture(device=self.device, force_module_load=False) as capture,
            ):
                for _ in range(n_steps):
                    _call(self._begin)
                    _call(self._end)
            self._graphs[n_steps] = capture.graph
        except Exception as error:
            warnings.warn(f"steps go without a CUDA graph, slower: {error}", stacklevel=4)
            self._with_graphs = False
        return self._with_graphs

    def _settle(self, before: int) -> int:
        """Look at what the device has done; find neighbours and finish a step that wants them."""
        self._kinetic()
        if self.engine.neighbors.moved.numpy()[0]:
            self._block = int(np.clip(self._steps_listed // 2, 4, LARGEST_BLOCK))
            self._find_neighbors(self.step)
            self._kinetic()
        elif self._steps_listed > 2 * self._block:
            self._block = min(2 * self._block, LARGEST_BLOCK)
        now = self.step
        temperatures = self._temperature(self._kinetic_energy())
        if not (temperatures <= self.max_temperature_K).all():
            system = int(np.argmax(~(temperatures <= self.max_temperature_K)))
            self._fail(
                f"system {system} has {temperatures[system]:.4g} K",
                f"at most {self.max_temperature_K[system]:.4g} K",
                now,
            )
        return now

    def _find_neighbors(self, step: int) -> None:
        """Rebuild neighbours, and finish the step that an atom's leaving its skin has halted."""
        broken = int(self._broken.numpy()[0])
        if broken >= integrators.CELL_BROKE:
            system = broken - integrators.CELL_BROKE
            limit = f"a strain of at most {integrators.LARGEST_STRAIN} a step"
            self._fail(f"the cell of system {system} changes too fast", limit, step)
        if broken:
            system = int(np.searchsorted(self._ends, broken - 1, side="right"))
            atom = broken - 1 - (self._ends[system - 1] if system else 0)
            limit = f"at most {self.ensemble.max_step_A} Å a step"
            self._fail(f"atom {atom} of system {system} moves too far", limit, step)
        self._list()
        self.halt.zero_()
        _call(self._end)

    def _list(self, cell: Array | None = None) -> None:
        self._steps_listed = 0
        self._n_rebuilds += 1
        cell = self.cell() if cell is None else cell
        if not self.engine.exact:
            self._last_listed = (wp.clone(self.engine.positions), cell)
        if self.engine.rebuild(cell, self._pbc) or not self._begin:
            self._record()

    def _fail(self, found: str, expected: str, step: int) -> None:
        good = self.kept()
        self.load(good)
        raise explosion(
            step,
            self.time_step_fs,
            expected=expected,
            found=found,
            remedy=f"the state of step {good.step} is kept: look for atoms too close to each "
            "other, take a shorter time step, or a student that knows such structures",
        )

    # -- what can be seen and set --------------------------------------------------------------

    def observables(self) -> Observables:
        """Energies, temperature and pressure of the present state."""
        self._kinetic()
        if self.ensemble.ensemble != "npt":
            self.engine.total()
        kinetic, totals = self._kinetic_energy(), self.engine.totals.numpy()
        cell = self.cell()
        volume = np.abs(np.linalg.det(cell))
        volume = np.where(self._pbc.all(1) & (volume > 0), volume, np.nan)
        virial = totals[:, [1, 6, 5, 6, 2, 4, 5, 4, 3]].reshape(-1, 3, 3)
        trace = 2.0 * kinetic + np.trace(virial, axis1=1, axis2=2)
        pressure = trace / (3.0 * volume) / units.GPa
        temperature = self._temperature(kinetic)
        stress = -virial / volume[:, None, None]
        return Observables(totals[:, 0].copy(), kinetic, temperature, pressure, volume, stress)

    def state(self) -> State:
        """A copy of all that the next step depends on."""
        listed = self._last_listed and (self._last_listed[0].numpy(), self._last_listed[1])
        positions, velocities = self.engine.positions.numpy(), self.velocities.numpy()
        seeds = self._seeds.numpy().copy()
        return State(self.step, positions.copy(), velocities.copy(), self.cell(), listed, seeds)

    def load(self, state: State) -> None:
        """Go on from ``state``, exactly as if never interrupted."""
        self._cell = np.array(state.cell)
        self.velocities.assign(state.velocities)
        self.step_on_device.fill_(state.step)
        self.halt.zero_()
        self._broken.zero_()
        if state.seeds is not None:
            self._seeds.assign(state.seeds)
        at, cell = state.listed or (state.positions, state.cell)
        self.engine.positions.assign(at)
        self._list(cell)
        self.engine.positions.assign(state.positions)
        near = self.engine.neighbors
        if state.listed is not None and self.ensemble.ensemble == "npt":
            near.lattice.assign(state.cell)
            near.shifting()()
        near.follow()
        near.moved.zero_()
        self.engine.compute()
        self.engine.total()

    def cell(self) -> Array:
        """(n_systems, 3, 3) Å."""
        if self.ensemble.ensemble == "npt" and self._begin:
            self._cell = self.engine.neighbors.lattice.numpy().copy()
        return self._cell.copy()

    def atoms(self, system: int = 0) -> Atoms:
        """One system as it is now, with momenta, energy, forces and stress."""
        return self.frames()[system]

    def frames(self) -> list[Atoms]:
        """All systems as they are now."""
        return self.snapshot().to_atoms(self.templates)

    def snapshot(self) -> Frame:
        """The same as arrays."""
        seen = self.observables()
        return Frame(
            self.step,
            self.time_ps,
            self.engine.positions.numpy().copy(),
            self.velocities.numpy().copy(),
            self.engine.forces.numpy().copy(),
            self.cell(),
            seen.potential_energy,
            seen.stress,
        )

    def set_cell(self, cell: Array, system: int = 0) -> None:
        """Give a system another cell (3, 3), its atoms moving along."""
        state = self.state()
        own = slice(self._ends[system] - len(self.templates[system]), self._ends[system])
        positions, cells = state.positions, state.cell
        positions[own] = positions[own] @ np.linalg.solve(cells[system], cell)
        cells[system] = cell
        self.load(State(state.step, positions, state.velocities, cells))

    # -- between device and host ---------------------------------------------------------------

    def keep(self, step: int) -> None:
        """Keep the present state, of ``step``: an explosion leads back to it."""
        wp.copy(self._kept_positions, self.engine.positions)
        wp.copy(self._kept_velocities, self.velocities)
        wp.copy(self._kept_lattice, self.engine.neighbors.lattice)
        self._kept_step = step

    def kept(self) -> State:
        """What `keep` kept."""
        arrays = self._kept_positions, self._kept_velocities, self._kept_lattice
        return self.state_of(self._kept_step, *arrays)

    def state_of(
        self, step: int, positions: wp.array, velocities: wp.array, lattice: wp.array
    ) -> State:
        """A state of such arrays on the device; without a barostat the cell is that of now."""
        cell = lattice.numpy().copy() if self.ensemble.ensemble == "npt" else self._cell.copy()
        return State(step, positions.numpy().copy(), velocities.numpy().copy(), cell)

    def _kinetic_energy(self) -> Array:
        """(n_systems,) eV, after ``_kinetic`` was launched."""
        chunks = self._partial.numpy()[:, :3].sum(1)
        energy: Array = np.add.reduceat(chunks, self.engine.systems.first_chunk.numpy()[:-1])
        return energy

    def _temperature(self, kinetic_energy: Array) -> Array:
        temperature: Array = 2.0 * kinetic_energy / (self._n_dof * units.kB)
        return temperature


def _call(launches: Sequence[Callable[[], None]]) -> None:
    for launch in launches:
        launch()
