"""The whole story on a made-up catalog: `python jobs/demo.py --help`."""

import sys

from retailray.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
