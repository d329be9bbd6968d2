import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("scenario", "said"),
    [
        ("die_at_every_call", "died at "),
        ("die_at_any_time", "died 25 times"),
        ("fork_while_writing", "the lock is the parent's alone"),
    ],
)
def test_records_survive(scenario, said, tmp_path):
    script = Path(__file__).with_name("crashing_writer.py")
    done = subprocess.run(
        [sys.executable, str(script), scenario, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
