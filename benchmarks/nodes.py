"""How scoring scales with machines: rows/s on 1, 2, 4 and 8 nodes, with a predictor whose time is known.

    python -m benchmarks.nodes [--nodes 1 2 4 8] [--batches 90] [--sleep 2.0]

Each node is a `ray start` of its own on this machine (tests/cluster/nodes.py), joined by its two CPUs; our own pipeline
runs on it (plan, fetch, decode, a pool of one predictor a node, commit), and the predictor sleeps for ``--sleep``
seconds a batch of 64 pictures of 32 px in place of computing. So what is lost against nodes x 64 / sleep rows a second
is scheduling alone, and the work of eight machines fits two cores. Every node has ``--batches`` to do.

``at work``: seconds from the first batch's beginning to the last one's end. ``efficiency``: of these, the share that a
predictor slept; the scheduling overhead is the rest.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.incremental_scoring import bundle
from benchmarks.shop import table
from tests.cluster.nodes import Nodes

BATCH = 64


def work(address: str, folder: str, num_nodes: int, sleep_s: float) -> None:
    """Score with sleeping predictors, in a process of its own: their hours are told as events."""
    import time

    from retailray import cli
    from retailray.models import predicting

    real = predicting.PredictBatch

    class PredictBatch(real):  # type: ignore[valid-type,misc]
        """Sleeps, and says of every image what the model said of the first; pickled by value, as it has no module."""

        def _predict(self, images: Any) -> Any:
            began = time.time()
            if not hasattr(self, "answer"):
                self.answer = real._predict(self, images[:1])
            time.sleep(max(0.0, sleep_s - (time.time() - began)))
            self.reporter.event("slept", {"began": began, "ended": time.time(), "rows": len(images)})
            return self.answer * len(images)

    PredictBatch.__module__ = "__main__"
    predicting.PredictBatch = PredictBatch  # type: ignore[misc]
    settings = {
        "catalog.uri": f"{folder}/{num_nodes}.parquet",
        "model.uri": f"{folder}/bundle",
        "out": f"{folder}/out-{num_nodes}",
        "cluster.address": address,
        "cluster.num_workers": num_nodes,
        "score.batch_size": BATCH,
        "score.dedupe": "false",
        "score.precision": "float32",
    }
    cli.run(["score", *(part for key, value in settings.items() for part in (f"--{key}", str(value)))])


def lay_out(folder: Path, num_nodes: int, batches: int) -> int:
    """A catalog of this many pictures, each a link of its own to one of a few; returns its rows."""
    rows, images = num_nodes * batches * BATCH, folder / str(num_nodes)
    images.mkdir()
    for number in range(256):
        path = folder / f"{number}.jpg"
        if not path.exists():
            values = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
            Image.fromarray(values).resize((40, 40)).save(path, "JPEG")
    for number in range(rows):
        os.link(folder / f"{number % 256}.jpg", images / f"{number}.jpg")
    names = [f"{num_nodes}/{number}.jpg" for number in range(rows)]
    pd.DataFrame({"image": names}).to_parquet(folder / f"{num_nodes}.parquet")
    return rows


def measure(folder: Path, num_nodes: int, batches: int, sleep_s: float) -> dict[str, Any]:
    rows = lay_out(folder, num_nodes, batches)
    logs = folder / f"logs-{num_nodes}"
    logs.mkdir()
    nodes = Nodes(logs)
    try:
        for number in range(num_nodes):
            nodes.add(f"node-{number}")
        command = [sys.executable, "-m", "benchmarks.nodes", "--work", nodes.address, str(folder), str(num_nodes)]
        env = os.environ | {"RAY_AUTH_MODE": "disabled"}
        output = subprocess.run([*command, "--sleep", str(sleep_s)], env=env, capture_output=True, text=True)
    finally:
        nodes.stop()
    if output.returncode:
        sys.exit(output.stderr[-3000:])
    events = [json.loads(line) for line in output.stdout.splitlines()]
    slept = [event for event in events if event["event"] == "slept"]
    assert sum(event["rows"] for event in slept) == rows == events[-1]["scored"]
    at_work = max(event["ended"] for event in slept) - min(event["began"] for event in slept)
    ideal = len(slept) * sleep_s / num_nodes
    [run] = list((folder / f"out-{num_nodes}").glob("run_id=*/run.json"))
    whole = json.loads(run.read_text())["times"]["inference"]
    return {
        "nodes": num_nodes, "rows": rows, "batches": len(slept), "at work [s]": at_work, "rows/s": rows / at_work,
        "ideal rows/s": num_nodes * BATCH / sleep_s, "efficiency [%]": 100 * ideal / at_work,
        "overhead [ms a row and node]": 1000 * (at_work - ideal) * num_nodes / rows, "with start [s]": whole,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--batches", type=int, default=90, help="a node")
    parser.add_argument("--sleep", type=float, default=2.0, help="a batch [s]")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        address, folder, num_nodes = arguments.work
        work(address, folder, int(num_nodes), arguments.sleep)
        return
    rows = []
    for num_nodes in arguments.nodes:
        folder = Path(tempfile.mkdtemp())
        bundle(folder, size=32)
        rows.append(measure(folder, num_nodes, arguments.batches, arguments.sleep))
        print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
