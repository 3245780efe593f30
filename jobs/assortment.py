"""Show products, who buys them and what will be sold: `python jobs/assortment.py --help`."""

import sys

from retailray.cli import run

if __name__ == "__main__":
    run(["assortment", *sys.argv[1:]])
