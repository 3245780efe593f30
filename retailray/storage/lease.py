"""Leases: one scoring run at a time below one ``out``. A second run stops and names the first.

A claim is a file ``<out>/.claims/<number>.json`` that only one process can make (an exclusive create: O_EXCL, or a
condition that the store keeps); the highest number holds. Its owner renews it; a claim that is released, whose process
is dead on this machine, or that was not renewed for :data:`LEASE_S` may be succeeded by the next number, once. So two
that find a dead claim cannot both follow it.

Clocks of two machines are never compared where it matters: who would take over watches the claim for :data:`LEASE_S` by
its own clock, and an owner that could not renew it for :data:`LOST_S` by its own clock has lost it, and stops at once.
"""

import contextlib
import datetime
import functools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from retailray import events, storage
from retailray.background import Ended, beside
from retailray.errors import RetailrayError, StorageError

LEASE_S = 60.0
LOST_S = 40.0
RENEW_S = 10.0  # between two renewals, and for one
AGED_S = 1800.0  # a claim that old is nobody's: no clock is so wrong
FOLDER = ".claims"


class Lease:
    """A held claim. Made by :func:`acquire_lease`."""

    def __init__(self, out: str, number: int) -> None:
        self.run_id = "(about to begin)"
        self.lost = False
        self.renewed_at = _now()
        self._folder, self._number = storage.join(out, FOLDER), number
        process = psutil.Process()
        # process numbers are used again, so the time when it began belongs to it
        self._owner = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": process.pid,
            "began": process.create_time(),
        }

    @property
    def address(self) -> str:
        return _address(self._folder, self._number)

    def content(self, *, released: bool = False) -> bytes:
        renewed = datetime.datetime.now(datetime.UTC).timestamp()
        return json.dumps(self._owner | {"run_id": self.run_id, "renewed": renewed, "released": released}).encode()

    def renew(self, *, released: bool = False) -> None:
        """Raises StorageError."""
        began = _now()
        storage.write_bytes(self.address, self.content(released=released), deadline_s=RENEW_S, busy_s=0)
        self.renewed_at = began

    def check(self) -> None:
        """Raises RetailrayError: somebody took over, or may have, so this run may not publish."""
        if self.lost or _now() - self.renewed_at > LOST_S:
            raise RetailrayError(
                f"{self.address}: the lease could not be renewed for {LOST_S:.0f} s, so another run may have "
                "taken over; nothing is published by this run; the same command continues from the committed parts"
            )
        newest = max(_claims(self._folder), default=0)
        if newest > self._number:
            other = _read(_address(self._folder, newest))
            raise RetailrayError(
                f"run {other.get('run_id')} ({other.get('host')}, process {other.get('pid')}) took over while this run "
                f"gave no sign of life for {LEASE_S:.0f} s; nothing is published by this one"
            )


@contextlib.contextmanager
def acquire_lease(out: str) -> Iterator[Lease]:
    """Hold ``out`` for the length of the block.

    Raises:
        RetailrayError: another run holds it.
    """
    lease = _acquire(out)
    try:
        with beside(functools.partial(_renew, lease)):
            yield lease
    except KeyboardInterrupt:
        if lease.lost:
            lease.check()  # says so
        raise
    finally:
        with contextlib.suppress(StorageError):
            lease.renew(released=True)


def _acquire(out: str) -> Lease:
    folder = storage.join(out, FOLDER)
    numbers = _claims(folder)
    newest = max(numbers, default=0)
    if newest:
        _refuse_if_alive(out, _address(folder, newest))
    lease = Lease(out, newest + 1)
    content = lease.content()
    created = storage.put_if_absent(lease.address, content)
    if created and not storage.is_local(out) and not storage.is_exclusive(lease.address, content):
        storage.remove_file(lease.address)
        raise RetailrayError(
            f"{out}: this store ignores the conditions of writes, so two runs that start at the same time would both "
            "write there; write to a store that has conditional writes, or to a folder of this machine"
        )
    if not created:
        _refuse_if_alive(out, lease.address)
        raise RetailrayError(f"{out}: another run started at the same time; run the command again")
    for number in numbers:  # only the newest speaks
        storage.remove_file(_address(folder, number))
    return lease


def lease_owner(out: str) -> str | None:
    """The id of the run that holds ``out`` now, if one does."""
    folder = storage.join(out, FOLDER)
    newest = max(_claims(folder), default=0)
    claim = _read(_address(folder, newest)) if newest else {"released": True}
    return None if _is_over(claim) else str(claim.get("run_id"))


def _age(claim: dict[str, Any]) -> float:
    return datetime.datetime.now(datetime.UTC).timestamp() - claim.get("renewed", 0.0)


def _is_over(claim: dict[str, Any]) -> bool:
    return bool(claim.get("released")) or _age(claim) > LEASE_S or _is_dead(claim)


def _refuse_if_alive(out: str, address: str) -> None:
    claim = _read(address)
    if claim.get("released") or _is_dead(claim) or _age(claim) > AGED_S:
        return
    if abs(_age(claim)) > LEASE_S and not _changes(address, claim):
        return
    raise RetailrayError(
        f"{out}: run {claim.get('run_id')} is active there ({claim.get('host')}, process {claim.get('pid')}, last "
        f"sign of life {_age(claim):.0f} s ago); wait for it or stop it; its lease ends {LEASE_S:.0f} s after the last"
    )


def _changes(address: str, claim: dict[str, object]) -> bool:
    """Whether somebody renews a claim, watched for as long as a claim holds."""
    events.emit("waiting", reason="whether another run is alive", run=claim.get("run_id"), seconds=LEASE_S)
    until = _now() + LEASE_S
    while _now() < until:
        time.sleep(min(1.0, LEASE_S / 4))
        if _read(address) != claim:
            return True
    return False


def _now() -> float:
    """Seconds that pass while the machine sleeps too, where the system counts them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _is_dead(claim: dict[str, object]) -> bool:
    """True only where this can be known: a process of this machine that is gone, or whose number is another's now."""
    if claim.get("machine") != _machine():
        return False
    try:
        return abs(psutil.Process(claim["pid"]).create_time() - claim["began"]) > 1.0
    except (psutil.NoSuchProcess, KeyError):
        return True


def _machine() -> str:
    """Tells apart what has its own process numbers: machines, their boots, and containers, which may share a name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _address(folder: str, number: int) -> str:
    return storage.join(folder, f"{number:08d}.json")


def _claims(folder: str) -> list[int]:
    names = [name.rsplit("/", 1)[-1].removesuffix(".json") for name in storage.list_files(folder)]
    return sorted(int(name) for name in names if name.isdigit())


def _read(address: str) -> dict[str, object]:
    try:
        return json.loads(storage.read_bytes(address))
    except (StorageError, ValueError):  # being written, or removed by a successor: as good as renewed just now
        return {"renewed": datetime.datetime.now(datetime.UTC).timestamp()}


def _renew(lease: Lease, ended: Ended) -> None:
    while not ended(RENEW_S):
        with contextlib.suppress(StorageError):  # a store that is away for a moment
            lease.renew()
        if _now() - lease.renewed_at > LOST_S:
            lease.lost = True
            _interrupt_main()
            return


def _interrupt_main() -> None:
    """The run stops at once, as with Ctrl-C; a signal ends waits in the system too."""
    main = threading.main_thread().ident
    if main is not None:
        signal.pthread_kill(main, signal.SIGINT)
