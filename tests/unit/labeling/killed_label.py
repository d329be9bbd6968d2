"""Label three structures, dying at the n-th call that touches the disk, for every n; resume.

    python killed_label.py FOLDER

FOLDER holds `factories.py` and `copper.xyz`. The teacher answers once, in a process of its own;
later its answers are at hand, for starting that process 50 times would take longer than all else.
"""

import os
import sys
from pathlib import Path

from mlff_distiller.dataset import Dataset, verify
from mlff_distiller.labeling import Request, label, read_structures, workers
from mlff_distiller.teachers import load_teacher

EMT = Request("ase:factories:emt", "cpu")
TOUCHING = {"os.rename", "os.remove", "os.mkdir", "os.truncate", "shutil.rmtree"}


def run(out):
    return label(read_structures(["copper.xyz"]), EMT, out)


class Known:
    """A teacher that has answered."""

    def __init__(self):
        frames = [structure.atoms for structure in read_structures(["copper.xyz"]).all]
        with load_teacher(EMT.spec, device="cpu") as teacher:
            self.identity, self.at_once = teacher.identity, teacher.batch_atoms(None)
            answers = teacher.label(frames)
        keys = [atoms.positions.tobytes() for atoms in frames]
        self.answers = dict(zip(keys, answers, strict=True))

    def batch_atoms(self, batch_size):
        return self.at_once

    def label(self, frames, *, batch_size):
        return [self.answers[atoms.positions.tobytes()] for atoms in frames]


def in_child(out, number):
    """Exit status of a child that dies at its ``number``-th touch; 0 if there are fewer."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(event, arguments):
            nonlocal seen
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & 0o3
            inside = writes and str(out) in str(arguments[0])
            if event in TOUCHING or inside:
                seen += 1
                if seen == number:
                    os._exit(9)

        sys.addaudithook(count)
        run(out)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder):
    os.chdir(folder)
    teacher = Known()
    workers._teacher = lambda request: teacher
    os.fsync = lambda descriptor: None  # the kernel survives; waiting for the disk only costs
    straight = folder / "straight"
    assert in_child(straight, 0) == 0
    wanted = Dataset(straight).label_set_hash()
    number, died = 1, 9
    while died:
        out = folder / f"run{number}"
        died = in_child(out, number)
        assert died in (0, 9)
        if died:
            outcome = run(out)
            assert (outcome.n_labelled, outcome.n_failed) == (3, 0), number
        report = verify(out)
        assert (report.ok, report.notes) == (True, []), (number, report)
        assert Dataset(out).label_set_hash() == wanted, number
        number += 1
    print(f"died at {number - 2} calls")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
