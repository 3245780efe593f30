"""What the fine-tuning benchmarks share: the real photos, our command as a process, and the plain PyTorch loop."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from retailray.execution.process import prepare_process
from retailray.models.blocks import train_mode
from retailray.models.precision import spare_slow_gradients
from retailray.models.predictor import Normalize
from retailray.models.torchvision_blocks import to_blocks
from retailray.models.weights import pretrained_model

RESIZE, CROP = 256, 224


def photos() -> tuple[Path, Path]:
    """The folder of the photos and the file of the weights."""
    where = os.environ.get("RETAILRAY_REAL_DATA")
    if not where:
        sys.exit("set RETAILRAY_REAL_DATA to a folder with data/grocery and weights")
    return Path(where, "data/grocery").resolve(), Path(where, "weights/mobilenet_v2-imagenet.pth").resolve()


def settings(**changes: Any) -> dict[str, Any]:
    """Our command's, on these photos."""
    folder, weights = photos()
    return {
        "catalog.uri": folder / "train.csv",
        "catalog.validation_uri": folder / "val.csv",
        "catalog.image": "name",
        "catalog.image_template": "images/{stem}/{name}.jpg",
        "catalog.label": "fine_name",
        "model.arch": "mobilenet_v2",
        "model.weights": weights,
        "train.precision": "bfloat16",
        **changes,
    }


def run(command: str, **values: Any) -> list[dict[str, Any]]:
    """The events of one command, each with ``at``: seconds since the command began."""
    arguments = [part for key, value in values.items() for part in (f"--{key}", str(value))]
    started, events = time.monotonic(), []
    words = [sys.executable, "-m", "retailray", command, *arguments]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            events.append(json.loads(line) | {"at": time.monotonic() - started})
    if process.returncode:
        sys.exit(f"{command} ended with {process.returncode}: {events[-1:]}")
    return events


class Photos(Dataset):
    """The usual dataset: files decoded by Pillow and transformed by torchvision, in the loader's processes."""

    def __init__(self, name: str, labels: list[str] | None, *, augment: bool, catalog: Path | None = None) -> None:
        folder, _ = photos()
        table = pd.read_csv(catalog or folder / f"{name}.csv")
        self.labels = labels or sorted(set(table.fine_name))
        self.paths = [folder / f"images/{name}/{stem}.jpg" for stem in table.name]
        index = {label: number for number, label in enumerate(self.labels)}
        self.targets = [index[label] for label in table.fine_name]
        resize: list[Any] = [v2.Resize(RESIZE, antialias=True), v2.CenterCrop(CROP)]
        drawn: list[Any] = [
            v2.RandomResizedCrop(CROP, scale=(0.5, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.2, contrast=0.2),
        ]
        # uint8 all the way, and normalised beside the model: the faster order for the loader
        self.transform = v2.Compose([v2.PILToTensor(), *(drawn if augment else resize)])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.paths[index]) as image:
            image.draft("RGB", (RESIZE, RESIZE))
            return self.transform(image.convert("RGB")), self.targets[index]


@dataclasses.dataclass
class PlainLoop:
    """Fine-tuning as it is usually written, with every fair advantage: a loader with processes, frozen blocks in eval
    mode under no_grad, channels_last, bfloat16 (less what is slow in it), a fused optimizer, warm-up and cosine, and
    the memory settings of our workers."""

    trainable: str
    epochs: int
    head_lr: float
    backbone_lr: float
    augment: bool
    batch_size: int = 64
    loader_workers: int = 2
    label_smoothing: float = 0.0
    own_memory: bool = True  # the memory settings of our workers
    catalog: Path | None = None  # of training rows; default: all

    def run(self, limit_epochs: int | None = None) -> Iterator[dict[str, float]]:
        """Validation accuracy and seconds since the beginning, epoch by epoch."""
        if self.own_memory:
            prepare_process(os.cpu_count() or 1)
        started = time.monotonic()
        train = Photos("train", None, augment=self.augment, catalog=self.catalog)
        validation = Photos("val", train.labels, augment=False)
        model, mean, std, _ = pretrained_model("mobilenet_v2", str(photos()[1]), len(train.labels), seed=0)
        spare_slow_gradients(model, device=torch.device("cpu"), precision="bfloat16")
        self.model = model
        chain = to_blocks(model.to(memory_format=torch.channels_last))
        cut = chain.num_frozen_blocks(self.trainable)
        frozen, suffix, normalize = chain.run(0, cut), chain.suffix(cut), Normalize(mean, std)
        for parameter in frozen.parameters():
            parameter.requires_grad_(False)
        backbone = [parameter for _, block in chain.blocks[cut:] for parameter in block.parameters()]
        groups = [{"params": list(chain.head.parameters()), "lr": self.head_lr}]
        groups += [{"params": backbone, "lr": self.backbone_lr}] if backbone else []
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
        loaders = {
            name: DataLoader(
                dataset,
                batch_size=self.batch_size,
                shuffle=name == "train",
                num_workers=self.loader_workers,
                persistent_workers=self.loader_workers > 0,
            )
            for name, dataset in (("train", train), ("validation", validation))
        }
        steps = len(loaders["train"]) * self.epochs
        rates = [group["lr"] for group in groups]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps, pct_start=0.1)
        for epoch in range(limit_epochs or self.epochs):
            model.eval()
            train_mode(chain, cut)
            for images, targets in loaders["train"]:
                with torch.autocast("cpu", torch.bfloat16):
                    with torch.no_grad():
                        inputs = frozen(normalize(images))
                    logits = suffix(inputs).float()
                loss = nn.functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
            model.eval()
            right = 0
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                for images, targets in loaders["validation"]:
                    right += int((chain.suffix(0)(normalize(images)).argmax(1) == targets).sum())
            yield {"epoch": epoch + 1, "top1": right / len(validation), "at": time.monotonic() - started}

    def test(self, state: dict[str, torch.Tensor]) -> float:
        """Top-1 of these weights on the test photos."""
        labels = Photos("train", None, augment=False, catalog=self.catalog).labels
        model, mean, std, _ = pretrained_model("mobilenet_v2", str(photos()[1]), len(labels), seed=0)
        model.load_state_dict(state)
        model.to(memory_format=torch.channels_last).eval()
        test, normalize, right = Photos("test", labels, augment=False), Normalize(mean, std), 0
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            for images, targets in DataLoader(test, batch_size=64):
                right += int((model(normalize(images)).argmax(1) == targets).sum())
        return right / len(test)


def table(rows: list[dict[str, Any]]) -> str:
    """A table in Markdown."""
    cells = [[f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
