"""Classify a whole catalog and publish the result: `python jobs/score.py --help`."""

import sys

from retailray.cli import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
