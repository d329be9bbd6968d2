"""Runs the command as often as it is asked to, each time in a fork: torch is imported once.

Each line of standard input is a request in JSON: the ``words`` of a command, the file for its
``output``, and ``life``. One that is given is how many changes of the disk the command may make,
and the seconds that it has left from then on until it vanishes as by SIGKILL. Answered with the
exit status, the signal negative.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from mlff_distiller import cli, pipeline  # noqa: F401 (what the command imports)


def die_after(changes: int, seconds: float) -> None:
    """SIGALRM, which nobody handles, ends a process as SIGKILL does."""

    def counted(real: Callable) -> Callable:
        def call(*arguments, **options):
            nonlocal changes
            changes -= 1
            if changes == 0:
                signal.setitimer(signal.ITIMER_REAL, seconds)
            return real(*arguments, **options)

        return call

    os.fsync, os.unlink = counted(os.fsync), counted(os.unlink)
    Path.replace = counted(Path.replace)


def run(words: list[str], output: str, life: tuple[int, float] | None) -> None:
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    if life is not None:
        die_after(*life)
    sys.argv = ["mlff-distiller", *words]
    cli.main()


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run(**json.loads(line))
            sys.exit()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
