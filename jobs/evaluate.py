"""Measure a bundle on a labelled catalog: `python jobs/evaluate.py --help`."""

import sys

from retailray.cli import run

if __name__ == "__main__":
    run(["evaluate", *sys.argv[1:]])
