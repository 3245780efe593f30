"""Are the recommendations of `recommend` as good as the best method for a real shop?

    RETAILRAY_REAL_DATA=../shared python -m benchmarks.recommend [--as-of 2017-12-04]

`recommend` knows the purchases before a day and is measured on the 14 days after it, from the tables that it published,
without its code. Once with repeated products, once without. Recall@10 and NDCG@10 over the shoppers who bought anything
(new: any product that they had never bought). Coupons, fuel and returns are left out.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd

from benchmarks.shop import photos, run
from tests.oracles import recommendation_scores

LEFT_OUT = ["*GASOLINE*", "*COUPON*", "*MISC SALES*"]


def purchases() -> Path:
    return photos()[0].parent / "shop/purchases.parquet"


def measure(out: Path, as_of: pd.Timestamp, *, repeat: bool) -> dict[str, Any]:
    settings = {
        "interactions.uri": purchases(),
        "interactions.basket": "basket",
        "interactions.quantity": "quantity",
        "interactions.exclude": json.dumps(LEFT_OUT),
        "recommend.as_of": f"{as_of:%F}",
        "recommend.repeat": repeat,
        "out": out,
    }
    summary = run("recommend", **settings)[-1]
    found = duckdb.sql(f"from '{summary['run']}/recommendations/*.parquet'").df()
    rows = pd.read_parquet(purchases())
    kept = rows["product"].notna() & (rows.quantity > 0) & ~rows["product"].str.contains(
        "GASOLINE|COUPON|MISC SALES", na=False
    )  # fmt: skip
    return {"method": summary["method"], "seconds": summary["seconds"]} | recommendation_scores(
        found, rows[kept], as_of, new=not repeat
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--as-of", nargs="*", default=["2017-12-04"])
    arguments = parser.parse_args()
    print("| as of | products | method | shoppers | recall@10 | NDCG@10 | seconds |\n|---|---|---|---|---|---|---|")
    for day in map(pd.Timestamp, arguments.as_of):
        for repeat in (True, False):
            with tempfile.TemporaryDirectory() as folder:
                row = measure(Path(folder), day, repeat=repeat)
            print(
                f"| {day:%F} | {'all' if repeat else 'new'} | {row['method']} | {row['shoppers']} | "
                f"{row['recall']:.4f} | {row['ndcg']:.4f} | {row['seconds']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
