"""The last lines of a job that has ended, over a connection that breaks."""

import types

import pytest
import requests

from retailray.cluster.jobs import Cluster
from retailray.cluster.output import Lines


class Dashboard:
    """Like Ray's client, for a job that has ended: its answers with the whole output are lost ``breaks`` times."""

    def __init__(self, breaks):
        self.breaks = breaks

    def get_job_info(self, name):
        return types.SimpleNamespace(status=types.SimpleNamespace(is_terminal=lambda: True))

    async def tail_job_logs(self, name):
        raise requests.exceptions.ConnectionError("cut")
        yield

    def get_job_logs(self, name):
        self.breaks -= 1
        if self.breaks >= 0:
            raise requests.exceptions.ConnectionError("cut")
        return "first\nlast\n"


@pytest.fixture
def followed(monkeypatch):
    monkeypatch.setattr("retailray.cluster.jobs.RETRY_S", 0.01)
    monkeypatch.setattr("retailray.cluster.jobs.TAIL_S", 0.1)
    monkeypatch.setattr("retailray.cluster.jobs.LAST_S", 0.5)

    def follow(breaks):
        cluster, seen = Cluster.__new__(Cluster), []
        cluster._client, cluster.address, cluster.unreachable_timeout_s = Dashboard(breaks), "http://head:8265", 60.0
        cluster.follow("a-job", Lines(seen.append))
        return seen

    return follow


def test_the_last_lines_are_asked_for_again_where_the_answer_is_lost(followed, capsys):
    """Kind of fault: of all requests to the dashboard this one was not tried again, so a short job showed nothing."""
    assert followed(3) == ["first", "last"]
    assert "may be missing" not in capsys.readouterr().out


def test_a_job_has_ended_though_nobody_hands_out_its_lines(followed, capsys):
    assert followed(10**6) == []
    assert "may be missing" in capsys.readouterr().out
