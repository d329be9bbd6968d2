"""The one table of checks: what each is called, its unit and limit, and why the limit is there."""

from __future__ import annotations

from dataclasses import dataclass

SHARE, TIMES, YES_NO = "share", "×", "yes or no"
"""Units shown in their own way: 0.95 as 95 %, 5 as 5 ×, and 1 as yes."""


@dataclass(frozen=True)
class Criterion:
    """One named check. ``limit`` is a largest value if ``at_most``, otherwise a smallest."""

    name: str
    title: str
    """The name a reader sees."""
    at_most: bool
    limit: float
    unit: str
    """Unit of the value and the limit; empty for a pure number."""
    failure: str
    """What a failure means, in words."""
    why: str
    """Why the default limit is where it is."""


def _at_most(name: str, title: str, limit: float, unit: str, failure: str, why: str) -> Criterion:
    return Criterion(name, title, True, limit, unit, failure, why)


def _at_least(name: str, title: str, limit: float, unit: str, failure: str, why: str) -> Criterion:
    return Criterion(name, title, False, limit, unit, failure, why)


_PHYSICS = (
    # Dynamics.
    _at_least(
        "nve_completed",
        "Constant-energy MD completed",
        1.0,
        YES_NO,
        "the constant-energy run ended early",
        "a run that ends early samples nothing",
    ),
    _at_least(
        "nvt_completed",
        "Thermostatted MD completed",
        1.0,
        YES_NO,
        "the thermostatted run ended early",
        "a run that ends early samples nothing",
    ),
    _at_most(
        "incidents",
        "Clashes, explosions, lost atoms, broken bonds",
        0.0,
        "",
        "something unphysical happened: a clash, an explosion, a lost atom or a broken bond",
        "one is enough to spoil a run",
    ),
    _at_most(
        "nve_drift_meV_per_atom_per_ps",
        "Energy drift in constant-energy MD",
        0.01,
        "meV/atom/ps",
        "the total energy is not conserved: it drifts",
        "at this drift a solid warms by 40 K per nanosecond; sound force fields in float32"
        " drift a hundred times less",
    ),
    _at_least(
        "nve_fluctuation_ratio",
        "Energy fluctuation, full over half time step",
        3.0,
        "",
        "halving the time step does not quarter the energy fluctuation: the forces are not"
        " smooth, or not the gradient of the energy",
        "velocity Verlet gives 4 for smooth forces; noise, jumps and lost digits give 1 to 2",
    ),
    _at_most(
        "momentum_change",
        "Change of the total momentum",
        1e-3,
        "",
        "the forces do not add up to zero",
        "relative to the sum of all atoms' momenta; rounding in float32 leaves a hundred times"
        " less",
    ),
    _at_most(
        "temperature_deviation_percent",
        "Deviation from the thermostat's temperature",
        2.0,
        "%",
        "the thermostat cannot hold its temperature: something heats or cools the system",
        "beyond noise; integrators alone deviate by (omega dt)²/4, on average over a molecule's"
        " modes 0.3 % for C-H at 0.5 fs",
    ),
    _at_least(
        "kinetic_energy_p_value",
        "Kinetic energies vs canonical distribution, p-value",
        1e-3,
        "",
        "the kinetic energies are not canonically distributed",
        "a sound run fails once in a thousand",
    ),
    _at_most(
        "element_temperature_deviation_percent",
        "Temperature deviation of a single element",
        5.0,
        "%",
        "one element is hotter or colder than the thermostat",
        "beyond noise; O-H stretching alone is 3 % low with steps of 0.5 fs",
    ),
    _at_least(
        "npt_completed",
        "Constant-pressure MD completed",
        1.0,
        YES_NO,
        "the constant-pressure run ended early, or its cell burst or collapsed",
        "a run that ends early samples nothing",
    ),
    _at_most(
        "npt_pressure_deviation_GPa",
        "Deviation from the barostat's pressure",
        0.05,
        "GPa",
        "the barostat cannot hold its pressure: the volume does not settle",
        "beyond noise; it shifts the volume of silicon by 0.05 %, of water by 2 %",
    ),
    _at_most(
        "memory_growth_kB_per_step",
        "Memory growth during a run",
        0.2,
        "kB/step",
        "memory grows steadily during a run",
        "beyond noise and caches that fill once; 2 GB in 10 million steps, and the least that"
        " 2,000 steps can tell from scattered pages",
    ),
    # Laws.
    _at_most(
        "force_derivative_error",
        "Forces vs finite-difference energy gradient",
        5e-3,
        "",
        "the forces are not the derivative of the energy",
        "relative to the size of the forces; differences of float32 energies are good to 2e-3",
    ),
    _at_most(
        "stress_derivative_error",
        "Stress vs finite-difference strain derivative",
        2e-2,
        "",
        "the stress is not the derivative of the energy with respect to strain",
        "relative to the size of the stress; a flipped sign gives 2, differences of float32"
        " energies 5e-3",
    ),
    _at_most(
        "scan_jump_meV",
        "Largest energy jump along a straight line",
        0.1,
        "meV",
        "the energy jumps along a straight line, as at a hard cutoff",
        "0.4 % of kT at 300 K for one pair; an atom of a liquid meets such a jump every few fs",
    ),
    _at_most(
        "translation_meV_per_atom",
        "Energy change under translation",
        0.1,
        "meV/atom",
        "the energy depends on where the system is",
        "zero in theory; positions 1,000 Å from the origin lose 1e-4 Å in float32",
    ),
    _at_most(
        "energy_noise_meV",
        "Rounding noise in the energy of a large system",
        0.1,
        "meV",
        "the total energy of a large system loses digits, as float32 sums do",
        "for 1,000 atoms; float32 networks summed in float64 leave a fifth of it or less",
    ),
    _at_most(
        "dimer_drop_eV",
        "Energy drop between two atoms at short distance",
        0.05,
        "eV",
        "two atoms fall into a hole at short distance",
        "twice kT at 300 K; exact curves rise all the way",
    ),
    _at_most(
        "compression_drop_eV_per_atom",
        "Energy drop under compression",
        0.05,
        "eV/atom",
        "compressed matter falls into a hole",
        "twice kT at 300 K; exact curves rise all the way",
    ),
)
_COMPARISONS = (
    # Accuracy and speed.
    _at_least(
        "test_forces_fidelity",
        "Force fidelity on held-out test frames",
        0.95,
        SHARE,
        "forces on held-out structures differ from the teacher's",
        "this is what 'more than 95 % accurate' means here",
    ),
    _at_least(
        "student_md_forces_fidelity",
        "Force fidelity on frames of the student's own MD",
        0.95,
        SHARE,
        "forces differ from the teacher's where its own dynamics leads",
        "the same as on held-out structures: dynamics must stay within what was learned",
    ),
    _at_least(
        "speedup",
        "Speed-up over the teacher",
        5.0,
        TIMES,
        "it is hardly faster than the teacher",
        "a smaller gain does not justify the training",
    ),
    _at_most(
        "leaked_fraction",
        "Test structures found in the training set",
        0.0,
        SHARE,
        "test structures are in the training set: their errors prove nothing",
        "one is too many",
    ),
    # Observables next to the teacher's, beyond noise.
    _at_most(
        "rdf_difference_percent",
        "Radial distribution functions vs teacher",
        3.0,
        "%",
        "the structure differs from the teacher's: radial distribution functions disagree",
        "of the area, beyond the teacher's own scatter; less than exchange-correlation"
        " functionals differ by in water (5 to 10 %)",
    ),
    _at_most(
        "angle_difference_percent",
        "Bond angles vs teacher",
        5.0,
        "%",
        "the structure differs from the teacher's: bond angles disagree",
        "of the area, beyond the teacher's own scatter",
    ),
    _at_most(
        "spectrum_difference_percent",
        "Vibrational spectrum vs teacher",
        10.0,
        "%",
        "vibrations differ from the teacher's",
        "of the area, beyond the teacher's own scatter; as if peaks shifted by a tenth of their"
        " width",
    ),
    _at_most(
        "diffusion_difference_percent",
        "Diffusion coefficients vs teacher",
        20.0,
        "%",
        "atoms diffuse faster or slower than with the teacher",
        "beyond error bars; in water, 10 K change it by as much",
    ),
    _at_most(
        "volume_difference_percent",
        "Equilibrium volume vs teacher",
        1.0,
        "%",
        "the equilibrium volume differs from the teacher's",
        "0.3 % of the lattice constant",
    ),
    _at_most(
        "density_difference_percent",
        "Density vs teacher",
        2.0,
        "%",
        "the density at the same pressure and temperature differs from the teacher's",
        "beyond error bars; twice the limit for static volumes, a third of the scatter among"
        " density functionals for water",
    ),
    _at_most(
        "npt_volume_difference_percent",
        "Volume at constant pressure vs teacher",
        2.0,
        "%",
        "the teacher would not keep the volume that the student takes",
        "from the teacher's pressure there and the compressibility, as large as for densities",
    ),
    _at_most(
        "bulk_modulus_difference_percent",
        "Bulk modulus vs teacher",
        10.0,
        "%",
        "the bulk modulus differs from the teacher's",
        "the scatter of measurements",
    ),
    _at_most(
        "elastic_difference_percent",
        "Elastic constants vs teacher",
        10.0,
        "%",
        "elastic constants differ from the teacher's",
        "of the largest constant; as for the bulk modulus, and the error of density functionals",
    ),
    _at_most(
        "frequency_difference_percent",
        "Harmonic frequencies vs teacher",
        5.0,
        "%",
        "harmonic frequencies differ from the teacher's",
        "of the mean frequency; the error of density functionals",
    ),
    _at_most(
        "imaginary_frequency_per_cm",
        "Imaginary frequency below the teacher's lowest",
        20.0,
        "cm⁻¹",
        "the structure is unstable, unlike the teacher's",
        "acoustic modes are uncertain by about 5 cm⁻¹",
    ),
)

CRITERIA = {criterion.name: criterion for criterion in (*_PHYSICS, *_COMPARISONS)}
COMPARISONS = frozenset(criterion.name for criterion in _COMPARISONS)
"""Checks of how close the student is to its teacher, not of whether its physics is sound.

Leaked test structures are among these: they void a claim of accuracy, not the dynamics.
"""
