"""A generated catalog: rendered product pictures with known label noise and known broken files.

Colours, sizes, positions and backgrounds are drawn independently of the product, so that only the shape tells what
it is. The categories of :data:`PRETRAIN` and :data:`PRODUCTS` do not overlap.
"""

import io
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFilter

from retailray import storage

Point = tuple[float, float]
Draw = Callable[[ImageDraw.ImageDraw, np.random.Generator, str, str], None]
CANVAS_PX = 256  # drawn large and scaled down, which smooths the edges
SIZES_PX = ((120, 120), (160, 120), (120, 160), (240, 205), (200, 200), (320, 240))


def _laptop(d: ImageDraw.ImageDraw, r: np.random.Generator, a: str, b: str) -> None:
    d.rounded_rectangle((52, 50, 204, 150), 8, fill=a)
    d.rectangle((62, 60, 194, 140), fill=b)
    d.polygon([(52, 152), (204, 152), (232, 196), (24, 196)], fill=a)
    for y in (162, 172, 182):
        d.line((58, y, 198, y), fill=b, width=4)


def _laptop_bag(d: ImageDraw.ImageDraw, r: np.random.Generator, a: str, b: str) -> None:
    d.arc((88, 40, 168, 120), 180, 360, fill=a, width=10)
    d.rounded_rectangle((34, 84, 222, 210), 14, fill=a)
    d.rounded_rectangle((58, 128, 198, 196), 8, outline=b, width=6)
    d.rectangle((120, 116, 136, 140), fill=b)


def _mug(d: ImageDraw.ImageDraw, r: np.random.Generator, a: str, b: str) -> None:
    d.ellipse((140, 84, 218, 172), outline=a, width=16)
    d.rounded_rectangle((52, 62, 172, 206), 12, fill=a)
    d.rectangle((52, 110, 172, 126), fill=b)


def _bottle(d: ImageDraw.ImageDraw, r: np.random.Generator, a: str, b: str) -> None:
    d.rectangle((112, 20, 144, 44), fill=b)
    d.polygon([(114, 44), (142, 44), (170, 100), (86, 100)], fill=a)
    d.rounded_rectangle((86, 94, 170, 236), 10, fill=a)
    d.rectangle((86, 130, 170, 190), fill=b)


def _shoe(d: ImageDraw.ImageDraw, r: np.random.Generator, a: str, b: str) -> None:
    d.polygon([(30, 92), (92, 92), (140, 140), (224, 156), (230, 186), (30, 186)], fill=a)
    d.rectangle((28, 184, 232, 202), fill=b)
    for x in (96, 112, 128):
        d.line((x, x + 4, x + 22, x - 16), fill=b, width=5)


def _shirt(d: ImageDraw.ImageDraw, r: np.random.Generator, a: str, b: str) -> None:
    d.polygon(
        [
            (84, 44),
            (172, 44),
            (236, 92),
            (208, 128),
            (180, 108),
            (180, 222),
            (76, 222),
            (76, 108),
            (48, 128),
            (20, 92),
        ],
        fill=a,
    )
    d.pieslice((104, 22, 152, 70), 0, 180, fill=b)


def _lamp(d: ImageDraw.ImageDraw, r: np.random.Generator, a: str, b: str) -> None:
    d.polygon([(92, 34), (164, 34), (210, 124), (46, 124)], fill=a)
    d.rectangle((121, 124, 135, 206), fill=b)
    d.ellipse((78, 196, 178, 224), fill=b)


def _chair(d: ImageDraw.ImageDraw, r: np.random.Generator, a: str, b: str) -> None:
    d.rounded_rectangle((70, 26, 186, 120), 10, fill=a)
    d.rectangle((60, 128, 196, 152), fill=b)
    for x in (64, 178):
        d.rectangle((x, 150, x + 14, 234), fill=a)


PRODUCTS: dict[str, Draw] = {
    "laptop": _laptop,
    "laptop bag": _laptop_bag,
    "mug": _mug,
    "bottle": _bottle,
    "shoe": _shoe,
    "t-shirt": _shirt,
    "lamp": _lamp,
    "chair": _chair,
}

ARTICLE = ("laptop", "laptop bag")  # the two classes of the article


