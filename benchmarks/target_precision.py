"""How often score.target_precision keeps its promise, where the truth is known.

    python -m benchmarks.target_precision [--seeds 200]

Confidences of every class are drawn from a beta distribution; a row is right as often as its confidence to the power
of `overconfidence` says (1: calibrated). Thresholds are fitted on held-back products of every class, and the true
precision of what they accept of 2,000 fresh rows per class is compared with the target. `0.2.0` is its rule: the lowest
confidence at which an estimate, shrunk towards the confidence by ten rows, reaches the target.
"""

import argparse
from collections.abc import Callable

import numpy as np

from benchmarks.shop import table
from retailray.models.thresholds import NEVER, Validation, fit_promise

TARGET = 0.95
SHAPES = {"hard (beta 6, 1.2)": (6, 1.2), "easy (beta 20, 1)": (20, 1)}
Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]


def now(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Thresholds ``(C,)`` by this version, for confidences and outcomes ``(C, N)``."""
    names = np.array([f"class {number}" for number in range(len(scores))], object)
    predicted = np.repeat(names, scores.shape[1])
    labels = np.where(right.ravel(), predicted, "other").astype(object)
    products = np.arange(scores.size).astype(str).astype(object)
    roles = np.full(scores.size, "thresholds", object)
    promise = fit_promise(Validation(labels, predicted, scores.ravel(), products, roles), target_precision=TARGET)
    return np.array([promise.classes[name].threshold for name in names])


def before(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The same by 0.2.0."""
    thresholds = []
    for confidence, correct in zip(scores, right, strict=True):
        order = np.argsort(-confidence)
        count = np.arange(1, len(order) + 1)
        hits, believed = np.cumsum(correct[order]), np.cumsum(confidence[order])
        reached = np.flatnonzero((hits + 10 * believed / count) / (count + 10) >= TARGET)
        thresholds.append(confidence[order][reached[-1]] if len(reached) else NEVER)
    return np.array(thresholds)


def measure(rule: Rule, shape: tuple[float, float], over: float, classes: int, rows: int, seeds: int) -> list[float]:
    """Share of seeds below the target, mean true precision of what is accepted, shares of rows and classes accepted."""
    precisions, accepted, promised = [], [], []
    for seed in range(seeds):
        generator, fresh = np.random.default_rng(seed), np.random.default_rng(10**6 + seed)
        scores = generator.beta(*shape, (classes, rows))
        thresholds = rule(scores, generator.random(scores.shape) < scores**over)
        unseen = fresh.beta(*shape, (classes, 2000))
        taken = unseen >= thresholds[:, None]
        accepted.append(taken.mean())
        promised.append((thresholds < NEVER).mean())
        if taken.any():
            precisions.append((unseen[taken] ** over).mean())
    below = sum(precision < TARGET for precision in precisions) / seeds
    mean = float(np.mean(precisions)) if precisions else float("nan")
    return [below, mean, float(np.mean(accepted)), float(np.mean(promised))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--classes", type=int, default=20)
    arguments = parser.parse_args()
    rows = []
    for name, shape in SHAPES.items():
        for over in (1.0, 1.5):
            for count in (10, 30, 100, 300):
                for version, rule in (("0.2.0", before), ("now", now)):
                    below, precision, accepted, promised = measure(
                        rule, shape, over, arguments.classes, count, arguments.seeds
                    )
                    rows.append(
                        {
                            "confidences": name,
                            "overconfidence": over,
                            "rows per class": count,
                            "version": version,
                            "seeds below 0.95": below,
                            "true precision": precision,
                            "rows accepted": accepted,
                            "classes that accept": promised,
                        }
                    )
    print(table(rows))


if __name__ == "__main__":
    main()
