"""Compare two bundles on the same rows: `python jobs/compare.py --help`."""

import sys

from retailray.cli import run

if __name__ == "__main__":
    run(["compare", *sys.argv[1:]])
