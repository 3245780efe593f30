"""In this process or on Ray: seconds of `score` by number of photos, from the shell's prompt to its end.

    RETAILRAY_REAL_DATA=../shared python -m benchmarks.backends [--photos 500 2000 8000] [--repeats 3]

The question is behind `INLINE_IMAGES` in `retailray/execution/choice.py`: above how many images does starting Ray pay?
mobilenet_v2, random weights, photos of about 350 px, medians of interleaved repetitions. Images/s are
those of the additional photos of the next size, without the start.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from benchmarks.shop import photos, table
from retailray.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from retailray.models.bundle import BundleMeta, EvalTransform, save_bundle
from retailray.models.weights import pretrained_model

BACK_ENDS = ("inline", "ray")


def write_catalog(folder: Path, number: int) -> Path:
    """Copies of real photos, each with a name of its own, and their table."""
    (folder / "images").mkdir(parents=True)
    names = []
    files = sorted((photos()[0] / "images/train").glob("*.jpg"))
    for at, file in zip(range(number), itertools.cycle(files), strict=False):
        names.append(f"images/{at}.jpg")
        (folder / names[-1]).write_bytes(file.read_bytes())
    pd.DataFrame({"image": names}).to_csv(folder / "catalog.csv", index=False)
    return folder / "catalog.csv"


def score(catalog: Path, bundle: Path, out: Path, engine: str) -> float:
    values = {
        "catalog.uri": catalog,
        "model.uri": bundle,
        "out": out,
        "cluster.engine": engine,
        "score.dedupe": "false",
    }
    words = [sys.executable, "-m", "retailray", "score", *(f"--{key}={value}" for key, value in values.items())]
    started = time.monotonic()
    subprocess.run(
        words, check=True, capture_output=True, env=os.environ | {"XDG_CACHE_HOME": str(out.parent / "cache")}
    )
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, nargs="+", default=[500, 2000, 8000])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    found: dict[tuple[int, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, *_ = pretrained_model("mobilenet_v2", "none", 10, seed=0)
        transform = EvalTransform(resize_size=256, crop_size=224, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        labels = [f"label {number}" for number in range(10)]
        meta = BundleMeta(name="untrained", version="1", arch="mobilenet_v2", labels=labels, transform=transform)
        save_bundle(str(folder / "bundle"), meta, model.state_dict())
        catalogs = {number: write_catalog(folder / f"catalog-{number}", number) for number in arguments.photos}
        for repeat, (number, catalog), engine in itertools.product(
            range(arguments.repeats), catalogs.items(), BACK_ENDS
        ):
            seconds = score(catalog, folder / "bundle", folder / f"{engine}-{number}-{repeat}", engine)
            found.setdefault((number, engine), []).append(seconds)
            print(number, engine, f"{seconds:.1f} s", file=sys.stderr)
    medians = {key: statistics.median(values) for key, values in found.items()}
    rows: list[dict[str, object]] = []
    for number, after in itertools.zip_longest(arguments.photos, arguments.photos[1:]):
        row: dict[str, object] = {"photos": number} | {f"{e}, s": medians[number, e] for e in BACK_ENDS}
        row["ray / inline"] = medians[number, "ray"] / medians[number, "inline"]
        if after:
            row |= {f"{e}, images/s": (after - number) / (medians[after, e] - medians[number, e]) for e in BACK_ENDS}
        rows.append(row)
    print(table(rows))


if __name__ == "__main__":
    main()
