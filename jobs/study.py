"""Compare several models on the same rows: `python jobs/study.py --help`."""

import sys

from retailray.cli import run

if __name__ == "__main__":
    run(["study", *sys.argv[1:]])
