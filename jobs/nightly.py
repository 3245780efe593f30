"""Check, plan and score a catalog: `python jobs/nightly.py --help`."""

import sys

from retailray.cli import run

if __name__ == "__main__":
    run(["nightly", *sys.argv[1:]])
