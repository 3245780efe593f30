"""Fine-tune a pretrained model on a labelled catalog: `python jobs/train.py --help`."""

import sys

from retailray.cli import run

if __name__ == "__main__":
    run(["train", *sys.argv[1:]])
