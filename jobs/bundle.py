"""Make a bundle of a model that was trained elsewhere: `python jobs/bundle.py --help`."""

import sys

from retailray.cli import run

if __name__ == "__main__":
    run(["bundle", *sys.argv[1:]])
