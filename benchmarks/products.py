"""Does the chosen way of combining images give the best answer for a product?

    RETAILRAY_REAL_DATA=../shared python -m benchmarks.products [--seeds 0 1 2] [--size 3]

A head is trained on frozen mobilenet_v2 features of real photos (train.csv). Validation and test photos are put
together to products of three photos of a class; in the second half of the table one photo of each is of another class.
`evaluate` says how many products are right by the rule that the validation products chose. Beside it, from what `score`
published of the same photos, without our code: single photos, majority, mean of probabilities and of log-probabilities.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd

from benchmarks.shop import photos, run, table

HEAD = {
    "model.arch": "mobilenet_v2",
    "model.trainable": "head",
    "train.epochs": 20,
    "train.head_lr": 1e-2,
    "train.num_views": 4,
}


def in_products(split: str, *, size: int, foreign: bool, seed: int) -> pd.DataFrame:
    """Photos with the label of their product; photos that are left over are in none."""
    folder, _ = photos()
    rows = pd.read_csv(folder / f"{split}.csv").sample(frac=1, random_state=seed)
    rows["image"] = [str(folder / f"images/{split}/{name}.jpg") for name in rows.name]
    rows["product"] = [
        f"{split}-{name}-{at // size}"
        for name, at in zip(rows.fine_name, rows.groupby("fine_name").cumcount(), strict=True)
    ]
    rows = rows[rows.groupby("product").image.transform("size") == size].sort_values("product").reset_index(drop=True)
    if foreign:
        generator, own = np.random.default_rng(seed), rows.image.to_numpy(copy=True)
        for first in range(0, len(rows), size):
            others = np.flatnonzero(rows.fine_name != rows.fine_name[first])
            rows.loc[first + generator.integers(size), "image"] = own[generator.choice(others)]
    rows["row"] = [f"{name}/{at % size}" for at, name in enumerate(rows["product"])]  # photos may come twice
    return rows[["row", "image", "fine_name", "product"]]


def measure(folder: Path, *, size: int, foreign: bool, seed: int) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    train = in_products("train", size=1, foreign=False, seed=seed)
    train.to_csv(folder / "train.csv", index=False)
    for split in ("val", "test"):
        in_products(split, size=size, foreign=foreign, seed=seed).to_csv(folder / f"{split}.csv", index=False)
    columns = {"catalog.id": "row", "catalog.label": "fine_name", "catalog.group": "product"}
    settings = {"catalog.uri": folder / "train.csv", "catalog.validation_uri": folder / "val.csv"} | columns
    settings |= HEAD | {"model.weights": photos()[1], "train.seed": seed, "train.cache_uri": folder.parent / "cache"}
    bundle = run("train", **settings, out=folder / "train")[-1]["bundle"]
    test = {"catalog.uri": folder / "test.csv", "model.uri": bundle} | columns
    report = run("evaluate", **test, out=folder / "evaluate")[-1]["report"]
    found = json.loads(Path(report).with_name("metrics.json").read_text())["products"]
    scored = run("score", **test, **{"score.top_k": 81}, out=folder / "score")[-1]["run"]
    plain = plain_rules(duckdb.sql(f"from '{scored}/predictions/*.parquet'").df())
    row = {"products": f"{'one photo of another class' if foreign else 'photos of one class'}, seed {seed}"}
    return row | plain | {"chosen": found["top1"], "rule": found["combination"]["told"]}


def plain_rules(rows: pd.DataFrame) -> dict[str, float]:
    labels = sorted({label for labels in rows.topk_labels for label in labels})
    scores = pd.DataFrame(
        [dict(zip(*pair, strict=True)) for pair in zip(rows.topk_labels, rows.topk_scores, strict=True)]
    )[labels].clip(1e-6)
    truth = rows.groupby("product").fine_name.first()
    majority = rows.groupby("product").pred_label.agg(lambda labels: labels.mode()[0])
    means, logs = (values.groupby(rows["product"]).mean().idxmax(axis=1) for values in (scores, np.log(scores)))
    found = {"majority": majority, "mean of probabilities": means, "mean of logs": logs}
    single = {"single photo": float((rows.pred_label == rows.fine_name).mean())}
    return single | {name: float((answers == truth).mean()) for name, answers in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--size", type=int, default=3)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    rows = [
        measure(folder / f"{foreign}-{seed}", size=arguments.size, foreign=foreign, seed=seed)
        for foreign in (False, True)
        for seed in arguments.seeds
    ]
    print(table(rows))


if __name__ == "__main__":
    main()