def _abstract(number: int) -> Draw:
    """A category of its own for pre-training: a fixed arrangement of a few solids."""
    plan = np.random.default_rng(1000 + number)
    parts = []
    for _ in range(int(plan.integers(2, 5))):
        x, y = plan.uniform(70, 186, 2)
        w, h = plan.uniform(24, 84, 2)
        parts.append((str(plan.choice(["ellipse", "box", "ring", "polygon"])), x, y, w, h, int(plan.integers(3, 7))))

    def draw(d: ImageDraw.ImageDraw, r: np.random.Generator, a: str, b: str) -> None:
        for index, (kind, x, y, w, h, corners) in enumerate(parts):
            fill = (a, b)[index % 2]
            box = (x - w, y - h, x + w, y + h)
            if kind == "ellipse":
                d.ellipse(box, fill=fill)
            elif kind == "box":
                d.rectangle(box, fill=fill)
            elif kind == "ring":
                d.ellipse(box, outline=fill, width=14)
            else:
                turns = [2 * math.pi * corner / corners for corner in range(corners)]
                d.polygon([(x + w * math.cos(t), y + h * math.sin(t)) for t in turns], fill=fill)

    return draw


PRETRAIN: dict[str, Draw] = {f"shape {number:02d}": _abstract(number) for number in range(24)}


def render(draw: Draw, rng: np.random.Generator) -> Image.Image:
    """One RGB picture of one of :data:`SIZES_PX`: a product in random colours, turned, moved and lit."""
    back, colour, second = _colours(rng)
    layer = Image.new("RGBA", (CANVAS_PX, CANVAS_PX))
    draw(ImageDraw.Draw(layer), rng, colour, second)
    if rng.random() < 0.5:
        layer = layer.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    layer = layer.rotate(rng.uniform(-25, 25), Image.Resampling.BILINEAR)
    width, height = SIZES_PX[rng.integers(len(SIZES_PX))]
    side = int(min(width, height) * rng.uniform(0.6, 1.0))
    layer = layer.resize((side, side), Image.Resampling.BILINEAR)
    picture = Image.new("RGB", (width, height), back)
    at = (int(rng.uniform(0, width - side + 1)), int(rng.uniform(0, height - side + 1)))
    shadow = Image.new("RGBA", layer.size, (0, 0, 0, 70))
    picture.paste(shadow, (at[0] + 3, at[1] + 4), layer.getchannel("A"))
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2)))
    picture.paste(layer, at, layer)
    pixels = np.asarray(picture, np.float32) + rng.normal(0, rng.uniform(2, 12), (height, width, 3))
    return Image.fromarray((pixels * rng.uniform(0.8, 1.1)).clip(0, 255).astype(np.uint8))


def _colours(rng: np.random.Generator) -> tuple[str, str, str]:
    hue, light = rng.integers(0, 360), rng.integers(25, 60)
    background = "white" if rng.random() < 0.5 else f"hsl({rng.integers(0, 360)}, 25%, {rng.integers(80, 95)}%)"
    other = (hue + rng.integers(60, 300)) % 360
    return background, f"hsl({hue}, 65%, {light}%)", f"hsl({other}, 55%, {rng.integers(30, 75)}%)"


def encode(picture: Image.Image, kind: str) -> bytes:
    """Image file bytes. Kinds: ``jpg``, ``cmyk.jpg``, ``png`` (with alpha), ``webp``, ``gif``."""
    buffer = io.BytesIO()
    if kind == "cmyk.jpg":
        picture.convert("CMYK").save(buffer, "JPEG", quality=90)
    elif kind == "png":
        picture.convert("RGBA").save(buffer, "PNG")
    else:
        picture.save(
            buffer,
            {"jpg": "JPEG", "webp": "WEBP", "gif": "GIF"}[kind],
            **({} if kind == "gif" else {"quality": 90}),
        )
    return buffer.getvalue()


