"""Find the most similar products: `python jobs/similar.py --help`."""

import sys

from retailray.cli import run

if __name__ == "__main__":
    run(["similar", *sys.argv[1:]])
