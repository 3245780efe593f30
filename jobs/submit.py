"""Run any command as a job of a running cluster: `python jobs/submit.py --help`."""

import sys

from retailray.cli import run

if __name__ == "__main__":
    run(["submit", *sys.argv[1:]])
