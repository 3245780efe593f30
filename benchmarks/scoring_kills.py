"""What is left of a night in which something was killed: nothing is lost, nothing is doubled, nobody sees half of it.

    python -m benchmarks.scoring_kills [--images 3000] [--fractions 0.1 0.25 0.5 0.75 0.9] [--rounds 1]

A Ray cluster of a head and an extra node (each with a raylet and an object store of its own) on this machine, a catalog
on an S3-protocol server of its own. At each fraction of the committed rows, SIGKILL goes to the driver (and the
command is repeated), to a predictor's process, or to the extra node with all of its processes. Each time the published
table is compared, row by row, with that of an undisturbed night; a reader follows LATEST all the while.
"""

import argparse
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import s3fs

from benchmarks.incremental_scoring import BUCKET, bundle, upload
from benchmarks.shop import table
from retailray.scoring.inference import MIN_PART_IMAGES
from tests.conftest import S3_ENV, start_s3_server

YESTERDAY = "run_id=20000101T000000Z-000000"
VARYING = ["run_id", "scored_at"]  # of the columns, those that may differ


class Night:
    """A command at work, in a process group of its own; ``out`` already has a published night in it."""

    def __init__(self, settings: dict[str, Any], out: str) -> None:
        self.out, self.settings = out, settings | {"out": f"s3://{out}"}
        self.fs = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
        self.problems: list[str] = []
        self._stop = threading.Event()
        self._reader = threading.Thread(target=self._follow, daemon=True)

    def start(self) -> None:
        arguments = [part for key, value in self.settings.items() for part in (f"--{key}", str(value))]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "retailray", "score", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        if not self._reader.is_alive():
            self._reader.start()

    def committed(self) -> int:
        """Rows in parts that are there now."""
        names = self.fs.glob(f"{self.out}/run_id=*/scored/*.parquet")
        return sum(len(pd.read_parquet(self.fs.open(name), columns=["uri"])) for name in names)

    def wait_for(self, rows: int, part: int) -> int:
        """Until about so many rows are committed, in parts of ``part``; how many parts there are then."""
        while True:
            parts = len(self.fs.glob(f"{self.out}/run_id=*/scored/*.parquet"))
            if parts * part >= rows:
                return parts
            assert self.process.poll() is None, self.process.stderr.read()
            time.sleep(0.02)

    def end(self) -> list[dict[str, Any]]:
        output, errors = self.process.communicate(timeout=600)
        assert self.process.returncode == 0, errors
        return [json.loads(line) for line in output.splitlines()]

    def close(self) -> None:
        self._stop.set()
        self._reader.join()
        assert not self.problems, self.problems

    def _follow(self) -> None:
        """What a reader of LATEST finds must be whole, at any time."""
        while not self._stop.wait(0.1):
            name = self.fs.cat_file(f"{self.out}/LATEST").decode()
            if name != YESTERDAY and not self.fs.exists(f"{self.out}/{name}/_SUCCESS"):
                self.problems.append(f"LATEST names {name}, which is not complete")

    def tables(self) -> list[pd.DataFrame]:
        name = self.fs.cat_file(f"{self.out}/LATEST").decode()
        found = []
        for folder, order in (("predictions", "image"), ("errors", "id")):
            parts = [pd.read_parquet(self.fs.open(part)) for part in self.fs.glob(f"{self.out}/{name}/{folder}/*")]
            found.append(pd.concat(parts).sort_values(order).reset_index(drop=True))
        return found


