"""Frames that effective medium theory has labelled, and what a student says of one."""

from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from tests.helpers import rattled

from mlff_distiller.batch import Batch
from mlff_distiller.neighbors import neighbor_list
from mlff_distiller.students import PaiNN


def labelled(atoms: Atoms, n: int) -> list[Batch]:
    frames = []
    for seed in range(n):
        frame = rattled(atoms, 0.1, seed)
        frame.calc = EMT()
        energy, forces = frame.get_potential_energy(), frame.get_forces()
        frame.calc = SinglePointCalculator(frame, energy=energy, forces=forces)
        frames.append(Batch.from_atoms([frame]))
    return frames


def energies(student: PaiNN, atoms: Atoms) -> float:
    batch = Batch.from_atoms([atoms])
    return student(batch, neighbor_list(batch, student.cutoff)).energy.item()
