"""Random faults: no stack trace, no lost row, bounded memory and time (benchmarks/mutations.py has many more)."""

import subprocess
import sys
from pathlib import Path

import pytest

# at which something was wrong once, and a few more
SEEDS = [0, 1, 2, 3]


@pytest.mark.slow
def test_random_faults_end_as_they_should():
    """In a process without threads, which forks for every command."""
    command = [sys.executable, "-m", "tests.mutations", *map(str, SEEDS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
