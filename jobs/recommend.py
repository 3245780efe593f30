"""Recommend products to every shopper: `python jobs/recommend.py --help`."""

import sys

from retailray.cli import run

if __name__ == "__main__":
    run(["recommend", *sys.argv[1:]])
