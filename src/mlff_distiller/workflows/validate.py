"""Validation of force fields, from files to files: certificates, pages, a comparison."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from pydantic import TypeAdapter, ValidationError

from mlff_distiller.batch import check_structure
from mlff_distiller.dataset import Dataset, structure_hash
from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.durable import claimed, read_json, sha256_of_file, write_json
from mlff_distiller.errors import ConfigError, from_pydantic
from mlff_distiller.labeling.structures import read_frames
from mlff_distiller.md.record import ForceField
from mlff_distiller.reports.comparison import Validated, names_of, write_comparison
from mlff_distiller.reports.validation import write_page
from mlff_distiller.structure import warn_of_constraints
from mlff_distiller.students import student_folder
from mlff_distiller.teachers import load_teacher
from mlff_distiller.validation.certificate import (
    certified,
    read_certificate,
    versions,
    write_certificate,
)
from mlff_distiller.validation.partial import FOLDER as PARTIAL
from mlff_distiller.validation.partial import Partial
from mlff_distiller.validation.price import evaluation_seconds, price
from mlff_distiller.validation.remembering import Remembering
from mlff_distiller.validation.series import series_of
from mlff_distiller.validation.settings import ValidationSettings
from mlff_distiller.validation.subject import OnProgress, Subject
from mlff_distiller.validation.validate import (
    NOTHING,
    Examined,
    Profile,
    examine,
    summary,
    worst_of,
)
from mlff_distiller.validation.verdict import Finding, judge
from mlff_distiller.workflows.assess import known_of, short_settings, structure_block
from mlff_distiller.workflows.config import Config, config_of
from mlff_distiller.workflows.folder import files_of_student, read_inputs
from mlff_distiller.workflows.seeds import save_structures
from mlff_distiller.workflows.train import split_labels


@dataclass(frozen=True)
class Candidate:
    """What is validated."""

    name: str
    force_field: ForceField
    settings: ValidationSettings
    files: Mapping[str, Path]
    """Files whose hashes its certificate holds."""
    known: Mapping[str, list[Atoms]]
    """``training`` and ``test`` structures, as far as they are known."""
    about: Mapping[str, Any] = field(default_factory=dict)
    certificate: Mapping[str, Any] | None = None
    """What its run found before."""


def validate(
    structure: str | Path | Atoms | None = None,
    *,
    students: str | Path | Sequence[str | Path] = (),
    calculator: str | BaseCalculator | None = None,
    teacher: str | BaseCalculator | None = None,
    out: str | Path | None = None,
    training: str | Path | None = None,
    test: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    dtype: Literal["float32", "float64"] = "float32",
    teacher_python: str | None = None,
    profile: Profile = "full",
    dry_run: bool = False,
    resume: bool = False,
    on_progress: OnProgress = lambda stage, done, total, news: None,
) -> list[Validated]:
    """Validate ``students``, or one ``calculator``; write certificates and pages.

    The same call continues one that was interrupted: finished runs and checks are read from
    ``out/partial``, and nothing that the teacher has answered is asked for again.

    Several students are compared in ``out/report.html``; each has a folder of its name there.
    `Validated.content` is the certificate's content.

    Parameters
    ----------
    structure
        A file that ASE reads, whose first frame is simulated, or ``Atoms``. None: the first
        structure that the run of a single student was assessed in.
    students
        Folders of runs or of students, or ``nep.txt`` files; or one of these. What a run's
        certificate already says of the structure is taken over, so that a check has one answer; so
        are the run's settings.
    calculator
        Instead of students: ``ase:module:factory``, any teacher's SPEC, or an ASE calculator.
    teacher
        SPEC of the teacher to compare with, or an ASE calculator.
    out
        Folder of the certificate and the page. None: the folder of the run, whose certificate
        then holds all checks.
    training, test
        Files of structures it was trained and tested on; a run's are found.
    settings
        Fields of `ValidationSettings` that differ from the run's, or from the defaults.
    profile
        ``short``: accuracy, conservation of energy and speed, as `distill` checks them; ``full``:
        everything.
    dry_run
        Only say what it will cost, as news of ``on_progress``; returns nothing.
    resume
        Keep what ``out`` holds for the same files and settings.

    Raises
    ------
    ConfigError
        A setting is wrong, a limit is for a check that does not exist, or a file is missing.
    """
    students = [students] if isinstance(students, str | Path) else list(students)
    if bool(students) == (calculator is not None):
        raise ConfigError(
            "nothing to validate" if not students else "two kinds of force fields to validate",
            expected="either students or a calculator",
        )
    run = _only_run(students)
    folder = Path(out) if out is not None else run
    if folder is None:
        raise ConfigError(
            "no folder for the certificate was given",
            expected="a folder, for anything but a single run of distill",
            remedy="give --out FOLDER",
        )
    place = folder / "structure.traj"
    if not isinstance(structure, Atoms):
        place = Path(structure or _structure_of(run))
    files = {"structure": place}
    known: dict[str, list[Atoms]] = {}
    for name, path in (("training", training), ("test", test)):
        if path is not None:
            known[name], files[name] = read_frames(path), Path(path)
    atoms = structure if isinstance(structure, Atoms) else read_frames(place)[0]
    given = dict(settings or {})
    _check_profile(profile)
    read_settings({}, given)  # refused before anything is loaded
    check_structure(atoms, f"the structure in {place}")
    warn_of_constraints([atoms], place)
    with ExitStack() as stack:
        stack.enter_context(claimed(folder))
        if isinstance(structure, Atoms):
            save_structures(place, [atoms])
        candidates = [
            _student(Path(path), name, given, device, dtype, files, known)
            for path, name in zip(students, names_of([Path(p) for p in students]), strict=True)
        ]
        if calculator is not None:
            asked = stack.enter_context(load_teacher(calculator, device=device))
            about = {"calculator": asdict(asked.identity)}
            own = files | _source(asked.spec)
            field = ForceField(asked.spec, asked)
            candidates = [Candidate(asked.spec, field, read_settings({}, given), own, known, about)]
        reference: ForceField | None = None
        identity: dict[str, Any] = {}
        if teacher is not None:
            source = load_teacher(teacher, device=device, python=teacher_python)
            identity = {"teacher": asdict(stack.enter_context(source).identity)}
            file = folder / PARTIAL / f"teacher-{source.identity.fingerprint()[:16]}.npy"
            reference = ForceField(source.spec, Remembering(source, file=file))
        done = []
        evaluation_s = cache(partial(evaluation_seconds, reference, atoms))
        for number, one in enumerate(candidates):
            own_folder = folder / one.name if len(candidates) > 1 else folder
            page = page_of(own_folder, run)
            made = _Making(one, reference, identity, atoms, profile, own_folder, page, evaluation_s)
            if dry_run:
                on_progress("validate", 0, 0, made.price(on_progress))
                continue
            kept = made.kept(on_progress) if resume else None
            own_place = folder / PARTIAL / str(number)
            done.append(kept if kept is not None else made.new(on_progress, own_place))
        if not dry_run:
            shutil.rmtree(folder / PARTIAL, ignore_errors=True)
    if len(done) > 1:
        write_comparison(folder / "report.html", done)
    return done


def _check_profile(profile: str) -> None:
    known = get_args(Profile)
    if profile not in known:
        raise ConfigError("there is no such profile", expected=" or ".join(known), found=profile)


def page_of(folder: Path, run: Path | None) -> Path:
    """The page of a certificate in ``folder``; a run's ``report.html`` is that of ``distill``."""
    return folder / ("validation.html" if folder == run else "report.html")


