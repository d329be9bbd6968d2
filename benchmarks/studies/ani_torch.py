"""ANI-1x and ANI-1ccx ensembles in plain PyTorch, to label many structures on a GPU.

    python ani_torch.py convert ani1ccx_model{0..7}.fnx --out ani1ccx.safetensors
    python ani_torch.py check ani1ccx.safetensors --fnx ani1ccx_model{0..7}.fnx \
        --water water.extxyz --molecule train_300K.xyz

``convert`` reads FeNNol's files (needs jax); nothing else does. From the papers' formulas: Smith,
Isayev, Roitberg, Chem. Sci. 8, 3192 (2017), equations 2-4; constants and networks of ANI-1x
(J. Chem. Phys. 148, 241733). With f(R) = (cos(pi R/R_c) + 1)/2 and 1/4, 0.95 as in the original
program::

    G_R(i; Z, s)      = 1/4 sum_j exp(-eta_R (R_ij - R_s)^2) f(R_ij)                    j of Z
    G_A(i; YZ, s, z)  = 2 sum_{j<k} ((1 + cos(theta - theta_z))/2)^zeta
                        exp(-eta_A ((R_ij + R_ik)/2 - R_s)^2) f(R_ij) f(R_ik)       j, k of Y, Z
    cos theta         = 0.95 r_ij·r_ik / (R_ij R_ik)
    E                 = 1/8 sum_k sum_i net_k(G(i)) + sum_i E0(Z_i)
"""

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import ase.calculators.calculator
import ase.units
import numpy as np
import torch
from ase.io import read
from ase.stress import full_3x3_to_voigt_6_stress
from safetensors.torch import load_file, save_file
from torch.nn.functional import celu

from mlff_distiller.batch import Batch
from mlff_distiller.neighbors import edge_vectors, neighbor_list


@dataclass(frozen=True)
class Labels:
    """Of a batch, float64 but for ``forces`` and ``spread``, which are in the model's precision."""

    energy: torch.Tensor  # (n_systems,) eV
    forces: torch.Tensor  # (n_atoms, 3) eV/Å
    stress: torch.Tensor  # (n_systems, 3, 3) eV/Å³, NaN without volume
    spread: torch.Tensor | None  # (n_atoms,) eV/Å: sqrt(mean_k |F_k - mean F|²) over the networks


