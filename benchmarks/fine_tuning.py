"""Fine-tuning with kept activations against the plain PyTorch loop, in one run, on real photos.

    RETAILRAY_REAL_DATA=../shared python -m benchmarks.fine_tuning [--recipe head|last1|last2] [--epochs 30]

mobilenet_v2 at 224 px on the 2,640 training photos. Both run all epochs in bfloat16 with the same rates; `--repeats`
interleaves them, and medians are told.
Time to accuracy: until the lower of the two best validation accuracies is reached. The time of the plain loop has no
start-up but its own; ours is told with Ray's start-up and without (the events say when Ray is up).
"""

import argparse
import itertools
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.shop import PlainLoop, run, settings, table

RATES = {"head": (1e-2, 1e-3), "last1": (3e-3, 1e-3), "last2": (3e-3, 1e-3)}
VIEWS = {"head": 1, "last1": 4, "last2": 4}


def ours(recipe: str, epochs: int) -> dict[str, Any]:
    head_lr, backbone_lr = RATES[recipe]
    folder = Path(tempfile.mkdtemp())
    phase = f'[{{"epochs": {epochs}, "trainable": "{recipe}", "head_lr": {head_lr}, "backbone_lr": {backbone_lr}}}]'
    still = {"transform.augment": "none"} if recipe == "head" else {"train.num_views": VIEWS[recipe]}
    cold = {"train.phases": phase, "train.cache_uri": folder / "cache", "out": folder / "out"}
    events = run("train", **settings(**still, **cold))
    shutil.rmtree(folder)
    ready = next(event["at"] for event in events if event["event"] == "cache")
    found = [event for event in events if event["event"] == "epoch"]
    return {
        "curve": [(event["at"], event["validation_top1"]) for event in found],
        "total": events[-1]["at"],
        "startup": ready,
        "pass": found[0]["at"] - found[0]["seconds"] - ready,
        "epochs": sum(event["seconds"] for event in found),
    }


def plain(recipe: str, epochs: int, loader_workers: int, limit: int | None) -> dict[str, Any]:
    head_lr, backbone_lr = RATES[recipe]
    loop = PlainLoop(recipe, epochs, head_lr, backbone_lr, augment=recipe != "head", loader_workers=loader_workers)
    curve = [(row["at"], row["top1"]) for row in loop.run(limit)]
    ends = [0.0, *(at for at, _ in curve)]
    each = statistics.median(after - before for before, after in itertools.pairwise(ends[1:])) if limit else 0.0
    return {"curve": curve, "total": ends[1] + each * (epochs - 1) if limit else ends[-1]}


def to_the_same_accuracy(left: dict[str, Any], right: dict[str, Any]) -> dict[str, float]:
    goal = min(max(value for _, value in side["curve"]) for side in (left, right))
    own, other = reached(left["curve"], goal), reached(right["curve"], goal)
    return {
        f"ratio to {goal:.3f}, total": other / own,
        f"ratio to {goal:.3f}, without start-up": other / (own - left["startup"]),
    }


def reached(curve: list[tuple[float, float]], accuracy: float) -> float:
    return next(at for at, value in curve if value >= accuracy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=list(RATES), default="head")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--loader-workers", type=int, default=2)
    parser.add_argument("--plain-epochs", type=int, help="run so many of the loop's epochs and extrapolate its total")
    arguments = parser.parse_args()
    rows = []
    for _ in range(arguments.repeats):
        left = ours(arguments.recipe, arguments.epochs)
        right = plain(arguments.recipe, arguments.epochs, arguments.loader_workers, arguments.plain_epochs)
        rows.append(
            {
                "ours: total": left["total"],
                "start-up": left["startup"],
                "pass over the photos": left["pass"],
                "epochs": left["epochs"],
                "ours: best top-1": max(value for _, value in left["curve"]),
                "plain: total": right["total"],
                "plain: best top-1": max(value for _, value in right["curve"]),
                f"ratio, all {arguments.epochs} epochs, total": right["total"] / left["total"],
                "without start-up": right["total"] / (left["total"] - left["startup"]),
                **({} if arguments.plain_epochs else to_the_same_accuracy(left, right)),
            }
        )
    # goals differ a little between repetitions, and their names with them
    median = {name: statistics.median(list(row.values())[at] for row in rows) for at, name in enumerate(rows[0])}
    print(f"recipe {arguments.recipe}, {arguments.epochs} epochs, median of {arguments.repeats} (seconds and ratios)\n")
    print(table([{"": name, "value": value} for name, value in median.items()]))


if __name__ == "__main__":
    main()
