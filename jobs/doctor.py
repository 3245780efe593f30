"""Is the cluster fit for work: `python jobs/doctor.py --help`."""

import sys

from retailray.cli import run

if __name__ == "__main__":
    run(["doctor", *sys.argv[1:]])
