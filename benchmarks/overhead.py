"""What Ray Train and our loop cost: an epoch with nothing kept and everything trained, against plain DDP.

    RETAILRAY_REAL_DATA=../shared python -m benchmarks.overhead [--images 640] [--epochs 3] [--repeats 3] [--threads 2]

mobilenet_v2, all blocks, bfloat16, batches of 64, no augmentation. Both hold the same decoded photos in memory (ours
in Ray's object store, streamed by Ray Data; the script as one tensor) and run one worker with the same threads and the
same memory settings. Seconds an epoch, the first one (which warms up) left out; interleaved, medians. ``--threads``
less than the cores leaves some to Ray's own processes; start Ray with as many first
(``ray start --head --num-cpus 1``) and set RAY_ADDRESS for this command.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.shop import photos, run, settings, table
from retailray.data.images import Limits, decode
from retailray.data.scaling import Scaling
from retailray.execution.process import prepare_process
from retailray.models.precision import spare_slow_gradients
from retailray.models.predictor import Normalize
from retailray.models.weights import pretrained_model


def subset(folder: Path, num_images: int) -> Path:
    """A catalog of the first rows of a shuffled train.csv."""
    rows = pd.read_csv(photos()[0] / "train.csv").sample(num_images, random_state=0)
    rows.to_csv(folder / "train.csv", index=False)
    return folder / "train.csv"


def ours(catalog: Path, folder: Path, epochs: int) -> list[float]:
    values = settings(
        **{
            "catalog.uri": catalog,
            "catalog.root": photos()[0],
            "model.trainable": "all",
            "train.phases": f'[{{"epochs": {epochs}, "trainable": "all"}}]',
            "train.cache": "off",
            "transform.augment": "none",
            "train.checkpoint_interval_s": 1e6,
            "out": folder / "out",
        }
    )
    events = run("train", **values)
    return [event["train_seconds"] for event in events if event["event"] == "epoch"][1:]


def script(catalog: Path, epochs: int) -> list[float]:
    table_ = pd.read_csv(catalog)
    labels = sorted(set(table_.fine_name))
    limits = Limits(50_000_000, 20.0)
    files = [photos()[0] / f"images/train/{name}.jpg" for name in table_.name]
    images = torch.from_numpy(np.stack([decode(file.read_bytes(), Scaling(256, 224), limits) for file in files]))
    targets = torch.tensor([labels.index(name) for name in table_.fine_name])
    model, mean, std, _ = pretrained_model("mobilenet_v2", str(photos()[1]), len(labels), seed=0)
    model = model.to(memory_format=torch.channels_last).train()
    spare_slow_gradients(model, device=torch.device("cpu"), precision="bfloat16")
    normalize = Normalize(mean, std)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    seconds = []
    for _ in range(epochs):
        started = time.monotonic()
        loss_sum = right = 0.0
        for chosen in torch.randperm(len(images)).split(64):
            with torch.autocast("cpu", torch.bfloat16):
                logits = wrapped(normalize(images[chosen])).float()
            loss = nn.functional.cross_entropy(logits, targets[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(chosen)
            right += (logits.argmax(1) == targets[chosen]).sum().item()
        seconds.append(time.monotonic() - started)
    return seconds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    prepare_process(arguments.threads)  # the script gets the memory settings that our workers have
    folder = Path(tempfile.mkdtemp())
    catalog = subset(folder, arguments.images)
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    found: dict[str, list[float]] = {"ours": [], "plain DDP": []}
    for _ in range(arguments.repeats):
        found["ours"] += ours(catalog, folder, arguments.epochs)
        found["plain DDP"] += script(catalog, arguments.epochs)
    medians = {name: statistics.median(values) for name, values in found.items()}
    rows = [
        {
            "": name,
            "seconds an epoch": value,
            "images/s": arguments.images / value,
            "all": [round(s, 2) for s in found[name]],
        }
        for name, value in medians.items()
    ]
    print(table(rows))
    print(f"\nours / plain DDP: {medians['ours'] / medians['plain DDP']:.3f}")


if __name__ == "__main__":
    main()