class ANI:
    """The ensemble from ``convert``'s file; ``dtype`` is that of all but sums and differences."""

    def __init__(self, path, device="cpu", dtype=torch.float64):
        self.device, self.dtype = torch.device(device), dtype
        self.constants = json.loads(Path(path).with_suffix(".json").read_text())
        self.elements = self.constants["atomic_numbers"]
        tensors = load_file(path)
        self.self_energy = tensors.pop("self_energy").mean(0).to(device)  # (n_elements,) Hartree
        self.weights = {name: value.to(device, dtype) for name, value in tensors.items()}
        self.n_networks = self.weights["1.0.bias"].shape[0]
        lookup = torch.full((119,), -1)
        lookup[torch.tensor(self.elements)] = torch.arange(len(self.elements))
        self.types_of_numbers = lookup.to(device)
        n = len(self.elements)
        pair = torch.zeros(n, n, dtype=torch.int64)
        first, second = torch.triu_indices(n, n)
        pair[first, second] = pair[second, first] = torch.arange(len(first))
        self.pair_of_types, self.n_pairs = pair.to(device), len(first)
        self.cutoff, self.angular_cutoff = (
            self.constants["radial"]["cutoff_A"],
            self.constants["angular"]["cutoff_A"],
        )

    def _range(self, name, start, end):
        """Centres of basis functions: ``name`` of them, from ``start`` on, without ``end``."""
        step = (end - start) / name
        return start + step * torch.arange(name, device=self.device, dtype=self.dtype)

    def _switch(self, distances, cutoff):
        return 0.5 * torch.cos(distances * (math.pi / cutoff)) + 0.5

    def environments(self, types, i, j, vectors):
        """(n_atoms, 384) of atoms with ``types`` (n_atoms,) and edges i (ascending), j, r_ij."""
        n_atoms, n_types = len(types), len(self.elements)
        distances = vectors.norm(dim=1)
        own = self.constants["radial"]
        centres = self._range(own["n"], own["start_A"], self.cutoff)
        terms = torch.exp(-own["eta"] * (distances.unsqueeze(1) - centres).square())
        terms = terms * (0.25 * self._switch(distances, self.cutoff)).unsqueeze(1)
        radial = terms.new_zeros(n_atoms * n_types, own["n"])
        radial = radial.index_add(0, i * n_types + types[j], terms)

        own = self.constants["angular"]
        near = (distances.detach() < self.angular_cutoff).nonzero().squeeze(1)
        center = i[near]
        distance = distances.index_select(0, near)
        direction = vectors.index_select(0, near) / distance.unsqueeze(1)
        switch = self._switch(distance, self.angular_cutoff)
        a, b = _couples(center, n_atoms)
        cosine = 0.95 * (direction.index_select(0, a) * direction.index_select(0, b)).sum(1)
        sine = (1.0 - cosine.square()).sqrt().unsqueeze(1)
        angles = self._range(own["n_angles"], 0.0, math.pi) + 0.5 * math.pi / own["n_angles"]
        by_angle = 0.5 + 0.5 * (cosine.unsqueeze(1) * angles.cos() + sine * angles.sin())
        for _ in range(round(math.log2(own["zeta"]))):
            by_angle = by_angle.square()
        mean = 0.5 * (distance.index_select(0, a) + distance.index_select(0, b)).unsqueeze(1)
        centres = self._range(own["n"], own["start_A"], self.angular_cutoff)
        by_distance = torch.exp(-own["eta"] * (mean - centres).square())
        both = 2.0 * switch.index_select(0, a) * switch.index_select(0, b)
        terms = (by_distance * both.unsqueeze(1)).unsqueeze(2) * by_angle.unsqueeze(1)
        of = types[j[near]]
        row = center[a] * self.n_pairs + self.pair_of_types[of[a], of[b]]
        angular = terms.new_zeros(n_atoms * self.n_pairs, own["n"] * own["n_angles"])
        angular = angular.index_add(0, row, terms.flatten(1))
        return torch.cat([radial.view(n_atoms, -1), angular.view(n_atoms, -1)], 1)

    def networks(self, types, environments):
        """Energies (n_networks, n_atoms) in Hartree of every network, without self energies."""
        energies = environments.new_zeros(self.n_networks, len(types))
        for own, number in enumerate(self.elements):
            rows = (types == own).nonzero().squeeze(1)
            if not len(rows):
                continue
            x = environments.index_select(0, rows).expand(self.n_networks, -1, -1)
            for layer in range(4):
                weight = self.weights[f"{number}.{layer}.weight"]
                x = torch.baddbmm(self.weights[f"{number}.{layer}.bias"].unsqueeze(1), x, weight)
                x = celu(x, alpha=0.1) if layer < 3 else x
            energies = energies.index_add(1, rows, x.squeeze(2))
        return energies

    def __call__(self, batch, neighbors=None, spread=False):
        """``Labels`` of ``batch``, at once; ``neighbors`` may hold pairs beyond the cutoff.

        Without ``spread`` one pass back; with it one a network.
        """
        types = self.types_of_numbers[batch.atomic_numbers]
        if bool((types < 0).any()):
            raise ValueError(f"an element is none of {self.elements}")
        neighbors = neighbor_list(batch, self.cutoff) if neighbors is None else neighbors
        vectors = edge_vectors(batch, neighbors)
        inside = (vectors.square().sum(1) < self.cutoff**2).nonzero().squeeze(1)
        i, j, exact = neighbors.i[inside], neighbors.j[inside], vectors[inside]
        with torch.enable_grad():
            vectors = exact.to(self.dtype, copy=True).requires_grad_()
            environments = self.environments(types, i, j, vectors)
            inputs = environments.detach().requires_grad_()
            energies = self.networks(types, inputs)
            site = energies.detach().double().mean(0) + self.self_energy[types]
            if spread:
                by_input = [
                    torch.autograd.grad(own.sum(), inputs, retain_graph=True)[0] for own in energies
                ]
                by_vector = [
                    torch.autograd.grad(environments, vectors, own, retain_graph=True)[0]
                    for own in by_input
                ]
                slopes = torch.stack(by_vector)
            else:
                [by_input] = torch.autograd.grad(energies.mean(0).sum(), inputs)
                slopes = torch.autograd.grad(environments, vectors, by_input)[0].unsqueeze(0)
        forces = ase.units.Hartree * _on_atoms(slopes, i, j, len(types))
        mean = forces.mean(0)
        energy = torch.zeros(batch.n_systems, dtype=torch.float64, device=self.device)
        energy = ase.units.Hartree * energy.index_add(0, batch.system_idx, site)
        couple = exact.unsqueeze(2) * slopes.mean(0).double().unsqueeze(1)
        virial = couple.new_zeros(batch.n_systems, 3, 3)
        virial = virial.index_add(0, batch.system_idx[i], couple)
        volume = torch.where(batch.pbc.all(1), batch.volume, math.nan).view(-1, 1, 1)
        stress = 0.5 * ase.units.Hartree * (virial + virial.mT) / volume
        deviation = (forces - mean).square().sum(2).mean(0).sqrt() if spread else None
        return Labels(energy, mean, stress, deviation)

    def label(self, batch, atoms_at_once=None, on_done=lambda n: None):
        """``Labels`` of any number of systems, on the CPU, with spread, in bounded memory.

        Some 0.3 MB an atom of liquid water in float64.
        """
        most = atoms_at_once or (24_576 if self.device.type == "cuda" else 400)
        parts, start, first = [], 0, 0
        ends = batch.atoms_per_system.cumsum(0).tolist()
        while start < batch.n_systems:
            end = start + 1
            while end < batch.n_systems and ends[end] - first <= most:
                end += 1
            part = Batch(
                batch.positions[first : ends[end - 1]],
                batch.atomic_numbers[first : ends[end - 1]],
                batch.system_idx[first : ends[end - 1]] - start,
                batch.cell[start:end],
                batch.pbc[start:end],
            ).to(self.device)
            answer = self(part, spread=True)
            parts.append([value.cpu() for value in vars(answer).values()])
            start, first = end, ends[end - 1]
            on_done(start)
        return Labels(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _couples(center, n_atoms):
    """Edges a > b of the same ``center`` (n_edges,), which ascends: (n_couples,) each."""
    count = torch.bincount(center, minlength=n_atoms)
    first = (count.cumsum(0) - count)[center]
    edges = torch.arange(len(center), device=center.device)
    rank = edges - first
    a = edges.repeat_interleave(rank)
    start = rank.cumsum(0) - rank
    b = torch.arange(len(a), device=center.device) - start[a] + first[a]
    return a, b


def _on_atoms(slopes, i, j, n_atoms):
    """Forces (n, n_atoms, 3) from dE/dr_ij (n, n_edges, 3), r_ij = r_j - r_i."""
    forces = slopes.new_zeros(len(slopes), n_atoms, 3)
    return forces.index_add(1, i, slopes).index_add(1, j, -slopes)


def forces_by_skin(model, batch, skin=0.6):
    """``forces_of(positions)`` of ``batch``'s systems that finds neighbours only when it must.

    That is when an atom has moved by half the ``skin`` (Å) since the last time.
    """
    known = {}

    def forces_of(positions):
        now = Batch(positions, batch.atomic_numbers, batch.system_idx, batch.cell, batch.pbc)
        moved = known and (positions - known["positions"]).square().sum(1).max()
        if not known or not bool(moved < (0.5 * skin) ** 2):
            known["pairs"] = neighbor_list(now, model.cutoff + skin)
            known["positions"] = positions
        return model(now, known["pairs"]).forces.double()

    return forces_of


class Calculator(ase.calculators.calculator.Calculator):
    """The ensemble for ASE, in float32: ``ase:benchmarks.ani_torch:calculator``."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012

    def __init__(self, model):
        super().__init__()
        self.model = model

    def calculate(self, atoms=None, properties=None, system_changes=()):
        super().calculate(atoms, properties, system_changes)
        found = self.model(Batch.from_atoms([atoms]).to(self.model.device))
        stress = full_3x3_to_voigt_6_stress(found.stress[0].cpu().numpy())
        self.results = {
            "energy": float(found.energy[0]),
            "forces": found.forces.double().cpu().numpy(),
            "stress": stress,
        }


def calculator():
    """Of the model that the environment variable ANI_MODEL names."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Calculator(ANI(os.environ["ANI_MODEL"], device, torch.float32))


# -- conversion and comparison with FeNNol --------------------------------------------------------


def convert(paths, out):
    """FeNNol's ``paths`` into ``out`` (.safetensors) and its constants beside (.json)."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from ase.data import atomic_numbers
    from fennol import FENNIX

    from mlff_distiller.teachers.fennol import _exact_constants

    models = [FENNIX.load(path) for path in paths]
    modules = models[0]._input_args["modules"]
    own, filtered = modules["embedding"], models[0]._input_args["preprocessing"]["graph_filter"]
    numbers = [atomic_numbers[symbol] for symbol in own["species_order"]]
    constants = {
        "atomic_numbers": numbers,
        "files": [Path(path).name for path in paths],
        "unit": "Hartree",
        "radial": {
            "n": own["radial_dist_divisions"],
            "eta": own["radial_eta"],
            "start_A": own["radial_start"],
            "cutoff_A": models[0]._input_args["cutoff"],
        },
        "angular": {
            "n": own["angular_dist_divisions"],
            "eta": own["angular_eta"],
            "start_A": own["angular_start"],
            "cutoff_A": filtered["cutoff"],
            "n_angles": own["angle_sections"],
            "zeta": own["zeta"],
        },
    }
    parameters = [_exact_constants(model)["params"] for model in models]
    tensors = {
        "self_energy": torch.tensor(
            np.stack([np.asarray(p["self_energy"]["constant"])[numbers] for p in parameters])
        )
    }
    for symbol, number in zip(own["species_order"], numbers, strict=True):
        for layer in range(4):
            for ours, theirs in (("weight", "kernel"), ("bias", "bias")):
                stack = [p["energy"][symbol][f"Layer_{layer + 1}"][theirs] for p in parameters]
                tensors[f"{number}.{layer}.{ours}"] = torch.tensor(np.stack(stack))
    save_file(tensors, out)
    Path(out).with_suffix(".json").write_text(json.dumps(constants, indent=1) + "\n")


def check(path, fnx, water, molecule):
    """Differences from the project's teacher ``fennol:`` on liquid, molecule and a strained box."""
    from mlff_distiller.teachers import TeacherCalculator

    rng = np.random.default_rng(0)
    liquid, molecules = read(water, 0), read(molecule, ":4")
    tilted = liquid.copy()
    tilted.set_cell(liquid.cell.array @ (np.eye(3) + rng.normal(scale=0.03, size=(3, 3))), True)
    tilted.positions += rng.normal(scale=0.05, size=(len(tilted), 3))
    small = liquid[liquid.positions.max(1) < 6.0]  # a cell smaller than twice the cutoff
    small.set_cell(np.diag([6.5, 7.0, 7.5]))
    small.pbc = True
    frames = [liquid, tilted, *molecules]
    with TeacherCalculator("fennol:" + ",".join(map(str, fnx)), device="cpu") as teacher:
        started = time.perf_counter()
        answers = teacher.label(frames)
        seconds = time.perf_counter() - started
        answers += teacher.label([small])
    frames = [*frames, small]
    for dtype in (torch.float64, torch.float32):
        model = ANI(path, dtype=dtype)
        started = time.perf_counter()
        labels = model.label(Batch.from_atoms(frames))
        ours = time.perf_counter() - started
        sizes = [len(atoms) for atoms in frames]
        forces, spread = labels.forces.split(sizes), labels.spread.split(sizes)
        worst = {"energy_eV_per_atom": 0.0, "forces": 0.0, "spread": 0.0, "stress": 0.0}
        for k, answer in enumerate(answers):
            theirs = {name: torch.as_tensor(value) for name, value in answer.labels.items()}
            found = {
                "energy_eV_per_atom": (labels.energy[k] - theirs["energy"]) / sizes[k],
                "forces": forces[k] - theirs["forces"],
                "spread": spread[k] - torch.as_tensor(answer.extra["forces_spread"]),
            }
            if "stress" in theirs:
                found["stress"] = labels.stress[k] - theirs["stress"]
            for name, difference in found.items():
                worst[name] = max(worst[name], float(difference.abs().max()))
        print(dtype, {name: f"{value:.1e}" for name, value in worst.items()})
        print(f"  {ours:.2f} s; FeNNol, with compilation, {seconds:.1f} s")
        if dtype is torch.float64:
            assert worst["energy_eV_per_atom"] < 1e-6, worst
            assert worst["forces"] < 1e-5, worst


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("convert")
    part.add_argument("fnx", nargs="+", type=Path)
    part.add_argument("--out", type=Path, required=True)
    part = parts.add_parser("check")
    part.add_argument("model", type=Path)
    part.add_argument("--fnx", nargs="+", type=Path, required=True)
    part.add_argument("--water", type=Path, required=True)
    part.add_argument("--molecule", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.part == "convert":
        convert(arguments.fnx, arguments.out)
    else:
        check(arguments.model, arguments.fnx, arguments.water, arguments.molecule)


if __name__ == "__main__":
    main()
