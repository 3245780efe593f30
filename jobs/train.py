"""Fine-tune a pretrained model on a labelled catalog: `python jobs/train.py --help`."""

import sys

from retailray.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
