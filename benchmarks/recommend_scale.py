"""How much time and memory does `recommend` take for a large shop?

    python -m benchmarks.recommend_scale [--shoppers 100000] [--products 20000] [--purchases 20000000]

Purchases are generated: baskets of ten in a year; popularity falls with the rank of a product (exponent 0.8), and half
of each basket is from the shopper's own forty products. Peak memory is that of the process and all its children, which
is looked at every half second; the time of every stage is that of the run's events.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

FIRST_DAY, DAYS, BASKET, OWN = np.datetime64("2025-01-01", "us"), 365, 10, 40


def write_purchases(path: Path, *, shoppers: int, products: int, purchases: int, seed: int = 0) -> None:
    """Columns ``shopper, time, basket, product``, a row group for 1,000 shoppers."""
    draw = np.random.default_rng(seed)
    popular = np.cumsum(np.arange(1, products + 1) ** -0.8)
    popular /= popular[-1]
    each, at_once = purchases // shoppers // BASKET, 1_000
    schema = pa.schema([("shopper", pa.int32()), ("time", pa.timestamp("us")), ("basket", pa.int64()),
                        ("product", pa.int32())])  # fmt: skip
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, shoppers, at_once):
            num = min(at_once, shoppers - first)
            own = np.searchsorted(popular, draw.random((num, OWN)))
            size = (num, each, BASKET)
            chosen = np.take_along_axis(own, draw.integers(OWN, size=(num, each * BASKET)), axis=1).reshape(size)
            other = np.searchsorted(popular, draw.random(size))
            product = np.where(draw.random(size) < 0.5, chosen, other).astype(np.int32)
            minute = draw.integers(DAYS * 1440, size=(num, each, 1))
            time_of = FIRST_DAY + np.broadcast_to(minute, size).astype("timedelta64[m]")
            shopper = np.broadcast_to(np.arange(first, first + num)[:, None, None], size)
            basket = shopper.astype(np.int64) * each + np.arange(each)[None, :, None]
            columns = (shopper.astype(np.int32), time_of, basket, product)
            writer.write_table(pa.table([column.ravel() for column in columns], schema=schema))


class Peak:
    """Memory [GB] of a process and its children, the largest that was seen."""

    def __init__(self, process: int) -> None:
        self.process, self.gb, self.over = psutil.Process(process), 0.0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.over.wait(0.5):
            total = 0
            try:
                for one in (self.process, *self.process.children(recursive=True)):
                    total += one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            self.gb = max(self.gb, total / 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shoppers", type=int, default=100_000)
    parser.add_argument("--products", type=int, default=20_000)
    parser.add_argument("--purchases", type=int, default=20_000_000)
    parser.add_argument("--method", default="auto")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "purchases.parquet")
        sizes = {name: getattr(arguments, name) for name in ("shoppers", "products", "purchases")}
        write_purchases(path, **sizes)
        print(f"{path.stat().st_size / 1e6:.0f} MB of purchases", flush=True)
        command = [sys.executable, "-m", "retailray", "recommend", "--interactions.uri", str(path)]
        command += ["--interactions.basket", "basket", "--recommend.method", arguments.method, "--out", f"{folder}/out"]
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        peak = Peak(process.pid)
        assert process.stdout
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] not in ("progress", "method"):
                kept = {name: event[name] for name in ("event", "method", "seconds", "engine") if name in event}
                print(f"{time.monotonic() - started:7.1f} s {peak.gb:5.1f} GB {kept}", flush=True)
        peak.over.set()
        seconds = time.monotonic() - started
        print(f"exit {process.wait()}: {seconds:.0f} s, {1e3 * seconds / arguments.shoppers:.1f} ms a shopper, "
              f"at most {peak.gb:.1f} GB")  # fmt: skip


if __name__ == "__main__":
    main()
