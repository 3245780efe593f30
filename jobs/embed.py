"""Publish embeddings of a catalog's images and products: `python jobs/embed.py --help`."""

import sys

from retailray.cli import run

if __name__ == "__main__":
    run(["embed", *sys.argv[1:]])
