"""Scoring from the shell's prompt to a table of top-5 labels: ours against what people write, and the machine's limit.

    RETAILRAY_REAL_DATA=../shared python -m benchmarks.scoring [--arch mobilenet_v2] [--px 348] [--images 500 4000]
        [--repeats 3] [--who ours daft loader ray]

Real photos, their longer side of ``--px`` pixels, random weights, bfloat16 everywhere (Ray also as published, in
float32), interleaved repetitions, medians. Each contender is a process of its own that reads files, predicts and writes
Parquet. ``loader``: a DataLoader with a process a core, Pillow at a reduced scale, channels_last. ``daft``: Daft's
download, decode and resize, and a class that predicts (pip install daft). ``ray``: the recipe of Ray's own
documentation. ``limit``: decoding alone and our forward pass alone, compiled
or not, each with all cores, one after the other.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESIZE, CROP, LABELS, BATCH = 256, 224, 20, 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Job = dict[str, Any]  # paths (a file), weights, arch, out, half


def network(job: Job) -> Any:
    """The model that everybody loads, in eval mode and channels_last."""
    import torch
    import torchvision

    model = torchvision.models.get_model(job["arch"], weights=None, num_classes=LABELS)
    model.load_state_dict(torch.load(job["weights"], weights_only=True))
    return model.eval().to(memory_format=torch.channels_last)


def top_five(model: Any, images: Any, *, half: bool) -> tuple[Any, Any]:
    """Of normalised float images ``(B, 3, H, W)``: probabilities and classes, ``(B, 5)`` each."""
    import torch

    images = images.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        found = model(images).float().softmax(1).topk(5, dim=1)
    return found.values.numpy(), found.indices.numpy()


def write(job: Job, rows: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(rows), job["out"])


def paths_of(job: Job) -> list[str]:
    return Path(job["paths"]).read_text().split("\n")


def reduced(path: str) -> Any:
    """A uint8 array ``(3, 224, 224)`` by Pillow, read at the scale that is wanted."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        image.draft("RGB", (RESIZE, RESIZE))
        image = image.convert("RGB")
    side = min(image.size) * CROP / RESIZE
    left, top = (image.width - side) / 2, (image.height - side) / 2
    square = image.resize((CROP, CROP), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return np.asarray(square).transpose(2, 0, 1)


class Files:
    """A DataLoader's data set."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, at: int) -> Any:
        import torch

        return torch.from_numpy(reduced(self.paths[at]).copy())


def loader(job: Job) -> None:
    import torch
    from torch.utils.data import DataLoader

    model, paths = network(job), paths_of(job)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (MEAN, STD))
    scores: list[Any] = []
    labels: list[Any] = []
    for images in DataLoader(Files(paths), batch_size=BATCH, num_workers=os.cpu_count() or 1):
        values, classes = top_five(model, (images - mean) / std, half=job["half"])
        scores += values.tolist()
        labels += classes.tolist()
    write(job, {"path": paths, "scores": scores, "labels": labels})


class DaftClassifier:
    """What Daft keeps in its process."""

    def __init__(self, job: Job) -> None:
        import torch

        self.job, self.model = job, network(job)
        self.mean, self.std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (MEAN, STD))

    def __call__(self, arrays: list[Any]) -> list[str]:
        import numpy as np
        import torch

        first = (RESIZE - CROP) // 2
        square = np.stack([array[first : first + CROP, first : first + CROP] for array in arrays])
        images = (torch.from_numpy(square).permute(0, 3, 1, 2).float() - self.mean) / self.std
        values, classes = top_five(self.model, images, half=self.job["half"])
        return [json.dumps([one, two]) for one, two in zip(values.tolist(), classes.tolist(), strict=True)]


def daft(job: Job) -> None:
    import daft as library

    @library.cls
    class Classify:
        def __init__(self) -> None:
            self.classifier = DaftClassifier(job)

        @library.method.batch(return_dtype=library.DataType.string(), batch_size=BATCH)
        def predict(self, images: Any) -> Any:
            return self.classifier(images.to_pylist())

    frame = library.from_pydict({"path": paths_of(job)})
    frame = frame.with_column("image", library.functions.decode_image(frame["path"].download(), mode="RGB"))
    frame = frame.with_column("image", library.functions.resize(frame["image"], RESIZE, RESIZE))
    frame = frame.with_column("found", Classify().predict(frame["image"])).select("path", "found")
    frame.write_parquet(job["out"])


class RayClassifier:
    """The class of Ray's recipe."""

    def __init__(self, job: Job) -> None:
        import torch
        from torchvision.transforms import v2

        self.job, self.model = job, network(job)
        steps = [v2.Resize(RESIZE, antialias=True), v2.CenterCrop(CROP), v2.ToDtype(torch.float32, scale=True)]
        self.transform = v2.Compose([v2.ToImage(), *steps, v2.Normalize(MEAN, STD)])

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import torch

        images = torch.stack([self.transform(image) for image in batch["image"]])
        values, classes = top_five(self.model, images, half=self.job["half"])
        return {"path": batch["path"], "scores": values, "labels": classes}


def ray(job: Job) -> None:
    import ray as library

    library.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    library.data.DataContext.get_current().enable_progress_bars = False
    images = library.data.read_images(paths_of(job), include_paths=True, mode="RGB")
    found = images.map_batches(RayClassifier, fn_constructor_args=(job,), batch_size=BATCH, concurrency=1)
    found.write_parquet(job["out"])


def limit(job: Job) -> dict[str, float]:
    """Images/s of decoding and of our forward pass alone, with all cores, and of one after the other."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    from retailray.models.bundle import load_bundle
    from retailray.models.compiling import compile_if_it_pays
    from retailray.models.predictor import Predictor

    paths = paths_of(job)[:512]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        started = time.monotonic()
        arrays = list(pool.map(reduced, paths))
        decoding = len(paths) / (time.monotonic() - started)
    predictor = Predictor(load_bundle(job["bundle"]))
    batch = np.stack(arrays[:BATCH])
    best = 0.0
    for mode in ("off", "on"):
        compile_if_it_pays(predictor, mode, num_images=0, batch_size=BATCH)
        for _ in range(8):
            started = time.monotonic()
            predictor(batch)
            best = max(best, len(batch) / (time.monotonic() - started))
    return {"decode": decoding, "forward": best, "both": 1 / (1 / decoding + 1 / best)}


def limit_of(job: Job, folder: Path) -> dict[str, float]:
    """In a process of its own, with the memory settings of our predictors."""
    from retailray.execution.session import WORKER_ENV

    file = folder / "limit.json"
    file.write_text(json.dumps(job))
    words = [sys.executable, "-m", "benchmarks.scoring", "--job", "limit", str(file)]
    environment = os.environ | WORKER_ENV | {"XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def ours(job: Job) -> list[str]:
    values = {"catalog.uri": job["catalog"], "model.uri": job["bundle"], "out": job["out"]}
    values |= {"score.precision": "bfloat16" if job["half"] else "float32", "score.top_k": 5}
    return [sys.executable, "-m", "retailray", "score", *(f"--{key}={value}" for key, value in values.items())]


RIVALS = {"loader": loader, "daft": daft, "ray": ray}


def prepared(folder: Path, arch: str, px: int, most: int) -> Job:
    """Photos, weights and our bundle."""
    import pandas as pd
    import torch
    import torchvision
    from PIL import Image

    from benchmarks.shop import photos
    from retailray.models.bundle import BundleMeta, EvalTransform, save_bundle

    torch.manual_seed(0)
    model = torchvision.models.get_model(arch, weights=None, num_classes=LABELS)
    torch.save(model.state_dict(), folder / "weights.pth")
    transform = EvalTransform(resize_size=RESIZE, crop_size=CROP, mean=MEAN, std=STD)
    labels = [f"label {number:02d}" for number in range(LABELS)]
    meta = BundleMeta(name="untrained", version="1", arch=arch, labels=labels, transform=transform)
    save_bundle(str(folder / "bundle"), meta, model.state_dict())
    (folder / "photos").mkdir()
    files: Iterator[Path] = itertools.cycle(sorted((photos()[0] / "images").rglob("*.jpg")))
    names = []
    for number, file in zip(range(most), files, strict=False):
        with Image.open(file) as image:
            scale = px / max(image.size)
            size = round(image.width * scale), round(image.height * scale)
            names.append(f"{folder}/photos/{number}.jpg")
            image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(names[-1], quality=90)
    pd.DataFrame({"image": names}).to_csv(folder / "all.csv", index=False)
    facts = {"arch": arch, "weights": str(folder / "weights.pth"), "bundle": str(folder / "bundle")}
    return facts | {"names": names, "half": True}


def seconds(who: str, job: Job, folder: Path, number: int, repeat: int) -> float:
    """From the shell's prompt to the end of one contender."""
    import pandas as pd

    paths, catalog, out = (folder / f"{who}-{number}-{repeat}{end}" for end in (".txt", ".csv", ""))
    paths.write_text("\n".join(job["names"][:number]))
    pd.DataFrame({"image": job["names"][:number]}).to_csv(catalog, index=False)
    facts = {name: value for name, value in job.items() if name != "names"}
    facts |= {"paths": str(paths), "catalog": str(catalog), "out": str(out), "half": who != "ray, as published"}
    file = folder / f"{who}-{number}-{repeat}.json"
    file.write_text(json.dumps(facts))
    name = who.partition(",")[0]
    words = ours(facts) if name == "ours" else [sys.executable, "-m", "benchmarks.scoring", "--job", name, str(file)]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    started = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{who}: {done.stderr[-1500:]}")
    return time.monotonic() - started


def main() -> None:
    if sys.argv[1:3] == ["--job", "limit"]:
        print(json.dumps(limit(json.loads(Path(sys.argv[3]).read_text()))))
        return
    if sys.argv[1:2] == ["--job"]:
        RIVALS[sys.argv[2]](json.loads(Path(sys.argv[3]).read_text()))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="mobilenet_v2")
    parser.add_argument("--px", type=int, default=348)
    parser.add_argument("--images", type=int, nargs="+", default=[500, 4000])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--who", nargs="+", default=["ours", "daft", "loader", "ray", "ray, as published"])
    arguments = parser.parse_args()
    found: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = prepared(folder, arguments.arch, arguments.px, max(arguments.images))
        for repeat, number, who in itertools.product(range(arguments.repeats), arguments.images, arguments.who):
            taken = seconds(who, job, folder, number, repeat)
            found.setdefault((who, number), []).append(taken)
            print(who, number, f"{taken:.1f} s", file=sys.stderr, flush=True)
        (folder / "limit.txt").write_text("\n".join(job["names"]))
        best = limit_of(job | {"paths": str(folder / "limit.txt")}, folder)
    from benchmarks.shop import table

    print(f"limit, images/s: decode {best['decode']:.0f}, forward {best['forward']:.0f}, both {best['both']:.0f}")
    rows = []
    for who in arguments.who:
        row: dict[str, Any] = {"who": who}
        for number in arguments.images:
            median = statistics.median(found[who, number])
            row |= {f"{number}, s": median, f"{number}, images/s": number / median}
            row[f"{number}, of the limit"] = number / median / best["both"]
        rows.append(row)
    print(table(rows))


if __name__ == "__main__":
    main()
