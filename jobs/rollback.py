"""Let @champion name the version before: `python jobs/rollback.py --help`."""

import sys

from retailray.cli import run

if __name__ == "__main__":
    run(["rollback", *sys.argv[1:]])
