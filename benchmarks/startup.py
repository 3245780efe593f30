"""What a small run costs from the shell's prompt to its end: starting, importing, and the little work itself.

    RETAILRAY_REAL_DATA=../shared python -m benchmarks.startup [--repeats 5] [--baseline FOLDER] [--only NAME ...]

``train``: the head alone, three epochs, 200 photos; ``score`` and ``check``: 64 photos of 800 px; ``first image``: on a
Ray that has run a command before, the first scored image of 64. Medians, interleaved with the same commands of
``--baseline``, a checkout of another version that runs in this environment. ``demo`` is measured where it is named.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
from PIL import Image

from benchmarks.shop import photos, table

NAMES = ("train", "score", "check", "first image")


def write_photos(folder: Path, number: int, *, side: int | None = None) -> Path:
    """A catalog of real photos, the longer side of ``side`` pixels; its table."""
    rows = pd.read_csv(photos()[0] / "train.csv").sample(number, random_state=0)
    (folder / "images").mkdir(parents=True)
    for row in rows.itertuples():
        image = Image.open(photos()[0] / f"images/train/{row.name}.jpg")
        if side:
            image = image.resize([round(size * side / max(image.size)) for size in image.size])
        image.save(folder / f"images/{row.name}.jpg", quality=92)
    listed = pd.DataFrame({"image": "images/" + rows.name + ".jpg", "label": rows.coarse_name})
    listed.to_csv(folder / "catalog.csv", index=False)
    return folder / "catalog.csv"


class Version:
    """The commands of one checkout."""

    def __init__(self, checkout: Path, work: Path, catalogs: tuple[Path, Path]) -> None:
        self.checkout, self.work = checkout, work
        self.many, self.large = catalogs
        self.number = 0
        work.mkdir()

    def run(self, command: str, *, until: str | None = None, **settings: object) -> float:
        """Seconds to the end of a command, or to the first file of a pattern below its ``out``."""
        self.number += 1
        out = self.work / f"{command}-{self.number}"
        values = {"out": out} | settings
        words = [sys.executable, "-m", "retailray", command, *(f"--{key}={value}" for key, value in values.items())]
        started, seen = time.monotonic(), None
        environment = os.environ | {"PYTHONPATH": str(self.checkout), "XDG_CACHE_HOME": str(self.work / "cache")}
        with open(f"{out}.log", "wb") as log:
            process = subprocess.Popen(words, stdout=log, stderr=log, env=environment, cwd=self.work)
            while until and not seen and process.poll() is None:
                if next(out.rglob(until), None):
                    seen = time.monotonic() - started
                time.sleep(0.02)
            if process.wait():
                sys.exit(
                    f"{command} of {self.checkout}: exit code {process.returncode}: {Path(log.name).read_text()[-999:]}"
                )
        return seen or time.monotonic() - started

    @property
    def bundle(self) -> Path:
        return next(self.work.glob("train-1/run_id=*/bundle"))

    def train(self) -> float:
        model = {"model.arch": "mobilenet_v2", "model.weights": photos()[1], "model.trainable": "head"}
        return self.run("train", **{"catalog.uri": self.many, "train.epochs": 3, **model})

    def score(self) -> float:
        return self.run("score", **{"catalog.uri": self.large, "model.uri": self.bundle, "score.max_error_rate": 1})

    def check(self) -> float:
        return self.run("check", **{"catalog.uri": self.large})

    def first_image(self) -> float:
        with running_ray(self.checkout) as address:
            settings = {"catalog.uri": self.large, "model.uri": self.bundle, "score.max_error_rate": 1}
            settings |= {"cluster.address": address}
            self.run("score", **settings)  # Ray itself and Ray Data's own actors are at rest then, and stay
            return self.run("score", until="scored/part-*.parquet", **settings)

    def demo(self) -> float:
        return self.run("demo")


@contextlib.contextmanager
def running_ray(checkout: Path) -> Iterator[str]:
    """A Ray whose workers import this checkout; its address."""
    command = [str(Path(sys.executable).parent / "ray")]
    port = 6399
    subprocess.run(
        [*command, "start", "--head", f"--port={port}", "--num-cpus=2"],
        check=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(checkout)},
    )
    try:
        yield f"127.0.0.1:{port}"
    finally:
        subprocess.run([*command, "stop", "--force"], check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--baseline", type=Path, help="a checkout of another version")
    parser.add_argument("--only", nargs="+", default=list(NAMES), metavar="NAME", help="of these, or `demo`")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        catalogs = write_photos(folder / "many", 200), write_photos(folder / "large", 64, side=800)
        checkouts = {"now": Path(__file__).parent.parent}
        checkouts |= {"baseline": arguments.baseline.resolve()} if arguments.baseline else {}
        versions = {name: Version(path, folder / name, catalogs) for name, path in checkouts.items()}
        found: dict[tuple[str, str], list[float]] = {}
        for repeat in range(arguments.repeats):
            for what in arguments.only if repeat else dict.fromkeys(["train", *arguments.only]):  # score needs a bundle
                for version, commands in versions.items():
                    measure: Callable[[], float] = getattr(commands, what.replace(" ", "_"))
                    found.setdefault((what, version), []).append(measure())
                    print(what, version, f"{found[what, version][-1]:.1f} s", file=sys.stderr)
    rows = []
    for what in dict.fromkeys(what for what, _ in found):
        medians = {version: statistics.median(found[what, version]) for version in versions}
        row: dict[str, object] = {"command": what, **{f"{version}, s": value for version, value in medians.items()}}
        rows.append(row | ({"ratio": medians["baseline"] / medians["now"]} if "baseline" in medians else {}))
    print(table(rows))


if __name__ == "__main__":
    main()
