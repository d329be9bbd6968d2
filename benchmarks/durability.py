"""What kills, full disks and flipped bits do to labels.

Kills: 200 molecules are labelled by ANI-1x in batches of 96 atoms; the command is killed (SIGKILL)
at random instants, and at every call of its main thread that writes, syncs, renames or removes a
file; each time it is run again, and the set of labels compared with that of an undisturbed run.
Full disk: the same into a small tmpfs (needs the right to mount), then with more room.
Bits: each of 100 random bits of a dataset's files is flipped in turn.

    python benchmarks/durability.py --out benchmarks/results/durability.json

Needs Linux and strace.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ase.build import molecule
from ase.io import write

from mlff_distiller.dataset import Dataset, verify
from mlff_distiller.errors import DatasetError

CALLS = "write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,mkdir,ftruncate"
TEACHER = "ani-1x"
N_STRUCTURES = 200


def command(structures, out):
    words = ["-m", "mlff_distiller.cli.main", "label", str(structures), "--teacher", TEACHER]
    words += ["--batch-size", "96", "--device", "cpu", "--quiet"]
    return [sys.executable, *words, "--out", str(out)]


def run(words, killed_after=None):
    """Exit code and standard error; the process is killed after some seconds."""
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        _, text = process.communicate(timeout=killed_after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        _, text = process.communicate()
    return process.returncode, text


def finish(structures, out, wanted):
    """Run to the end; whether the labels are those of the undisturbed run."""
    code, text = run(command(structures, out))
    assert code == 0, text
    assert verify(out).ok
    return Dataset(out).label_set_hash() == wanted


def random_kills(structures, folder, wanted, seconds, n):
    rng, equal, deaths, labels = random.Random(0), 0, 0, []
    for number in range(n):
        out = folder / f"random{number}"
        code, _ = run(command(structures, out), rng.uniform(0.4, 1.0) * seconds)
        deaths += code == -signal.SIGKILL
        labels.append(len(Dataset(out)) if (out / "manifest.json").exists() else 0)
        equal += finish(structures, out, wanted)
        shutil.rmtree(out)
    return {"instants": n, "died": deaths, "labels_at_death": labels, "equal": equal}


def traced(structures, out, trace, *, kill=()):
    words = ["strace", "-o", str(trace), "-qq", "-e", f"trace={CALLS}", *kill]
    return run([*words, *command(structures, out)])


def kills_at_calls(structures, folder, wanted):
    trace, out = folder / "trace", folder / "traced"
    code, text = traced(structures, out, trace)
    assert code == 0, text
    names = re.findall(r"^(\w+)\(", trace.read_text(), re.MULTILINE)
    counts = {name: names.count(name) for name in sorted(set(names))}
    rows = {}
    for name, count in counts.items():
        deaths, equal = 0, 0
        for number in range(1, count + 1):
            out = folder / f"{name}{number}"
            inject = ("-e", f"inject={name}:signal=SIGKILL:when={number}")
            code, _ = traced(structures, out, trace, kill=inject)
            deaths += code in (-signal.SIGKILL, 128 + signal.SIGKILL)
            equal += finish(structures, out, wanted)
            shutil.rmtree(out)
        rows[name] = {"calls": count, "died": deaths, "equal": equal}
        print(name, rows[name], flush=True)
    return rows


def full_disk(structures, folder, wanted):
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        return "not run: no right to mount"
    try:
        out = disk / "labels"
        code, text = run(command(structures, out))
        before = {path.name: path.read_bytes() for path in out.glob("*.h5")}
        n = len(Dataset(out))
        partials = [path.name for path in out.glob(".*.partial")]
        again, _ = run(command(structures, out))
        intact = all((out / name).read_bytes() == content for name, content in before.items())
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        equal = finish(structures, out, wanted)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return {
        "exit_codes": [code, again],
        "message": text.strip(),
        "labels_kept": n,
        "old_files_intact": intact,
        "half_files_left": partials,
        "resumed_equal": equal,
    }


def flipped_bits(dataset, n):
    """One bit at a time: found by verify, the record named, and no read that differs unnoticed."""
    rng = random.Random(1)
    files = sorted(dataset.glob("*.h5"))
    truth = [numbers(record) for record in Dataset(dataset).iterate()]
    found = named = silent = refused = 0
    for _ in range(n):
        path = rng.choices(files, [file.stat().st_size for file in files])[0]
        content = path.read_bytes()
        place, bit = rng.randrange(len(content)), rng.randrange(8)
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        path.write_bytes(changed)
        try:
            report = verify(dataset)
            found += not report.ok
            named += any(path.name in problem for problem in report.problems)
            for number, expected in enumerate(truth):
                try:
                    [record] = Dataset(dataset).records([number])
                except DatasetError:
                    refused += 1
                    continue
                silent += numbers(record) != expected
        finally:
            path.write_bytes(content)
    return {
        "bits": n,
        "found_by_verify": found,
        "named_by_verify": named,
        "reads": n * len(truth),
        "reads_refused": refused,
        "changed_numbers_returned": silent,
    }


def numbers(record):
    labels = {name: value.tobytes() for name, value in record.labels.items()}
    atoms = record.atoms
    return record.key, labels, atoms.positions.tobytes(), atoms.numbers.tobytes(), record.provenance


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--random", type=int, default=30)
    parser.add_argument("--bits", type=int, default=100)
    parser.add_argument("--structures", type=int, default=N_STRUCTURES)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        structures = folder / "molecules.xyz"
        frames = []
        for number in range(arguments.structures):
            atoms = molecule(("CH3CH2OH", "H2O", "CH3OH", "NH3", "CH4")[number % 5])
            atoms.rattle(0.05, seed=number)
            frames.append(atoms)
        write(structures, frames)
        started = time.perf_counter()
        code, text = run(command(structures, folder / "undisturbed"))
        seconds = time.perf_counter() - started
        assert code == 0, text
        wanted = Dataset(folder / "undisturbed").label_set_hash()
        result = {"structures": arguments.structures, "teacher": TEACHER}
        result |= {"undisturbed_s": round(seconds, 1), "label_set_hash": wanted}
        result["flipped_bits"] = flipped_bits(folder / "undisturbed", arguments.bits)
        print(result["flipped_bits"], flush=True)
        result["full_disk"] = full_disk(structures, folder, wanted)
        print(result["full_disk"], flush=True)
        result["random_kills"] = random_kills(structures, folder, wanted, seconds, arguments.random)
        print(result["random_kills"], flush=True)
        result["kills_at_calls"] = kills_at_calls(structures, folder, wanted)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
