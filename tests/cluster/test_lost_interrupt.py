"""Ctrl-C that comes while a job is asked for."""

import signal
import weakref

import pytest

from retailray.cluster.jobs import Cluster


class Connection:
    """What a request leaves behind when it is done."""


class Client:
    """Like Ray's client, which makes and clears away a connection a request; Ctrl-C comes in that moment."""

    def get_job_info(self, name):
        connection = Connection()
        weakref.finalize(connection, signal.raise_signal, signal.SIGINT)
        return name


def test_ctrl_c_in_a_finalizer_is_not_lost():
    """Kind of fault: Python prints 'Exception ignored in' and goes on, and the person is not asked what to do."""
    cluster = Cluster.__new__(Cluster)
    cluster._client, cluster.address, cluster.unreachable_timeout_s = Client(), "http://head:8265", 1.0
    with pytest.raises(KeyboardInterrupt):
        cluster.find("a-job")
