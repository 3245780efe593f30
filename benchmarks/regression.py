"""How far off numbers are that are read from photos, beside linear heads on the same network.

    RETAILRAY_REAL_DATA=../shared python -m benchmarks.regression [--seeds 0 1 2]

Two labels of the photos of 49 products. ``price``: the median price of the product in a real shop, which a photo does
not show but by the product. ``colour``: the mean of red less blue, which it does. Trained on train.csv (1,720 photos),
the epoch and the settings of the baselines chosen on val.csv (177), measured once on test.csv (1,628): mean absolute
error, from the published tables.

``train`` learns a distribution over intervals in the head of a frozen mobilenet_v2. The baselines are linear heads on
what the same network gives for the same photos, for the absolute (L1) and the squared error (L2), by AdamW with a
cosine, of four learning rates and two lengths the best on val.csv.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torchvision
from PIL import Image

from benchmarks.shop import photos, run, table

RATES, EPOCHS = (1e-3, 3e-3, 1e-2, 3e-2), (20, 60)
BATCH = 64


def write_catalogs(folder: Path, grocery: Path) -> dict[str, pd.DataFrame]:
    """The photos of a split with both numbers, as CSV too."""
    shop = grocery.parent / "shop"
    bought = pd.read_parquet(shop / "purchases.parquet", columns=["product", "quantity", "value"])
    bought = bought[(bought.quantity > 0) & (bought.value > 0)]
    unit = (bought.value / bought.quantity).groupby(bought["product"]).median()
    pairs = pd.read_csv(shop / "photos.csv").drop_duplicates("fine_name")
    price = pairs.set_index("fine_name")["product"].map(unit).round(2)
    found = {}
    for split in ("train", "val", "test"):
        rows = pd.read_csv(grocery / f"{split}.csv")
        rows["price"] = rows.fine_name.map(price)
        rows = rows[rows.price.notna()].reset_index(drop=True)
        rows["image"] = [str(grocery / f"images/{split}/{name}.jpg") for name in rows["name"]]
        colours = [np.asarray(Image.open(path).convert("RGB").resize((32, 32)), float) for path in rows.image]
        rows["colour"] = [float((colour[..., 0] - colour[..., 2]).mean()) for colour in colours]
        found[split] = rows[["image", "price", "colour"]]
        found[split].to_csv(folder / f"{split}.csv", index=False)
    return found


def features(weights: Path, rows: pd.DataFrame) -> torch.Tensor:
    """What the network gives, float32 ``(N, 1280)``, by torchvision alone."""
    model = torchvision.models.mobilenet_v2()
    model.load_state_dict(torch.load(weights, weights_only=True))
    prepare = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    found = []
    with torch.inference_mode():
        for at in range(0, len(rows), BATCH):
            images = [prepare(Image.open(path).convert("RGB")) for path in rows.image[at : at + BATCH]]
            found.append(model.eval().features(torch.stack(images)).mean((2, 3)))
    return torch.cat(found)


def linear_head(  # many because it has data of three splits
    inputs: dict[str, torch.Tensor], values: dict[str, torch.Tensor], loss: str, rate: float, epochs: int, seed: int
) -> tuple[float, float]:
    """Mean absolute errors on val and test."""
    torch.manual_seed(seed)
    usual = values["train"].median()
    scale = (values["train"] - usual).abs().mean()
    head, steps = torch.nn.Linear(inputs["train"].shape[1], 1), -(-len(values["train"]) // BATCH)
    torch.nn.init.zeros_(head.weight)
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(values["train"])).split(BATCH):
            given = torch.nn.functional.dropout(inputs["train"][chosen], 0.2)  # as in the network's own head
            off = head(given)[:, 0] - (values["train"][chosen] - usual) / scale
            optimizer.zero_grad()
            (off.abs() if loss == "L1" else off**2).mean().backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        found = {name: head(inputs[name])[:, 0] * scale + usual for name in ("val", "test")}
    return tuple(float((found[name] - values[name]).abs().mean()) for name in ("val", "test"))  # type: ignore[return-value]


def retailray(folder: Path, weights: Path, label: str, augment: str, seed: int) -> dict[str, float]:
    """``train`` and ``evaluate``: measures from the published table."""
    catalog = {"catalog.image": "image", "catalog.label": label, "cluster.engine": "inline"}
    trained = run(
        "train",
        **catalog,
        **{"catalog.uri": folder / "train.csv", "catalog.validation_uri": folder / "val.csv"},
        **{"model.task": "regression", "model.arch": "mobilenet_v2", "model.trainable": "head"},
        **{"model.weights": weights, "transform.augment": augment},
        **{"train.epochs": 20, "train.seed": seed, "train.cache_uri": folder / "cache", "out": folder / "runs"},
    )[-1]
    told = run(
        "evaluate",
        **catalog,
        **{"catalog.uri": folder / "test.csv", "model.uri": trained["bundle"], "out": folder / "evaluated"},
    )[-1]
    rows = pd.read_parquet(Path(told["report"]).parent / "predictions.parquet")
    truth = pd.read_csv(folder / "test.csv").set_index("image")[label]
    value = truth[rows.image].to_numpy()
    return {
        "mae": float(np.abs(rows.pred_value - value).mean()),
        "within": float(((rows.pred_low <= value) & (value <= rows.pred_high)).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    grocery, weights = photos()
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = write_catalogs(folder, grocery)
        inputs = {split: features(weights, part) for split, part in rows.items()}
        for label in ("price", "colour"):
            values = {split: torch.tensor(part[label].to_numpy(), dtype=torch.float32) for split, part in rows.items()}
            line: dict[str, Any] = {"label": label}
            line["always the median"] = float((values["test"] - values["train"].median()).abs().mean())
            for loss in ("L1", "L2"):
                tried = {
                    (rate, epochs): [linear_head(inputs, values, loss, rate, epochs, seed) for seed in seeds]
                    for rate in RATES
                    for epochs in EPOCHS
                }
                best = min(tried.values(), key=lambda found: statistics.mean(val for val, _ in found))
                line[f"linear, {loss}"] = statistics.mean(test for _, test in best)
            for augment in ("none", "standard"):
                ours = [retailray(folder, weights, label, augment, seed) for seed in seeds]
                line[f"train, augment {augment}"] = statistics.mean(one["mae"] for one in ours)
                line["within 80 % intervals"] = statistics.mean(one["within"] for one in ours)
            lines.append({key: f"{one:.3f}" if isinstance(one, float) else one for key, one in line.items()})
    print(table(lines))


if __name__ == "__main__":
    main()
