"""Catalogs as exports: what it costs to plan a large one, and to read pictures from shards in place of loose files.

    python -m benchmarks.exports [--records 1000000] [--pictures 10000] [--repeats 3]

``plan``: `score --score.plan_only` of a shop export (`--records` products) with three addresses in one cell (on the
web, so that nothing is listed), beside pandas' ``explode`` on the same file. ``read``: fetching and decoding pictures
of 320 px from tar shards of 1,000, from a ZIP archive and from loose files, on this disk and on the tests' S3 server.
Peaks are of the whole process [GiB].
"""

import argparse
import io
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import s3fs
from PIL import Image

from benchmarks.shop import table
from retailray import storage
from retailray.config import CatalogSection
from retailray.data.access import access_of
from retailray.data.catalog import read_catalog
from retailray.data.decoding import CHUNK_ROWS, URI, DecodeSpec, decode_rows, transport_table
from retailray.data.images import limits_of
from retailray.data.scaling import Scaling
from retailray.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from retailray.models.bundle import BundleMeta, EvalTransform, save_bundle
from retailray.models.weights import pretrained_model
from tests.conftest import start_s3_server

EXPLODE = """
import pandas as pd, sys
rows = pd.read_csv(sys.argv[1], dtype=str)
rows["image"] = rows.Images.str.split(",")
rows = rows.explode("image")
print(len(rows))
"""


def write_export(path: Path, records: int) -> None:
    """As WooCommerce writes it."""
    with path.open("w") as file:
        file.write("ID,Type,SKU,Name,Published,Categories,Tags,Images\n")
        for k in range(records):
            images = ", ".join(f"https://cdn.shop.example/products/{k}/{at}.jpg" for at in range(3))
            file.write(f'{k},simple,W{k},"Item {k}, blue",1,"Shop > Label{k % 50}, Sale",,"{images}"\n')


