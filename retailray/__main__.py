import sys

try:
    from retailray.cli import run
except ModuleNotFoundError as error:  # a cluster without what we need: a submitted job's first words
    sys.exit(
        f"retailray: this Python ({sys.executable}) has no {error.name}; install retailray's dependencies there, or "
        "let the job bring them: --submit.requirements FILE"
    )

run()
