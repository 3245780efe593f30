"""How good fine-tuning gets, and what each ingredient brings, on real photos.

    RETAILRAY_REAL_DATA=../shared python -m benchmarks.quality [--seeds 0 1 2] [--ablation]
    RETAILRAY_REAL_DATA=../shared python -m benchmarks.quality --model lite2

mobilenet_v2, or timm's tf_efficientnet_lite2, trained on train.csv (2,640 photos, 81 classes), its epoch chosen on
val.csv, tested once on test.csv (2,485). Coarse: the same predictions mapped to the 43 groups. Published for this data
set: 0.8604 fine, 0.9199 coarse. The ablation changes one thing at a time, with seed 0; photos are looked at once for
all variants that share views and depth.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.shop import photos, run, settings, table

RECIPE = {
    "train.phases": [{"epochs": 8, "trainable": "last5", "head_lr": 3e-3, "backbone_lr": 1e-3}],
    "train.label_smoothing": 0.1,
    "train.num_views": 8,
    "train.precision": "auto",  # bfloat16 takes twenty times as long on machines that emulate it
}
LITE2 = RECIPE | {
    "model.arch": "timm:tf_efficientnet_lite2",
    "transform.image_size": 260,
    "transform.resize_size": 292,  # timm's crop_pct of 0.89
    "train.phases": [{"epochs": 16, "trainable": "last8", "head_lr": 3e-3, "backbone_lr": 1e-3}],
}
PUBLISHED = {"fine": 0.8604, "coarse": 0.9199}


def phases(depth: str, *, alone: int = 0, epochs: int = 8) -> list[dict[str, Any]]:
    head = [{"epochs": alone, "trainable": "head", "head_lr": 3e-3}] if alone else []
    return [*head, {"epochs": epochs, "trainable": depth, "head_lr": 3e-3, "backbone_lr": 1e-3}]


ABLATION: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "one view": {"train.num_views": 1},
    "four views": {"train.num_views": 4},
    "no augmentation": {"transform.augment": "none", "train.num_views": 1},
    "no label smoothing": {"train.label_smoothing": 0.0},
    "averaged weights (0.99)": {"train.ema_decay": 0.99},
    "an epoch for the head alone first": {"train.phases": phases("last5", alone=1)},
    "sixteen epochs": {"train.phases": phases("last5", epochs=16)},
    "last two blocks": {"train.phases": phases("last2")},
    "head only, 0.01": {"train.phases": [{"epochs": 8, "trainable": "head", "head_lr": 1e-2}]},
}


def measure(folder: Path, name: str, *, recipe: Mapping[str, Any] = RECIPE, **changes: Any) -> dict[str, Any]:
    values = settings(**{**recipe, **changes})
    values["train.phases"] = json.dumps(values["train.phases"])
    out = folder / name.replace(" ", "-").replace(",", "")
    trained = run("train", **values, **{"train.cache_uri": folder / "cache", "out": out})[-1]
    catalog = {key: value for key, value in values.items() if key in ("catalog.image", "catalog.label")}
    catalog |= {"catalog.uri": photos()[0] / "test.csv", "catalog.image_template": values["catalog.image_template"]}
    report = run("evaluate", **catalog, **{"model.uri": trained["bundle"], "out": out / "test"})[-1]["report"]
    tested = Path(report).parent
    metrics = json.loads((tested / "metrics.json").read_text())
    groups = pd.read_csv(photos()[0] / "test.csv").drop_duplicates("fine_name").set_index("fine_name").coarse_name
    confusion = pd.read_csv(tested / "confusion.csv", index_col="truth")
    same = groups[confusion.index].to_numpy()[:, None] == groups[confusion.columns].to_numpy()[None, :]
    return {
        "variant": name,
        "validation": trained["validation_top1"],
        "fine": metrics["top1"],
        "coarse": float(confusion.to_numpy()[same].sum() / confusion.to_numpy().sum()),
        "macro F1": metrics["macro_f1"],
        "ECE before": metrics["ece_uncalibrated"],
        "ECE after": metrics["ece"],
        "best epoch": trained["best_epoch"],
        "seconds": trained["seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("mobilenet_v2", "lite2"), default="mobilenet_v2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ablation", nargs="*", metavar="VARIANT", help="all variants, or those named")
    parser.add_argument("--folder", type=Path, help="where runs and kept activations lie; default: a new one")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    recipe = RECIPE
    if arguments.model == "lite2":
        recipe = LITE2 | {"model.weights": photos()[1].with_name("tf_efficientnet_lite2.safetensors")}
    rows = [measure(folder, f"seed {seed}", recipe=recipe, **{"train.seed": seed}) for seed in arguments.seeds]
    print(table(rows) if rows else "")
    for name, published in PUBLISHED.items() if rows else ():
        values = [row[name] for row in rows]
        print(f"\n{name}: mean {statistics.mean(values):.4f} of {len(rows)} seeds; published {published}")
    if arguments.ablation is not None:
        chosen = arguments.ablation or list(ABLATION)
        print()
        print(table([measure(folder, name, **ABLATION[name]) for name in chosen]), flush=True)


if __name__ == "__main__":
    main()
