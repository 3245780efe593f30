"""Look at a catalog before anything is trained or scored on it: `python jobs/check.py --help`."""

import sys

from retailray.cli import run

if __name__ == "__main__":
    run(["check", *sys.argv[1:]])
