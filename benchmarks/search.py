"""A search with shared passes against a plain Ray Tune search, in one run, on real photos.

    RETAILRAY_REAL_DATA=../shared python -m benchmarks.search [--trials 32] [--epochs 10] [--images 2640] [--only ours]

mobilenet_v2 at 224 px; freeze depth {head, last1, last2} x both learning rates, ASHA, bfloat16, two trials at once
with a thread each, no augmentation. The plain search does what Ray Tune's documentation shows: every trial is a
function that reads and decodes its photos in every epoch and runs the whole model, frozen blocks in eval mode under
no_grad; it gets channels_last, the fused optimizer, the same settings in the same order and the same scheduler (our
trials give the first epoch to the head alone, as train does). ``--memory ours`` gives it the memory settings of our
workers besides (see execution/session.py); the default is what a user has.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.overhead import subset
from benchmarks.shop import PlainLoop, photos, run, settings, table

SPACE = {
    "model.trainable": ["head", "last1", "last2"],
    "train.head_lr": {"loguniform": [1e-3, 3e-2]},
    "train.backbone_lr": {"loguniform": [1e-4, 3e-3]},
}


def ours(catalog: Path, folder: Path, trials: int, epochs: int) -> dict[str, Any]:
    values = {
        "catalog.uri": catalog,
        "catalog.root": photos()[0],
        "transform.augment": "none",
        "train.epochs": epochs,
        "tune.space": json.dumps(SPACE),
        "tune.trials": trials,
        "train.cache_uri": folder / "cache",
        "out": folder / "out",
    }
    events = run("tune", **settings(**values))
    last = events[-1]
    table_ = pd.read_parquet(Path(last["bundle"]).parent / "trials.parquet")
    test = settings(**{"catalog.uri": photos()[0] / "test.csv", "model.uri": last["bundle"], "out": folder / "tested"})
    kept = ("catalog.uri", "catalog.image", "catalog.image_template", "catalog.label", "model.uri", "out")
    top1 = run("evaluate", **{name: test[name] for name in kept}, **{"evaluate.bootstrap": 0})[-1]["top1"]
    return {
        "seconds": next(event["at"] for event in events if event["event"] == "summary" and event["command"] == "tune"),
        "shared": last["shared_seconds"],
        "searching": last["search_seconds"],
        "epochs": last["epochs"],
        "validation": last["validation_top1"],
        "test": top1,
        "drawn": table_.sort_values("trial")[list(SPACE)].to_dict("records"),
    }


def plain(folder: Path, trials: int, epochs: int, images: int) -> dict[str, Any]:
    """The search of a process of its own: see :func:`plain_search`."""
    command = [sys.executable, "-m", "benchmarks.search", "--plain", str(folder)]
    command += ["--trials", str(trials), "--epochs", str(epochs), "--images", str(images)]
    started = time.monotonic()
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()[-1])
    return found | {"seconds": time.monotonic() - started}


def plain_search(folder: Path, trials: int, epochs: int, images: int) -> dict[str, Any]:
    import numpy as np
    import ray
    import torch
    from ray import tune

    def trial(config: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        loop = PlainLoop(
            config["model.trainable"],
            epochs,
            config["train.head_lr"],
            config["train.backbone_lr"],
            augment=False,
            loader_workers=0,
            own_memory=False,
            catalog=folder / "train.csv",
        )
        best = -1.0
        for row in loop.run():
            if row["top1"] > best:
                best = row["top1"]
                torch.save(loop.model.state_dict(), folder / f"{tune.get_context().get_trial_id()}.pt")
            tune.report({"score": best, "epoch": row["epoch"]})

    ray.init(address="local", num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False)
    started = time.monotonic()
    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),
        param_space={
            "model.trainable": tune.choice(SPACE["model.trainable"]),
            "train.head_lr": tune.loguniform(1e-3, 3e-2),
            "train.backbone_lr": tune.loguniform(1e-4, 3e-3),
        },
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=trials,
            max_concurrent_trials=os.cpu_count(),
            scheduler=tune.schedulers.ASHAScheduler(
                time_attr="epoch", max_t=epochs, grace_period=1, reduction_factor=3
            ),
            search_alg=tune.search.BasicVariantGenerator(random_state=0),
        ),
        run_config=tune.RunConfig(storage_path=str(folder / "tune"), verbose=0),
    )
    grid = tuner.fit()
    searching = time.monotonic() - started
    results = [result.metrics for result in grid]
    best = max(results, key=lambda metrics: metrics["score"])
    loop = PlainLoop("head", 1, 0.1, 0.1, augment=False, loader_workers=0, catalog=folder / "train.csv")
    accuracy = loop.test(torch.load(folder / f"{best['trial_id']}.pt"))
    return {
        "searching": searching,
        "epochs": int(np.sum([metrics["training_iteration"] for metrics in results])),
        "validation": best["score"],
        "test": accuracy,
        "drawn": [metrics["config"] for metrics in results],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=2640)
    parser.add_argument("--only", choices=["ours", "plain"])
    parser.add_argument("--memory", choices=["default", "ours"], default="default")
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:
        print(json.dumps(plain_search(arguments.plain, arguments.trials, arguments.epochs, arguments.images)))
        return
    if arguments.memory == "ours":
        from retailray.execution.session import WORKER_ENV

        os.environ.update(WORKER_ENV)
    folder = Path(tempfile.mkdtemp())
    catalog = subset(folder, arguments.images)
    rows = []
    if arguments.only != "plain":
        rows.append({"": "ours", **ours(catalog, folder, arguments.trials, arguments.epochs)})
    if arguments.only != "ours":
        rows.append({"": "plain Ray Tune", **plain(folder, arguments.trials, arguments.epochs, arguments.images)})
    drawn = [pd.DataFrame(row.pop("drawn")) for row in rows]
    print(f"{arguments.trials} trials of {arguments.epochs} epochs at most on {arguments.images} photos\n")
    names = ["", "seconds", "shared", "searching", "epochs", "validation", "test"]
    print(table([{name: row.get(name, "") for name in names} for row in rows]))
    if len(rows) == 2:
        same = (drawn[0]["train.head_lr"] - drawn[1]["train.head_lr"]).abs().max() < 1e-12
        print(f"\nplain / ours: {rows[1]['seconds'] / rows[0]['seconds']:.2f}; the same settings were drawn: {same}")


if __name__ == "__main__":
    main()
