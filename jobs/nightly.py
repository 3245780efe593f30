"""The whole night, in order: `python jobs/nightly.py --config night.yaml`.

One YAML file serves all steps; its `out` is the folder below which each step leaves its runs. The exit code is the
night's: that of the step that stopped it, or of the scoring run (0; 3: too many rows failed; 4: a gate said no).
"""

import itertools
import sys
from typing import Any

import yaml

from retailray import storage
from retailray.cli import leave, main
from retailray.errors import RetailrayError


def night(arguments: list[str]) -> int:
    """Check, plan, score; returns the exit code."""
    files = [value for key, value in itertools.pairwise(arguments) if key == "--config"]
    if not files or len(arguments) != 2 * len(files):
        print("usage: python jobs/nightly.py --config FILE [--config FILE]...", file=sys.stderr)
        return 2
    settings: dict[str, Any] = {}
    try:
        for name in files:
            settings |= yaml.safe_load(storage.read_bytes(storage.normalize(name))) or {}
        out = storage.normalize(settings["out"])
    except (RetailrayError, yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError):
        return main(["score", *arguments])  # says what is wrong with the files
    # 1. Is the catalog what it should be? Only where the file has a `check` section: it reads every image.
    if "check" in settings and (code := main(["check", *arguments, "--out", storage.join(out, "checks")])):
        return code
    scores = ["score", *arguments, "--out", storage.join(out, "scores")]
    # 2. What is there to do? A line for the log, before any machine is asked for.
    if code := main([*scores, "--score.plan_only"]):
        return code
    # 3. Score what is new or changed, join it with what is known, publish, report.
    return main(scores)


if __name__ == "__main__":
    leave(night(sys.argv[1:]))
