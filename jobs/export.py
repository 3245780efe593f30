"""Write a bundle as an ONNX file: `python jobs/export.py --help`."""

import sys

from retailray.cli import run

if __name__ == "__main__":
    run(["export", *sys.argv[1:]])
