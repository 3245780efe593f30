"""A generated shop: products with several pictures, some of which mislead, in a tree of categories; some come twice."""

import io

import numpy as np
import pandas as pd

from retailray import storage
from retailray.data.synthetic import PRODUCTS, encode, render

IMAGES = 3  # of a product
CATEGORIES = {
    "laptop": ("electronics", "computers"),
    "laptop bag": ("accessories", "bags"),
    "mug": ("household", "tableware"),
    "bottle": ("household", "tableware"),
    "lamp": ("household", "lighting"),
    "shoe": ("clothing", "footwear"),
}
OTHERS = ("clothing", "garments")  # of all other products


def path_of(label: str) -> tuple[str, ...]:
    """From the root of the tree down to the label: three levels."""
    return (*CATEGORIES.get(label, OTHERS), label)


def write_products(address: str, *, num_products: int, misleading: float, seed: int) -> dict[str, int]:
    """Write ``catalog.csv``, ``taxonomy.csv`` (child, parent) and ``images/`` to an address.

    Columns: ``sku``, ``image``, ``true_label``, ``shown`` (what the picture shows: something else for one picture of a
    share of ``misleading`` products), ``twin`` (the product whose pictures these are, saved once more; '' for most).

    Returns:
        What was planted: ``num_products, num_misleading, num_twins``.
    """
    rng, names = np.random.default_rng(seed), list(PRODUCTS)
    pictures, rows, num_twins = {}, [], max(1, num_products // 15)
    for product in range(num_products):
        true, sku = names[product % len(names)], f"p{product:04d}"
        odd = int(rng.integers(IMAGES)) if rng.random() < misleading else -1
        for at in range(IMAGES):
            shown = str(rng.choice([name for name in names if name != true])) if at == odd else true
            pictures[sku, at] = render(PRODUCTS[shown], rng)
            rows.append({"sku": sku, "image": f"images/{sku}_{at}.jpg", "true_label": true, "shown": shown, "twin": ""})
    for twin in range(num_twins):
        mine = [row for row in rows if row["sku"] == f"p{twin:04d}"]
        for at, row in enumerate(mine):
            pictures[f"t{twin:04d}", at] = pictures[f"p{twin:04d}", at]
            new = {"sku": f"t{twin:04d}", "image": f"images/t{twin:04d}_{at}.webp", "twin": row["sku"]}
            rows.append(row | new)
    for row, picture in zip(rows, pictures.values(), strict=True):
        kind = str(row["image"]).rsplit(".", 1)[1]
        storage.write_bytes(storage.join(address, str(row["image"])), encode(picture, kind))
    paths = [path_of(name) for name in names]
    pairs = {(child, parent) for path in paths for parent, child in zip(("", *path), path, strict=False)}
    tree = io.StringIO()
    pd.DataFrame(sorted(pairs), columns=["child", "parent"]).to_csv(tree, index=False)
    storage.write_bytes(storage.join(address, "taxonomy.csv"), tree.getvalue().encode())
    storage.write_bytes(storage.join(address, "catalog.csv"), pd.DataFrame(rows).to_csv(index=False).encode())
    misled = {row["sku"] for row in rows if row["shown"] != row["true_label"] and not row["twin"]}
    return {"num_products": num_products + num_twins, "num_misleading": len(misled), "num_twins": num_twins}
