"""The one table of checks: what is asked, the default limit, and why it is where it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Criterion:
    """One named check. ``limit`` is a largest value if ``at_most``, otherwise a smallest."""

    name: str
    at_most: bool
    limit: float
    failure: str
    """What a failure means, in words."""
    why: str
    """Why the default limit is where it is."""


def _at_most(name: str, limit: float, failure: str, why: str) -> Criterion:
    return Criterion(name, True, limit, failure, why)


def _at_least(name: str, limit: float, failure: str, why: str) -> Criterion:
    return Criterion(name, False, limit, failure, why)


_ALL = (
    # Accuracy and speed, of report.json.
    _at_least(
        "test_forces_fidelity",
        0.95,
        "forces on held-out structures are off",
        "what 'more than 95 % accurate' means here",
    ),
    _at_least(
        "student_md_forces_fidelity",
        0.95,
        "where its own dynamics leads, its forces are not the teacher's",
        "as on held-out structures: dynamics must not leave what was learned",
    ),
    _at_least("speedup", 5.0, "it is hardly faster than the teacher", "less is not worth training"),
    # Dynamics.
    _at_least(
        "nve_completed",
        1.0,
        "the run at constant energy broke off",
        "a run that ends early samples nothing",
    ),
    _at_least(
        "nvt_completed",
        1.0,
        "the run with a thermostat broke off",
        "a run that ends early samples nothing",
    ),
    _at_most(
        "incidents",
        0.0,
        "something happened that cannot: a clash, an explosion, a lost atom, a broken bond",
        "one is enough to spoil a run",
    ),
    _at_most(
        "nve_drift_meV_per_atom_per_ps",
        0.01,
        "total energy is not conserved: it drifts",
        "a solid at constant energy warms by 40 K in a nanosecond at it; sound force fields in"
        " float32 drift a hundred times less",
    ),
    _at_least(
        "nve_fluctuation_ratio",
        3.0,
        "half the time step does not quarter the fluctuation of the energy: forces are not smooth,"
        " or not those of the energy",
        "velocity Verlet gives 4 for smooth forces; noise, jumps and lost digits give 1 to 2",
    ),
    _at_most(
        "momentum_change",
        1e-3,
        "forces do not add up to zero",
        "a thousandth of the mean momentum; rounding in float32 leaves a hundred times less",
    ),
    _at_most(
        "temperature_deviation_percent",
        2.0,
        "the thermostat cannot hold its temperature: something heats or cools",
        "beyond noise; integrators themselves are off by (omega dt)²/4, 0.3 % for C-H at 0.5 fs"
        " on average over a molecule's modes",
    ),
    _at_least(
        "kinetic_energy_p_value",
        1e-3,
        "kinetic energies are not distributed canonically",
        "a sound run fails once in a thousand",
    ),
    _at_most(
        "element_temperature_deviation_percent",
        5.0,
        "one element is hotter or colder than the thermostat",
        "beyond noise; O-H stretching alone is 3 % low with steps of 0.5 fs",
    ),
    _at_least(
        "npt_completed",
        1.0,
        "the run at constant pressure broke off, or its cell burst or collapsed",
        "a run that ends early samples nothing",
    ),
    _at_most(
        "npt_pressure_deviation_GPa",
        0.05,
        "the barostat cannot hold its pressure: the volume does not settle",
        "beyond noise; the volume of silicon is off by 0.05 % at it, of water by 2 %",
    ),
    _at_most(
        "memory_growth_kB_per_step",
        0.2,
        "a run eats memory, without end",
        "beyond noise, and beyond caches that fill once; 2 GB in 10 million steps, and the least"
        " that 2,000 steps can tell from scattered pages",
    ),
    # Laws.
    _at_most(
        "force_derivative_error",
        5e-3,
        "forces are not the derivative of the energy",
        "of the forces' size; differences of float32 energies are good to 2e-3",
    ),
    _at_most(
        "stress_derivative_error",
        2e-2,
        "stress is not the derivative of the energy with respect to strain",
        "of the stress's size; a flipped sign gives 2, differences of float32 energies 5e-3",
    ),
    _at_most(
        "scan_jump_meV",
        0.1,
        "the energy jumps along a straight line, as at a hard cutoff",
        "0.4 % of kT at 300 K for one pair; an atom of a liquid meets such a jump every few fs",
    ),
    _at_most(
        "translation_meV_per_atom",
        0.1,
        "the energy depends on where the system is",
        "exact in theory; positions 1,000 Å away in float32 lose 1e-4 Å",
    ),
    _at_most(
        "energy_noise_meV",
        0.1,
        "total energies of large systems have lost digits, as float32 sums have",
        "of 1,000 atoms; float32 networks summed in float64 leave a fifth of it or less",
    ),
    _at_most(
        "dimer_drop_eV",
        0.05,
        "two atoms fall into a hole at short distance",
        "twice kT at 300 K; exact curves rise all the way",
    ),
    _at_most(
        "compression_drop_eV_per_atom",
        0.05,
        "compressed matter falls into a hole",
        "twice kT at 300 K; exact curves rise all the way",
    ),
    _at_most(
        "leaked_fraction",
        0.0,
        "test structures are in the training set: their errors prove nothing",
        "one is too many",
    ),
    # Observables beside the teacher's, beyond noise.
    _at_most(
        "rdf_difference_percent",
        3.0,
        "the structure is not the teacher's: radial distribution functions differ",
        "of the area, beyond the teacher's own scatter; below what exchange-correlation"
        " functionals differ by in water (some 5 to 10 %)",
    ),
    _at_most(
        "angle_difference_percent",
        5.0,
        "the structure is not the teacher's: bond angles differ",
        "of the area, beyond the teacher's own scatter",
    ),
    _at_most(
        "spectrum_difference_percent",
        10.0,
        "vibrations are not the teacher's",
        "of the area, beyond the teacher's own scatter; peaks shifted by a tenth of their width",
    ),
    _at_most(
        "diffusion_difference_percent",
        20.0,
        "atoms diffuse at another rate than with the teacher",
        "beyond error bars; 10 K change it by as much in water",
    ),
    _at_most(
        "volume_difference_percent",
        1.0,
        "the equilibrium volume is not the teacher's",
        "0.3 % of the lattice constant",
    ),
    _at_most(
        "density_difference_percent",
        2.0,
        "at the same pressure and temperature the density is not the teacher's",
        "beyond error bars; twice what static volumes may differ by, a third of what density"
        " functionals scatter by for water",
    ),
    _at_most(
        "bulk_modulus_difference_percent",
        10.0,
        "the bulk modulus is not the teacher's",
        "what measurements of it scatter by",
    ),
    _at_most(
        "elastic_difference_percent",
        10.0,
        "elastic constants are not the teacher's",
        "of the largest; as for the bulk modulus, and what density functionals are off by",
    ),
    _at_most(
        "frequency_difference_percent",
        5.0,
        "harmonic frequencies are not the teacher's",
        "of the mean frequency; what density functionals are off by",
    ),
    _at_most(
        "imaginary_frequency_per_cm",
        20.0,
        "the structure is unstable, and the teacher's is not",
        "below the teacher's lowest; acoustic modes are uncertain by some 5 cm⁻¹",
    ),
)

CRITERIA: dict[str, Criterion] = {criterion.name: criterion for criterion in _ALL}
