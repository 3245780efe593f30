"""One run at a time: real processes, a real S3-protocol server, claims of the dead."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from retailray import lease, storage
from retailray.errors import RetailrayError
from retailray.lease import hold

HOLD = """
import sys, time
from retailray.lease import hold
with hold(sys.argv[1]) as lease:
    lease.run_id = "theirs"
    lease.renew()
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def out(request, tmp_path):
    return str(tmp_path) if request.param == "local" else f"{request.getfixturevalue('bucket')}/out"


@pytest.fixture
def holder(out):
    process = subprocess.Popen([sys.executable, "-c", HOLD, out], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_is_told_who_holds_it(out, holder):
    with pytest.raises(RetailrayError, match=rf"run theirs is at work there .* process {holder.pid}"), hold(out):
        pass
    assert lease.holder(out) == "theirs"


def test_a_killed_holder_is_succeeded_at_once(out, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert lease.holder(out) is None
    with hold(out) as ours:
        ours.check()
    assert lease.holder(out) is None, "released"
    with hold(out):
        pass


def test_a_process_of_another_container_is_not_known_to_be_dead(tmp_path, monkeypatch):
    """It may have the same host's name and a process number that there is none of here."""
    out = str(tmp_path)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(lease, "_machine", lambda: "another")
        theirs = lease._acquire(out)
    theirs._owner["pid"] = 2**22 + 1
    theirs.renew()
    assert lease.holder(out) == theirs.run_id
    with pytest.raises(RetailrayError, match="is at work there"), hold(out):
        pass


def test_only_one_of_many_wins(out):
    """Five processes at the same moment, after a holder that died."""
    start = time.time() + 3
    code = f"""
import sys, time
from retailray.lease import hold
from retailray.errors import RetailrayError
time.sleep(max(0, {start} - time.time()))
try:
    with hold(sys.argv[1]):
        time.sleep(4)
    print("won")
except RetailrayError as error:
    print("lost", error)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code, out], stdout=subprocess.PIPE, text=True) for _ in range(5)
    ]
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert sorted(word.split()[0] for word in said) == ["lost"] * 4 + ["won"], said


def test_an_owner_that_was_taken_for_dead_does_not_publish(out):
    with hold(out) as slow:
        claim = json.loads(storage.read_bytes(slow.address)) | {"renewed": 0, "host": "elsewhere"}
        storage.write_bytes(slow.address, json.dumps(claim).encode())
        with hold(out), pytest.raises(RetailrayError, match="took over"):
            slow.check()
