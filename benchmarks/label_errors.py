"""How many planted label errors does `check` find?

    RETAILRAY_REAL_DATA=../shared python -m benchmarks.label_errors [--seeds 0 1 2]

5 % of the labels of train.csv (2,640 photos of 81 classes) are replaced: by any other class, or by one of the same
group of products. Of as many rows at the top of ``label_errors.parquet``: how many are replaced ones, and of how many
the suggested label is the true one.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.shop import photos, run, table

SHARE = 0.05


def with_errors(seed: int, *, same_group: bool) -> pd.DataFrame:
    """The photos with ``label`` and ``truth``."""
    folder, _ = photos()
    rows = pd.read_csv(folder / "train.csv")
    rows["image"] = [f"{folder}/images/train/{name}.jpg" for name in rows.name]
    rows["label"] = rows["truth"] = rows.fine_name
    group = rows.drop_duplicates("truth").set_index("truth").coarse_name
    generator = np.random.default_rng(seed)
    num_of = group.map(group.value_counts())
    fit = np.flatnonzero(num_of[rows.truth] > 1) if same_group else np.arange(len(rows))
    for row in generator.choice(fit, round(SHARE * len(rows)), replace=False):
        true = rows.truth[row]
        others = [name for name in group.index if name != true and (not same_group or group[name] == group[true])]
        rows.loc[row, "label"] = generator.choice(others)
    return rows


def measure(folder: Path, seed: int, *, same_group: bool) -> dict[str, Any]:
    rows = with_errors(seed, same_group=same_group)
    folder.mkdir()
    rows[["name", "image", "label"]].to_csv(folder / "catalog.csv", index=False)
    told = run(
        "check",
        **{"catalog.uri": folder / "catalog.csv", "catalog.id": "name", "check.label_errors": "true"},
        **{"model.arch": "mobilenet_v2", "model.weights": photos()[1], "check.samples": 0, "out": folder / "out"},
    )
    [found] = (folder / "out").glob("run_id=*/label_errors.parquet")
    ranked = pd.read_parquet(found)
    truth = rows.set_index("name").truth
    wrong = int((rows.label != rows.truth).sum())
    top = ranked.head(wrong)
    replaced = top.label.to_numpy() != truth[top.id].to_numpy()
    right = replaced & (top.suggested.to_numpy() == truth[top.id].to_numpy())
    flagged = ranked[ranked.suspicious]
    return {
        "replaced": f"{'within the group' if same_group else 'by any class'}, seed {seed}",
        "looked at": wrong,
        "replaced ones": replaced.mean(),
        "suggestion right": right.mean(),
        "called suspicious": len(flagged),
        "of these replaced": (flagged.label.to_numpy() != truth[flagged.id].to_numpy()).mean(),
        "seconds": told[-1]["at"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    folder = Path(tempfile.mkdtemp())
    rows = []
    for same_group in (False, True):
        for seed in parser.parse_args().seeds:
            rows.append(measure(folder / f"{same_group}-{seed}", seed, same_group=same_group))
    print(table(rows))


if __name__ == "__main__":
    main()
