"""Run the whole pipeline on a generated catalog: `python jobs/demo.py --help`."""

import sys

from retailray.cli import run

if __name__ == "__main__":
    run(["demo", *sys.argv[1:]])