@contextlib.contextmanager
def cluster() -> Iterator[tuple[str, Callable[[], psutil.Process]]]:
    """The address of a head, and a function that starts an extra node in place of the last and returns its raylet."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})

    def extra() -> psutil.Process:
        for lost in list(made.worker_nodes):  # else the cluster waits for them to come back
            made.remove_node(lost, allow_graceful=False)
        node = made.add_node(num_cpus=2)
        made.wait_for_nodes()
        return psutil.Process(node.all_processes["raylet"][0].process.pid)

    try:
        yield made.address, extra
    finally:
        made.shutdown()


def kill_tree(process: psutil.Process) -> list[str]:
    """SIGKILL to a process and all below it; what the Ray processes among them were doing."""
    family = [process, *process.children(recursive=True)]
    titles = [
        " ".join(member.cmdline()).split("ray::")[-1] for member in family if "ray::" in " ".join(member.cmdline())
    ]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.send_signal(signal.SIGKILL)
    return [title for title in titles if not title.startswith("IDLE")]


def differing(quiet: list[pd.DataFrame], other: list[pd.DataFrame]) -> str:
    """'' where both nights published the same rows."""
    for left, right in zip(quiet, other, strict=True):
        columns = [name for name in left.columns if name not in VARYING]
        try:
            pd.testing.assert_frame_equal(left[columns], right[columns], rtol=1e-4)
        except AssertionError as error:
            return str(error).splitlines()[0]
    return ""


def lay_out(images: int) -> None:
    """A catalog with some broken pictures and one that is missing."""
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    fs.mkdir(BUCKET)
    upload(range(images), seed=0)
    names = [f"images/{n % 100:02d}/{n}.jpg" for n in range(images)]
    for name in names[:: max(1, images // 20)]:
        fs.pipe_file(f"{BUCKET}/{name}", b"no picture")
    with fs.open(f"{BUCKET}/catalog.csv", "w") as file:
        pd.DataFrame({"image": [*names, "images/missing.jpg"]}).to_csv(file, index=False)


def strike(victim: str, night: Night, node: psutil.Process) -> dict[str, Any]:
    """SIGKILL to the victim, and the command again where it was the driver; what was committed by then."""
    if victim == "driver":
        os.killpg(night.process.pid, signal.SIGKILL)
        night.process.wait()
        time.sleep(2)  # what its tasks still write belongs to nobody, or to the run
        row = {"committed": night.committed()}
        night.start()
        return row
    if victim == "predictor":
        processes = psutil.process_iter(["cmdline"])
        next(p for p in processes if "PredictBatch" in " ".join(p.info["cmdline"] or [])).kill()
        return {"committed": night.committed()}
    return {"on it": len(kill_tree(node)), "committed": night.committed()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.1, 0.25, 0.5, 0.75, 0.9])
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    os.environ |= S3_ENV | {"RAY_AUTH_MODE": "disabled"}
    server, os.environ["AWS_ENDPOINT_URL_S3"] = start_s3_server(folder / "server.log")
    lay_out(arguments.images)
    rows: list[dict[str, Any]] = []
    with cluster() as (address, extra):
        settings = {"catalog.uri": f"s3://{BUCKET}/catalog.csv", "model.uri": bundle(folder), "score.max_error_rate": 1,
                    "score.dedupe": "false", "score.precision": "float32", "cluster.address": address}  # fmt: skip
        node, quiet = extra(), []
        cases = itertools.product(range(arguments.rounds), ("driver", "predictor", "node"), arguments.fractions)
        for number, (_, victim, fraction) in enumerate(itertools.chain([(0, "nobody", 0.0)], cases)):
            night = Night(settings, f"{BUCKET}/out-{number}")
            night.fs.pipe_file(f"{night.out}/LATEST", YESTERDAY.encode())
            started = time.monotonic()
            night.start()
            row: dict[str, Any] = {"killed": victim, "at [%]": 100 * fraction, "on it": "", "committed": ""}
            if victim != "nobody":
                night.wait_for(int(fraction * arguments.images), MIN_PART_IMAGES)
                row |= strike(victim, night, node)
            plan = next(event for event in night.end() if event["event"] == "plan")
            night.close()
            row |= {"went on": plan["resumed"], "inferred after": plan["images"], "seconds": time.monotonic() - started}
            found = night.tables()
            quiet = quiet or found
            rows.append(row | {"difference": differing(quiet, found) or "none"})
            print(json.dumps(rows[-1]), flush=True)
            if victim == "node":
                node = extra()
    server.kill()
    print(table(rows))
    assert all(row["difference"] == "none" for row in rows)


if __name__ == "__main__":
    main()
