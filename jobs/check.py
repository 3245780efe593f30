"""Look at a catalog before anything is trained or scored on it: `python jobs/check.py --help`."""

import sys

from retailray.cli import main

if __name__ == "__main__":
    sys.exit(main(["check", *sys.argv[1:]]))
