"""Memory of the driver and of the workers at two sizes of catalog, a factor of eight apart.

    RETAILRAY_REAL_DATA=../shared python -m benchmarks.memory

mobilenet_v2 at 64 px: once with activations kept (last1, two views) and once with everything trained from kept pixels.
Peak by process of anonymous memory, sampled every 0.2 s: what a process holds itself. Memory-mapped files and the
object store are pages that the machine shares, and gives back when it needs them.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from benchmarks.shop import photos, settings, table

SIZES = (330, 2640)
ROLES = {"driver": "-m retailray", "predictor": "FillCaches", "worker": "RayTrainWorker", "task": "ray::Map"}


def peak(
    command: str, values: dict[str, Any], roles: dict[str, str] = ROLES
) -> tuple[dict[str, float], dict[str, Any]]:
    """Megabytes of anonymous memory by role, and the last event of the command."""
    arguments = [part for key, value in values.items() for part in (f"--{key}", str(value))]
    found: dict[str, float] = {}
    command = [sys.executable, "-m", "retailray", command, *arguments]
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(command, stdout=said, text=True) as process:
        while process.poll() is None:
            for role, megabytes in _sample(process.pid, roles):
                found[role] = max(found.get(role, 0.0), megabytes)
            time.sleep(0.2)
        said.seek(0)
        last = json.loads(said.read().splitlines()[-1])
    assert last["event"] == "summary", last
    return found, last


def _sample(pid: int, roles: dict[str, str]) -> list[tuple[str, float]]:
    found = []
    try:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            text = " ".join(process.cmdline())
            role = next((role for role, mark in roles.items() if mark in text), None)
            if role:
                status = Path(f"/proc/{process.pid}/status").read_text()
                found.append((role, int(status.split("RssAnon:")[1].split()[0]) / 1024))
    except (psutil.Error, OSError, IndexError):
        pass  # a process that has just ended
    return found


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    rows = []
    for kind in ("activations kept", "pixels kept"):
        peaks = {}
        for size in SIZES:
            where = folder / str(size)
            where.mkdir(exist_ok=True)
            pd.read_csv(photos()[0] / "train.csv").sample(size, random_state=0).to_csv(where / "train.csv", index=False)
            depth = "last1" if kind == "activations kept" else "all"
            values = settings(**{"catalog.uri": where / "train.csv", "catalog.root": photos()[0]})
            values |= {"transform.image_size": 64, "train.epochs": 4, "model.trainable": depth, "train.num_views": 2}
            if depth == "all":
                phases = '[{"epochs": 2, "trainable": "all"}]'
                values = {
                    k: v for k, v in values.items() if k not in ("train.epochs", "model.trainable", "train.num_views")
                }
                values["train.phases"] = phases
            peaks[size], _ = peak("train", values | {"train.cache_uri": where / kind, "out": where / "out"})
        for role in peaks[SIZES[0]]:
            small, large = (peaks[size].get(role, 0.0) for size in SIZES)
            rows.append(
                {
                    "kept": kind,
                    "process": role,
                    **{f"{size} images [MB]": value for size, value in zip(SIZES, (small, large), strict=True)},
                    "ratio": large / small,
                }
            )
    print(table(rows))


if __name__ == "__main__":
    main()
