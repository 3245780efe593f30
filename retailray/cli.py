"""``retailray COMMAND``: parse, call one function, set the exit code."""

import contextlib
import difflib
import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence

from retailray import events, storage
from retailray.config import COMMANDS, arguments
from retailray.errors import ConfigError, RetailrayError, StorageError
from retailray.execution import names_dashboard, prepare_environment
from retailray.interrupts import importing
from retailray.provenance import version


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (0, 1, 2, 3, 4 or 130; see :mod:`retailray.errors`)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        _print_usage()
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"retailray {version('retailray')}")
        return 0
    command = argv[0]
    try:
        _run(command, argv[1:])
    except ConfigError as error:
        for problem in error.problems:
            print(f"retailray {command}: {problem}", file=sys.stderr)
        return error.exit_code
    except RetailrayError as error:
        # the others say all there is; this one is what a task or an actor raised
        unforeseen = type(error) is RetailrayError and error.__cause__ is not None
        where = f" (traceback: {_leave_traceback()})" if unforeseen else ""
        print(f"retailray {command}: {error}{where}", file=sys.stderr)
        return error.exit_code
    except SystemExit as asked_for_help:
        return int(asked_for_help.code or 0)
    except Exception as error:
        # nobody should see this; when somebody does, one line with a name is worth more than a trace through Ray
        text = " ".join(str(error).split())[-400:]
        where = _leave_traceback()
        print(
            f"retailray {command}: unexpected {type(error).__name__}: {text} (traceback: {where}; please report it)",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f"retailray {command}: interrupted; {COMMANDS[command].after_interrupt}", file=sys.stderr)
        return 130
    return 0


def _run(command: str, argv: Sequence[str]) -> None:
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"one of: {', '.join(COMMANDS)}"
        raise ConfigError([f"unknown command {command!r}; {hint}"])
    if command == "submit":  # its arguments are another command's and its own
        _submit(argv)
        return
    config = arguments.parse(command, argv)
    without_driver = command == "doctor" or "cluster.address" in config.unused
    if not (without_driver and names_dashboard(config.cluster)):
        prepare_environment(config.cluster)
    module, name = COMMANDS[command].function.split(":")
    with events.own_stdout():
        with importing():
            action = getattr(importlib.import_module(module), name)
        action(config)


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
    print("usage: retailray COMMAND [--config FILE]... [--section.key VALUE]...\n")
    for command in COMMANDS.values():
        print(f"  {command.name:<12}{command.summary}")
    print("\nretailray COMMAND --help lists a command's settings")
