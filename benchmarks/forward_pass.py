"""Images a second of the predictor alone: rows of a forward pass, one predictor and two at once, and compiled or not.

Random weights and pictures; the best of three rounds. `python -m benchmarks.forward_pass --archs mobilenet_v2 resnet18`
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.shop import table as markdown
from retailray.execution.process import prepare_process
from retailray.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from retailray.models.bundle import BundleMeta, EvalTransform, load_bundle, save_bundle
from retailray.models.compiling import compile_if_it_pays
from retailray.models.predictor import Predictor
from retailray.models.weights import pretrained_model

ROWS = (8, 16, 32, 64, 128)
IMAGES = 256  # of a round


def make_bundle(arch: str, folder: Path) -> str:
    labels = [f"label {number}" for number in range(81)]
    network, *_ = pretrained_model(arch, "none", len(labels), seed=0, image_size=224)
    transform = EvalTransform(resize_size=256, crop_size=224, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    meta = BundleMeta(name="untrained", version="1", arch=arch, labels=labels, transform=transform)
    save_bundle(str(folder / arch), meta, network.state_dict())
    return str(folder / arch)


def images_per_s(predictor: Predictor, rows: int, *, at_once: int) -> float:
    images = np.random.default_rng(0).integers(0, 255, (rows, 3, 224, 224), np.uint8)
    batches = max(2, IMAGES // rows // at_once)
    predictor.outputs(images)
    found = []
    for _ in range(3):
        threads = [
            threading.Thread(target=lambda: [predictor.outputs(images) for _ in range(batches)]) for _ in range(at_once)
        ]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found.append(at_once * batches * rows / (time.perf_counter() - started))
    return max(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", nargs="+", default=["mobilenet_v2", "resnet18", "resnet50"])
    arguments = parser.parse_args()
    table = []
    with tempfile.TemporaryDirectory() as folder:
        for arch in arguments.archs:
            bundle = make_bundle(arch, Path(folder))
            for threads, at_once in ((1, 1), (1, 2), (2, 1)):
                prepare_process(threads)
                predictor = Predictor(load_bundle(bundle))
                predictor.rows_at_once = 0
                row: dict[str, object] = {"arch": arch, "format": predictor.precision, "threads": threads}
                row |= {"predictors": at_once}
                row |= {f"{rows} rows": images_per_s(predictor, rows, at_once=at_once) for rows in ROWS}
                best = 16 if threads == 1 else 64
                compile_if_it_pays(predictor, "on", num_images=0, batch_size=best)
                row["compiled (16 or 64 rows)"] = images_per_s(predictor, best, at_once=at_once)
                table.append(row)
                torch.compiler.reset()
    print(markdown(table))


if __name__ == "__main__":
    main()
