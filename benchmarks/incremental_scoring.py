"""Nights: what a second one costs, and what a million rows take.

    AWS_ENDPOINT_URL_S3=... python -m benchmarks.incremental_scoring second [--images 50000]
    python -m benchmarks.incremental_scoring rows [--rows 100000 1000000] [--images 20000]

``second``: a catalog of small pictures, each an object of its own on an S3-protocol server; the first night, a night on
which nothing changed, a night on which 1 % of the objects did. A resnet18 at 64 px, untrained: its time is a model's.
What Ray's start-up takes is measured beside it (a command that starts Ray and does nothing else), and told apart. The
nights after the first are repeated in turn.

``rows``: catalogs of many rows over fewer local pictures; peak memory (anonymous) by process, at two sizes.
"""

import argparse
import concurrent.futures
import io
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import s3fs
from PIL import Image

from benchmarks.memory import peak
from benchmarks.shop import run, table
from retailray.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from retailray.models.bundle import BundleMeta, EvalTransform, save_bundle
from retailray.models.weights import pretrained_model

BUCKET = "nights"
REPEATS = 3
ROLES = {"driver": "-m retailray", "predictor": "PredictBatch", "task": "ray::", "store": "raylet"}


def picture(number: int) -> bytes:
    """A small JPEG that no other number gives."""
    values = np.random.default_rng(number).integers(0, 255, (9, 9, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).resize((72, 72), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def bundle(folder: Path, *, size: int = 64) -> str:
    labels = [f"label {number}" for number in range(20)]
    model, *_ = pretrained_model("resnet18", "none", len(labels), seed=0)
    transform = EvalTransform(resize_size=size + 8, crop_size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    meta = BundleMeta(name="resnet18", version="1", arch="resnet18", labels=labels, transform=transform)
    save_bundle(str(folder / "bundle"), meta, model.state_dict())
    return str(folder / "bundle")


def upload(numbers: range, *, seed: int) -> None:
    fs = s3fs.S3FileSystem()
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda n: fs.pipe_file(f"{BUCKET}/images/{n % 100:02d}/{n}.jpg", picture(seed + n)), numbers))


def ray_start() -> float:
    """Seconds to start a local Ray as commands do, and to end it."""
    code = "from retailray.execution import ray_session; from retailray.config import ClusterSection as C\n"
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", f"{code}with ray_session(C()): pass"], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def second(images: int) -> None:
    folder = Path(tempfile.mkdtemp())
    fs = s3fs.S3FileSystem()
    if not fs.exists(BUCKET):
        fs.mkdir(BUCKET)
    upload(range(images), seed=0)
    catalog = pd.DataFrame({"image": [f"images/{n % 100:02d}/{n}.jpg" for n in range(images)], "price": range(images)})
    with fs.open(f"{BUCKET}/catalog.parquet", "wb") as file:
        catalog.to_parquet(file)
    settings = {"catalog.uri": f"s3://{BUCKET}/catalog.parquet", "model.uri": bundle(folder), "score.batch_size": 256}
    settings |= {"out": f"s3://{BUCKET}/out-{time.time():.0f}"}
    starts = [ray_start()]
    nights = [("first", run("score", **settings)[-1])]
    for number in range(REPEATS):
        starts.append(ray_start())
        nights.append(("nothing changed", run("score", **settings)[-1]))
        upload(range(number, images, 100), seed=10**7)
        nights.append(("1 % changed", run("score", **settings)[-1]))
    start = statistics.median(starts)
    first = nights[0][1]["at"] - start
    rows: list[dict[str, Any]] = []
    for night, last in nights:
        beyond = last["at"] - (start if last["scored"] else 0.0)
        rows.append({"night": night, "seconds": last["at"], "beyond Ray's start": beyond, "scored": last["scored"]})
        rows[-1] |= {"reused": last["reused"], "of the first [%]": 100 * beyond / first}
    print(f"{images} images; starting and ending Ray: {start:.1f} s (median of {len(starts)})\n")
    print(table(rows))
    for night in ("nothing changed", "1 % changed"):
        shares = [row["of the first [%]"] for row in rows if row["night"] == night]
        print(f"\n{night}: {statistics.median(shares):.2f} % of the first night, both beyond Ray's start (median)")


def many_rows(sizes: list[int], images: int, memory_gb: float) -> None:
    folder = Path(tempfile.mkdtemp())
    (folder / "images").mkdir()
    for number in range(images):
        (folder / f"images/{number}.jpg").write_bytes(picture(number))
    address = bundle(folder, size=32)
    peaks: list[dict[str, float]] = []
    rows: list[dict[str, Any]] = []
    for size in sizes:
        numbers = np.arange(size)
        frame = pd.DataFrame(
            {"sku": [f"sku-{n:08d}" for n in numbers], "image": [f"images/{n % images}.jpg" for n in numbers]}
        )
        frame.assign(title="A product with a title of some length, as they have", price=numbers * 0.01).to_parquet(
            folder / f"{size}.parquet"
        )
        settings = {"catalog.uri": folder / f"{size}.parquet", "catalog.id": "sku", "model.uri": address}
        settings |= {"score.memory_gb": memory_gb}
        for night in ("first", "second"):
            found, last = peak("score", settings | {"out": folder / f"out-{size}"}, ROLES)
            peaks.append(found)
            rows.append({"rows": size, "night": night, "seconds": last["seconds"], "scored": last["scored"]})
            rows[-1] |= {"reused": last["reused"], **{f"{role} [MB]": mb for role, mb in found.items()}}
    shutil.rmtree(folder)
    print(table(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["second", "rows"])
    parser.add_argument("--images", type=int)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--memory-gb", type=float, default=0.5, help="score.memory_gb, for rows")
    arguments = parser.parse_args()
    if arguments.what == "second":
        second(arguments.images or 50_000)
    else:
        many_rows(arguments.rows, arguments.images or 20_000, arguments.memory_gb)


if __name__ == "__main__":
    main()
