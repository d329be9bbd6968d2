"""ANI-1x: eight networks for H, C, N, O, whose weights the torchani 2.2.4 wheel carries.

``torchani.models.ANI1x()`` itself fails there (an index file is empty), so the parts are put
together as it would. Energies and forces are the mean over the networks, in float64.

Reference: J. S. Smith et al., J. Chem. Phys. 148, 241733 (2018).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase.units
import numpy as np
from ase import Atoms

from mlff_distiller.errors import TeacherError
from mlff_distiller.teachers.family import (
    Evaluation,
    Family,
    Loaded,
    force_spread,
    licence_of,
    no_argument,
    torch_device,
)

_N_NETWORKS = 8


def _resolve(name: str, argument: str | None) -> tuple[str, dict[str, Any]]:
    if name == "ani":
        raise TeacherError(
            "the family 'ani' has registered teachers only", expected="ani-1x", found=name
        )
    no_argument(name, argument)
    return name, {}


FAMILY = Family(
    name="ani",
    package="torchani",
    install='"torchani==2.2.4" "setuptools<81"',
    requirements='"torchani==2.2.4" "setuptools<81"',
    licence="MIT",
    usage="",
    teachers={
        "ani-1x": "ANI-1x: organic molecules of H, C, N, O, wB97X/6-31G(d), with force spread"
    },
    resolve=_resolve,
)


def _mean(
    energies: np.ndarray, shares: np.ndarray, slopes: np.ndarray, slope: np.ndarray | None
) -> Evaluation:
    """In Hartree: each network's energy (8,), its atoms' shares (8, n), dE/dr (8, n, 3).

    ``slope`` is the mean stress.
    """
    forces = -ase.units.Hartree * slopes
    return Evaluation(
        energy=ase.units.Hartree * float(energies.mean()),
        forces=forces.mean(0),
        stress=None if slope is None else ase.units.Hartree * slope,
        extra={"forces_spread": force_spread(forces)},
        energies=ase.units.Hartree * shares.mean(0),
    )


def load(arguments: dict[str, Any], device: str, allow_download: bool) -> Loaded:
    """Put the ensemble together; see `mlff_distiller.teachers.family`."""
    import torch
    import torchani
    from torchani import neurochem

    device = torch_device(device)
    folder = Path(torchani.__file__).parent / "resources" / "ani-1x_8x"
    parameters = folder / "rHCNO-5.2R_16-3.5A_a4-8.params"
    if not parameters.is_file() or parameters.stat().st_size == 0:
        raise TeacherError(
            "this torchani does not carry the weights of ANI-1x",
            expected="torchani 2.2.4",
            found=f"torchani {importlib.metadata.version('torchani')}",
            remedy='pip install "torchani==2.2.4" "setuptools<81"',
        )
    constants = neurochem.Constants(str(parameters))
    environments = torchani.AEVComputer(**constants).double().to(device)
    networks = neurochem.load_model_ensemble(constants.species, f"{folder}/train", _N_NETWORKS)
    networks = networks.double().to(device).requires_grad_(False)
    shifts = neurochem.load_sae(str(folder / "sae_linfit.dat")).to(device)
    indices = torchani.utils.ChemicalSymbolsToInts(constants.species)

    def gradients(energies: Any, *variables: Any) -> list[Any]:
        """Gradients of each network's summed energies (n_frames,); a pass each, for the spread."""
        return [
            torch.autograd.grad(energy.sum(), variables, retain_graph=True) for energy in energies
        ]

    def ask(species: Any, positions: Any, **periodic: Any) -> tuple[Any, Any]:
        """Energies (n_networks, n_frames) of species (n_frames, n), padded with -1; and shares."""
        vectors = environments((species, positions), **periodic)
        shares = torch.stack([network._atomic_energies(vectors) for network in networks])
        energies = [shifts((species, own.sum(1))).energies for own in shares]
        return torch.stack(energies), shares.detach() + shifts.self_energies[species]

    def crystal(atoms: Atoms, stress: bool) -> Evaluation:
        atoms.wrap(eps=0)  # the library takes an atom outside the cell for one without images
        species = indices(atoms.get_chemical_symbols()).to(device)[None]
        positions = torch.tensor(atoms.positions, device=device, requires_grad=True)
        strain = torch.eye(3, dtype=torch.float64, device=device).requires_grad_()
        cell = torch.tensor(atoms.cell.complete().array, device=device) @ strain
        pbc = torch.tensor(atoms.pbc, device=device)
        energies, shares = ask(species, (positions @ strain)[None], cell=cell, pbc=pbc)
        slopes = gradients(energies, positions, strain)
        tensor = np.mean([by_strain.cpu().numpy() for _, by_strain in slopes], axis=0)
        return _mean(
            energies[:, 0].detach().cpu().numpy(),
            shares[:, 0].cpu().numpy(),
            np.stack([by_atom.cpu().numpy() for by_atom, _ in slopes]),
            tensor / atoms.get_volume() if stress else None,
        )

    def molecules(frames: Sequence[Atoms]) -> list[Evaluation]:
        pad = torch.nn.utils.rnn.pad_sequence
        species = pad(
            [indices(atoms.get_chemical_symbols()) for atoms in frames],
            batch_first=True,
            padding_value=-1,
        ).to(device)
        positions = pad([torch.tensor(atoms.positions) for atoms in frames], batch_first=True)
        positions = positions.to(device).requires_grad_()
        energies, shares = ask(species, positions)
        slopes = np.stack([slope.cpu().numpy() for (slope,) in gradients(energies, positions)])
        columns, own = energies.detach().cpu().numpy().T, shares.cpu().numpy()
        return [
            _mean(columns[k], own[:, k, : len(atoms)], slopes[:, k, : len(atoms)], None)
            for k, atoms in enumerate(frames)
        ]

    def evaluate_many(frames: Sequence[Atoms], wanted: Sequence[bool]) -> list[Evaluation]:
        """Molecules in one pass; the library takes one cell at a time."""
        free = [k for k, atoms in enumerate(frames) if not atoms.pbc.any()]
        answers = dict(zip(free, molecules([frames[k] for k in free]) if free else (), strict=True))
        return [
            answers[k] if k in answers else crystal(frames[k], wanted[k])
            for k in range(len(frames))
        ]

    return Loaded(
        evaluate=lambda atoms, stress: evaluate_many([atoms], [stress])[0],
        evaluate_many=evaluate_many,
        batch_atoms=512,
        version=importlib.metadata.version("torchani"),
        licence=licence_of("torchani"),
        device=device,
        weights=[parameters, folder / "sae_linfit.dat", *sorted(folder.glob("train*/networks/*"))],
        elements=(1, 6, 7, 8),
        settings={"networks": _N_NETWORKS, "precision": "float64"},
    )
