"""Jobs of a running cluster: exit codes, ids, connections that break."""

import socket
import threading
import time

import psutil
import pytest

from tests.cluster.nodes import BUCKET, Submitted, Terminal, wait_for
from tests.cluster.test_many_nodes import TINY

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]


class Wire:
    """A TCP forwarder in front of the dashboard whose connections are cut all the time."""

    def __init__(self, target: str, every_s: float) -> None:
        host, port = target.removeprefix("http://").split(":")
        self.target, self.every_s, self.cuts = (host, int(port)), every_s, 0
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        self._open: list[socket.socket] = []
        for work in (self._accept, self._cut):
            threading.Thread(target=work, daemon=True).start()

    def _accept(self):
        while True:
            near, _ = self.server.accept()
            far = socket.create_connection(self.target)
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            end.close()

    def _cut(self):
        while True:
            time.sleep(self.every_s)
            for end in self._open:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                    self.cuts += 1
                except OSError:
                    continue
            self._open.clear()


def test_a_broken_connection_loses_no_line_and_no_exit_code(nodes, shop):
    wire = Wire(nodes.dashboard, every_s=0.7)
    settings = shop | {"check.fail_on": "errors", "out": f"s3://{BUCKET}/wire", "submit.id": "over-a-bad-wire"}
    code, seen, err = Submitted(nodes, "check", address=wire.address, **settings).end()
    assert code == 4, err
    assert "ended with exit code 4" in err, "the gate said no"
    assert wire.cuts > 10
    # followed again over a good wire: what was shown then is what there is, every line once
    code, again, _ = Submitted(nodes, "attach", "over-a-bad-wire").end()
    assert code == 4
    first = [event for event in seen if event["event"] not in ("upload", "submitted", "waiting", "known")]
    assert first == again
    # and the same command is the same job
    code, known, _ = Submitted(nodes, "check", **settings).end()
    assert (code, known[1]["event"]) == (4, "known")
    code, _, err = Submitted(nodes, "check", **settings | {"check.samples": 3}).end()
    assert code == 2
    assert "submit.id = 'over-a-bad-wire' belongs to a job with other settings" in err


def test_a_job_is_left_followed_listed_and_stopped(nodes, shop):
    settings = shop | TINY | {"train.epochs": 50_000, "train.checkpoint_interval_s": 2, "out": f"s3://{BUCKET}/long"}
    code, seen, err = Submitted(nodes, "train", "--detach", **settings).end()
    assert code == 0, err
    assert seen[-1]["event"] == "detached"
    name = seen[-1]["id"]
    follower = Submitted(nodes, "attach", name)
    follower.until("epoch", 2)
    code, jobs, _ = Submitted(nodes, "list").end()
    assert code == 0
    assert next(job for job in jobs if job["id"] == name)["status"] == "RUNNING"
    person = Terminal(nodes, "attach", name)
    person.until("epoch")
    person.type("\x03")
    person.until("[f]ollow on?")
    person.type("f\n")
    # a line that was on its way comes before the answer is read, and Ctrl-C would clear the answer away
    time.sleep(3)
    person.until("epoch")
    person.type("\x03")
    person.until("[f]ollow on?")
    person.type("d\n")
    person.until("follows it again")
    assert person.exit_code() == 130, "left, and not ended well"
    code, said, err = Submitted(nodes, "stop", name).end()
    assert code == 0, err
    assert (said[-1]["status"], said[-1]["exit_code"]) == ("STOPPED", 130)
    code, _, err = follower.end()
    assert code == 130
    assert "--train.resume continues" in err, "it was interrupted, not killed"


def test_a_killed_driver_is_exit_code_1(nodes, shop):
    job = Submitted(nodes, "check", **shop, out=f"s3://{BUCKET}/killed")
    job.until("start")

    def driver():
        found = psutil.Process(nodes.head.pid).children(recursive=True)
        return [
            process for process in found if process.is_running() and "retailray check" in " ".join(process.cmdline())
        ]

    for process in wait_for(driver, "driver"):
        process.kill()
    code, _, err = job.end()
    assert code == 1
    assert "ended with exit code 1" in err


def test_addresses_that_take_no_jobs_are_told_apart(nodes, shop):
    code, _, err = Submitted(nodes, "check", **shop, out="x", address=nodes.address).end()
    assert code == 2
    assert "submitted to the cluster's dashboard" in err
    code, _, err = Submitted(nodes, "stop", "never-was").end()
    assert code == 1
    assert "knows no job never-was" in err
