"""One run at a time: real processes, a real S3-protocol server, claims of the dead."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from retailray import storage
from retailray.errors import RetailrayError
from retailray.storage import lease
from retailray.storage.lease import acquire_lease
from retailray.storage.opening import store_of
from tests.conftest import start_proxy

HOLD = """
import sys, time
from retailray.storage.lease import acquire_lease
with acquire_lease(sys.argv[1]) as lease:
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
    with (
        pytest.raises(RetailrayError, match=rf"run theirs is active there .* process {holder.pid}"),
        acquire_lease(out),
    ):
        pass
    assert lease.lease_owner(out) == "theirs"


@pytest.mark.slow
def test_a_killed_holder_is_succeeded_at_once(out, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert lease.lease_owner(out) is None
    with acquire_lease(out) as ours:
        ours.check()
    assert lease.lease_owner(out) is None, "released"
    with acquire_lease(out):
        pass


def test_a_process_of_another_container_is_not_known_to_be_dead(tmp_path, monkeypatch):
    """It may have the same host's name and a process number that there is none of here."""
    out = str(tmp_path)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(lease, "_machine", lambda: "another")
        theirs = lease._acquire(out)
    theirs._owner["pid"] = 2**22 + 1
    theirs.renew()
    assert lease.lease_owner(out) == theirs.run_id
    with pytest.raises(RetailrayError, match="is active there"), acquire_lease(out):
        pass


@pytest.mark.slow
def test_only_one_of_many_wins(out):
    """Five processes at the same moment, after a holder that died."""
    start = time.time() + 3
    code = f"""
import sys, time
from retailray.storage.lease import acquire_lease
from retailray.errors import RetailrayError
time.sleep(max(0, {start} - time.time()))
try:
    with acquire_lease(sys.argv[1]):
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
    with acquire_lease(out) as slow:
        claim = json.loads(storage.read_bytes(slow.address)) | {"renewed": 0, "host": "elsewhere"}
        storage.write_bytes(slow.address, json.dumps(claim).encode())
        with acquire_lease(out), pytest.raises(RetailrayError, match="took over"):
            slow.check()


LOSES = """
import sys, time
from retailray import storage
from retailray.storage import lease
from retailray.errors import RetailrayError, StorageError
lease.RENEW_S, lease.LOST_S = 0.1, 0.5
began = time.monotonic()
try:
    with lease.acquire_lease(sys.argv[1]):
        def away(*arguments, **options):
            raise StorageError("the store is away")
        storage.write_bytes = away
        time.sleep(30)
except RetailrayError as error:
    print(time.monotonic() - began < 10, error)
"""


@pytest.mark.slow  # a process of its own
def test_an_owner_that_cannot_renew_stops_at_once(tmp_path):
    """Kind of fault: a run goes on for hours after another one took over, and finds out when it publishes."""
    done = subprocess.run([sys.executable, "-c", LOSES, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("True"), done.stderr
    assert "could not be renewed" in done.stdout


def test_clocks_that_differ_take_nothing_from_a_living_owner(out, monkeypatch, capsys):
    """Kind of fault: a machine whose clock is ten minutes ahead takes every claim for dead."""
    monkeypatch.setattr(lease, "RENEW_S", 0.2)
    with acquire_lease(out):
        monkeypatch.setattr(lease, "_age", lambda claim: 600.0)
        monkeypatch.setattr(lease, "LEASE_S", 5.0)
        with pytest.raises(RetailrayError, match="is active there"), acquire_lease(out):
            pass
    assert "whether another run is alive" in capsys.readouterr().out


def test_who_does_not_renew_is_succeeded_after_a_watch(tmp_path, monkeypatch):
    out = str(tmp_path)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(lease, "_machine", lambda: "another")
        lease._acquire(out)
    monkeypatch.setattr(lease, "_age", lambda claim: 600.0)
    monkeypatch.setattr(lease, "LEASE_S", 1.0)
    started = time.monotonic()
    with acquire_lease(out) as ours:
        assert time.monotonic() - started >= 1
        ours.check()


HOLD_SHORTLY = """
import json, sys
from retailray import storage
from retailray.storage.lease import acquire_lease
with acquire_lease(sys.argv[1]) as lease:
    assert json.loads(storage.read_bytes(lease.address))["run_id"] == lease.run_id
"""


@pytest.mark.parametrize("kind", [pytest.param("s3", marks=pytest.mark.s3), "gs"])
def test_a_store_that_ignores_conditions_is_found_out(kind, request):
    """Kind of fault: two runs both believe that they hold the same place."""
    request.getfixturevalue("s3_endpoint" if kind == "s3" else "google")
    variable = "AWS_ENDPOINT_URL_S3" if kind == "s3" else "STORAGE_EMULATOR_HOST"
    store_of(f"{kind}://careless")[0].fs.mkdir("careless")

    def hold(endpoint, out):
        command = [sys.executable, "-c", HOLD_SHORTLY, out]
        environment = os.environ | {variable: endpoint}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)

    right = hold(os.environ[variable], f"{kind}://careless/good")
    assert right.returncode == 0, right.stderr
    with start_proxy(os.environ[variable], "no-conditions") as endpoint:
        wrong = hold(endpoint, f"{kind}://careless/bad")
        assert wrong.returncode == 1
        assert f"{kind}://careless/bad: this store ignores the conditions of writes" in wrong.stderr
    assert storage.list_files(f"{kind}://careless/bad") == {}, "and nothing is left there"
