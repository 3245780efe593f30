"""Classify a whole catalog and publish the result: `python jobs/score.py --help`."""

import sys

from retailray.cli import run

if __name__ == "__main__":
    run(["score", *sys.argv[1:]])
