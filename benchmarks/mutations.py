"""Two hundred small catalogs with random faults through ``check``, ``train`` and ``score``.

    python -m benchmarks.mutations --seeds 200 [--first 0]

Prints every seed at which a command ended otherwise than it should (tests/mutations.py says what should be); those
become tests (tests/commands/test_mutations.py).
"""

import argparse
import time

from tests import mutations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    started = time.monotonic()
    wrong = mutations.run(list(range(arguments.first, arguments.first + arguments.seeds)))
    print(f"{wrong} of {arguments.seeds} were not as they should, in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
