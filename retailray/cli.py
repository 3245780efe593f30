"""``retailray VERB``: parse, call one function, set the exit code."""

import contextlib
import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence

from retailray import events, storage
from retailray.config import VERBS, arguments
from retailray.errors import ConfigError, RetailrayError, StorageError
from retailray.execution import names_dashboard, prepare_environment
from retailray.execution.interrupts import importing
from retailray.provenance import version

# verb → the one function it calls; modules are imported when called, so that --help and bad input answer at once
ACTIONS = {
    "demo": ("retailray.demo", "run_demo"),
    "check": ("retailray.quality.check", "check"),
    "train": ("retailray.training.train", "train"),
    "tune": ("retailray.tuning.tune", "tune"),
    "evaluate": ("retailray.evaluation.evaluate", "evaluate"),
    "compare": ("retailray.evaluation.compare", "compare"),
    "promote": ("retailray.evaluation.promote", "promote"),
    "rollback": ("retailray.evaluation.promote", "rollback"),
    "score": ("retailray.scoring.score", "score"),
    "doctor": ("retailray.cluster.doctor", "doctor"),
}
SUMMARIES = {
    "demo": "the whole story on a made-up catalog, in a few minutes",
    "check": "what is in a catalog and what is wrong with it",
    "train": "fine-tune a pretrained torchvision model on a labelled catalog",
    "tune": "search freeze depth, learning rates and more for train",
    "evaluate": "measure a bundle on a labelled catalog",
    "compare": "two bundles on the same rows: who is better, what would change",
    "promote": "let @champion name a version, if it is not worse",
    "rollback": "let @champion name the version before",
    "score": "classify a whole catalog and publish the result",
    "submit": "run any verb as a job of a running cluster; attach, stop, list",
    "doctor": "is the cluster fit for work: versions, storage, GPUs, disks, clocks",
}

AFTER_INTERRUPT = {
    "train": "the same command with --train.resume goes on from the last checkpoint",
    "tune": "the same command with --tune.resume goes on: finished trials are kept",
    "score": "the same command goes on: images that are scored are not scored again",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code (see DESIGN: 0, 1, 2, 3, 4, 130)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        _print_usage()
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"retailray {version('retailray')}")
        return 0
    verb = argv[0]
    try:
        if verb not in VERBS:
            raise ConfigError([f"unknown verb {verb!r}; one of: {', '.join(VERBS)}"])
        if verb == "submit":  # its arguments are another verb's and its own
            _submit(argv[1:])
            return 0
        config = arguments.parse(verb, argv[1:])
        without_driver = verb == "doctor" or "cluster.address" in config.unused
        if not (without_driver and names_dashboard(config.cluster)):
            prepare_environment(config.cluster)
        module, name = ACTIONS[verb]
        with events.own_stdout():
            with importing():
                action = getattr(importlib.import_module(module), name)
            action(config)
    except ConfigError as error:
        for problem in error.problems:
            print(f"retailray {verb}: {problem}", file=sys.stderr)
        return error.exit_code
    except RetailrayError as error:
        # the others say all there is; this one is what a task or an actor raised
        unforeseen = type(error) is RetailrayError and error.__cause__ is not None
        where = f" (traceback: {_leave_traceback()})" if unforeseen else ""
        print(f"retailray {verb}: {error}{where}", file=sys.stderr)
        return error.exit_code
    except SystemExit as asked_for_help:
        return int(asked_for_help.code or 0)
    except Exception as error:
        # nobody should see this; when somebody does, one line with a name is worth more than a trace through Ray
        text = " ".join(str(error).split())[-400:]
        where = _leave_traceback()
        print(
            f"retailray {verb}: unexpected {type(error).__name__}: {text} (traceback: {where}; please report it)",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        advice = AFTER_INTERRUPT.get(verb, "results are only what is marked complete by _SUCCESS")
        print(f"retailray {verb}: interrupted; {advice}", file=sys.stderr)
        return 130
    return 0


def _leave_traceback() -> str:
    """Write the traceback of the exception that is handled into the run directory, or where there is none into a file
    of this machine; where it is."""
    if os.environ.get("RETAILRAY_TRACEBACK"):
        traceback.print_exc()
    text = storage.PASSWORD.sub("://...@", traceback.format_exc()).encode()
    if run := events.last_run():
        with contextlib.suppress(StorageError):
            address = storage.join(run, "traceback.txt")
            storage.write_bytes(address, text, deadline_s=storage.DEADLINE_S)
            return address
    with tempfile.NamedTemporaryFile(prefix="retailray-traceback-", suffix=".txt", delete=False) as file:
        file.write(text)
    return file.name


def _submit(argv: Sequence[str]) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from retailray.cluster.submit import submit

    with events.own_stdout():
        submit(argv)


def run(argv: Sequence[str] | None = None) -> None:
    """The console script and the jobs."""
    leave(main(argv))


def leave(code: int) -> None:
    """End the process at once with the code, without waiting for a store that never answers."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _print_usage() -> None:
    print("usage: retailray VERB [--config FILE]... [--section.key VALUE]...\n")
    for verb in VERBS:
        print(f"  {verb:<10}{SUMMARIES[verb]}")
    print("\nretailray VERB --help lists a verb's settings")
