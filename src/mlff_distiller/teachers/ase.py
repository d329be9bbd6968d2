"""Any ASE calculator: ``ase:package.module:factory``, a class or function called without arguments.

The module may be installed or lie in the current folder.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, PropertyNotImplementedError

from mlff_distiller.errors import TeacherError
from mlff_distiller.teachers.family import Evaluation, Family, Loaded, digest, licence_of

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def _resolve(name: str, argument: str | None) -> tuple[str, dict[str, Any]]:
    if argument is None or not _DOTTED.fullmatch(argument):
        raise TeacherError(
            "the calculator's factory is not named properly",
            expected="ase:package.module:factory, e.g. ase:ase.calculators.emt:EMT",
            found=name if argument is None else f"{name}:{argument}",
        )
    return f"{name}:{argument}", {"factory": argument}


FAMILY = Family(
    name="ase",
    package="",
    install="",
    requirements="",
    licence="the calculator's",
    usage="ase:PACKAGE.MODULE:FACTORY",
    teachers={},
    resolve=_resolve,
)


def load(arguments: dict[str, Any], device: str, allow_download: bool) -> Loaded:
    """Import the module and call the factory; see `mlff_distiller.teachers.family`.

    ``device`` is the factory's business.
    """
    module_name, _, factory_name = arguments["factory"].partition(":")
    sys.path.append(os.getcwd())  # last, so that nothing there hides an installed package
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise TeacherError(
            f"there is no module {error.name!r} to take an ASE calculator from",
            expected=f"{module_name!r} importable by {sys.executable}",
            found=f"neither installed nor in {os.getcwd()}",
            remedy="install it, or start from the folder that holds it",
        ) from error
    factory = getattr(module, factory_name, None)
    calculator = factory() if callable(factory) else factory
    if not isinstance(calculator, BaseCalculator):
        raise TeacherError(
            f"{arguments['factory']} gives no ASE calculator",
            expected="a class or function that, called without arguments, returns one",
            found=f"nothing named {factory_name!r}" if factory is None else type(calculator),
        )
    return loaded(calculator, module)


def loaded(calculator: BaseCalculator, module: Any) -> Loaded:
    """``calculator``, which ``module`` defines or makes."""
    version, licence, source = _origin(module)
    told = dict(getattr(calculator, "parameters", None) or {})
    parameters = json.loads(json.dumps(told, default=_described))
    return Loaded(
        evaluate=lambda atoms, stress: evaluate_calculator(calculator, atoms, stress),
        version=version,
        licence=licence,
        device=str(getattr(calculator, "device", "cpu")),
        settings={"parameters": parameters, "source_sha256": source},
        uses=None,
    )


def evaluate_calculator(calculator: BaseCalculator, atoms: Atoms, stress: bool) -> Evaluation:
    """Ask for stress first: most calculators then fill in all the rest at once.

    What was calculated before is forgotten, neighbour lists and wave functions too: an answer
    depends on the structure alone, charge and spin included, which ASE's cache does not look at.
    """
    getattr(calculator, "reset", calculator.results.clear)()
    tensor = None
    if stress and "stress" in calculator.implemented_properties:
        try:
            tensor = np.array(calculator.get_property("stress", atoms))
        except PropertyNotImplementedError:
            tensor = None
    forces = np.array(calculator.get_property("forces", atoms))
    energy = calculator.get_property("energy", atoms)
    free_energy = calculator.results.get("free_energy")
    shares = np.array(calculator.results.get("energies", np.nan), dtype=np.float64)
    known = shares.shape == (len(atoms),) and np.isfinite(shares).all()  # or a committee's members'
    return Evaluation(energy, forces, tensor, free_energy, energies=shares if known else None)


def _described(value: Any) -> Any:
    """A parameter that JSON has no form for; never its address, which differs every time."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else type(value).__name__


def _origin(module: Any) -> tuple[str, str, str | None]:
    """Version and licence of the module's distribution, and the hash of its own file."""
    path = getattr(module, "__file__", None)
    source = digest([Path(path)]) if path else None
    top = module.__name__.partition(".")[0]
    name = distribution_of(top)
    if name is None:
        return "unversioned", "not stated", source
    return importlib.metadata.version(name), licence_of(name), source


def distribution_of(top: str) -> str | None:
    """Name of the distribution that installed the package ``top``.

    The first of `importlib.metadata.packages_distributions`, which takes half a second.
    """
    file = re.compile(rf"^{re.escape(top)}(/.*)?\.py,", re.MULTILINE)
    for distribution in importlib.metadata.distributions():
        declared = (distribution.read_text("top_level.txt") or "").split()
        recorded = "" if declared else distribution.read_text("RECORD") or ""
        if top in declared or file.search(recorded):
            return str(distribution.metadata["Name"])
    return None
