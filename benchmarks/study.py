"""Which network, and how deep: a study on real shop photos from real ImageNet weights.

    RETAILRAY_REAL_DATA=../shared python -m benchmarks.study [--seeds 2] [--epochs 6] [--groups Apple Juice Milk]

``squeezenet1_0`` and ``mobilenet_v2``, the head alone and fine-tuned; classes of the groups that are named (``all``:
all 81). Prints the study's table and its pairs.
"""

import argparse
import tempfile
from pathlib import Path

import pandas as pd

import retailray
from benchmarks.shop import photos, table

ARCHITECTURES = ("squeezenet1_0", "mobilenet_v2")


def catalog(folder: Path, groups: list[str]) -> dict[str, object]:
    """Tables of training, validation and test photos of some groups; the catalog section."""
    for split in ("train", "val", "test"):
        rows = pd.read_csv(photos()[0] / f"{split}.csv")
        rows = rows if groups == ["all"] else rows[rows.coarse_name.isin(groups)]
        rows["image"] = f"{photos()[0]}/images/{split}/" + rows.name + ".jpg"
        rows.to_csv(folder / f"{split}.csv", index=False)
    return {
        "uri": folder / "train.csv",
        "validation_uri": folder / "val.csv",
        "test_uri": folder / "test.csv",
        "label": "fine_name",
        "allow": [str(photos()[0])],
    }


def models(epochs: int) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for arch in ARCHITECTURES:
        weights = str(photos()[1].parent / f"{arch}-imagenet.pth")
        found.append({"name": f"{arch} head", "model": {"arch": arch, "weights": weights, "trainable": "head"}})
        phases = [{"epochs": 2, "trainable": "head"}, {"epochs": epochs - 2, "trainable": "last5"}]
        found.append({"name": f"{arch} fine-tuned", "model": {"arch": arch, "weights": weights}, "phases": phases})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--groups", nargs="+", default=["Apple", "Juice", "Milk"])
    parser.add_argument("--out", type=Path, help="keep the study here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = retailray.study(
            catalog=catalog(folder, arguments.groups),
            train={"epochs": arguments.epochs, "num_views": 2, "label_smoothing": 0.1, "cache_uri": folder / "cache"},
            study={"models": models(arguments.epochs), "seeds": arguments.seeds},
            out=arguments.out or folder / "study",
        )
        fits = run.fits.groupby("model", sort=False).agg({"seconds": "mean", "train_images_per_s": "mean"})
        rows = []
        for model, found in run.facts["models"].items():
            low, high = found["interval"]
            mine = fits.loc[model]
            seen = {"training, s": mine.seconds, "images/s": mine.train_images_per_s}
            rows.append({"model": model, "top-1": found["top1"], "low": low, "high": high, **seen})
        print(table(rows))
        print(table(run.pairs.to_dict("records")))
        print("winner:", run.facts["winner"], "; not surely worse than the best:", run.facts["not_surely_worse"])


if __name__ == "__main__":
    main()
