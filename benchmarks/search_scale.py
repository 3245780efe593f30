"""Many small trials in one search, against Ray Tune's own cost of a trial that does nothing; and killed searches.

    RETAILRAY_REAL_DATA=../shared python -m benchmarks.search_scale trials [--trials 500]
    RETAILRAY_REAL_DATA=../shared python -m benchmarks.search_scale kills [--kills 5]

``trials``: linear probes of mobilenet_v2 at 64 px on 660 photos, 3 epochs, ASHA; trials a minute, the driver's peak of
anonymous memory, and the size of what lies on storage. The floor is a Ray Tune search with the same concurrency and
about as many reports, whose function does nothing: with processes that are used again, and (a twentieth of the trials)
with the default.

``kills``: a search is killed with SIGKILL at a random moment so many times in a row, resumed each time, and its final
table compared with an uninterrupted one's; random draws, once without a scheduler and two trials at once, once with
ASHA and one at a time.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from benchmarks.overhead import subset
from benchmarks.shop import photos, settings, table

EPOCHS = 3
PHOTOS = 660


def probe(catalog: Path, folder: Path, **changes: Any) -> list[str]:
    """The command of a search over small linear probes."""
    space = {"train.head_lr": {"loguniform": [1e-4, 1e-1]}, "train.weight_decay": {"loguniform": [1e-4, 1e-1]}}
    values = settings(
        **{
            "catalog.uri": catalog,
            "catalog.root": photos()[0],
            "transform.image_size": 64,
            "transform.augment": "none",
            "model.trainable": "head",
            "train.epochs": EPOCHS,
            "train.cache_uri": folder / "cache",
            "tune.space": json.dumps(space),
            **changes,
        }
    )
    arguments = [part for key, value in values.items() for part in (f"--{key}", str(value))]
    return [sys.executable, "-m", "retailray", "tune", *arguments]


def peak_of(process: subprocess.Popen, found: dict[str, float]) -> None:
    """Watch the anonymous memory of a process [MB]."""
    while process.poll() is None:
        try:
            text = Path(f"/proc/{process.pid}/status").read_text()
            found["peak"] = max(found.get("peak", 0.0), int(text.split("RssAnon:")[1].split()[0]) / 1024)
        except (OSError, IndexError):
            pass
        time.sleep(0.2)


def many(count: int) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp())
    command = probe(subset(folder, PHOTOS), folder, **{"tune.trials": count, "out": folder / "out"})
    found: dict[str, float] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        watcher = threading.Thread(target=peak_of, args=(process, found))
        watcher.start()
        output, _ = process.communicate()
        watcher.join()
    assert process.returncode == 0, output[-500:]
    last = json.loads(output.splitlines()[-1])
    run = Path(last["bundle"]).parent
    files = [path for path in run.rglob("*") if path.is_file()]
    return {
        "": "retailray tune",
        "searching [s]": last["search_seconds"],
        "trials/min": 60 * count / last["search_seconds"],
        "epochs": last["epochs"],
        "driver's peak [MB]": found["peak"],
        "files": len(files),
        "state [MB]": sum(path.stat().st_size for path in files) / 1e6,
    }


def floor(count: int, epochs: int, *, reuse: bool) -> dict[str, Any]:
    """Ray Tune alone, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.search_scale", "floor", "--trials", str(count)]
    command += ["--epochs", str(epochs), *(["--reuse"] if reuse else [])]
    seconds = float(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()[-1])
    name = f"an empty function, processes {'used again' if reuse else 'by default'}"
    return {"": name, "searching [s]": seconds, "trials/min": 60 * count / seconds, "epochs": epochs}


def empty_search(count: int, epochs: int, *, reuse: bool) -> float:
    import ray
    from ray import tune

    each = max(1, round(epochs / count))

    def nothing(config: dict[str, Any]) -> None:
        for epoch in range(each):
            tune.report({"score": config["x"], "epoch": epoch + 1})

    cores = os.cpu_count() or 1
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    started = time.monotonic()
    tune.Tuner(
        tune.with_resources(nothing, {"cpu": 0.5}),
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(
            metric="score", mode="max", num_samples=count, max_concurrent_trials=cores, reuse_actors=reuse
        ),
        run_config=tune.RunConfig(storage_path=tempfile.mkdtemp(), verbose=0),
    ).fit()
    return time.monotonic() - started


def killed(kills: int, seed: int) -> list[dict[str, Any]]:
    rows = []
    draw = random.Random(seed)
    for name, changes in {
        "no scheduler, two at once": {"tune.scheduler": "none", "tune.max_concurrent": 2},
        "asha, one at a time": {"tune.max_concurrent": 1},
    }.items():
        folder = Path(tempfile.mkdtemp())
        shared = {"tune.trials": 40, "train.checkpoint_interval_s": 0, "train.epochs": 9, **changes}
        catalog = subset(folder, PHOTOS)
        command = probe(catalog, folder, **shared, out=folder / "whole")
        started = time.monotonic()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        length = time.monotonic() - started
        command = probe(catalog, folder, **shared, out=folder / "killed")
        moments = []
        for number in range(kills):
            moments.append(round(draw.uniform(0.2, 0.75) * length, 1))
            process = subprocess.Popen(
                [*command, *(["--tune.resume"] if number else [])], stdout=subprocess.DEVNULL, start_new_session=True
            )
            try:
                process.wait(moments[-1])
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
            for orphan in psutil.process_iter(["cmdline"]):
                if "ResourceTrainable" in " ".join(orphan.info["cmdline"] or []):
                    orphan.wait(30)
        subprocess.run([*command, "--tune.resume"], stdout=subprocess.DEVNULL, check=True)
        left, right = (
            pd.read_parquet(next((folder / where).glob("run_id=*/trials.parquet"))).drop(columns="seconds")
            for where in ("whole", "killed")
        )
        left, right = (part.sort_values("trial").reset_index(drop=True) for part in (left, right))
        try:
            pd.testing.assert_frame_equal(left, right, rtol=1e-5)
            same = True
        except AssertionError as error:
            same = " ".join(str(error).split())[:200]
        runs = len(list((folder / "killed").glob("run_id=*")))
        rows.append({"": name, "trials": len(right), "killed after [s]": moments, "runs": runs, "same table": same})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["trials", "kills", "floor"])
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--reuse", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what == "floor":
        print(empty_search(arguments.trials, arguments.epochs, reuse=arguments.reuse))
    elif arguments.what == "kills":
        print(table(killed(arguments.kills, arguments.seed)))
    else:
        mine = many(arguments.trials)
        few = max(1, arguments.trials // 20)  # a process a trial takes seconds
        rows = [mine, floor(arguments.trials, mine["epochs"], reuse=True)]
        rows.append(floor(few, mine["epochs"] // 20, reuse=False) | {"epochs": f"{few} trials"})
        print(table([{name: row.get(name, "") for name in mine} for row in rows]))


if __name__ == "__main__":
    main()
