"""Active learning: the student's own dynamics finds what it does not know, the teacher tells it.

Each round trains a student on all labels so far, lets walkers run with it, has the teacher label
where they got to, and begins again. What is labelled is thus what the user's simulations will
meet, at a cost of one teacher evaluation per structure; see `mlff_distiller.sampling.dynamics`.

A finished round is a folder ``rounds/NN`` with its student and ``state.json`` (the walkers and
the errors met); an interrupted one is replayed, its labels being looked up instead of computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from mlff_distiller.durable import read_json, write_json
from mlff_distiller.errors import DatasetError
from mlff_distiller.sampling import DynamicsSettings, Labeler, Walker, explore, walkers


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class ActiveSettings:
    """How the student's dynamics is used to sample.

    ``share`` is the part of the labels got this way, in ``rounds`` equal portions; ``walkers`` run
    at a time. A round's student gets ``updates`` updates (the first twice as many). A walker goes
    on while its force error is below ``window`` times the running error of earlier structures.
    Rounds end early when the error on new structures has not fallen by ``least_gain`` over two
    rounds, with all walkers at their longest stride.
    """

    share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    rounds: Annotated[int, Field(ge=1)] = 5
    walkers: Annotated[int, Field(ge=1)] = 12
    updates: Annotated[int, Field(ge=1)] = 800
    window: Annotated[float, Field(gt=1)] = 3.0
    least_gain: Annotated[float, Field(ge=0, lt=1)] = 0.02


LOWEST_ERROR = 0.03
"""The running error is taken to be at least this: a very good student may wander too."""


@dataclass(frozen=True)
class Round:
    """What one round met: the student's relative force errors at its new structures."""

    number: int
    errors: list[float]
    reach_fs: float
    """Median of the walkers' longest next segment, after the round."""

    @property
    def error(self) -> float:
        """Median error; NaN if the round labelled nothing."""
        return float(np.median(self.errors)) if self.errors else float("nan")

    def quartiles(self) -> dict[str, float]:
        """The errors' quartiles, by name; empty if the round labelled nothing."""
        names = ("error_lower_quartile", "error_median", "error_upper_quartile")
        if not self.errors:
            return {}
        values = np.quantile(self.errors, [0.25, 0.5, 0.75]).round(5).tolist()
        return dict(zip(names, values, strict=True))


def learn_actively(
    folder: Path,
    seeds: Sequence[Atoms],
    label: Labeler,
    fit: Callable[[int, Path, Path | None], tuple[Calculator, float]],
    n_labels: int,
    temperature_K: Sequence[float],
    settings: ActiveSettings,
    dynamics: DynamicsSettings,
    seed: int,
    on_label: Callable[[int, str], None] = lambda n, news: None,
) -> list[Round]:
    """Label ``n_labels`` structures met by the student's dynamics, in rounds; returns these.

    ``fit(number, student, previous)`` trains round ``number``'s student into the folder
    ``student``, from the one in ``previous`` if there is one, or loads it if it is there; it
    returns a calculator and the student's relative force error on data held out.
    """
    group = walkers(seeds, temperature_K, dynamics, settings.walkers)
    history: list[Round] = []
    previous: Path | None = None
    for number in range(settings.rounds):
        own = folder / f"{number:02d}"
        state = own / "state.json"
        if state.exists():
            history.append(_restore(state, group, seeds))
        else:
            calculator, error = fit(number, own / "student", previous)
            met = [error for done in history[-1:] for error in done.errors] or [error]
            running = max(LOWEST_ERROR, float(np.median(met)))
            done = sum(len(past.errors) for past in history)
            errors = explore(
                group,
                calculator,
                label,
                round(n_labels * (number + 1) / settings.rounds) - done,
                dynamics,
                settings.window * running,
                seed,
                {"round": number},
                lambda n, done=done, number=number: on_label(  # type: ignore[misc]
                    done + n, f"round {number + 1} of {settings.rounds}"
                ),
                seeds,
            )
            reach = float(np.median([walker.reach_fs for walker in group]))
            history.append(Round(number, errors, reach))
            _save(state, history[-1], group)
        previous = own / "student"
        if saturated(history, settings.least_gain, dynamics.longest_fs):
            break
    return history


def saturated(history: Sequence[Round], least_gain: float, longest_fs: float) -> bool:
    """Whether two rounds at full stride have not lowered the error by ``least_gain``."""
    full = [past.error for past in history if past.reach_fs >= longest_fs and past.errors]
    return len(full) >= 3 and min(full[-2:]) > (1.0 - least_gain) * min(full[:-2])


def _save(path: Path, done: Round, group: Sequence[Walker]) -> None:
    states = []
    for walker in group:
        state = {name: value for name, value in vars(walker).items() if name != "atoms"}
        state["positions"] = walker.atoms.positions.tolist()
        state["cell"] = walker.atoms.cell.array.tolist()
        states.append(state)
    write_json(path, {"round": asdict(done), "walkers": states})


def _restore(path: Path, group: list[Walker], seeds: Sequence[Atoms]) -> Round:
    """The round that ended there; ``group`` as it was then."""
    remedy = "remove the folder; the round is then repeated from its labels"
    content = read_json(path, error=DatasetError, remedy=remedy)
    try:
        for k, state in enumerate(content["walkers"]):
            positions, cell = state.pop("positions"), state.pop("cell")
            atoms = seeds[state["seed_index"]].copy()
            atoms.set_cell(cell)
            atoms.positions[:] = positions
            group[k] = Walker(atoms=atoms, **state)
        return Round(**content["round"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DatasetError(
            f"{path} is damaged",
            expected="the state of a finished round",
            found=f"{type(error).__name__}: {error}",
            remedy=remedy,
        ) from error
