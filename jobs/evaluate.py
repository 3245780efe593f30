"""Measure a bundle on a labelled catalog: `python jobs/evaluate.py --help`."""

import sys

from retailray.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
