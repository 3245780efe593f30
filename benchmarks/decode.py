"""Decoding, a core: our reduced-scale decode against full-size decoding and against simplejpeg.

    python -m benchmarks.decode [--images 200] [--repeats 5]

Real photos of RETAILRAY_REAL_DATA where it is set, and rendered 1,200 px pictures. Every contender turns the same
bytes into uint8 (3, 224, 224), except the float recipe, which ends in float32 as published recipes do. One thread;
interleaved repetitions, medians. Ratios are to ours.
"""

import argparse
import io
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torchvision.transforms import v2

from retailray.data.images import Limits, decode
from retailray.data.scaling import Scaling
from retailray.data.synthetic import PRODUCTS, encode, render

RESIZE, CROP = 256, 224
LIMITS = Limits(max_pixels=50_000_000, max_aspect_ratio=20)
FLOAT_RECIPE = v2.Compose(
    [
        v2.ToImage(),
        v2.Resize(RESIZE, antialias=True),
        v2.CenterCrop(CROP),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)


def ours(data: bytes) -> object:
    return decode(data, Scaling(RESIZE, CROP), LIMITS)


def pillow_full_size(data: bytes) -> object:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return _cut(image)


def pillow_and_float_transforms(data: bytes) -> object:
    return FLOAT_RECIPE(Image.open(io.BytesIO(data)).convert("RGB"))


def simplejpeg_reduced(data: bytes) -> object:
    return _cut(Image.fromarray(simplejpeg.decode_jpeg(data, min_height=RESIZE, min_width=RESIZE)))


def _cut(image: Image.Image) -> np.ndarray:
    side = min(image.size) * CROP / RESIZE
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    square = image.resize((CROP, CROP), Image.Resampling.BILINEAR, box=box)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


CONTENDERS: dict[str, Callable[[bytes], object]] = {
    "ours (Pillow, reduced scale)": ours,
    "Pillow, full size": pillow_full_size,
    "Pillow, full size, float transforms": pillow_and_float_transforms,
    "simplejpeg, reduced scale": simplejpeg_reduced,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    names = list(PRODUCTS.values())
    rendered = [render(names[i % len(names)], rng).resize((1200, 1000)) for i in range(20)]
    corpora = {"rendered, 1200 x 1000 px": [encode(rendered[i % 20], "jpg") for i in range(options.images)]}
    if "RETAILRAY_REAL_DATA" in os.environ:
        photos = sorted(Path(os.environ["RETAILRAY_REAL_DATA"]).glob("data/grocery/images/test/*.jpg"))
        corpora["shop photos, 348 px"] = [path.read_bytes() for path in photos[: options.images]]
    for corpus, files in corpora.items():
        times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
        for _ in range(options.repeats):
            for name, contender in CONTENDERS.items():
                started = time.perf_counter()
                for data in files:
                    contender(data)
                times[name].append(time.perf_counter() - started)
        rates = {name: len(files) / statistics.median(seconds) for name, seconds in times.items()}
        first = rates[next(iter(CONTENDERS))]
        print(f"\n{corpus}\n{'contender':<38}{'images/s':>10}{'ours / it':>11}")
        for name, rate in rates.items():
            print(f"{name:<38}{rate:>10.0f}{first / rate:>11.2f}")


if __name__ == "__main__":
    main()