def save_bundle_of(folder: Path) -> None:
    labels = [f"Label{number}" for number in range(50)]
    model, *_ = pretrained_model("mobilenet_v2", "none", 50, seed=0)
    transform = EvalTransform(resize_size=256, crop_size=224, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    meta = BundleMeta(name="benchmark", version="1", arch="mobilenet_v2", labels=labels, transform=transform)
    save_bundle(str(folder), meta, model.state_dict())


def timed(words: list[str]) -> tuple[float, float]:
    """Seconds of a command, and its peak [GiB]."""
    started = time.monotonic()
    done = subprocess.run(["/usr/bin/env", "python3", "-c", _PEAK, *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return time.monotonic() - started, int(done.stderr.split()[-1]) / (1 << 20)


_PEAK = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(done.returncode)
"""


def plan(folder: Path, records: int, repeats: int) -> list[dict[str, object]]:
    export = folder / "wc-product-export.csv"
    write_export(export, records)
    save_bundle_of(folder / "bundle")
    ours = [sys.executable, "-m", "retailray", "score", f"--catalog.uri={export}", f"--model.uri={folder / 'bundle'}"]
    ours += [f"--out={folder / 'out'}", "--score.plan_only=true"]
    found: dict[str, list[tuple[float, float]]] = {"score --score.plan_only": [], "pandas explode": []}
    for _ in range(repeats):
        found["score --score.plan_only"].append(timed(ours))
        found["pandas explode"].append(timed([sys.executable, "-c", EXPLODE, str(export)]))
    return [
        {
            "who": who,
            "records": records,
            "seconds": statistics.median(seconds for seconds, _ in runs),
            "peak, GiB": max(peak for _, peak in runs),
        }
        for who, runs in found.items()
    ]


def write_pictures(folder: Path, number: int) -> None:
    """The same pictures loose, in shards and in one ZIP archive."""
    (folder / "loose/pics").mkdir(parents=True)
    (folder / "shards").mkdir()
    generator = np.random.default_rng(0)
    rows = []
    with zipfile.ZipFile(folder / "all.zip", "w") as zipped:
        for start in range(0, number, 1000):
            with tarfile.open(folder / f"shards/{start // 1000:04d}.tar", "w") as tar:
                for at in range(start, min(start + 1000, number)):
                    small = generator.integers(0, 255, (24, 32, 3), np.uint8)
                    buffer = io.BytesIO()
                    Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
                    data = buffer.getvalue()
                    (folder / f"loose/pics/{at}.jpg").write_bytes(data)
                    zipped.writestr(f"pics/{at}.jpg", data)
                    for ending, content in (("jpg", data), ("cls", b"%d" % (at % 50))):
                        member = tarfile.TarInfo(f"{at:08d}.{ending}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
                    rows.append({"image": f"pics/{at}.jpg", "label": at % 50})
        listed = pd.DataFrame(rows).to_csv(index=False)
        zipped.writestr("catalog.csv", listed)
    (folder / "loose/catalog.csv").write_text(listed)


def read_all(uri: str) -> tuple[float, float]:
    """Pictures/s in one process: their bytes read by chunks; and all from reading the catalog to decoded pixels."""
    section = CatalogSection(uri=uri)
    started = time.monotonic()
    rows = transport_table(read_catalog(section, needs_label=False))
    spec, access = DecodeSpec(Scaling(256, 224), limits_of(section)), access_of(section)
    uris, begun = rows.column(URI).to_pylist(), time.monotonic()
    for start in range(0, len(uris), CHUNK_ROWS):
        found = [
            data for group in storage.fetch_groups(uris[start : start + CHUNK_ROWS], access) for data in group.values()
        ]
        assert all(isinstance(data, bytes) and len(data) > 1000 for data in found)
    read_s = time.monotonic() - begun
    for start in range(0, rows.num_rows, CHUNK_ROWS):
        decoded = decode_rows(rows.slice(start, CHUNK_ROWS), spec=spec, access=access)
        codes = set(decoded.column("__rr_error_code").to_pylist())
        assert codes == {""}, (uri, start, codes, set(decoded.column("__rr_message").to_pylist()))
    return rows.num_rows / read_s, rows.num_rows / (time.monotonic() - started - read_s)


def read(folder: Path, number: int, repeats: int) -> list[dict[str, object]]:
    write_pictures(folder, number)
    process, endpoint = start_s3_server(folder / "s3.log")
    os.environ |= {"AWS_ENDPOINT_URL_S3": endpoint, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    try:
        fs = s3fs.S3FileSystem()
        fs.mkdir("bench")
        for name in ("loose", "shards"):
            fs.put(str(folder / name), f"bench/{name}", recursive=True)
        fs.put(str(folder / "all.zip"), "bench/all.zip")
        names = {"loose files": "loose/catalog.csv", "tar shards": "shards", "a ZIP archive": "all.zip"}
        found: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for _ in range(repeats):
            for where, root in (("disk", str(folder)), ("S3 server", "s3://bench")):
                for what, name in names.items():
                    found.setdefault((where, what), []).append(read_all(f"{root}/{name}"))
        medians = {
            key: [statistics.median(values) for values in zip(*pairs, strict=True)] for key, pairs in found.items()
        }
        rows: list[dict[str, object]] = []
        for (where, what), (read_alone, in_all) in medians.items():
            loose = medians[where, "loose files"]
            row: dict[str, object] = {
                "where": where,
                "from": what,
                "read/s": read_alone,
                "ratio": read_alone / loose[0],
            }
            rows.append(row | {"catalog, read and decoded/s": in_all, "ratio in all": in_all / loose[1]})
        return rows
    finally:
        process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if arguments.records:
            print(table(plan(Path(name), arguments.records, arguments.repeats)))
        if arguments.pictures:
            print(table(read(Path(name) / "read", arguments.pictures, arguments.repeats)))


if __name__ == "__main__":
    main()
