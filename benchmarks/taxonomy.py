"""How much more is accepted by the taxonomy, and is what is promised kept at every level?

    RETAILRAY_REAL_DATA=../shared python -m benchmarks.taxonomy --model BUNDLE [--seeds 30] [--rows 50 100 200 400]

`score` says what the bundle, a model fine-tuned on the shop's 81 classes, thinks of 2,485 test photos. Simulated
catalogs draw photos with replacement, and each row's true class from the photo's calibrated probabilities: so the truth
is known, and there may be any number of validation rows. Thresholds of classes and of the 43 groups are fitted for a
precision of 0.95 on ROWS validation rows of each class, and used on 20,000 fresh rows.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd

from benchmarks.shop import photos, run, table
from retailray.data.taxonomy import Taxonomy
from retailray.models.backing_off import back_off
from retailray.models.meta import THRESHOLDS
from retailray.models.probabilities import most_probable
from retailray.models.thresholds import Validation, fit_promise

TARGET, FRESH = 0.95, 20_000


def probabilities(bundle: str) -> tuple[np.ndarray, list[str]]:
    folder, _ = photos()
    catalog = {"catalog.uri": folder / "test.csv", "catalog.image": "name", "catalog.label": "fine_name"}
    catalog |= {"catalog.image_template": "images/{stem}/{name}.jpg"}
    where = Path(tempfile.mkdtemp())
    scored = run("score", **catalog, **{"model.uri": bundle, "score.top_k": 81, "out": where})[-1]["run"]
    rows = duckdb.sql(f"from '{scored}/predictions/*.parquet'").df()
    labels = sorted(rows.topk_labels[0])
    pairs = zip(rows.topk_labels, rows.topk_scores, strict=True)
    return pd.DataFrame([dict(zip(*pair, strict=True)) for pair in pairs])[labels].to_numpy(float), labels


def draw(known: np.ndarray, num: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    rows = known[generator.integers(0, len(known), num)]
    return rows, (rows.cumsum(1) > generator.random((num, 1)) * rows.sum(1, keepdims=True)).argmax(1)


def measure(known: np.ndarray, labels: list[str], taxonomy: Taxonomy, rows: int, seeds: int) -> dict[str, Any]:
    names, found = np.array(labels, object), []
    for seed in range(seeds):
        generator = np.random.default_rng(seed)
        shares, truth = draw(known, rows * len(labels), generator)
        classes, top = most_probable(shares)
        products = np.arange(len(truth)).astype(str).astype(object)
        roles = np.full(len(truth), THRESHOLDS, object)
        validation = Validation(names[truth], names[classes[:, 0]], top[:, 0], products, roles, None, classes, top)
        thresholds = fit_promise(validation, target_precision=TARGET).thresholds(0.0)
        backing = back_off(taxonomy, labels, thresholds, validation, TARGET)
        shares, truth = draw(known, FRESH, generator)
        classes, top = most_probable(shares)
        accept = np.array([thresholds.per_class.get(label, thresholds.accept) for label in labels])
        sure = top[:, 0] >= accept[classes[:, 0]]
        at, node, _ = backing.accepted(classes[:, 0], classes, top)
        level = backing.levels[0][0]
        above = ~sure & (at >= 0)
        right = level.within[truth] == node
        found.append((sure.mean(), (truth == classes[:, 0])[sure].mean() if sure.any() else np.nan,
                      (sure | above).mean(), right[above].mean() if above.any() else np.nan))  # fmt: skip
    one, two, both, groups = np.array(found).T
    return {
        "validation rows a class": rows,
        "accepted as a class": one.mean(),
        "their precision": np.nanmean(two),
        "draws below 0.95": np.nanmean(two < TARGET),
        "accepted with groups": both.mean(),
        "precision of those accepted as a group": np.nanmean(groups),
        "draws below 0.95 (groups)": np.nanmean(groups < TARGET),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--rows", type=int, nargs="+", default=[50, 100, 200, 400])
    arguments = parser.parse_args()
    known, labels = probabilities(arguments.model)
    shop = pd.read_csv(photos()[0] / "test.csv").drop_duplicates("fine_name").set_index("fine_name").coarse_name
    groups = {label: shop.get(label, label) for label in labels}
    taxonomy = Taxonomy({label: (f"group {groups[label]}", label) for label in labels})
    print(table([measure(known, labels, taxonomy, rows, arguments.seeds) for rows in arguments.rows]))


if __name__ == "__main__":
    main()
