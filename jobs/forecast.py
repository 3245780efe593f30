"""Forecast the sales of every product: `python jobs/forecast.py --help`."""

import sys

from retailray.cli import run

if __name__ == "__main__":
    run(["forecast", *sys.argv[1:]])
