"""The dashboard asks for what there is, all of it, by the tags that it has."""

import json
import re

from retailray.execution.metrics import METRICS, Meter


def test_the_dashboard_shows_every_metric_and_no_other(pytestconfig):
    dashboard = json.loads((pytestconfig.rootpath / "docs" / "grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = {name for expression in asked for name in re.findall(r"ray_(retailray_\w+)", expression)}
    assert named == set(METRICS)
    for expression in asked:
        [name] = re.findall(r"ray_(retailray_\w+)", expression)
        tags = re.findall(r"by \((\w+)\)", expression)
        assert set(tags) <= set(METRICS[name][2]), expression
        # every run counts in a process of its own, from its first value on, of which increase() knows nothing
        assert "increase(" not in expression
        counted = "max_over_time(" in expression or "rate(" in expression
        assert counted == (METRICS[name][0] == "counter"), expression


def test_waiting_is_what_predictors_do_not_work(monkeypatch):
    """Two predictors that together worked 5 of 2 x 10 seconds waited three quarters of them."""
    told: dict[str, float] = {}

    class Told:
        def __init__(self, name):
            self.name = name

        def set(self, value, tags=None):
            told[self.name] = value

        inc = set

    now = [100.0]
    monkeypatch.setattr("retailray.execution.metrics.metric", Told)
    monkeypatch.setattr("retailray.execution.metrics.time.monotonic", lambda: now[0])
    meter = Meter("images", num_predictors=2)
    meter.decoded(96)
    meter.step(64)
    meter.spend({"predict": 5.0, "decode": 9.0})
    now[0] = 110.0
    meter.tick()
    assert told["retailray_per_second"] == 6.4
    assert told["retailray_predictor_wait_share"] == 0.75
    assert told["retailray_queued_images"] == 32
