"""Describe the shoppers: `python jobs/shoppers.py --help`."""

import sys

from retailray.cli import run

if __name__ == "__main__":
    run(["shoppers", *sys.argv[1:]])
