"""Let @champion name a version, if it is not worse: `python jobs/promote.py --help`."""

import sys

from retailray.cli import run

if __name__ == "__main__":
    run(["promote", *sys.argv[1:]])
