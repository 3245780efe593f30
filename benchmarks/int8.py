"""What do 8-bit integers bring, and what do they cost, on real photos?

    RETAILRAY_REAL_DATA=../shared python -m benchmarks.int8 [--repetitions 3] [--bundle DIRECTORY]

mobilenet_v2, trained on train.csv (2,640 photos, 81 classes); test.csv (2,485) scored with score.precision auto and
int8 in turns, every row anew, seconds from the shell's prompt. The network in 8 bits is made before, in its own row.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.quality import RECIPE
from benchmarks.shop import photos, run, settings, table


def score(folder: Path, bundle: str, precision: str) -> dict[str, Any]:
    catalog = settings(**{"catalog.uri": photos()[0] / "test.csv", "catalog.image_template": "images/test/{name}.jpg"})
    catalog = {key: catalog[key] for key in catalog if key.startswith("catalog.") and "validation" not in key}
    started = time.monotonic()
    done = run(
        "score",
        **catalog | {"model.uri": bundle, "score.precision": precision, "score.rescore": "all"},
        out=folder / precision,
    )[-1]
    seconds = time.monotonic() - started
    facts = json.loads(Path(done["run"], "run.json").read_text())
    predicted = next(stage["images_per_s"] for stage in facts["stages"] if stage["stage"] == "predict")
    [[top1]] = duckdb.sql(
        f"select avg((pred_label = fine_name)::int) from '{done['run']}/predictions/*.parquet'"
    ).fetchall()
    return {"seconds": seconds, "top1": top1, "predict": predicted, "pass": facts["forward_pass"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--bundle", help="of an earlier run, in place of training one")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    recipe = RECIPE | {"train.phases": json.dumps(RECIPE["train.phases"]), "train.num_views": 1}
    bundle = arguments.bundle or run("train", **settings(**recipe), out=folder / "train")[-1]["bundle"]
    first = {precision: score(folder, bundle, precision) for precision in ("auto", "int8")}
    again = [{name: score(folder, bundle, name) for name in first} for _ in range(arguments.repetitions)]
    rows = [
        {
            "precision": name,
            "did": first[name]["pass"],
            "first run, s": first[name]["seconds"],
            "later runs, s": statistics.median(one[name]["seconds"] for one in again),
            "images/s of a predictor": statistics.median(one[name]["predict"] for one in again),
            "top-1": again[-1][name]["top1"],
        }
        for name in first
    ]
    print(table(rows))


if __name__ == "__main__":
    main()