def read_settings(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> ValidationSettings:
    """``given`` fields over ``defaults``; limits one by one."""
    content = {**defaults, **given}
    if "limits" in given:
        content["limits"] = {**defaults.get("limits", {}), **(given["limits"] or {})}
    if "time_ps" in given and "nve_ps" not in given:
        content["nve_ps"] = None
    try:
        settings = TypeAdapter(ValidationSettings).validate_python(content)
    except ValidationError as error:
        raise from_pydantic(error) from error
    judge({}, settings.limits)
    return settings


def _only_run(students: Sequence[str | Path]) -> Path | None:
    """The folder of the run, where a single one is validated."""
    only = Path(students[0]) if len(students) == 1 else None
    return only if only is not None and (only / "student").is_dir() else None


def _structure_of(run: Path | None) -> Path:
    if run is None or not (run / "structures.traj").is_file():
        raise ConfigError(
            "no structure was given",
            expected="a file that ASE reads",
            remedy="name one; only a run of distill brings its own",
        )
    return run / "structures.traj"


def _student(
    path: Path,
    name: str,
    given: Mapping[str, Any],
    device: str,
    dtype: Literal["float32", "float64"],
    files: Mapping[str, Path],
    known: Mapping[str, list[Atoms]],
) -> Candidate:
    """A student, with the data, settings and findings of its run where there is one."""
    folder = student_folder(path)
    own = {**files, **files_of_student(folder)}
    before = read_certificate(path / "certificate.json", files_of_student(folder))
    defaults: dict[str, Any] = {}
    if (path / "dataset").is_dir() and (path / "config.yaml").exists():
        config = _config_of_run(path)
        defaults = asdict(short_settings(config))
        if not known:
            known = _data_of_run(path, config)
            own["dataset"] = path / "dataset" / "manifest.json"
    if before is not None:
        names = {one.name for one in fields(ValidationSettings)} - {"kind"}
        defaults |= {key: own for key, own in before["settings"].items() if key in names}
    calculator = StudentCalculator(folder, device=device, dtype=dtype)
    return Candidate(
        name,
        ForceField(name, calculator, dtype),
        read_settings(defaults, given),
        own,
        known,
        certificate=before,
    )


@dataclass(frozen=True)
class _Making:
    """The validation of one candidate."""

    candidate: Candidate
    reference: ForceField | None
    identity: Mapping[str, Any]
    atoms: Atoms
    profile: Profile
    folder: Path
    page: Path
    evaluation_s: Callable[[], float]
    """What an evaluation of ``reference`` takes, measured when it is first asked for."""

    def new(self, on_progress: OnProgress, place: Path) -> Validated:
        """Validate, and write certificate.json and the page; ``place`` keeps what is done."""
        one = self.candidate
        begun = Partial(place, self._question())
        subject = self._subject(on_progress, simulate=begun.run)
        if begun.n_checks:
            words = f"{begun.n_checks} checks were finished before, and are kept"
            on_progress("validate", 0, 0, words)
        else:
            on_progress("validate", 0, 0, self.price(on_progress))
        known, others, identity = self._before()
        found = examine(subject, self.profile, known, begun)
        blocks = [structure_block(subject, found), *others]
        findings = {f"structure {k} ({own['formula']})": own for k, own in enumerate(blocks)}
        worst = worst_of({name: dict(_findings(own)) for name, own in findings.items()})
        content = {
            **summary(subject, found, self.profile),
            "verdict": {
                **judge(worst, one.settings.limits),
                "remarks": list(found.remarks),
            },
            **one.about,
            "settings": asdict(one.settings),
            "dtype": one.force_field.dtype,
            **identity,
            "structures": blocks,
        }
        drawn = series_of(subject)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_page(self.page, content, drawn, one.name, one.files)
        write_json(self.folder / "series.json", drawn)
        files = {**one.files, **self._made()}
        write_certificate(self.folder / "certificate.json", content, files)
        return Validated(one.name, content, drawn, self.page)

    def price(self, on_progress: OnProgress) -> str:
        """What it will cost, in words."""
        subject = self._subject(on_progress)
        cost = price(subject, self.profile, self.evaluation_s())
        return f"{self.candidate.name}: {cost.words(subject)}"

    def _subject(self, on_progress: OnProgress, **more: Any) -> Subject:
        one = self.candidate
        return Subject(
            one.force_field,
            self.atoms,
            one.settings,
            self.reference,
            one.known.get("training", []),
            one.known.get("test", []),
            on_progress=on_progress,
            **more,
        )

    def kept(self, on_progress: OnProgress) -> Validated | None:
        """What was found before for the same files, teacher and settings, if anything was.

        What is damaged is named, and made again.
        """
        one = self.candidate
        asked = {**one.about, "settings": asdict(one.settings), **self.identity}
        asked["profile"] = self.profile
        try:
            content = certified(self.folder / "certificate.json", asked, one.files, self._made())
        except ConfigError as damage:
            on_progress("resume", 0, 1, f"{damage.problem}: validating again")
            return None
        if content is None:
            return None
        drawn = read_json(self.folder / "series.json")
        return Validated(one.name, content, drawn, self.page)

    def _question(self) -> dict[str, Any]:
        """All that the answers depend on."""
        one = self.candidate
        return {
            "structure": structure_hash(self.atoms),
            "files": {name: sha256_of_file(file) for name, file in one.files.items()},
            "settings": asdict(one.settings),
            "dtype": one.force_field.dtype,
            "profile": self.profile,
            **one.about,
            **self.identity,
            "versions": versions(),
        }

    def _before(self) -> tuple[Examined, list[dict[str, Any]], dict[str, Any]]:
        """What the run's certificate says: of the structure, of others, and of the teacher."""
        one, identity = self.candidate, dict(self.identity)
        before = one.certificate or {}
        asked = identity.get("teacher", before.get("teacher"))
        if asked is None or _same(asked) != _same(before.get("teacher") or {}):
            return NOTHING, [], identity
        dtype = one.force_field.dtype
        found, others = known_of(before, self.atoms, one.settings, dtype)
        return (NOTHING, [], identity) if found is None else (found, others, {"teacher": asked})

    def _made(self) -> dict[str, Path]:
        return {"report": self.page, "series": self.folder / "series.json"}


def _same(teacher: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(teacher.get(name) for name in ("name", "family", "version", "weights_sha256"))


def _findings(block: Mapping[str, Any]) -> Iterator[tuple[str, Finding]]:
    for name, one in block["findings"].items():
        yield name, Finding(one["value"], one["words"])


def _source(spec: str) -> dict[str, Path]:
    """The file of an ``ase:module:factory``, here or installed."""
    family, _, rest = spec.partition(":")
    module = rest.partition(":")[0]
    if family != "ase" or module in ("", "__main__"):
        return {}
    here = Path(*module.split(".")).with_suffix(".py")
    if here.is_file():
        return {"calculator": here}
    found = find_spec(module)
    return {"calculator": Path(found.origin)} if found is not None and found.origin else {}


def _config_of_run(run: Path) -> Config:
    return config_of(read_inputs(run)["config"])


def _data_of_run(run: Path, config: Config) -> dict[str, list[Atoms]]:
    """Structures that a run's student was trained and tested on, with their labels."""
    labels = Dataset(run / "dataset")
    split = split_labels(labels, config)
    return {
        name: labels.read(part).to_atoms()
        for name, part in (("training", split.train), ("test", split.test))
    }
