"""Search the settings of a fine-tuning: `python jobs/tune.py --help`."""

import sys

from retailray.cli import run

if __name__ == "__main__":
    run(["tune", *sys.argv[1:]])