def broken_files(rng: np.random.Generator) -> dict[str, bytes | None]:
    """One file of each kind of damage, by the error code it must lead to; None is a file that is not there."""
    whole = encode(render(_mug, rng), "jpg")
    buffer = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(buffer, "PNG")
    bomb, buffer = buffer.getvalue(), io.BytesIO()
    Image.new("RGB", (2000, 10), "red").save(buffer, "PNG")
    return {
        "truncated": whole[: len(whole) // 2],
        "empty_file": b"",
        "not_an_image": b"<!doctype html><title>404</title><p>No such product picture.</p>",
        "corrupt": b"\x89PNG\r\n\x1a\n" + b"\0" * 64,
        "too_many_pixels": bomb,
        "bad_aspect_ratio": buffer.getvalue(),
        "not_found": None,
    }


def write_catalog(address: str, *, num_images: int, label_noise: float, seed: int) -> dict[str, float | int]:
    """Write ``catalog.csv`` and ``images/`` to an address.

    Columns: ``sku`` (product, with leading zeros), ``image``, ``label`` (wrong for a share of ``label_noise``),
    ``true_label``, ``price``. Every product has two pictures; some pictures are exact copies; every kind of damage
    comes twice; one picture has no row.

    Returns:
        What a check must find: ``num_rows, num_broken, num_wrong_labels, num_copies, num_orphans``.
    """
    rng = np.random.default_rng(seed)
    names, kinds = list(PRODUCTS), ["jpg"] * 12 + ["png", "webp", "cmyk.jpg", "gif"]
    rows, files = [], {}
    for number in range(num_images):
        product = number // 2
        true = names[product % len(names)]
        path = f"images/{product:05d}_{number % 2}.{kinds[rng.integers(len(kinds))]}"
        files[path] = encode(render(PRODUCTS[true], rng), path.split(".", 1)[1])
        rows.append(_row(f"{product:05d}", path, true, price=round(float(rng.uniform(3, 900)), 2)))
    wrong = rng.choice(num_images, round(num_images * label_noise), replace=False)
    for index in wrong:
        rows[index]["label"] = str(rng.choice([name for name in names if name != rows[index]["true_label"]]))
    num_copies = max(1, num_images // 100)
    for index in range(num_copies):
        source = rows[2 * index]
        path = f"images/copy_{index}.{str(source['image']).split('.', 1)[1]}"
        files[path] = files[str(source["image"])]
        rows.append({**source, "sku": f"9{index:04d}", "image": path})
    num_broken = _add_broken(rows, files, rng)
    files["images/orphan.jpg"] = encode(render(_lamp, rng), "jpg")
    for path, data in files.items():
        storage.write_bytes(storage.join(address, path), data)
    storage.write_bytes(storage.join(address, "catalog.csv"), pd.DataFrame(rows).to_csv(index=False).encode())
    return {
        "num_rows": len(rows),
        "num_broken": num_broken,
        "num_wrong_labels": len(wrong),
        "num_copies": num_copies,
        "num_orphans": 1,
    }


def write_article_set(address: str, *, seed: int, num_train: int = 80, num_test: int = 20) -> None:
    """Write two classes in the layout of the article that this project began with.

    ``train.csv`` and ``test.csv`` have the columns ``name`` and ``category``; pictures are in ``images/train`` and
    ``images/test``.
    """
    rng = np.random.default_rng(seed)
    for split, number in (("train", num_train), ("test", num_test)):
        rows = []
        for at in range(number):
            category = ARTICLE[at % len(ARTICLE)]
            rows.append({"name": f"{split}_{at:05d}.jpg", "category": category})
            picture = encode(render(PRODUCTS[category], rng), "jpg")
            storage.write_bytes(storage.join(address, f"images/{split}/{rows[-1]['name']}"), picture)
        storage.write_bytes(storage.join(address, f"{split}.csv"), pd.DataFrame(rows).to_csv(index=False).encode())


def _row(sku: str, image: str, label: str, *, price: float) -> dict[str, object]:
    return {"sku": sku, "image": image, "label": label, "true_label": label, "price": price}


def _add_broken(rows: list[dict[str, object]], files: dict[str, bytes], rng: np.random.Generator) -> int:
    """Add every kind of damage twice; returns how many rows that makes."""
    names, added = list(PRODUCTS), 0
    for turn in range(2):
        for code, data in broken_files(rng).items():
            path = f"images/broken_{code}_{turn}.{'png' if code in ('too_many_pixels', 'bad_aspect_ratio') else 'jpg'}"
            if data is not None:
                files[path] = data
            rows.append(_row(f"8{added:04d}", path, names[added % len(names)], price=1.0))
            added += 1
    return added


def write_pretraining_set(address: str, *, num_images: int, seed: int) -> None:
    """Write class folders of the :data:`PRETRAIN` categories to an address."""
    names = list(PRETRAIN)

    def write(number: int, rng: np.random.Generator) -> None:
        name = names[number % len(names)]
        picture = encode(render(PRETRAIN[name], rng), "jpg")
        storage.write_bytes(storage.join(address, f"{name}/{number:05d}.jpg"), picture)

    with ThreadPoolExecutor(os.cpu_count()) as threads:  # Pillow leaves the interpreter to others while it draws
        list(threads.map(write, range(num_images), np.random.default_rng(seed).spawn(num_images)))
